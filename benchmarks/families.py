"""Train, pack and serve a tiny model of every decoder family, and print a table.

    make families                                              # all; one server start each
    .venv/bin/python -m benchmarks.families qwen3_5_text llama --output save/families.jsonl

Each family is trained for two steps with train.py, served by infer_vllm.sh, and checked against the reference scores
that training saved. Families already in the output file are skipped, so an interrupted run can be resumed.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "model")]  # the tiny configs of the tests

from architectures import ARCHITECTURES, PADDED  # noqa: E402
from helpers import TORCHVISION, tiny_config, write_files  # noqa: E402

TOKENIZER = "models/SmolLM2-135M-Instruct"
ARGUMENTS = (
    "--max_steps 2 --per_device_train_batch_size 4 --learning_rate 1e-3 --eval_size 0 --save_strategy no "
    "--report_to none --max_length 512 --dtype float32"
)
SECONDS = 400  # that a server may take to start


# Sizes as small as vLLM's CPU kernels accept, where a tiny config has them.
SIZES = {
    "head_dim": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "mamba_headdim": 32,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "word_embed_proj_dim": 128, "attention_hidden_size": 256, "attention_head_dim": 64,
}  # fmt: skip
# Settings of released checkpoints.
RELEASED = {"deepseek_v3": {"topk_method": "noaux_tc"}, "gpt_bigcode": {"num_key_value_heads": 1}}


def served_config(name: str, changes: dict[str, Any]) -> Any:
    """Return a tiny config that vLLM can serve on a CPU."""
    common = {"hidden_size": 128, "vocab_size": 49152, "initializer_range": 0.1, "pad_token_id": 2}

    def enlarge(text: dict[str, Any]) -> dict[str, Any]:
        return text | common | {key: SIZES[key] for key in SIZES.keys() & text.keys()}

    if "text_config" in changes:  # a model with a vision tower
        changes = changes | {"text_config": enlarge(changes["text_config"])}
    else:
        changes = enlarge(changes)
    return tiny_config(name.split()[0], **changes | RELEASED.get(name, {}))


def train(config: Any, directory: Path) -> dict[str, Any]:
    """Train a model with random weights, and return whether it trained on packed rows, or the error."""
    import train as train_script

    torch.manual_seed(0)
    base = directory / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(base)
    paths = ["--model_name_or_path", base, "--dataset_name", "data/demo/train.jsonl", "--output_dir", directory / "rm"]
    try:
        trainer = train_script.main([*map(str, paths), *ARGUMENTS.split()])
    except Exception as error:
        return {"trained": False, "error": " ".join(str(error).split())[:200]}
    return {"trained": True, "packed": trainer.data_collator.shared_prefix}


def serve(directory: Path, log: Path) -> dict[str, Any]:
    """Serve a trained model, and return the largest difference from its reference scores, or the error.

    If torchvision is missing, as with requirements-cpu.txt, empty modules replace it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["sh", "infer_vllm.sh", str(directory), "--max-model-len", "1024", "--port", str(port)]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    if not find_spec("torchvision"):
        write_files(log.parent / "stub", TORCHVISION)
        env["PYTHONPATH"] = str(log.parent / "stub")
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=env, start_new_session=True)
    try:
        for _ in range(SECONDS):
            text = log.read_text(errors="replace")
            if process.poll() is not None or "\nReady. Try it: " in text:
                break
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    text = log.read_text(errors="replace")
    if found := re.search(r"scores match the reference scores of .* within (\S+?)[;.]?$", text, re.M):
        return {"served": True, "largest_difference": float(found[1])}
    errors = re.findall(r"(?:^error: |warning: scores differ|\w*Error: ).*", text, re.M)
    return {"served": False, "error": " ".join((errors or ["the server did not start in time"])[0].split())[:200]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row for each family."""
    lines = ["| family | trains | packed | served by vLLM | largest difference |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["family"]):
        marks = ["yes" if row.get(key) else "no" for key in ("trained", "packed", "served")]
        lines.append(
            f"| {row['family']} | {' | '.join(marks)} | {row.get('largest_difference', row.get('error', ''))} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("save/families.jsonl"))
    args = parser.parse_args()
    configs = {**ARCHITECTURES, **{name: changes for name, (changes, _) in PADDED.items()}}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    done = {row["family"] for row in rows}
    for name in tqdm([name for name in args.families or configs if name not in done], "Families"):
        row: dict[str, Any] = {"family": name}
        with tempfile.TemporaryDirectory() as scratch:
            try:
                row |= train(served_config(name, configs[name]), Path(scratch))
                if row["trained"]:
                    row |= serve(Path(scratch) / "rm", Path(scratch) / "log")
            except Exception as error:  # a config that does not work with these sizes
                row |= {"trained": row.get("trained", False), "error": " ".join(str(error).split())[:200]}
        rows.append(row)
        with open(args.output, "a") as output:
            output.write(json.dumps(row) + "\n")
    print(table(rows))
    print(f"transformers {version('transformers')}, torch {version('torch')}, vllm 0.32.0")


if __name__ == "__main__":
    main()
