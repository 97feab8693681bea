"""Load pairs as train.py does: clear errors, no prompt in both splits, no slow imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, conversation, jsonl

from reward_model import InputError
from reward_model.data.dataset import held_out, load_pairs, split_by_prompt

TIE = {"question": "Why?", "response_A": "a", "response_B": "b", "label": "A=B"}


def test_a_file_without_pairs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "array.json").write_text("[]")
    jsonl(tmp_path / "ties.jsonl", [TIE, TIE])
    for name, message in {
        "empty.jsonl": "empty, no rows",
        "array.json": "empty, no rows",
        "ties.jsonl": "only ties",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            load_pairs(str(tmp_path / name))


def test_a_prompt_is_in_one_split_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        pair = {side: conversation(f"Question {number}?", f"{side} {number}") for side in ("chosen", "rejected")}
        reordered = {side: [dict(reversed(m.items())) for m in talk] for side, talk in pair.items()}
        reordered["chosen"][-1]["content"] = "another answer"
        rows += [pair, reordered]
    pairs, none = load_pairs(str(jsonl(tmp_path / "pairs.jsonl", rows)))
    assert none is None and len(set(pairs["prompt"][:])) == 40
    training, held = split_by_prompt(pairs, 0.25, seed=0)
    assert (len(training), len(held)) == (60, 20)
    assert not set(training["prompt"][:]) & set(held["prompt"][:])
    training, held = split_by_prompt(pairs, 0, seed=0)
    assert (len(training), len(held)) == (80, 0) and held.column_names == pairs.column_names


# Pairs of each prompt, --eval_size, and the number of held-out pairs or the error.
SPLITS = [
    ([1] * 100, 0, 0),
    ([1] * 100, 0.25, 25),
    ([1] * 100, 0.001, 1),
    ([1] * 100, 1, 1),
    ([1] * 100, 7, 7),
    ([1] * 100, 50, 50),
    ([2] * 50, 7, 8),
    ([60] + [1] * 40, 0.1, 10),
    ([5], 0, 0),
    ([5], 0.2, "one prompt has most of the pairs"),
    ([1] * 24, 24, "--eval_size 24 is more than half of 24 pairs. Pass at most 12"),
    ([1] * 24, 100, "--eval_size 100 is more than half of 24 pairs"),
    ([1] * 24, 0.6, "--eval_size 0.6 is more than half of 24 pairs"),
    ([1] * 24, -1, "--eval_size -1: pass a fraction"),
    ([1] * 24, -0.1, "--eval_size -0.1: pass a fraction"),
    ([1] * 24, 1.5, "--eval_size 1.5: pass a fraction"),
    ([1] * 24, float("nan"), "--eval_size nan: pass a fraction"),
    ([1] * 24, float("inf"), "--eval_size inf: pass a fraction"),
]


@pytest.mark.parametrize(("counts", "eval_size", "expected"), SPLITS)
def test_size_of_the_held_out_split(counts: list[int], eval_size: float, expected: int | str) -> None:
    prompts = np.repeat(np.arange(len(counts)), counts)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            held_out(prompts, eval_size, seed=0)
        return
    for seed in range(20):
        mask = held_out(prompts, eval_size, seed)
        assert mask.sum() == expected
        assert not set(prompts[mask]) & set(prompts[~mask])


def test_slow_libraries_are_imported_only_where_needed() -> None:
    slow = "torch trl transformers matplotlib datasketch".split()
    modules = [f"reward_model.data.{file.stem}" for file in (ROOT / "reward_model/data").glob("*.py")]
    without_report = [module for module in modules if not module.endswith(("__init__", "report"))]
    for imported in (["prepare_data"], without_report):
        code = f"import sys, {', '.join(imported)}; print(*(name for name in {slow} if name in sys.modules))"
        shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
        assert shown.stdout.split() == [], imported
