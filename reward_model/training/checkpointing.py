"""Checkpoints that are complete or do not count, and a run that saves when it is told to stop."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from reward_model import InputError

COMPLETE = "complete.json"  # written last: every other file of the checkpoint with its bytes
STOPPED = 75  # exit status of a run that saved and stopped (EX_TEMPFAIL: the same command goes on)


def mark_complete(checkpoint: Path) -> None:
    """Write down that all files of a checkpoint are there; in one step, so that half a mark cannot be."""
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in _files(checkpoint)}
    new = checkpoint / f"{COMPLETE}.new"
    new.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    os.replace(new, checkpoint / COMPLETE)


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, None if it can."""
    if not (checkpoint / COMPLETE).is_file():
        return "it was not saved to its end"
    sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
    return None


def newest_complete(output_dir: Path, tell: bool) -> Path | None:
    """The checkpoint with the most steps that is whole; with `tell`, those that are skipped are printed."""
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        missing = what_is_missing(checkpoint)
        if missing is None:
            return checkpoint
        if tell:
            print(f"Skipped {checkpoint}: {missing}.")
    return None


def resume_from(asked: str | bool | None, output_dir: Path, tell: bool) -> str | None:
    """The checkpoint that --resume_from_checkpoint means: `auto` takes the newest whole one, if there is one, True
    wants one, anything else is a path."""
    word = str(asked or False).lower()
    if word not in ("auto", "true", "false"):
        if not Path(str(asked), "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {asked}: no checkpoint of train.py there (trainer_state.json).")
        return str(asked)
    newest = newest_complete(output_dir, tell) if word != "false" else None
    if word == "true" and newest is None:
        raise InputError(f"--resume_from_checkpoint: no whole checkpoint in {output_dir}; name one by its path.")
    if newest and tell:
        print(f"Going on from {newest}.")
    return str(newest) if newest else None


def stop(said: str, status: int) -> NoReturn:
    """End the program with a sentence; a rank leaves it to torchrun, which has the first one's only."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": said, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(said, file=sys.stderr)
    sys.exit(status)


@contextmanager
def full_disk_told(checkpoint: Path) -> Iterator[None]:
    """What is half written is taken away, and one sentence says so; each library has its own error for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if "No space left" not in str(error) and shutil.disk_usage(checkpoint.parent).free > 2**20:
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        last = newest_complete(checkpoint.parent, tell=False)
        raise InputError(
            f"{checkpoint} could not be saved: the disk is full. "
            + (f"{last} is whole. Make room; the same command with --resume_from_checkpoint auto goes on." * bool(last))
        ) from None


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(COMPLETE))


class StopAndSave(TrainerCallback):
    """After SIGTERM or SIGINT to any rank, every rank saves at the end of the step and stops training.

    Transformers' own just-in-time checkpoint lets each rank decide for itself, and so at different steps.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = torch.tensor(self._asked, device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
