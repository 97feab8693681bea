"""`make check-gpu` on a CPU: every group runs, and a wrong kernel or a failing group is reported."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run

from benchmarks.check_gpu import packages
from benchmarks.check_gpu.__main__ import GROUPS, run_groups
from benchmarks.check_gpu.models import random_prompts
from benchmarks.check_gpu.numerics import kernel
from benchmarks.check_gpu.speed import LAYOUTS, fill
from benchmarks.check_gpu.table import Row, Table
from reward_model.model.attention import sequence_attention


def attend_to_one_key_more(*args: object, scale: float, window: int | None) -> torch.Tensor:
    return sequence_attention(*args, scale=scale, window=window and window + 1)


@pytest.mark.parametrize("attend", [sequence_attention, attend_to_one_key_more])
def test_kernel_check_finds_a_wrong_window(attend: Callable) -> None:
    rows = list(kernel("cpu", 1, attend))
    assert len(rows) == 25
    for row in rows:
        assert row.passed is (attend is sequence_attention or "window" not in row.check), row


def test_failing_group_does_not_end_the_run(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.md", "title")

    def fails() -> object:
        yield Row("first", "a | b", True)
        assert "| one | first | a / b | ok |" in table.file.read_text()
        raise RuntimeError("CUDA error")

    run_groups({"one": fails, "two": lambda: [Row("second", "1 pair/s")]}, table)
    text = table.file.read_text()
    assert "| one | error | RuntimeError: CUDA error | FAILED |" in text
    assert "| two | second | 1 pair/s |  |" in text
    assert table.finish() == 1


def test_missing_packages_are_listed_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("trl", "orjson")
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(SystemExit, match=r"trl, orjson not installed(.|\n)*--wheels(.|\n)*--no-index --no-deps"):
        packages.check_required()


@pytest.mark.parametrize(("name", "responses", "attention", "collate"), LAYOUTS)
def test_batches_fill_the_budget_with_all_pairs_of_their_prompts(name, responses, attention, collate) -> None:
    batch, pairs = fill(random_prompts(64, responses), 8192, collate)
    assert 4096 < batch["input_ids"].numel() <= 8192
    assert pairs and pairs % (responses * (responses - 1) // 2) == 0


@pytest.mark.slow
def test_dry_run_of_every_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--dry_run", "--output", tmp_path / "table.md"]
    run(*command, cwd=ROOT, OMP_NUM_THREADS="1")
    rows = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()[4:]]
    assert {group.removeprefix("| ") for group, *_ in rows} == set(GROUPS)
    assert [row[1] for row in rows if row[1].startswith("train.sh")] == [
        "train.sh, ZeRO-3 on one rank, full",
        "train.sh, ZeRO-3 on one rank, LoRA",
    ]
    assert not [row for row in rows if "FAILED" in row[-1]]
