"""Build the table for model cards: one figure for each public benchmark, and their average."""

import numpy as np

from reward_model.evaluation.benchmarks import Result
from reward_model.evaluation.metrics import resampled_means

COLUMNS = ("RewardBench", "RewardBench 2", "PPE Preference", "PPE Correctness", "RMB", "RM-Bench", "JudgeBench")
AVERAGE = "average"


def suite_scores(results: dict[str, Result], seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the official figure for each complete benchmark, and their average, with 95% bootstrap intervals."""
    complete = {name: results[name] for name in COLUMNS if name in results and results[name].terms}
    samples = {
        name: resampled_means(result.terms, seed + number) for number, (name, result) in enumerate(complete.items())
    }
    values = {name: result.figures["overall"] for name, result in complete.items()}
    if complete:
        samples[AVERAGE] = np.mean(list(samples.values()), axis=0)
        values[AVERAGE] = float(np.mean(list(values.values())))
    scores = {}
    for name, value in values.items():
        low, high = np.percentile(samples[name], [2.5, 97.5])
        scores[name] = {"value": value, "low": float(low), "high": float(high)}
    return scores


def suite_table(model: str, scores: dict[str, dict[str, float]]) -> str:
    """Return the scores, in percent, as a Markdown table with one row."""
    names = (*COLUMNS, AVERAGE)
    lines = [["model", *names], ["---"] * (len(names) + 1), [model, *(_cell(scores.get(name)) for name in names)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def suite_notes(results: dict[str, Result]) -> list[str]:
    """Return notes on what the table omits: incomplete benchmarks, and JudgeBench's macro average."""
    notes = []
    for name, result in results.items():
        if not result.terms:
            notes.append(f"{name} is incomplete. Parts found: {', '.join(result.figures)}.")
        elif "macro average" in result.figures:
            macro = 100 * result.figures["macro average"]
            notes.append(f"{name}: official micro average. The macro average (Skywork's model cards) is {macro:.1f}.")
    return notes


def _cell(score: dict[str, float] | None) -> str:
    if score is None:
        return "–"
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f}–{100 * score['high']:.1f})"
