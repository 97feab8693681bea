"""All figures of an evaluation: metrics.json, the table in the terminal, and the page report.html."""

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
from reward_model.data.formats import NO_OPTIONS
from reward_model.data.pair import excerpt, message_text
from reward_model.data.statistics import FACTS, Work, pair_facts, trivial_judges
from reward_model.evaluation.benchmarks import official_figures
from reward_model.evaluation.items import Scored
from reward_model.evaluation.metrics import by_length, interval, length_correlation, measures, reliability

WORST = 50
FILES = ("metrics.json", "scores.jsonl", "report.html")


def figures(scored: Scored, seed: int = 0) -> dict[str, Any]:
    """Return all measures, with the names that people read; `identifiers` gives those of metrics.json."""
    work = Work(NO_OPTIONS)
    facts = np.array([(0, 0, 0, 0, *pair_facts(pair, work)) for item in scored.items for pair in item.pairs], FACTS)
    margins = np.concatenate([margins.ravel() for margins in scored.margins])
    everything = np.ones(len(scored.items), dtype=bool)
    return {
        "all": _subset(scored, everything, seed),
        "subsets": {str(name): _subset(scored, scored.subsets == name, seed) for name in dict.fromkeys(scored.subsets)},
        "by_length": by_length(margins, facts["chosen"], facts["rejected"]),
        "length_correlation": length_correlation(*_scores_and_lengths(scored)),
        "trivial_judges": trivial_judges(facts),
        "official": official_figures(scored),
    }


def _subset(scored: Scored, inside: np.ndarray, seed: int) -> dict[str, Any]:
    """Measures of some items: accuracy by their protocols, the rest from every chosen-rejected pair in them."""
    margins = np.concatenate([scored.margins[index].ravel() for index in np.flatnonzero(inside)])
    low, high = interval(scored.right[inside], scored.prompts[inside], seed)
    return {
        "items": int(inside.sum()),
        "accuracy": float(scored.right[inside].mean()),
        "low": low,
        "high": high,
        "strict_accuracy": float(scored.strict[inside].mean()),
        **measures(margins),
    }


def _scores_and_lengths(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """The score of every answer and its length in characters."""
    answers = (messages[-1] for item in scored.items for messages in item.conversations)
    return np.concatenate(scored.scores), np.array([len(message_text(answer)) for answer in answers])


def terminal(found: dict[str, Any]) -> str:
    """What evaluate.py prints."""
    return page.render("evaluation/report.txt.jinja", figures=found, subset_table=_subset_table(found)).rstrip()


def _subset_table(found: dict[str, Any]) -> pd.DataFrame:
    """Measures of each subset and of all, as they are shown."""
    table = pd.DataFrame([*found["subsets"].values(), found["all"]], index=[*found["subsets"], "all"])
    table["interval"] = [f"{low:.3f}–{high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)]
    shown = {"items": "items", "accuracy": "accuracy", "interval": "95 % interval", "mean_margin": "margin"}
    shown |= {"log_loss": "log loss", "calibration_error": "ECE", "temperature": "temperature"}
    return (
        table[list(shown)]
        .map(lambda value: f"{value:.3f}" if isinstance(value, float) else value)
        .rename(columns=shown)
    )


def check_folder(folder: Path) -> None:
    """Make the folder of an evaluation; raises InputError where it holds anything but an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    if foreign := sorted({file.name for file in folder.iterdir()} - set(FILES)):
        raise InputError(f"--output {folder} holds {foreign[0]}, which no evaluation made; choose another folder.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output {folder}: no file may be written there; choose another folder.")


def write(folder: Path, name: str, found: dict[str, Any], scored: Scored) -> None:
    """metrics.json, scores.jsonl and report.html; `name` says whose evaluation it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps(identifiers(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in scored.records())
    (folder / "report.html").write_text(_page(name, found, scored), encoding="utf-8")


def identifiers(found: dict[str, Any]) -> dict[str, Any]:
    """Return the measures with keys that are identifiers, such as official.rm_bench.easy; subsets keep their names."""
    return {
        re.sub(r"\W+", "_", name.lower()): identifiers(value)
        if isinstance(value, dict) and name != "subsets"
        else value
        for name, value in found.items()
    }


def _page(name: str, found: dict[str, Any], scored: Scored) -> str:
    return page.render(
        "evaluation/report.html.jinja",
        title=f"Evaluation of {name}",
        figures=found,
        before=found.get("before"),
        subset_table=_subset_table(found),
        subset_plot=_subset_plot(found),
        score_plots=_score_plots(scored),
        length_plots=_length_plots(found, scored),
        worst=_worst(scored),
    )


def _subset_plot(found: dict[str, Any]) -> Figure:
    measured = [*found["subsets"].items(), ("all", found["all"])]
    figure, axes = page.plot("Accuracy, 95 % interval", "accuracy")
    figure.set_size_inches(4.4, max(2.9, 0.6 + 0.26 * len(measured)))
    for height, (_, row) in enumerate(reversed(measured)):
        axes.plot([row["low"], row["high"]], [height, height], color=page.BLUE)
        axes.plot(row["accuracy"], height, "o", color=page.BLUE, markersize=4)
    axes.set_yticks(range(len(measured)), [name for name, _ in reversed(measured)])
    axes.axvline(0.5, color=page.GRAY, linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    return figure


def _score_plots(scored: Scored) -> list[Figure]:
    chosen, rejected = (np.concatenate(scores) for scores in zip(*scored.split, strict=True))
    bins = list(np.linspace(min(chosen.min(), rejected.min()), max(chosen.max(), rejected.max()) + 1e-6, 40))
    scores, axes = page.plot("Scores", "score", "answers")
    for values, label, color in ((chosen, "chosen", page.BLUE), (rejected, "rejected", page.ORANGE)):
        axes.hist(values, bins, histtype="step", color=color, label=label)
    axes.legend()
    values = np.concatenate([margins.ravel() for margins in scored.margins])
    margins, axes = page.plot("Margins (chosen less rejected)", "margin", "pairs")
    axes.hist(values, 40, color=page.BLUE)
    axes.axvline(0, color=page.GRAY, linewidth=1)
    calibration, axes = page.plot("Reliability of sigmoid(|margin|)", "confidence", "accuracy")
    axes.plot([0.5, 1], [0.5, 1], color=page.GRAY, linewidth=1)
    bars = reliability(values)
    sizes = [10 + 120 * pairs / len(values) for *_, pairs in bars]
    axes.scatter([confidence for confidence, *_ in bars], [accuracy for _, accuracy, _ in bars], sizes, page.BLUE)
    axes.set_ylim(-0.03, 1.03)
    return [scores, margins, calibration]


def _length_plots(found: dict[str, Any], scored: Scored) -> list[Figure]:
    by_length = found["by_length"]
    classes, axes = page.plot("Accuracy where chosen is …", ylabel="accuracy")
    axes.bar(list(by_length), [row["accuracy"] for row in by_length.values()], color=page.BLUE)
    axes.axhline(0.5, color=page.GRAY, linewidth=1)
    axes.set_ylim(0, 1)
    scores, lengths = _scores_and_lengths(scored)
    points, axes = page.plot("Score and length of answers", "characters", "score")
    axes.scatter(lengths, scores, 4, page.BLUE, alpha=0.4)
    return [classes, points]


def _worst(scored: Scored) -> list[tuple]:
    """Return (subset, line that it is folded into, prompt, chosen, rejected) of the pairs with the least margins."""
    shown = []
    least = np.array([margins.min() for margins in scored.margins])
    for index in np.argsort(least)[:WORST]:
        item, margins = scored.items[index], scored.margins[index]
        row, column = np.unravel_index(margins.argmin(), margins.shape)
        chosen_scores, rejected_scores = scored.split[index]
        scores = f"{margins[row, column]:+.2f} ({chosen_scores[row]:+.2f} to {rejected_scores[column]:+.2f})"
        shared = item.prompt
        answers = [side[len(shared) :] for side in (item.chosen[row], item.rejected[column])]
        shown.append((item.subset, f"{scores} {item.subset}: {excerpt(shared[-1], 110)}", shared, *answers))
    return shown
