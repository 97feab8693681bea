"""Run torchrun, but end with the run's own error message and exit status instead of 40 lines of ChildFailedError.

python -m reward_model.training.launch --nproc_per_node 8 train.py …          (torchrun arguments, then a script)
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit quietly on Ctrl-C while slow imports run

import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.utils.cpp_extension import get_default_build_root

from reward_model import STOPPED

# Seconds. No extension that DeepSpeed compiles takes longer.
BUILD_SECONDS = 600


def usable_gpus() -> int:
    """Return the number of GPUs that torch can use. Exit if nvidia-smi lists GPUs but torch can use none of them."""
    if torch.accelerator.is_available():
        return torch.accelerator.device_count()
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    if listed := sum(line.startswith("GPU ") for line in shown.splitlines()):
        sys.exit(
            f"error: nvidia-smi lists {listed} GPU(s), but torch {torch.__version__} can use none of them. Install the "
            "CUDA build of torch (make setup REQUIREMENTS=requirements.txt) or a newer driver, or correct "
            "CUDA_VISIBLE_DEVICES (-1 trains on the CPU)."
        )
    return 0


def remove_stale_build_locks() -> None:
    """Delete locks that killed runs left in torch's build directory; DeepSpeed would wait for them forever.

    A lock that no process on this node holds may belong to another node, so it is kept for BUILD_SECONDS.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.rglob("lock"):
        with suppress(FileNotFoundError):  # released or deleted in the meantime
            rest = lock.stat().st_mtime + BUILD_SECONDS - time.time()
            if rest > 0 and not is_open(lock):
                print(f"Waiting up to {rest:.0f} s for {lock}. Delete it if no other node is compiling.", flush=True)
            while not is_open(lock) and lock.stat().st_mtime + BUILD_SECONDS > time.time():
                time.sleep(1)
            if not is_open(lock):
                lock.unlink()


def is_open(file: Path) -> bool:
    """Return whether any of this user's processes on this node has the file open."""
    for process in psutil.process_iter():
        try:
            if any(open_file.path == str(file) for open_file in process.open_files()):
                return True
        except psutil.Error:  # the process belongs to another user, or has ended
            continue
    return False


if __name__ == "__main__":
    remove_stale_build_locks()
    os.environ.setdefault("PET_NPROC_PER_NODE", str(usable_gpus() or 1))  # torchrun's default for --nproc_per_node
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.ERROR)  # in this process only; the ranks do their own logging
    try:
        run.main()
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.message and not first.message.startswith("Signal"):
            print(first.message, file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)
    except SignalException as stopped:
        print(f"Stopped by {stopped.sigval.name}. Run the same command to resume.", file=sys.stderr)
        sys.exit(STOPPED)
