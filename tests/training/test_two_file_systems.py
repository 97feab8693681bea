"""A problem that only one of two ranks finds stops both: nodes may have different files or a read-only disk."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TWO_RANKS, demo_pairs, jsonl

# Runs each case with the arguments of its rank, and logs the error that it raises.
SCRIPT = """
import json, os, sys
from types import SimpleNamespace

import deepspeed
import torch

import train
from reward_model import InputError
from reward_model.training.callbacks import TrainingMonitor

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
rank = int(os.environ["RANK"])


def infinite_weights():
    with deepspeed.zero.Init():
        layer = torch.nn.Linear(8, 8)
    layer.weight.ds_tensor.data[0] = float("nan") if rank else 0
    TrainingMonitor(None).on_train_end(None, SimpleNamespace(global_step=3), None, layer)


merge_adapter = train.merge_adapter


def merge(*arguments):
    assert not torch.distributed.is_initialized()
    with open(f"{sys.argv[1]}.threads", "a") as log:
        log.write(str(torch.get_num_threads()))
    merge_adapter(*arguments)


train.merge_adapter = merge
for name, arguments in json.load(open(sys.argv[1])).items():
    try:
        train.main(arguments[rank]) if arguments else infinite_weights()
        message = "no error"
    except InputError as error:
        message = str(error)
    with open(f"{sys.argv[1]}.{rank}", "a") as log:
        log.write(json.dumps([name, message]) + "\\n")
"""
MORE = "--max_steps 1 --per_device_train_batch_size 4 --eval_size 0 --report_to none --save_strategy no"
# Problem of rank 1 or of both ranks -> expected message of both.
MESSAGES = {
    "read-only directory": "rank 1: --output_dir /proc/out cannot be written",
    "a trained model": "rank 1: .*other already contains a model or checkpoints",
    "no checkpoint": "rank 1: --resume_from_checkpoint: None here, but .*checkpoint-1",
    "no model": "rank 1: .*nowhere",
    "another model": "rank 1: weights: ",
    "no data": r"rank 1: .*nowhere\.jsonl",
    "other data": "rank 1: data files: ",
    "longer data": r"rank 1: All 24 training pairs are longer than --max_length 1 ",
    "run.json cannot be written": r"rank 0: .*run\.json",
    "infinite loss": r"Step 1: the loss is inf.*The pairs of this step are .*pairs\.jsonl:\d",
    # with ZeRO-3, which leaves the parameters empty
    "infinite weights": "The weights are not finite after step 3",
    "no problem": "no error",
}


@pytest.mark.slow
def test_both_ranks_stop_with_the_same_message(base_model: Path, tiny_model, few_pairs: Path, tmp_path: Path) -> None:
    other, started, blocked = tmp_path / "other", tmp_path / "started", tmp_path / "blocked"
    (started / "checkpoint-1").mkdir(parents=True)
    (started / "checkpoint-1" / "complete.json").write_text("{}")
    (blocked / "run.json.new").mkdir(parents=True)
    other.mkdir()
    (other / "model.safetensors").touch()
    copy = jsonl(other / few_pairs.name, demo_pairs()[:23])
    margins = [pair | {"margin": 3.5e38 if n == 5 else 0.5} for n, pair in enumerate(demo_pairs()[:8])]

    def arguments(more: str = "", **changes: Path) -> list[str]:
        paths = {"model_name_or_path": base_model, "dataset_name": few_pairs, "output_dir": tmp_path / "out"}
        return [word for name, path in (paths | changes).items() for word in (f"--{name}", str(path))] + [
            *MORE.split(), *more.split()
        ]  # fmt: skip

    valid, auto = arguments(), "--resume_from_checkpoint auto"
    infinite = arguments(output_dir=tmp_path / "infinite", dataset_name=jsonl(tmp_path / "pairs.jsonl", margins))
    cases = {
        "read-only directory": [valid, arguments(output_dir=Path("/proc/out"))],
        "a trained model": [valid, arguments(output_dir=other)],
        "no checkpoint": [arguments(auto, output_dir=started), arguments(auto)],
        "no model": [valid, arguments(model_name_or_path=tmp_path / "nowhere")],
        "another model": [valid, arguments(model_name_or_path=tiny_model("llama"))],
        "no data": [valid, arguments(dataset_name=tmp_path / "nowhere.jsonl")],
        "other data": [valid, arguments(dataset_name=copy)],
        "longer data": [valid, arguments("--max_length 1")],
        "run.json cannot be written": [arguments("--overwrite_output_dir", output_dir=blocked)] * 2,
        "infinite loss": [infinite] * 2,
        "infinite weights": [],
        "no problem": [arguments("--use_peft --lora_r 4", output_dir=tmp_path / "right")] * 2,
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, *TWO_RANKS, tmp_path / "script.py", tmp_path / "cases.json"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    # Merging takes minutes for a large model, so it runs on all cores after the ranks have disconnected.
    assert (tmp_path / "cases.json.threads").read_text() == str(len(os.sched_getaffinity(0)))
    assert (tmp_path / "right" / "reference_scores.json").exists()
    for rank in (0, 1):
        lines = (tmp_path / f"cases.json.{rank}").read_text().splitlines()
        found = dict(map(json.loads, lines))
        assert found.keys() == MESSAGES.keys()
        for name, message in found.items():
            assert re.match(MESSAGES[name], message), f"rank {rank}, {name}: {message}"
