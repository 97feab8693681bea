"""Helpers of the tests: sample data, running scripts, tiny configs, and a real vLLM server."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
CHATML = (ROOT / "data/demo/chatml.jinja").read_text()
# Renders reasoning and tool calls before the content, as models do: the id, the arguments one by one and as JSON, and
# whether a result belongs to the last call. Because of the loop over parts, vLLM passes content as a list.
PARTS = """}}{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>
{% endif %}{% for call in message.tool_calls or [] %}<call {{ call.id }}>{{ call.function.name }}
{% for name, value in call.function.arguments | items %}{{ name }}: {{ value | tojson }}
{% endfor %}{{ call.function.arguments | tojson }}</call>
{% set last.id = call.id %}{% endfor %}{% if message.role == 'tool' and message.tool_call_id == last.id %}result of it
{% endif %}{% if message.content is not string %}{% for part in message['content'] %}a {{ part.type }}: {{ part.text }}
{% endfor %}{% endif %}{{ """
WITH_TOOLS = (
    "{% set last = namespace(id='none') %}{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    + CHATML.replace("+ message['content']", PARTS + "(message['content'] or '')")
)
WITH_THINKING = "{% if enable_thinking is undefined or enable_thinking %}Think.\n{% endif %}" + WITH_TOOLS
ENDS_WITH_EOS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def run(*command: str | Path, cwd: Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command as a user would, and show its output if it fails."""
    env = {**os.environ, **environment}
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True)
    if check and result.returncode:
        pytest.fail(f"{command} exited with {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


def train(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return run(sys.executable, ROOT / "train.py", *map(str, arguments), **options)


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_files(directory: Path, files: dict[str, Any]) -> None:
    """Write files, given by their path in `directory`: a list as JSON lines, anything else as text or bytes."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            jsonl(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


def demo_pairs() -> list[dict]:
    return [json.loads(line) for line in (ROOT / "data/demo/train.jsonl").read_text(encoding="utf-8").splitlines()]


TURNS = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


def talk(*turns: str) -> list[dict]:
    """Return the messages of turns such as "u: Hello?" and "a: Hi."."""
    return [{"role": TURNS[turn[0]], "content": turn[3:]} for turn in turns]


def pair(shared: list[str], chosen: str, rejected: str, **labels: object) -> dict:
    return {"chosen": talk(*shared, f"a: {chosen}"), "rejected": talk(*shared, f"a: {rejected}"), **labels}


def conversation(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# Layers of Qwen3.5 and Qwen3-Next in a tiny config.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip


def tiny_config(model_type: str, **changes: object):
    """Return a config of any model type with two small layers."""
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 640,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


# vLLM's Qwen3.5 imports the vision half of the family, and that torchvision, whose wheels do not match the CPU torch.
# No text model calls it, so empty modules are enough.
TORCHVISION = {
    "torchvision/__init__.py": "__version__ = '0.28.0'",
    "torchvision/io/__init__.py": "def __getattr__(name): return None",
    "torchvision/transforms/__init__.py": (
        "import enum\nInterpolationMode = enum.Enum('InterpolationMode', 'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX "
        "HAMMING LANCZOS')"
    ),
    "torchvision/transforms/functional.py": "def __getattr__(name): return None",
    "torchvision/transforms/v2/__init__.py": "",
    "torchvision/transforms/v2/functional.py": "def __getattr__(name): return None",
}


HELD_OUT = demo_pairs()[30:47]  # 17, which no batch size divides


def margins(model: Path):
    """Return the margins of HELD_OUT, computed with Transformers."""
    import numpy as np

    from reward_model.scoring.local import load_reward_model, score

    groups = [[pair["chosen"], pair["rejected"]] for pair in HELD_OUT]
    return np.array([chosen - rejected for chosen, rejected in score(*load_reward_model(str(model)), groups)])


def check_figures(output_dir: Path, prefix: str = "eval") -> None:
    """Check that the logged figures of the held-out pairs are those that evaluate.py computes for the saved model."""
    from reward_model.evaluation.metrics import log_loss, right

    logged = json.loads((output_dir / "eval_results.json").read_text())
    expected = margins(output_dir)
    assert logged[f"{prefix}_accuracy"] == pytest.approx(right(expected).mean(), abs=1e-9)
    assert logged[f"{prefix}_margin"] == pytest.approx(expected.mean(), abs=1e-4)
    assert logged[f"{prefix}_loss"] == pytest.approx(log_loss(expected), abs=1e-4)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


os.environ["MASTER_PORT"] = str(free_port())  # for train.sh; each test process has its own
TWO_RANKS = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", os.environ["MASTER_PORT"]]


def is_gone(group: int) -> bool:
    """Return whether a process group ends within ten seconds. vLLM's child processes end a little later than vLLM."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


class Server:
    """A real vLLM server, started by infer_vllm.sh on a free port."""

    def __init__(self, model: Path, log: Path, port: int = 0, flags: tuple[str, ...] = (), **environment: str) -> None:
        port = port or free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = ["sh", str(ROOT / "infer_vllm.sh"), str(model), "--max-model-len", "1024", f"--port={port}", *flags]
        # An unreachable proxy: neither the script nor the client may use it.
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9") | {"no_proxy": ""}
        env = {**os.environ, **proxies, "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
        with open(log, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)

    def wait(self) -> None:
        for _ in range(300):
            if self.process.poll() is not None:
                pytest.fail(f"The server stopped:\n{self.log.read_text()[-6000:]}")
            if "\nReady. Try it: " in self.log.read_text():
                return
            time.sleep(1)
        pytest.fail(f"The server did not answer in 300 s:\n{self.log.read_text()[-6000:]}")


PAIRS = demo_pairs()[:24]
ARGUMENTS = "--max_steps 3 --learning_rate 1e-3 --per_device_train_batch_size 4 --save_strategy no --report_to none"
CHUNKED = "--enable-prefix-caching --enable-chunked-prefill --max-num-batched-tokens 128 --max-num-seqs 16"
VARIANTS = {
    "usual template": {},
    "pad is eos, template ends with eos": {"template": ENDS_WITH_EOS, "pad_token": "<|im_end|>"},
    "LoRA, merged": {"model_type": "llama", "template": WITH_THINKING},
}


def rewards_in_training(trainer) -> list[float]:
    """Return the rewards of PAIRS from the forward pass of training, chosen and rejected in turns."""
    import torch

    from reward_model.model.tokenization import render, token_ids

    rewards = []
    trainer.model.eval()
    for pair in PAIRS:
        texts = [render(pair[side], trainer.processing_class) for side in ("chosen", "rejected")]
        chosen, rejected = token_ids(texts, trainer.processing_class)
        example = {"chosen_ids": chosen, "rejected_ids": rejected}
        with torch.no_grad():
            batch = trainer.data_collator([example])
            rewards += trainer.model(**batch, use_cache=False).logits.flatten().tolist()
    return rewards
