"""Pairs as train.py reads them: refused with a sentence, no prompt on both sides of the split, nothing heavy loaded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, conversation, jsonl

from reward_model import InputError
from reward_model.data.dataset import load_pairs, split_by_prompt
from reward_model.data.split import held_out

TIE = {"question": "Why?", "response_A": "a", "response_B": "b", "label": "A=B"}


def test_a_file_without_pairs_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "array.json").write_text("[]")
    jsonl(tmp_path / "ties.jsonl", [TIE, TIE])
    for name, said in {
        "empty.jsonl": "empty, no row",
        "array.json": "empty, no row",
        "ties.jsonl": "only ties",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: .*{said}"):
            load_pairs(str(tmp_path / name))


def test_one_prompt_is_on_one_side_however_its_keys_stand(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        pair = {side: conversation(f"Question {number}?", f"{side} {number}") for side in ("chosen", "rejected")}
        turned = {side: [dict(reversed(m.items())) for m in talk] for side, talk in pair.items()}
        turned["chosen"][-1]["content"] = "another answer"
        rows += [pair, turned]
    pairs, none = load_pairs(str(jsonl(tmp_path / "pairs.jsonl", rows)))
    assert none is None and len(set(pairs["prompt"][:])) == 40
    training, held = split_by_prompt(pairs, 0.25, seed=0)
    assert (len(training), len(held)) == (60, 20)
    assert not set(training["prompt"][:]) & set(held["prompt"][:])
    training, held = split_by_prompt(pairs, 0, seed=0)
    assert (len(training), len(held)) == (80, 0) and held.column_names == pairs.column_names


# Pairs of each prompt, --eval_size, and how many pairs are held out, or what is said.
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
    ([5], 0.2, "one prompt has most of the 5 pairs"),
    ([1] * 24, 24, "of 24 pairs: at least half must stay for training; give 12 or fewer"),
    ([1] * 24, 100, "of 24 pairs: at least half"),
    ([1] * 24, 0.6, "of 24 pairs: at least half"),
    ([1] * 24, -1, "--eval_size -1: give a share"),
    ([1] * 24, -0.1, "--eval_size -0.1: give a share"),
    ([1] * 24, 1.5, "--eval_size 1.5: give a share"),
    ([1] * 24, float("nan"), "--eval_size nan: give a share"),
    ([1] * 24, float("inf"), "--eval_size inf: give a share"),
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


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "torch trl transformers matplotlib datasketch".split()
    modules = [f"reward_model.data.{file.stem}" for file in (ROOT / "reward_model/data").glob("*.py")]
    wanted = [module for module in modules if not module.endswith(("__init__", "contamination", "report"))]
    for imported in (["prepare_data"], wanted):
        code = f"import sys, {', '.join(imported)}; print(*(name for name in {heavy} if name in sys.modules))"
        shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
        assert shown.stdout.split() == [], imported
