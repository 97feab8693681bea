"""Report an evaluation: print a summary, and write metrics.json, scores.jsonl and report.html."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reward_model import InputError
from reward_model import html as page
from reward_model.data.pair import Messages, excerpt, message_text
from reward_model.data.statistics import facts_array, trivial_judges
from reward_model.evaluation.benchmarks import official_results
from reward_model.evaluation.items import ScoredItems
from reward_model.evaluation.metrics import by_length, interval, length_correlation, measures, reliability

WORST = 50
FILES = ("metrics.json", "scores.jsonl", "report.html")


def compute_figures(scored: ScoredItems, seed: int = 0) -> dict[str, Any]:
    """Return all metrics under readable names; `with_identifier_keys` converts them to the keys in metrics.json."""
    facts = facts_array(pair for item in scored.items for pair in item.pairs)
    margins = np.concatenate(scored.margins)
    subsets = {str(name): scored.subsets == name for name in dict.fromkeys(scored.subsets)}
    return {
        "all": _subset_metrics(scored, np.ones(len(scored.items), dtype=bool), seed),
        "subsets": {name: _subset_metrics(scored, inside, seed) for name, inside in subsets.items()},
        "by_length": by_length(margins, facts["chosen"], facts["rejected"]),
        "length_correlation": length_correlation(*_scores_and_lengths(scored)),
        "trivial_judges": trivial_judges(facts),
        "official": {name: result.figures for name, result in official_results(scored).items()},
    }


def _subset_metrics(scored: ScoredItems, inside: np.ndarray, seed: int) -> dict[str, Any]:
    """Return metrics for the items where `inside` is true: accuracy over items, the other metrics over pairs."""
    margins = np.concatenate([scored.margins[index] for index in np.flatnonzero(inside)])
    low, high = interval(scored.right[inside], scored.prompts[inside], seed)
    return {
        "items": int(inside.sum()),
        "accuracy": float(scored.right[inside].mean()),
        "low": low,
        "high": high,
        "strict_accuracy": float(scored.strict[inside].mean()),
        **measures(margins),
    }


def _scores_and_lengths(scored: ScoredItems) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the lengths in characters of all answers."""
    answers = (messages[-1] for item in scored.items for messages in item.conversations)
    return np.concatenate(scored.scores), np.array([len(message_text(answer)) for answer in answers])


def summary(figures: dict[str, Any]) -> str:
    """Return the summary that evaluate.py prints."""
    return page.render("evaluation/report.txt.jinja", figures=figures, subset_table=_subset_table(figures)).rstrip()


def _subset_table(figures: dict[str, Any]) -> pd.DataFrame:
    """Return a table with the metrics, formatted as text, for each subset and for all items."""
    table = pd.DataFrame([*figures["subsets"].values(), figures["all"]], index=[*figures["subsets"], "all"])
    table["interval"] = [f"{low:.3f}–{high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)]
    shown = {"items": "items", "accuracy": "accuracy", "interval": "95% interval", "mean_margin": "margin"}
    shown |= {"log_loss": "log loss", "calibration_error": "ECE", "temperature": "temperature"}
    table = table[list(shown)].map(lambda value: f"{value:.3f}" if isinstance(value, float) else value)
    return table.rename(columns=shown)


def create_output_directory(directory: Path) -> None:
    """Create the output directory; raise InputError if it contains anything other than an earlier evaluation."""
    directory.mkdir(parents=True, exist_ok=True)
    if others := sorted({file.name for file in directory.iterdir()} - set(FILES)):
        found = f"contains {others[0]}, which evaluate.py did not write"
        raise InputError(f"--output {directory} {found}. Pass a different directory.")
    if not os.access(directory, os.W_OK):
        raise InputError(f"--output {directory} is not writable. Pass a different directory.")


def write(directory: Path, name: str, figures: dict[str, Any], scored: ScoredItems) -> None:
    """Write metrics.json, scores.jsonl and report.html; `name` is the model or server shown in the title."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps(with_identifier_keys(figures), indent=2, ensure_ascii=False)
    (directory / "metrics.json").write_text(metrics + "\n", encoding="utf-8")
    with open(directory / "scores.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in scored.records())
    (directory / "report.html").write_text(_html(name, figures, scored), encoding="utf-8")


def with_identifier_keys(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the same metrics with identifiers as keys (official.rm_bench.easy); subsets keep their names."""
    renamed = {}
    for name, value in figures.items():
        is_nested = isinstance(value, dict) and name != "subsets"
        renamed[re.sub(r"\W+", "_", name.lower())] = with_identifier_keys(value) if is_nested else value
    return renamed


def _html(name: str, figures: dict[str, Any], scored: ScoredItems) -> str:
    plots = {"score_plots": _score_plots(scored), "length_plots": _length_plots(figures, scored)}
    values = {"before": figures.get("before"), "subset_table": _subset_table(figures), "worst": _worst_pairs(scored)}
    title = f"Evaluation of {name}"
    return page.render("evaluation/report.html.jinja", title=title, figures=figures, **plots, **values)


def _score_plots(scored: ScoredItems) -> list[Figure]:
    chosen, rejected = (np.concatenate(scores) for scores in zip(*scored.split, strict=True))
    bins = list(np.linspace(min(chosen.min(), rejected.min()), max(chosen.max(), rejected.max()) + 1e-6, 40))
    scores, axes = page.plot("Scores", "score", "answers")
    for values, label, color in ((chosen, "chosen", page.BLUE), (rejected, "rejected", page.ORANGE)):
        axes.hist(values, bins, histtype="step", color=color, label=label)
    axes.legend()
    values = np.concatenate(scored.margins)
    margins, axes = page.plot("Margins (chosen minus rejected)", "margin", "pairs")
    axes.hist(values, 40, color=page.BLUE)
    axes.axvline(0, color=page.GRAY, linewidth=1)
    calibration, axes = page.plot("Reliability of sigmoid(|margin|)", "confidence", "accuracy")
    axes.plot([0.5, 1], [0.5, 1], color=page.GRAY, linewidth=1)
    bars = reliability(values)
    sizes = [10 + 120 * pairs / len(values) for *_, pairs in bars]
    axes.scatter([confidence for confidence, *_ in bars], [accuracy for _, accuracy, _ in bars], sizes, page.BLUE)
    axes.set_ylim(-0.03, 1.03)
    return [scores, margins, calibration]


def _length_plots(figures: dict[str, Any], scored: ScoredItems) -> list[Figure]:
    by_length = figures["by_length"]
    classes, axes = page.plot("Accuracy by length of the chosen answer", ylabel="accuracy")
    axes.bar(list(by_length), [row["accuracy"] for row in by_length.values()], color=page.BLUE)
    axes.axhline(0.5, color=page.GRAY, linewidth=1)
    axes.set_ylim(0, 1)
    scores, lengths = _scores_and_lengths(scored)
    points, axes = page.plot("Score by length of the answer", "characters", "score")
    axes.scatter(lengths, scores, 4, page.BLUE, alpha=0.4)
    return [classes, points]


def _worst_pairs(scored: ScoredItems) -> list[tuple[str, str, Messages, Messages, Messages]]:
    """Return (subset, summary line, prompt, chosen, rejected) for the pairs with the lowest margins, one per item."""
    pairs = []
    lowest = np.array([margins.min() for margins in scored.margins])
    for index in np.argsort(lowest)[:WORST]:
        item, margins = scored.items[index], scored.margins[index]
        row, column = item.compared[margins.argmin()]
        chosen_scores, rejected_scores = scored.split[index]
        scores = f"{margins.min():+.2f} ({chosen_scores[row]:+.2f} vs. {rejected_scores[column]:+.2f})"
        shared = item.prompt
        line = f"{scores} {item.subset}: {excerpt(shared[-1], 110)}"
        chosen, rejected = item.chosen[row][len(shared) :], item.rejected[column][len(shared) :]
        pairs.append((item.subset, line, shared, chosen, rejected))
    return pairs
