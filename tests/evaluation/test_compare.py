"""Comparison of two runs: equal items, equal prompts, and significance."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import conversation, jsonl, run

from reward_model import InputError
from reward_model.evaluation import compare, report
from reward_model.evaluation.items import Item, ScoredItems

LONG = "word " * 6000


def scored_items(questions: list[str], right: list[bool], before: list[str] | None = None) -> ScoredItems:
    """Return an item for each question, ranked right or wrong; `before` has earlier questions of the same user."""
    items = []
    for number, question in enumerate(questions):
        earlier = conversation(before[number], "I see.") if before else []
        chosen, rejected = ([*earlier, *conversation(question, f"{side} {number}")] for side in ("Yes", "No"))
        items.append(Item(f"here:{number}", "all", "pairs", [chosen], [rejected]))
    return ScoredItems(items, [[1.0, 0.0] if one else [0.0, 1.0] for one in right])


def write(folder: Path, scored: ScoredItems) -> Path:
    report.write(folder, "a model", report.compute_figures(scored), scored)
    return folder


def test_mcnemar_and_paired_difference() -> None:
    # Only A is right on one pair, only B on six: 2 x P(at most 1 of 7 coin tosses) = 2 x 8 / 128.
    a = np.array([1] + [0] * 6 + [1] * 3, dtype=float)
    b = np.array([0] + [1] * 6 + [1] * 3, dtype=float)
    assert compare.mcnemar(a, b) == pytest.approx(0.125)
    found = compare.paired_difference(a, b, np.arange(10))
    assert (found["accuracy_a"], found["accuracy_b"]) == (0.4, 0.9) and found["difference"] == pytest.approx(0.5)
    # The sum of ten draws of -1 (one in ten), 1 (six in ten) or 0 is at most 0 in 2.3% and 8 in 96.4% of samples.
    assert found["low"] in (0.0, pytest.approx(0.1)) and found["high"] == pytest.approx(0.9)
    assert compare.mcnemar(a, a) == 1.0


def test_prompts_with_equal_last_turns_are_different(tmp_path: Path) -> None:
    """All users end with "Continue."; as one prompt, the 20 items would be resampled as one."""
    before = [f"Tell me story {number}." for number in range(20)]
    right = [number % 2 == 0 for number in range(20)]
    a, b = scored_items(["Continue."] * 20, right, before), scored_items(["Continue."] * 20, [True] * 20, before)
    runs = [compare.load_run(write(tmp_path / name, one)) for name, one in (("a", a), ("b", b))]
    assert runs[0]["prompt_key"].nunique() == 20 and runs[0]["prompt"].unique().tolist() == ["Continue."]
    found, disagree = compare.paired_differences(*runs)
    row = found.iloc[-1]
    assert (row["items"], row["accuracy_a"], row["accuracy_b"], row["difference"]) == (20, 0.5, 1.0, 0.5)
    assert 0.2 < row["low"] < 0.35 and 0.65 < row["high"] < 0.8
    assert disagree["place"].tolist() == [f"here:{number}" for number in range(1, 20, 2)]


@pytest.mark.slow
def test_long_prompts_need_little_space(tmp_path: Path) -> None:
    questions = [f"{LONG}{number}" for number in range(5)]
    scored = scored_items(questions, [True] * 5)
    a, b = write(tmp_path / "a", scored), write(tmp_path / "b", scored_items(questions, [False] * 5))
    assert (a / "scores.jsonl").stat().st_size < 5 * 1000 and scored.prompts.nbytes == 5 * 8
    run(sys.executable, "evaluate.py", "compare", a, b, "--output", tmp_path / "difference.json")
    assert (tmp_path / "difference.json").stat().st_size < 5 * 1000
    result = json.loads((tmp_path / "difference.json").read_text())
    assert [item["right_a"] for item in result["disagree"]] == [1.0] * 5 and result["subsets"][-1]["difference"] == -1.0


def test_directories_without_a_run(tmp_path: Path) -> None:
    good = compare.load_run(write(tmp_path / "good", scored_items(["a", "b"], [True, False])))
    other = compare.load_run(write(tmp_path / "other", scored_items(["c"], [True])))
    with pytest.raises(InputError, match="no scores.jsonl found. Run evaluate.py with --output"):
        compare.load_run(tmp_path)
    for text in ["", "{", "[1]\n", '{"key": "an older version"}\n', "\udce9"]:
        (tmp_path / "scores.jsonl").write_text(text, errors="surrogateescape")
        with pytest.raises(InputError, match=r"scores\.jsonl: not written by this version of evaluate\.py"):
            compare.load_run(tmp_path)
    with pytest.raises(InputError, match="no items in common"):
        compare.paired_differences(good, other)


def test_the_same_item_with_its_keys_in_another_order() -> None:
    one = scored_items(["a"], [True]).items[0]
    reordered = [[dict(reversed(message.items())) for message in messages] for messages in one.conversations]
    other = Item("there:9", "all", "pairs", reordered[:1], reordered[1:])
    assert (
        one.key == other.key and ScoredItems([one], [[1.0, 0.0]]).prompts == ScoredItems([other], [[1.0, 0.0]]).prompts
    )
    assert one.key != Item("here:0", "all", "pairs", one.chosen, one.rejected, tools=[{"type": "function"}]).key


@pytest.mark.slow
def test_the_commands_of_evaluate(tmp_path: Path) -> None:
    shown = run(sys.executable, "evaluate.py", "--help").stdout
    assert all(f"\n    {command} " in shown for command in ("accuracy", "compare", "parity"))
    data = jsonl(tmp_path / "pairs.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}])
    for arguments, message in {
        (data,): "pass either --model DIRECTORY or --url URL",
        (data, "--url", "http://x", "--base_model", "y"): "--base_model requires --model",
        ("parity", "folder", data): "required: --url",
        ("compare", tmp_path): "required: b",
        ("accuracy", "--model", tmp_path, data): "has no config.json",
        ("--model", tmp_path, data): "has no config.json",
    }.items():
        failed = run(sys.executable, "evaluate.py", *arguments, check=False)
        assert failed.returncode and message in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
