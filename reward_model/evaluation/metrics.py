"""How good the scores of labelled pairs are: accuracy with intervals, calibration, biases, and two runs compared.

A margin is the score of chosen less that of rejected; `prompts` says which pairs share a prompt, since such pairs are
not independent: intervals come from resampling prompts.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, spearmanr

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
    random = np.random.default_rng(seed)
    means = []
    for _ in range(ROUNDS):
        times = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)))
        means.append((times @ sums) / (times @ counts))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


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


def measures(margins: np.ndarray, prompts: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Accuracy with its interval, ties, mean margin, log loss and calibration of a set of pairs."""
    low, high = interval(right(margins), prompts, seed)
    temperature = best_temperature(margins)
    return {
        "pairs": len(margins),
        "accuracy": float(right(margins).mean()),
        "low": low,
        "high": high,
        "ties": int((margins == 0).sum()),
        "mean_margin": float(margins.mean()),
        "log_loss": log_loss(margins),
        "calibration_error": calibration_error(margins),
        "temperature": temperature,
        "calibration_error_at_temperature": calibration_error(margins, temperature),
    }


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact p-value (McNemar 1947, binomial) that A and B are right equally often; pairs where one ties count not."""
    only_a = int(((right_a == 1) & (right_b == 0)).sum())
    only_b = int(((right_a == 0) & (right_b == 1)).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def comparison(right_a: np.ndarray, right_b: np.ndarray, prompts: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Accuracy of two runs on the same pairs, their difference with its 95 % interval, and McNemar's test."""
    low, high = interval(right_b - right_a, prompts, seed)
    return {
        "pairs": len(right_a),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float((right_b - right_a).mean()),
        "low": low,
        "high": high,
        "p_value": mcnemar(right_a, right_b),
    }
