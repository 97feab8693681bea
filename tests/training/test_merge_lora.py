"""Damaged adapters are rejected with a clear message, and an adapter is merged into its own base model only."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import demo_pairs, jsonl

import merge_lora
import train as train_script
from reward_model import InputError
from reward_model.model.lora import scoring_device

ARGUMENTS = "--max_steps 1 --eval_size 0 --save_strategy no --report_to none --use_peft --lora_r 4"


@pytest.fixture(scope="module")
def trained(base_model: Path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("lora")
    paths = ["--model_name_or_path", base_model, "--dataset_name", jsonl(directory / "pairs.jsonl", demo_pairs()[:8])]
    train_script.main([*map(str, paths), "--output_dir", str(directory / "run"), *ARGUMENTS.split()])
    return directory / "run"


def set_base_model(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


# Change of a valid adapter, further arguments, expected message.
INVALID: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "", "has no adapter_config.json"),
    "config broken": (lambda a: (a / "adapter_config.json").write_text("{"), "", "adapter_config.json is broken"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "", "has no adapter_model.safetensors"),
    "weights truncated": (lambda a: os.truncate(a / "adapter_model.safetensors", 900), "", "cannot be read: "),
    "no tokenizer": (lambda a: (a / "tokenizer_config.json").unlink(), "", "has no tokenizer"),
    "base model missing": (lambda a: set_base_model(a, "/no/base"), "", "The base model /no/base of"),
    "base model unavailable": (lambda a: set_base_model(a, "owner/nowhere"), "", "the Hub has no model with this name"),
    "another base model": (lambda a: None, "--base_model OTHER", "has different weights"),
}


@pytest.fixture
def merge(trained: Path, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a function that changes a copy of the adapter and runs merge_lora.py on it."""

    def run_script(change: Callable[[Path], object], more: str, output_dir: Path) -> None:
        adapter = shutil.copytree(trained / "adapter", tmp_path / "run" / "adapter", dirs_exist_ok=True)
        shutil.copy(trained / "run.json", adapter.parent)
        change(adapter)
        arguments = [str(tiny_model("llama")) if word == "OTHER" else word for word in more.split()]
        monkeypatch.setattr(sys, "argv", ["merge_lora.py", str(adapter), str(output_dir), *arguments])
        merge_lora.main()

    return run_script


@pytest.mark.parametrize("case", INVALID)
def test_damaged_adapters_are_rejected(case: str, merge: Callable, tmp_path: Path) -> None:
    change, more, message = INVALID[case]
    with pytest.raises(InputError, match=message):
        merge(change, more, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_directory_that_cannot_be_written_is_rejected(merge: Callable) -> None:
    with pytest.raises(InputError, match="/proc/out cannot be written"):
        merge(lambda adapter: None, "", Path("/proc/out"))


def test_interrupted_merge_leaves_no_files(merge: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupt(adapter: Path, base: str, output_dir: Path, dtype: str) -> None:
        (output_dir / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_lora, "merge_adapter", interrupt)
    with pytest.raises(SystemExit, match="130"):
        merge(lambda adapter: None, "", tmp_path / "merged")
    assert capsys.readouterr().err == "\nStopped; nothing was saved.\n" and not (tmp_path / "merged").exists()


def test_moved_base_model_is_recognized(merge: Callable, base_model: Path, tmp_path: Path, capsys) -> None:
    moved = shutil.copytree(base_model, tmp_path / "moved")
    merge(lambda adapter: set_base_model(adapter, "/no/base"), f"--base_model {moved}", tmp_path / "a model")
    assert f"sh infer_vllm.sh '{tmp_path}/a model'" in capsys.readouterr().out


def test_reference_scores_are_computed_on_the_gpu_if_the_model_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch torch to report a GPU of 80 GB. In fp32, a 7B model needs 28 GB and a 32B model 128 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60e9, 80e9))
    assert [scoring_device(size) for size in (7_000_000_000, 32_000_000_000)] == ["cuda", "cpu"]
