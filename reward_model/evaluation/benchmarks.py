"""Official figures of public benchmarks, as their own code computes them. Ties are wrong unless noted otherwise."""

from collections.abc import Iterable

import numpy as np

from reward_model.evaluation.items import RM_BENCH_DOMAINS, ScoredItems

Figures = dict[str, float]
Scores = tuple[list[float], list[float]]  # of the chosen answers, of the rejected answers

# The subsets of each section of RewardBench and their weights (allenai/reward-bench, rewardbench/constants.py). The 447
# pairs of math-prm have the same weight as all code pairs.
REWARDBENCH = {
    "Chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28,
             "mt-bench-med": 40},
    "Chat Hard": {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
                  "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    "Safety": {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250,
               "xstest-should-respond": 154, "donotanswer": 136},
    "Reasoning": {"math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
                  "hep-rust": 164},
}  # fmt: skip
REWARDBENCH_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
# The prefix of `source` in each category of JudgeBench (ScalerLab/JudgeBench, run_judge.py).
JUDGEBENCH = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}


def official_figures(scored: ScoredItems) -> dict[str, Figures]:
    """Return the figures of each benchmark that has items; "overall" only if no part of the benchmark is missing."""
    found = {
        "RewardBench": rewardbench(scored),
        "RewardBench 2": rewardbench_2(scored),
        "RM-Bench": rm_bench(scored),
        "JudgeBench": judgebench(scored),
    }
    return {name: figures for name, figures in found.items() if figures}


def rewardbench(scored: ScoredItems) -> Figures:
    """Return the weighted mean of each section, and their mean (calculate_scores_per_section of RewardBench)."""
    strict = _by_name(scored.subsets, scored.strict, scored.protocols == "pairs")
    found = {}
    for section, weights in REWARDBENCH.items():
        present = [subset for subset in weights if subset in strict]
        if present:
            means = [strict[subset].mean() for subset in present]
            found[section] = float(np.average(means, weights=[weights[subset] for subset in present]))
    return _with_overall(found, REWARDBENCH)


def rewardbench_2(scored: ScoredItems) -> Figures:
    """Return the mean of each best-of-4 subset, the score of Ties, and their mean (scripts/run_v2.py of allenai)."""
    right = _by_name(scored.subsets, scored.right, scored.protocols == "best")
    found = {subset: float(right[subset].mean()) for subset in REWARDBENCH_2 if subset in right}
    both: dict[str, dict[str, Scores]] = {"ref": {}, "tied": {}}
    for item, scores in zip(scored.items, scored.split, strict=True):
        kind, _, number = (item.id or "").partition(":")
        if item.protocol == "ties" and kind in both:
            both[kind][number] = scores
    if both["ref"].keys() & both["tied"].keys():
        found["Ties"] = ties_score(**both)
    return _with_overall(found, REWARDBENCH_2)


def ties_score(ref: dict[str, Scores], tied: dict[str, Scores]) -> float:
    """Return the weighted score of Ties (process_single_model in rewardbench/utils.py).

    A tied prompt has several right answers, its ref prompt has one. The score also rewards a gap between right and
    wrong answers that is wider than the spread of the right ones.

    Args:
        ref: The scores of ref prompts, by the number in the id `ref:n`.
        tied: The scores of tied prompts, by the number in the id `tied:n`.
    """
    accuracies = [np.mean([min(chosen) > max(rejected) for chosen, rejected in each.values()]) for each in (tied, ref)]
    numbers = sorted(ref.keys() & tied.keys())
    gap = np.array([min(tied[n][0]) - max(tied[n][1]) for n in numbers])
    ref_gap = np.array([min(ref[n][0]) - max(ref[n][1]) for n in numbers])
    spread, smaller_gap = np.array([np.ptp(tied[n][0]) for n in numbers]), np.minimum(ref_gap, gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(smaller_gap / spread - 1), nan=0.0)
    parts = [*accuracies, np.mean(gap > spread), np.mean(smaller_gap > spread), closeness.mean()]
    return float(np.dot(parts, [0.30, 0.30, 0.20, 0.20, 0.01]))


def rm_bench(scored: ScoredItems) -> Figures:
    """Return easy (chosen has the fancier style), normal (same style), hard (rejected has it), and each domain.

    Easy, normal, hard and overall are means over domains (compute_accuracy in the README of THU-KEG/RM-Bench).
    """
    domains: dict[str, list[np.ndarray]] = {}
    for item, margins in zip(scored.items, scored.margins, strict=True):
        if item.protocol == "rm-bench":
            domain = next((name for name in RM_BENCH_DOMAINS if item.domain.lower().startswith(name)), item.domain)
            domains.setdefault(domain, []).append(margins > 0)
    if not domains:
        return {}
    # (3, 3) for each domain: style of the chosen answer, style of the rejected answer
    means = {name: np.mean(each, axis=0) for name, each in domains.items()}
    row, column = np.indices((3, 3))
    kinds = {"easy": row > column, "normal": row == column, "hard": row < column}
    found = {kind: float(np.mean([mean[cells].mean() for mean in means.values()])) for kind, cells in kinds.items()}
    by_domain = {name: float(mean.mean()) for name, mean in means.items()}
    return found | _with_overall(by_domain, RM_BENCH_DOMAINS)


def judgebench(scored: ScoredItems) -> Figures:
    """Return the accuracy of each category and of all pairs (run_judge.py of ScalerLab/JudgeBench)."""
    is_pair = scored.protocols == "pairs"
    inside = {name: is_pair & np.char.startswith(scored.subsets, prefix) for name, prefix in JUDGEBENCH.items()}
    found = {name: float(scored.strict[mask].mean()) for name, mask in inside.items() if mask.any()}
    if len(found) == len(JUDGEBENCH):
        found["overall"] = float(scored.strict[np.any(list(inside.values()), axis=0)].mean())
    return found


def _by_name(names: np.ndarray, values: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    return {str(name): values[inside & (names == name)] for name in np.unique(names[inside])}


def _with_overall(found: Figures, parts: Iterable[str]) -> Figures:
    """Add the mean of all parts if none is missing."""
    if set(parts) != found.keys():
        return found
    return found | {"overall": float(np.mean(list(found.values())))}
