"""--dry_run: run two steps of the longest pairs, and report memory and the time of the complete run."""

import math
import resource
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from reward_model.training.arguments import TrainingArguments

# Two steps, of which the first also allocates the optimizer's states. Nothing is saved, evaluated or reported.
DRY_RUN_ARGUMENTS: dict[str, Any] = {
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "resume_from_checkpoint": None,
}


def select_longest(args: TrainingArguments, dataset: Dataset) -> tuple[Dataset, float]:
    """Return the pairs of the largest possible step, and the length of the complete run in such steps."""
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(dataset) / pairs)
    positions = np.array(dataset["positions"][:])
    longest = np.argsort(positions)[-pairs:]
    return dataset.select(longest), steps * float(positions.mean() / positions[longest].mean())


def dry_run_line(trainer: Trainer, steps: float) -> str:
    """Return one line with the memory and time of the second step, and the time of `steps` steps like it."""
    *_, log = (log for log in trainer.state.log_history if "pairs_per_second" in log)
    seconds = len(trainer.train_dataset) / log["pairs_per_second"]
    if torch.cuda.is_available():
        used, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
        memory = f"{used:.1f} GB (reserved: {reserved:.1f}) of {torch.cuda.mem_get_info()[1] / 1e9:.1f} GB"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of main memory"
    hours = steps * seconds / 3600
    duration = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.1f} minutes"
    return (
        f"Dry run: the longest step takes {seconds:.2f} s and {memory} on this device. The complete run takes about "
        f"{duration}, not counting evaluations and checkpoints. Nothing was saved."
    )
