"""--dry_run: two steps of the longest pairs, as the run would make them, tell its memory and its time."""

import math
import resource

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from reward_model.training.arguments import TrainingArguments


def only_longest(args: TrainingArguments, dataset: Dataset) -> tuple[Dataset, float]:
    """The pairs of one step with the most token positions, for two steps; and the steps of the whole run, each counted
    by its share of the positions that such a step has. Nothing is saved, evaluated or reported."""
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(dataset) / pairs)
    positions = np.array(dataset["positions"][:])
    longest = np.argsort(positions)[-pairs:]
    args.max_steps, args.logging_steps, args.report_to = 2, 1, []
    args.save_strategy = args.eval_strategy = "no"
    args.load_best_model_at_end, args.resume_from_checkpoint = False, None
    return dataset.select(longest), steps * float(positions.mean() / positions[longest].mean())


def whole_run_line(trainer: Trainer, steps: float) -> str:
    """What the second step took (the first has Adam's states to make), and what `steps` like it will take."""
    *_, log = (log for log in trainer.state.log_history if "pairs_per_second" in log)
    seconds = len(trainer.train_dataset) / log["pairs_per_second"]
    if torch.cuda.is_available():
        used, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
        memory = f"{used:.1f} GB (reserved: {reserved:.1f}) of {torch.cuda.mem_get_info()[1] / 1e9:.1f} GB"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of main memory"
    hours = steps * seconds / 3600
    span = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.1f} minutes"
    return (
        f"Dry run: the longest step takes {seconds:.2f} s and {memory} on this device; the whole run about "
        f"{span}, without evaluations and checkpoints. Nothing was saved."
    )
