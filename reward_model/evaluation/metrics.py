"""How good the scores of labelled pairs are: accuracy with intervals, calibration, biases.

A margin is the score of chosen less that of rejected; `prompts` says which pairs share a prompt, since such pairs are
not independent: intervals come from resampling prompts.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import bootstrap, spearmanr

ROUNDS = 2000  # of the bootstrap
BINS = 10
ABOUT_EQUAL = 0.1  # lengths that differ by less than this share of the longer one


def right(margins: np.ndarray) -> np.ndarray:
    """1 where chosen scores higher, 0 where it scores lower, a half for a tie."""
    return (margins > 0) + 0.5 * (margins == 0)


def interval(values: np.ndarray, prompts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`, by bootstrap over prompts (percentiles)."""
    _, group = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    if len(sums) == 1:  # nothing to draw from
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=ROUNDS,
        batch=1 + 2_000_000 // len(sums),  # 16 MB of drawn indices at a time
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def log_loss(margins: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(margin / temperature): the loss of training; 0.693 is chance."""
    return float(np.logaddexp(0, -margins / temperature).mean())


def reliability(margins: np.ndarray, temperature: float = 1.0) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, pairs) of each bin of confidence that has pairs.

    The confidence is sigmoid(|margin| / temperature), from 0.5 to 1, in BINS bins of equal width.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins) / temperature))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        found.append((float(confidence[inside].mean()), float(right(margins[inside]).mean()), int(inside.sum())))
    return found


def calibration_error(margins: np.ndarray, temperature: float = 1.0) -> float:
    """Expected calibration error (Naeini et al. 2015): mean distance of accuracy and confidence over the bins."""
    bins = reliability(margins, temperature)
    return sum(abs(accuracy - confidence) * pairs for confidence, accuracy, pairs in bins) / len(margins)


def best_temperature(margins: np.ndarray) -> float:
    """The temperature with the least log loss (Guo et al. 2017), between 0.01 and 100."""
    found = minimize_scalar(lambda log: log_loss(margins, np.exp(log)), bounds=np.log([0.01, 100]), method="bounded")
    return float(np.exp(found.x))


def by_length(margins: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, dict[str, float]]:
    """Accuracy where the chosen answer is shorter, about as long, or longer (lengths in any unit)."""
    difference = chosen.astype(float) - rejected
    equal = np.abs(difference) < ABOUT_EQUAL * np.maximum(np.maximum(chosen, rejected), 1)
    classes = {"shorter": ~equal & (difference < 0), "about equal": equal, "longer": ~equal & (difference > 0)}
    return {
        name: {"pairs": int(inside.sum()), "accuracy": float(right(margins[inside]).mean())}
        for name, inside in classes.items()
        if inside.any()
    }


def length_correlation(scores: np.ndarray, lengths: np.ndarray) -> float:
    """Rank correlation of the scores of answers with their lengths; 0 where either is constant."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return 0.0
    return float(spearmanr(scores, lengths).statistic)


def measures(margins: np.ndarray) -> dict[str, Any]:
    """Ties, mean margin, log loss and calibration of a set of pairs."""
    temperature = best_temperature(margins)
    return {
        "pairs": len(margins),
        "ties": int((margins == 0).sum()),
        "mean_margin": float(margins.mean()),
        "log_loss": log_loss(margins),
        "calibration_error": calibration_error(margins),
        "temperature": temperature,
        "calibration_error_at_temperature": calibration_error(margins, temperature),
    }
