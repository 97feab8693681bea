"""The held-out split: no prompt stands on both sides."""

import numpy as np

from reward_model import InputError


def held_out(prompts: np.ndarray, eval_size: float, seed: int) -> np.ndarray:
    """A mask of about `eval_size` of the pairs (a share below 1, or a number), such that no prompt is on both sides."""
    unique, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(unique) < 2:
        raise InputError(f"All {len(prompts)} pairs share one prompt, so none can be held out; add a test file.")
    wanted = eval_size * len(prompts) if eval_size < 1 else eval_size
    order = np.random.default_rng(seed).permutation(len(unique))
    taken = int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1
    return np.isin(inverse, order[: min(taken, len(unique) - 1)])
