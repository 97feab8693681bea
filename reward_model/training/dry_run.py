"""--dry_run: run two steps on the longest pairs, and report their memory use and an estimate of the total run time."""

import math
import resource
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from reward_model.training.arguments import TrainingArguments

# Two steps, because the first also allocates the optimizer states. Nothing is saved, evaluated or reported.
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
    """Return the pairs of the largest possible step, and the length of the run measured in such steps."""
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(dataset) / pairs)
    positions = np.array(dataset["positions"][:])
    longest = np.argsort(positions)[-pairs:]
    return dataset.select(longest), steps * float(positions.mean() / positions[longest].mean())


def dry_run_line(trainer: Trainer, steps: float) -> str:
    """Return a line with the memory use and time of the second step, and an estimate for `steps` such steps."""
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
        f"Dry run: the longest step takes {seconds:.2f} s and {memory} on this device. Estimated total run time: "
        f"{duration}, not counting evaluations and checkpoints. Nothing was saved."
    )
