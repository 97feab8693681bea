"""Compare the figures of the report with values computed by hand."""

import json
from pathlib import Path

import numpy as np
from helpers import conversation, jsonl

from reward_model.data.prepare import prepare
from reward_model.data.report import compute_figures, html, padding_ratio, summary
from reward_model.data.statistics import facts_array, trivial_judges
from reward_model.data.workers import ConversionConfig, Source


def facts_of(*answers: tuple[str, str]) -> np.ndarray:
    return facts_array({"chosen": conversation("Why?", a), "rejected": conversation("Why?", b)} for a, b in answers)


def test_facts_of_a_pair() -> None:
    (facts,) = facts_of(("- one\n- two\n**three**", "I'm sorry, I cannot"))
    assert (facts["prompt"], facts["chosen"], facts["rejected"], facts["turns"]) == (4, 21, 19, 1)
    assert (facts["chosen_markdown"], facts["rejected_markdown"]) == (4, 0)  # two lines, two marks
    assert (facts["chosen_refuses"], facts["rejected_refuses"]) == (False, True)
    assert (facts["chosen_unfinished"], facts["rejected_unfinished"]) == (False, True)  # the second ends within a word


def test_trivial_judges() -> None:
    facts = facts_of(
        ("a long answer", "short"),
        ("a longer answer", "# title"),
        ("- point", "I cannot help."),
        ("same", "even"),
    )
    assert trivial_judges(facts) == {
        "the longer answer": (1 + 1 + 0 + 0.5) / 4,
        "the shorter answer": (0 + 0 + 1 + 0.5) / 4,
        "more bullet points and markdown": (0.5 + 0 + 1 + 0.5) / 4,
        "fewer refusals": (0.5 + 0.5 + 1 + 0.5) / 4,
    }


def test_padding_ratio() -> None:
    lengths = {"prompt": np.array([90, 90]), "chosen": np.array([10, 10]), "rejected": np.array([10, 10])}
    # Padded: 2 sides of 100 tokens for each pair; packed: 90 + 10 + 10.
    assert padding_ratio(lengths, 1) == padding_ratio(lengths, 2) == padding_ratio(lengths, 8) == 400 / 220
    lengths = {"prompt": np.array([0, 0]), "chosen": np.array([10, 100]), "rejected": np.array([20, 40])}
    assert padding_ratio(lengths, 1) == (2 * 20 + 2 * 100) / 170
    assert padding_ratio(lengths, 2) == 4 * 100 / 170


def test_statistics(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"<{number}", "chosen": "yes" * number, "rejected": "no", "source": "ab"[number % 2]}
        for number in range(1, 9)
    ]
    rows += [rows[0] | {"rejected": "maybe", "margin": 1.0}, {"prompt": "broken"}]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    prepared = prepare([Source(str(source))], tmp_path / "pairs.jsonl", ConversionConfig(), eval_size=2)
    figures = compute_figures(prepared)
    written = len((tmp_path / "pairs.jsonl").read_text().splitlines())
    held = len((tmp_path / "pairs.eval.jsonl").read_text().splitlines())
    assert (figures["rows"], figures["prompts"], figures["pairs_with_margin"]) == (10, 8, 1)
    assert (figures["pairs"], figures["eval_pairs"]) == (written, held) and written + held == 9 and held in (2, 3)
    assert figures["findings"]["missing field"]["count"] == 1 and figures["unit"] == "characters"
    assert figures["findings"]["missing field"]["first"] == [f"{source}:10: no 'chosen' (keys: prompt)."]
    chosen = [3, 3, 6, 9, 12, 15, 18, 21, 24]
    assert figures["lengths"]["prompt"] == {"min": 2, "p5": 2, "median": 2, "mean": 2.0, "p95": 2, "max": 2}
    assert figures["lengths"]["chosen"] == {
        "min": 3, "p5": 3, "median": 12, "mean": round(sum(chosen) / 9, 1), "p95": 22, "max": 24,
    }  # fmt: skip
    assert figures["length_difference"]["min"] == 3 - 5 and figures["length_difference"]["max"] == 24 - 2
    assert figures["sources"] == {"b": 5, "a": 4}
    assert figures["turns"] == {"1": 9} and figures["left_out_by_cap_or_weight"] == 0
    assert figures["trivial_judges"]["the longer answer"] == 8 / 9
    packed = sum(2 + length + 2 for length in chosen) + 3  # one rejected answer is "maybe"
    padded = sum(2 * (2 + max(length, 2)) for length in chosen) + 2 * (5 - 3)
    assert figures["shared_prefix_saves"]["1"] == padded / packed
    assert json.loads(json.dumps(figures)) == figures
    shown = summary(figures)
    assert shown.startswith(f"10 rows -> {written} pairs, {held} held out for evaluation, 8 prompts\n")
    assert "the longer answer 0.89" in shown and "only 1 of 9 pairs have a margin" in shown
    page = html("pairs.jsonl", figures, prepared)
    assert "<title>pairs.jsonl</title>" in page and f"<td>{written}</td>" in page
    assert "user: &lt;1</div>" in page
