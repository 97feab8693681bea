"""What cannot be merged is refused in a sentence, and an adapter is merged onto its own base model only."""

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
    folder = tmp_path_factory.mktemp("lora")
    paths = ["--model_name_or_path", base_model, "--dataset_name", jsonl(folder / "pairs.jsonl", demo_pairs()[:8])]
    train_script.main([*map(str, paths), "--output_dir", str(folder / "run"), *ARGUMENTS.split()])
    return folder / "run"


def entry(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


# What is done to a good adapter, what is given behind it -> what must be said.
WRONG: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "", "has no adapter_config.json"),
    "config broken": (lambda a: (a / "adapter_config.json").write_text("{"), "", "adapter_config.json is broken"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "", "has no adapter_model.safetensors"),
    "cut off": (lambda a: os.truncate(a / "adapter_model.safetensors", 900), "", "cannot be read: "),
    "no tokenizer": (lambda a: (a / "tokenizer_config.json").unlink(), "", "has no tokenizer"),
    "base gone": (lambda a: entry(a, "/no/base"), "", "The base model /no/base of"),
    "base not reachable": (lambda a: entry(a, "owner/nowhere"), "", "the Hub has no model of this name"),
    "another base": (lambda a: None, "--base_model OTHER", "has different weights"),
}


@pytest.fixture
def merging(trained: Path, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function that runs merge_lora.py, by what is done to the adapter, further arguments, and the output folder."""

    def merge(change: Callable[[Path], object], more: str, output_dir: Path) -> None:
        adapter = shutil.copytree(trained / "adapter", tmp_path / "run" / "adapter", dirs_exist_ok=True)
        shutil.copy(trained / "run.json", adapter.parent)
        change(adapter)
        words = [str(tiny_model("llama")) if word == "OTHER" else word for word in more.split()]
        monkeypatch.setattr(sys, "argv", ["merge_lora.py", str(adapter), str(output_dir), *words])
        merge_lora.main()

    return merge


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_merged(wrong: str, merging: Callable, tmp_path: Path) -> None:
    change, more, said = WRONG[wrong]
    with pytest.raises(InputError, match=said):
        merging(change, more, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(merging: Callable) -> None:
    with pytest.raises(InputError, match="/proc/out cannot be written"):
        merging(lambda adapter: None, "", Path("/proc/out"))


def test_a_stop_leaves_nothing_behind(merging: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    def stopped(adapter: Path, base: str, output_dir: Path, dtype: str) -> None:
        (output_dir / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_lora, "merge_adapter", stopped)
    with pytest.raises(SystemExit, match="130"):
        merging(lambda adapter: None, "", tmp_path / "merged")
    assert capsys.readouterr().err == "\nStopped; nothing was saved.\n" and not (tmp_path / "merged").exists()


def test_its_own_base_is_known_under_another_name(merging: Callable, base_model: Path, tmp_path: Path, capsys) -> None:
    moved = shutil.copytree(base_model, tmp_path / "moved")
    merging(lambda adapter: entry(adapter, "/no/base"), f"--base_model {moved}", tmp_path / "a model")
    assert f"sh infer_vllm.sh '{tmp_path}/a model'" in capsys.readouterr().out


def test_reference_scores_are_computed_on_a_gpu_where_the_model_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for what a GPU of 80 GB reports; in fp32, 7B is 28 GB and 32B 128 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60e9, 80e9))
    assert [scoring_device(size) for size in (7_000_000_000, 32_000_000_000)] == ["cuda", "cpu"]
