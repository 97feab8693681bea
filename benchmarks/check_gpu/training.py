"""The group that runs train.py, packed and padded, and train.sh with ZeRO-3 on one rank."""

import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import train
from benchmarks.check_gpu.models import save_model
from benchmarks.check_gpu.packages import DEEPSPEED, ROOT, missing
from benchmarks.check_gpu.table import Row

DATA = ROOT / "data/demo/train.jsonl"
COMMON = "--logging_steps 1 --report_to none --save_strategy no --eval_strategy no --eval_size 2"


def training(sizes: dict[str, int], dry_run: bool) -> Iterator[Row]:
    """Run both scripts on a random model of `sizes` and the demo pairs."""
    device = "cpu" if dry_run else "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        model = save_model(directory / "model", sizes, device)
        yield packed_and_padded(model, directory, steps=2 if dry_run else 5)
        gc.collect()
        if not dry_run:
            torch.cuda.empty_cache()  # free memory for the processes of train.sh
        if names := missing(DEEPSPEED):
            yield Row("train.sh", f"NOT RUN: {', '.join(names)} not installed")
            return
        # Seconds before a run is stopped. On a CPU, DeepSpeed compiles an extension at its first start.
        limit = 900 if dry_run else 180
        small = "--per_device_train_batch_size 2 --max_length 256" if dry_run else ""
        yield run_train_sh("full", model, directory / "full", small, limit)
        yield run_train_sh("LoRA", model, directory / "lora", f"{small} --use_peft --lora_r 16 --lora_alpha 16", limit)


def packed_and_padded(model: Path, directory: Path, steps: int) -> Row:
    """Compare the losses of train.py with and without --shared_prefix."""
    losses, speeds = [], []
    for shared_prefix in ("True", "False"):
        paths = ["--model_name_or_path", str(model), "--dataset_name", str(DATA)]
        paths += ["--output_dir", str(directory / f"shared-{shared_prefix}")]
        trainer = train.main([*paths, *COMMON.split(), "--max_steps", str(steps), "--shared_prefix", shared_prefix])
        logs = [log for log in trainer.state.log_history if "loss" in log]
        losses.append([log["loss"] for log in logs])
        speeds.append(logs[-1]["pairs_per_second"])
    worst = max(abs(packed - padded) for packed, padded in zip(*losses, strict=True))
    text = f"losses differ by at most {worst:.1e}; last step {speeds[0]:.1f} and {speeds[1]:.1f} pairs/s"
    return Row(f"train.py, {steps} steps, packed and padded", text, worst < 2e-2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_train_sh(name: str, model: Path, output_dir: Path, arguments: str, limit: int) -> Row:
    """Run two steps of train.sh, with the Python that runs this script."""
    python = os.path.dirname(sys.executable)
    environment = {"MODEL": str(model), "DATASET": str(DATA), "OUTPUT_DIR": str(output_dir)}
    environment |= {"NPROC_PER_NODE": "1", "MASTER_PORT": str(free_port()), "PATH": f"{python}:{os.environ['PATH']}"}
    environment |= {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}  # after `terminate` below
    process = subprocess.Popen(
        ["sh", str(ROOT / "train.sh"), *COMMON.split(), "--max_steps", "2", *arguments.split()],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun stops its workers, which a kill would leave behind
        output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.strip()]
    summary = next((line for line in lines if " pairs in " in line), "")
    if process.returncode:
        print(*lines[-40:], sep="\n", file=sys.stderr)
        summary = f"exit status {process.returncode}: {' '.join(lines[-3:])}"
    return Row(f"train.sh, ZeRO-3 on one rank, {name}", summary, process.returncode == 0 and bool(summary))
