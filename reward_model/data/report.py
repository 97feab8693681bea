"""What is in a set of pairs: figures, a summary for the terminal, and a page with plots."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reward_model import html as page
from reward_model.data.pair import SIDES, Messages, Pair, excerpt, shared_messages
from reward_model.data.prepare import Prepared
from reward_model.data.statistics import SCRIPTS, trivial_judges

BATCH_SIZES = (1, 2, 8)


def statistics(prepared: Prepared) -> dict[str, Any]:
    """The figures of the report, as written to pairs.report.json."""
    facts, suffix = prepared.facts, "_tokens" if prepared.unit == "tokens" else ""
    lengths = {name: facts[f"{name}{suffix}"] for name in ("prompt", *SIDES)}
    return {
        "rows": prepared.rows,
        "pairs": len(facts) - int(prepared.in_eval.sum()),
        "eval_pairs": int(prepared.in_eval.sum()),
        "prompts": len(np.unique(facts["prompt_hash"])),
        "pairs_with_margin": int(facts["has_margin"].sum()),
        "findings": prepared.rejected,
        "left_out_by_cap_or_weight": prepared.not_taken,
        "unit": prepared.unit,
        "lengths": {name: _distribution(values) for name, values in lengths.items()},
        "length_difference": _distribution(lengths["chosen"].astype(int) - lengths["rejected"].astype(int)),
        "sources": _counts(facts["source"], prepared.sources),
        "scripts": _counts(facts["script"], SCRIPTS),
        "turns": {str(turns): int(count) for turns, count in enumerate(np.bincount(facts["turns"])) if count},
        "trivial_judges": trivial_judges(facts),
        "shared_prefix_saves": {str(size): saved(lengths, size) for size in BATCH_SIZES},
        "trees_save": trees_save(facts, lengths),
    }


def saved(lengths: dict[str, np.ndarray], batch_size: int) -> float:
    """Positions of the padded batches over those of the packed rows, for batches in random order."""
    pairs = np.random.default_rng(0).permutation(len(lengths["prompt"]))
    pairs = pairs[: max(1, len(pairs) // batch_size) * batch_size]
    prompt, chosen, rejected = (lengths[name][pairs].astype(np.int64) for name in ("prompt", *SIDES))
    longest = prompt + np.maximum(chosen, rejected)
    batches = np.array_split(longest, max(1, len(pairs) // batch_size))
    padded = sum(2 * len(batch) * int(batch.max()) for batch in batches)
    return padded / max(1, int((prompt + chosen + rejected).sum()))


def trees_save(facts: np.ndarray, lengths: dict[str, np.ndarray]) -> float:
    """Positions of packed pairs over those of trees, where all pairs of a prompt meet in a batch."""
    prompts = facts["prompt_hash"]
    answers = np.concatenate([np.stack([prompts, facts[f"{side}_hash"], lengths[side]], axis=1) for side in SIDES])
    each, once = np.unique(prompts, return_index=True)[1], np.unique(answers[:, :2], axis=0, return_index=True)[1]
    packed = sum(int(values.sum(dtype=np.int64)) for values in lengths.values())
    return packed / max(1, int(lengths["prompt"][each].sum(dtype=np.int64)) + int(answers[once, 2].sum()))


def terminal(figures: dict[str, Any]) -> str:
    """The summary that prepare_data.py prints."""
    return page.render("data/report.txt.jinja", figures=figures).rstrip()


def html(title: str, figures: dict[str, Any], prepared: Prepared) -> str:
    """Return the page pairs.report.html."""
    return page.render(
        "data/report.html.jinja",
        title=title,
        figures=figures,
        length_plots=_length_plots(prepared),
        content_plots=_content_plots(figures),
        judges_plot=_judges_plot(figures["trivial_judges"]),
        samples=[_sample(pair) for pair in prepared.samples],
    )


def _length_plots(prepared: Prepared) -> list[Figure]:
    suffix, unit = ("_tokens", "tokens") if prepared.unit == "tokens" else ("", "characters")
    values = {name: prepared.facts[f"{name}{suffix}"].astype(int) for name in ("prompt", *SIDES)}
    most = max(np.percentile(lengths, 99) for lengths in values.values()) or 1
    bins = np.linspace(0, most, 40)
    prompts, axes = page.plot("Prompt (what both sides share)", unit, "pairs")
    axes.hist(values["prompt"].clip(max=most), bins, color=page.GRAY)
    answers, axes = page.plot("Answers", unit, "pairs")
    for side, color in zip(SIDES, (page.BLUE, page.ORANGE), strict=True):
        axes.hist(values[side].clip(max=most), bins, histtype="step", color=color, label=side)
    axes.legend()
    differences, axes = page.plot("Length of chosen less that of rejected", unit, "pairs")
    difference = values["chosen"] - values["rejected"]
    reach = max(1, np.percentile(np.abs(difference), 99))
    axes.hist(difference.clip(-reach, reach), np.linspace(-reach, reach, 41), color=page.BLUE)
    axes.axvline(0, color=page.GRAY, linewidth=1)
    return [prompts, answers, differences]


def _content_plots(figures: dict[str, Any]) -> list[Figure]:
    bars = []
    for title, key in (("Sources", "sources"), ("Turns of the user", "turns"), ("Scripts", "scripts")):
        counts = dict(list(figures[key].items())[:12])
        figure, axes = page.plot(title, "pairs")
        axes.barh(list(counts)[::-1], list(counts.values())[::-1], color=page.BLUE)
        bars.append(figure)
    return bars


def _judges_plot(judges: dict[str, float]) -> Figure:
    figure, axes = page.plot("Judges that read nothing", "accuracy")
    axes.barh(list(judges)[::-1], list(judges.values())[::-1], color=page.ORANGE)
    axes.axvline(0.5, color=page.GRAY, linewidth=1)
    axes.set_xlim(0, 1)
    return figure


def _sample(pair: Pair) -> tuple[str, Messages, Messages, Messages]:
    """Return the line that a pair is folded into, the prompt, and the rest of each side."""
    shared = shared_messages(pair)
    chosen, rejected = (pair[side][len(shared) :] for side in SIDES)
    return f"{pair['source']}: {excerpt(shared[-1], 110)}", shared, chosen, rejected


def _distribution(values: np.ndarray) -> dict[str, float | int]:
    low, five, half, most_of, high = np.percentile(values, [0, 5, 50, 95, 100]).astype(int).tolist()
    mean = round(float(values.mean()), 1)
    return {"min": low, "p5": five, "median": half, "mean": mean, "p95": most_of, "max": high}


def _counts(codes: np.ndarray, names: Any) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names))
    return {names[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable") if counts[code]}
