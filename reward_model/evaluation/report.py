"""The page report.html of an evaluation, and the comparison of two of them."""

from html import escape
from typing import Any

import numpy as np

from reward_model import html as page
from reward_model.data.pair import shared_messages
from reward_model.evaluation.items import Scored
from reward_model.evaluation.metrics import comparison, reliability

WORST = 50
FILTER = """<label>Subset: <select onchange="document.querySelectorAll('[data-subset]').forEach(
e => e.hidden = this.value && e.dataset.subset !== this.value)"><option value="">all</option>%s</select></label>"""


def html(name: str, found: dict[str, Any], scored: Scored) -> str:
    """The whole page; `found` are `evaluation.figures`."""
    everything = found["all"]
    subtitle = (
        f"{everything['items']:,} items: accuracy {everything['accuracy']:.3f} "
        f"({everything['low']:.3f} to {everything['high']:.3f}, 95 %), log loss {everything['log_loss']:.3f}, "
        f"calibration error {everything['calibration_error']:.3f}"
    )
    sections = [
        ("By subset", _subset_section(found)),
        ("Scores and their margins", _score_section(found, scored)),
        ("Is it length?", _length_section(found, scored)),
    ]
    if "before" in found:
        sections.insert(1, ("Before training", _before_section(found)))
    sections.append((f"The {min(WORST, len(scored.items))} worst ranked", _worst_section(found, scored)))
    return page.page(f"Evaluation of {name}", subtitle, sections)


def _subset_section(found: dict[str, Any]) -> str:
    rows = [*found["subsets"].items(), ("all", found["all"])]
    figure, axes = page.plot("Accuracy, 95 % interval", "accuracy")
    figure.set_size_inches(4.4, max(2.9, 0.6 + 0.26 * len(rows)))
    for height, (_, row) in enumerate(reversed(rows)):
        axes.plot([row["low"], row["high"]], [height, height], color=page.BLUE)
        axes.plot(row["accuracy"], height, "o", color=page.BLUE, markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.axvline(0.5, color=page.GRAY, linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    header = ["subset", "items", "accuracy", "95 % interval", "mean margin", "log loss", "ECE", "temperature"]
    shown = [
        [
            name,
            row["items"],
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f}–{row['high']:.3f}",
            f"{row['mean_margin']:.3f}",
            f"{row['log_loss']:.3f}",
            f"{row['calibration_error']:.3f}",
            f"{row['temperature']:.2f}",
        ]
        for name, row in rows
    ]
    more = [(key, found[key]) for key in ("sections", "rm_bench") if key in found]
    tables = "".join(page.table(["", "accuracy"], [[n, f"{v:.3f}"] for n, v in values.items()]) for _, values in more)
    return page.plots([figure]) + page.table(header, shown) + tables


def _before_section(found: dict[str, Any]) -> str:
    names = ("accuracy", "mean_margin", "log_loss", "calibration_error")
    rows = [[name, f"{found['before'][name]:.3f}", f"{found['all'][name]:.3f}"] for name in names]
    return page.table(["", "before", "after"], rows)


def _score_section(found: dict[str, Any], scored: Scored) -> str:
    chosen, rejected = (np.concatenate(scores) for scores in zip(*scored.split, strict=True))
    bins = np.linspace(min(chosen.min(), rejected.min()), max(chosen.max(), rejected.max()) + 1e-6, 40)
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
    everything = found["all"]
    note = (
        f"Expected calibration error {everything['calibration_error']:.3f}; divided by the temperature "
        f"{everything['temperature']:.2f} it would be {everything['calibration_error_at_temperature']:.3f}."
    )
    return page.plots([scores, margins, calibration]) + f'<p class="note">{note}</p>'


def _length_section(found: dict[str, Any], scored: Scored) -> str:
    by_length = found["by_length"]
    classes, axes = page.plot("Accuracy where chosen is …", ylabel="accuracy")
    axes.bar(list(by_length), [row["accuracy"] for row in by_length.values()], color=page.BLUE)
    axes.axhline(0.5, color=page.GRAY, linewidth=1)
    axes.set_ylim(0, 1)
    lengths = [len(str(messages[-1].get("content") or "")) for item in scored.items for messages in item.conversations]
    points, axes = page.plot("Score and length of answers", "characters", "score")
    axes.scatter(lengths, [score for scores in scored.scores for score in scores], 4, page.BLUE, alpha=0.4)
    judges = {**found["trivial_judges"], "this model": found["all"]["accuracy"]}
    rows = [[name, f"{value:.3f}"] for name, value in sorted(judges.items(), key=lambda item: -item[1])]
    note = f"Rank correlation of score and length: {found['length_correlation']:+.2f}. Beside judges that read nothing:"
    return page.plots([classes, points]) + f"<p>{note}</p>" + page.table(["judge", "accuracy"], rows)


def _worst_section(found: dict[str, Any], scored: Scored) -> str:
    least = np.array([margins.min() for margins in scored.margins])
    shown = []
    for index in np.argsort(least)[:WORST]:
        item, margins = scored.items[index], scored.margins[index]
        row, column = np.unravel_index(margins.argmin(), margins.shape)
        pair = {"chosen": item.chosen[row], "rejected": item.rejected[column]}
        shared = shared_messages(pair)
        question = " ".join(str(shared[-1].get("content") or "").split())[:110]
        scores = [scored.split[index][0][row], scored.split[index][1][column]]
        summary = f"{margins[row, column]:+.2f} ({scores[0]:+.2f} to {scores[1]:+.2f}) {item.subset}: {question}"
        text = page.pair(summary, shared, *(messages[len(shared) :] for messages in pair.values()))
        shown.append(f'<div data-subset="{escape(item.subset)}">{text}</div>')
    options = "".join(f"<option>{escape(name)}</option>" for name in found["subsets"])
    return "<p>" + FILTER % options + "</p>" + "".join(shown)


def compare(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(comparison per subset and in all, items on which they disagree) of two runs' records, by their common keys."""
    other = {record["key"]: record for record in b}
    both = [(record, other[record["key"]]) for record in a if record["key"] in other]
    right_a, right_b = (np.array([pair[side]["right"] for pair in both]) for side in (0, 1))
    subsets = np.array([record["subset"] for record, _ in both])
    prompts = np.array([record["prompt"] for record, _ in both])
    found = {}
    for name in [*dict.fromkeys(subsets.tolist()), "all"]:
        inside = subsets == name if name != "all" else np.ones(len(both), dtype=bool)
        found[name] = comparison(right_a[inside], right_b[inside], prompts[inside])
    disagree = [
        {"a_right": one["right"], "b_right": two["right"]}
        | {key: one[key] for key in ("place", "subset", "prompt", "chosen", "rejected")}
        for one, two in both
        if one["right"] != two["right"]
    ]
    return found, disagree
