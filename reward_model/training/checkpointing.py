"""Write checkpoints atomically, find the newest complete one, and shut down gracefully.

A checkpoint is complete if it contains complete.json, which is written last.
"""

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
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from reward_model import InputError
from reward_model.model.reference_scores import write_reference_scores

COMPLETE = "complete.json"  # contains the size in bytes of every other file in the checkpoint


class CheckpointWriter(TrainerCallback):
    """Complete each checkpoint that Trainer writes, then delete older ones.

    Trainer is not given `save_total_limit`, because it would delete older checkpoints before the new one is complete.
    """

    def __init__(self, save_total_limit: int | None) -> None:
        self.save_total_limit = save_total_limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark an existing checkpoint for this step as incomplete, because it may be about to be overwritten."""
        if args.should_save:
            Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).unlink(missing_ok=True)

    def on_save(self, args: Any, state: Any, control: Any, model: Any, processing_class: Any, **kwargs: Any) -> None:
        """Add reference scores, mark the checkpoint as complete, and delete older ones. Runs on all ranks."""
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        write_reference_scores(model, processing_class, checkpoint)
        PartialState().wait_for_everyone()
        if args.should_save:
            mark_complete(checkpoint)
            rotate_checkpoints(args.output_dir, self.save_total_limit, state.best_model_checkpoint)


def mark_complete(checkpoint: Path) -> None:
    """Write complete.json to a checkpoint atomically."""
    files = [file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(COMPLETE)]
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in sorted(files)}
    new = checkpoint / f"{COMPLETE}.new"
    new.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    os.replace(new, checkpoint / COMPLETE)


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be resumed from, or None if it is complete."""
    if not (checkpoint / COMPLETE).is_file():
        return "it was not saved completely"
    sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
    return None


def newest_complete(output_dir: Path, verbose: bool = False) -> Path | None:
    """Return the newest complete checkpoint; with `verbose`, print the incomplete ones that are skipped."""
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return checkpoint
        if verbose:
            print(f"Skipped {checkpoint}: {problem}.")
    return None


def find_checkpoint(resume: str | bool | None, output_dir: Path, verbose: bool) -> str | None:
    """Return the checkpoint that --resume_from_checkpoint selects.

    `auto` selects the newest complete checkpoint, if there is one; True requires one; anything else is a path.
    """
    word = str(resume or False).lower()
    if word == "false":
        return None
    if word not in ("auto", "true"):
        if not Path(str(resume), "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {resume} has no trainer_state.json. Pass a checkpoint.")
        return str(resume)
    newest = newest_complete(output_dir, verbose)
    if word == "true" and newest is None:
        raise InputError(
            f"--resume_from_checkpoint True: {output_dir} contains no complete checkpoint. Pass auto to start a "
            "new run in this case, or the path of a checkpoint."
        )
    if newest and verbose:
        print(f"Resuming from {newest}.")
    return str(newest) if newest else None


def exit_with_message(message: str, status: int) -> NoReturn:
    """Exit with a one-line message. Under torchrun, only the message of the first rank to fail is printed."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(message, file=sys.stderr)
    sys.exit(status)


@contextmanager
def report_disk_full(output_dir: Path) -> Iterator[None]:
    """Turn disk-full errors into an InputError, and delete the checkpoint that was being written.

    Every library raises its own exception when the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
        if "No space left" not in str(error) and shutil.disk_usage(existing).free > 2**20:
            raise
        last = newest_complete(output_dir)
        incomplete = [path for path in output_dir.glob("checkpoint-*") if not (path / COMPLETE).exists()]
        if incomplete:
            shutil.rmtree(max(incomplete, key=os.path.getmtime), ignore_errors=True)
        resume = f" {last} is complete: pass --resume_from_checkpoint auto to resume." if last else ""
        raise InputError(f"{output_dir} could not be written: the disk is full. Free some space.{resume}") from error


class GracefulShutdown(TrainerCallback):
    """After any rank receives SIGTERM or SIGINT, save and stop on all ranks at the end of the step.

    With Transformers' just-in-time checkpointing, each rank decides for itself, so ranks could stop at different steps.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signalled = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the signal handlers."""
        self._handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, frame: Any) -> None:
        self._signalled = 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if any rank has received a signal and steps remain. Runs on all ranks."""
        signalled = torch.tensor(self._signalled, device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(signalled, torch.distributed.ReduceOp.MAX)
        if signalled and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
