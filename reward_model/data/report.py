"""Report on prepared pairs: statistics, a summary for the terminal, and a page with plots."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reward_model import html as page
from reward_model.data.pair import SIDES, Messages, Pair, excerpt, shared_messages
from reward_model.data.prepare import PreparedData
from reward_model.data.statistics import trivial_judges

BATCH_SIZES = (1, 2, 8)


def compute_figures(prepared: PreparedData) -> dict[str, Any]:
    """Return the statistics for the report, as written to pairs.report.json."""
    facts, lengths = prepared.facts, _lengths(prepared)
    return {
        "rows": prepared.rows,
        "pairs": len(facts) - int(prepared.in_eval.sum()),
        "eval_pairs": int(prepared.in_eval.sum()),
        "prompts": len(np.unique(facts["prompt_hash"])),
        "pairs_with_margin": int(facts["has_margin"].sum()),
        "findings": prepared.findings,
        "left_out_by_cap_or_weight": prepared.not_taken,
        "unit": prepared.unit,
        "lengths": {name: _distribution(values) for name, values in lengths.items()},
        "length_difference": _distribution(lengths["chosen"] - lengths["rejected"]),
        "sources": _counts(facts["source"], prepared.sources),
        "turns": {str(turns): int(count) for turns, count in enumerate(np.bincount(facts["turns"])) if count},
        "unfinished": {side: round(float(facts[f"{side}_unfinished"].mean()), 4) for side in SIDES},
        "trivial_judges": trivial_judges(facts),
        "shared_prefix_saves": {str(size): padding_ratio(lengths, size) for size in BATCH_SIZES},
    }


def padding_ratio(lengths: dict[str, np.ndarray], batch_size: int) -> float:
    """Return the ratio of positions in padded batches to positions in packed rows, for randomly ordered pairs."""
    pairs = np.random.default_rng(0).permutation(len(lengths["prompt"]))
    pairs = pairs[: max(1, len(pairs) // batch_size) * batch_size]
    prompt, chosen, rejected = (lengths[name][pairs] for name in ("prompt", *SIDES))
    longest = prompt + np.maximum(chosen, rejected)
    batches = np.array_split(longest, max(1, len(pairs) // batch_size))
    padded = sum(2 * len(batch) * int(batch.max()) for batch in batches)
    return padded / max(1, int((prompt + chosen + rejected).sum()))


def summary(figures: dict[str, Any]) -> str:
    """Return the summary that prepare_data.py prints."""
    return page.render("data/report.txt.jinja", figures=figures).rstrip()


def html(title: str, figures: dict[str, Any], prepared: PreparedData) -> str:
    """Return the HTML of pairs.report.html."""
    samples = [_sample(pair) for pair in prepared.samples]
    plots = _length_plots(prepared)
    return page.render("data/report.html.jinja", title=title, figures=figures, plots=plots, samples=samples)


def _lengths(prepared: PreparedData) -> dict[str, np.ndarray]:
    suffix = "_tokens" if prepared.unit == "tokens" else ""
    return {name: prepared.facts[f"{name}{suffix}"].astype(np.int64) for name in ("prompt", *SIDES)}


def _length_plots(prepared: PreparedData) -> list[Figure]:
    values, unit = _lengths(prepared), prepared.unit
    longest = max(np.percentile(lengths, 99) for lengths in values.values()) or 1
    bins = np.linspace(0, longest, 40)
    all_lengths, axes = page.plot("Prompts and answers", unit, "pairs")
    for name, color in zip(values, (page.GRAY, page.BLUE, page.ORANGE), strict=True):
        axes.hist(values[name].clip(max=longest), bins, histtype="step", color=color, label=name)
    axes.legend()
    differences, axes = page.plot("Length of chosen minus length of rejected", unit, "pairs")
    difference = values["chosen"] - values["rejected"]
    limit = max(1, np.percentile(np.abs(difference), 99))
    axes.hist(difference.clip(-limit, limit), np.linspace(-limit, limit, 41), color=page.BLUE)
    axes.axvline(0, color=page.GRAY, linewidth=1)
    return [all_lengths, differences]


def _sample(pair: Pair) -> tuple[str, Messages, Messages, Messages]:
    """Return a pair's summary line, its prompt, and the rest of each side, for the page."""
    shared = shared_messages(pair)
    chosen, rejected = (pair[side][len(shared) :] for side in SIDES)
    return f"{pair['source']}: {excerpt(shared[-1], 110)}", shared, chosen, rejected


def _distribution(values: np.ndarray) -> dict[str, float | int]:
    minimum, p5, median, p95, maximum = np.percentile(values, [0, 5, 50, 95, 100]).astype(int).tolist()
    mean = round(float(values.mean()), 1)
    return {"min": minimum, "p5": p5, "median": median, "mean": mean, "p95": p95, "max": maximum}


def _counts(codes: np.ndarray, names: Any) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names))
    return {names[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable") if counts[code]}
