"""Compute metrics from the scores of labeled pairs: accuracy with intervals, calibration, length bias.

A margin is the score of the chosen answer minus that of the rejected one; margins are arrays of shape (pairs,). Pairs
with the same prompt are not independent, so intervals are computed by resampling prompts.
"""

from functools import cache
from math import comb
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

RESAMPLES = 2000  # bootstrap samples
BINS = 10
ABOUT_EQUAL = 0.1  # maximum difference in length, as a fraction of the longer answer


def right(margins: np.ndarray) -> np.ndarray:
    """Return 1 where chosen scores higher, 0 where it scores lower, and 0.5 for a tie."""
    return (margins > 0) + 0.5 * (margins == 0)


class Values(NamedTuple):
    """Values from 0 to 1, and the prompt key for each value; both have shape (items,)."""

    values: np.ndarray
    prompts: np.ndarray


Terms = list[tuple[float, Values]]  # (weight, values) for a weighted sum of means


def item_accuracy(
    protocol: str, chosen: list[float], rejected: list[float], margins: np.ndarray, tie: float = 0.5
) -> float:
    """Return the accuracy of the scores for an item, from 0 to 1.

    Args:
        protocol: How to judge the item:

            - pairs: chosen scores higher (RewardBench, LLMBar, JudgeBench, PPE Preference, any pairs).
            - best: every chosen answer scores higher than every rejected one; n scores tied at the top count as 1 / n
              (RewardBench 2).
            - ties: every chosen answer scores higher than every rejected one (RewardBench 2's Ties subset).
            - beats-all: the same, with a single chosen answer (RMB's lists).
            - best-of-k: the fraction of compared pairs in which chosen scores higher (PPE Correctness).
            - rm-bench: the fraction of 9 comparisons in which chosen scores higher (RM-Bench). The three chosen
              and the three rejected answers have the same three styles, the plainest first. A tie is wrong.
        chosen: The scores of the chosen answers.
        rejected: The scores of the rejected answers.
        margins: The margins of the compared pairs.
        tie: What a tied pair counts as.
    """
    if protocol == "rm-bench":
        return float((margins > 0).mean())
    if protocol == "best-of-k":
        return float(((margins > 0) + tie * (margins == 0)).mean())
    lowest, highest = min(chosen), max(rejected)
    if lowest != highest:
        return float(lowest > highest)
    if protocol == "best":
        return 1 / (chosen.count(lowest) + rejected.count(lowest))
    return tie if protocol == "pairs" else 0.0


def interval(values: np.ndarray, prompts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval for the mean of `values`, from a percentile bootstrap over prompts.

    Args:
        values: Shape (items,).
        prompts: The prompt key for each item, shape (items,).
        seed: The seed for resampling.
    """
    low, high = np.percentile(resampled_means([(1.0, Values(values, prompts))], seed), [2.5, 97.5])
    return float(low), float(high)


def weighted_mean(terms: Terms) -> float:
    """Return the sum of the terms' means, each multiplied by its weight."""
    return float(sum(weight * term.values.mean() for weight, term in terms))


def resampled_means(terms: Terms, seed: int = 0) -> np.ndarray:
    """Return `weighted_mean` for each of RESAMPLES bootstrap samples of prompts, which several terms may share."""
    weights, means = zip(*((weight, term.values.mean()) for weight, term in terms), strict=True)
    prompts, group = np.unique(np.concatenate([term.prompts for _, term in terms]), return_inverse=True)
    groups = np.split(group, np.cumsum([len(term.prompts) for _, term in terms])[:-1])
    pairs = list(zip(groups, (term.values for _, term in terms), strict=True))
    # Shape (prompts, terms): for each prompt, the sum and the number of its values.
    sums = np.stack([np.bincount(group, values, len(prompts)) for group, values in pairs], axis=1)
    counts = np.stack([np.bincount(group, minlength=len(prompts)) for group, _ in pairs], axis=1)
    rng, result = np.random.default_rng(seed), np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = np.bincount(rng.integers(len(prompts), size=len(prompts)), minlength=len(prompts))
        number = drawn @ counts
        # With little data, a sample may contain none of a term's prompts; that term then keeps its mean.
        result[index] = np.dot(weights, np.where(number > 0, drawn @ sums / np.maximum(number, 1), means))
    return result


def best_of_k(chosen: list[float], rejected: list[float]) -> np.ndarray:
    """Return, for k = 1, 2, …, the probability that the best of k randomly drawn answers is a chosen one.

    The best answer has the highest score; tied answers are equally likely to be the best. Answers are drawn without
    replacement.
    """
    scores, right = np.array([*chosen, *rejected]), np.repeat([1.0, 0.0], [len(chosen), len(rejected)])
    _, level = np.unique(-scores, return_inverse=True)
    right = (np.bincount(level, right) / np.bincount(level))[np.sort(level)]  # from highest to lowest score
    return _highest_of_k(len(scores)) @ right


@cache
def _highest_of_k(total: int) -> np.ndarray:
    """Return the probability that rank r (from 0) is the highest of k draws (from 1), shape (total, total): [k - 1, r].

    The other k - 1 draws must then come from the total - 1 - r lower ranks.
    """
    ranks = range(total)
    return np.array([[comb(total - 1 - rank, k) / comb(total, k + 1) for rank in ranks] for k in ranks])


def log_loss(margins: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean of -log sigmoid(margin / temperature), the Bradley-Terry loss; chance is 0.693."""
    return float(np.logaddexp(0, -margins / temperature).mean())


def reliability(margins: np.ndarray, temperature: float = 1.0) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, number of pairs) for each confidence bin that is not empty.

    Confidence is sigmoid(|margin| / temperature). BINS bins of equal width cover its range from 0.5 to 1.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins) / temperature))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    result = []
    for number in np.unique(bins):
        inside = bins == number
        result.append((float(confidence[inside].mean()), float(right(margins[inside]).mean()), int(inside.sum())))
    return result


def calibration_error(margins: np.ndarray, temperature: float = 1.0) -> float:
    """Return the expected calibration error (Naeini et al. 2015): mean |accuracy - confidence| over the bins."""
    bins = reliability(margins, temperature)
    return sum(abs(accuracy - confidence) * pairs for confidence, accuracy, pairs in bins) / len(margins)


def best_temperature(margins: np.ndarray) -> float:
    """Return the temperature between 0.01 and 100 that minimizes the log loss (Guo et al. 2017)."""
    found = minimize_scalar(lambda log: log_loss(margins, np.exp(log)), bounds=np.log([0.01, 100]), method="bounded")
    return float(np.exp(found.x))


def by_length(margins: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the accuracy on pairs whose chosen answer is shorter, about equal in length, or longer.

    Lengths may be in any unit.
    """
    difference = chosen.astype(float) - rejected
    equal = np.abs(difference) < ABOUT_EQUAL * np.maximum(np.maximum(chosen, rejected), 1)
    classes = {"shorter": ~equal & (difference < 0), "about equal": equal, "longer": ~equal & (difference > 0)}
    return {
        name: {"pairs": int(inside.sum()), "accuracy": float(right(margins[inside]).mean())}
        for name, inside in classes.items()
        if inside.any()
    }


def length_correlation(scores: np.ndarray, lengths: np.ndarray) -> float:
    """Return the rank correlation between answers' scores and lengths, or 0 if either is constant."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return 0.0
    return float(spearmanr(scores, lengths).statistic)


def measures(margins: np.ndarray) -> dict[str, Any]:
    """Return the number of pairs and ties, mean margin, log loss and calibration for the given margins."""
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
