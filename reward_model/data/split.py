"""The held-out split: no prompt stands on both sides."""

import numpy as np

from reward_model import InputError


def held_out(prompts: np.ndarray, eval_size: float, seed: int) -> np.ndarray:
    """A mask of about `eval_size` of the pairs (a share below 1, or a whole number of pairs); 0 holds none out.

    `prompts` has a key for each pair. Prompts are taken whole, at random, until there are enough pairs; at least half
    of all pairs stay for training, so a prompt that would leave fewer is passed over. Raises InputError for a size that
    is none, that asks for more than half, or where every prompt has more than half of the pairs.
    """
    check_eval_size(eval_size)
    half = len(prompts) // 2
    wanted = eval_size * len(prompts) if eval_size < 1 else eval_size
    if wanted > half:
        raise InputError(
            f"--eval_size {eval_size:g} of {len(prompts)} pairs: at least half must stay for training; give {half} or "
            "fewer, or evaluate on a test file."
        )
    unique, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    taken, pairs = [], 0
    for prompt in np.random.default_rng(seed).permutation(len(unique)).tolist():
        if pairs >= wanted:
            break
        if pairs + counts[prompt] <= half:
            taken.append(prompt)
            pairs += int(counts[prompt])
    if wanted and not taken:
        raise InputError(
            f"--eval_size {eval_size:g}: one prompt has most of the {len(prompts)} pairs; add a test file."
        )
    return np.isin(inverse, taken)


def check_eval_size(eval_size: float) -> None:
    """Raises InputError for a size that no number of pairs makes a good one."""
    if not eval_size >= 0 or (eval_size > 1 and eval_size % 1):
        raise InputError(f"--eval_size {eval_size:g}: give a share of the pairs below 1, a whole number, or 0 (none).")
