"""A run that is killed at any moment costs no more than the last checkpoint: resumed, it ends with the same weights."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, demo_pairs, jsonl
from safetensors.torch import load_file

from reward_model.training.saving import COMPLETE, STOPPED, mark_complete, newest_complete, what_is_missing

SETTINGS = (
    "--max_steps 12 --learning_rate 1e-3 --eval_size 4 --eval_strategy no --save_steps 2 --save_total_limit 2 "
    "--logging_steps 1 --report_to none --resume_from_checkpoint auto"
)
ONE = [sys.executable, str(ROOT / "train.py")]
KINDS = {  # arguments, kills; on two ranks half the batch
    "plain": (ONE, "--per_device_train_batch_size 4", 4),
    "LoRA": (ONE, "--per_device_train_batch_size 4 --use_peft --lora_r 4", 2),
    "ZeRO-3": (["sh", str(ROOT / "train.sh")], "--per_device_train_batch_size 2 --gradient_accumulation_steps 1", 1),
}


class Run:
    """A training run in a process group of its own, as a scheduler starts it."""

    def __init__(self, kind: str, model: Path, pairs: Path, output_dir: Path) -> None:
        start, arguments, _ = KINDS[kind]
        paths = {"MODEL": str(model), "DATASET": str(pairs), "OUTPUT_DIR": str(output_dir)}
        words = [*start, *SETTINGS.split(), *arguments.split()]
        if kind != "ZeRO-3":
            words += ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
        self.output_dir = output_dir
        self.log = output_dir.with_suffix(".log")
        env = {**os.environ, **paths, "NPROC_PER_NODE": "2", "MASTER_PORT": "29514"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)

    def ends(self) -> int:
        status = self.process.wait(timeout=300)
        assert "Traceback" not in self.log.read_text() or status, self.log.read_text()[-3000:]
        return status

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_saving(self) -> bool:
        return any(not (path / COMPLETE).exists() for path in self.output_dir.glob("checkpoint-*"))

    def wait_for(self, condition) -> bool:
        """Wait until it holds; False if the run ended first."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", demo_pairs()[:28])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_end_with_the_same_weights(kind: str, base_model: Path, pairs: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert Run(kind, base_model, pairs, whole).ends() == 0
    moment, while_saving, kills = random.Random(0), 0, KINDS[kind][2]
    for number in range(kills):
        run_ = Run(kind, base_model, pairs, killed)
        before = set(killed.glob("checkpoint-*"))
        begun = run_.wait_for(lambda: set(run_.output_dir.glob("checkpoint-*")) - before)  # noqa: B023
        if begun and number % 2:
            time.sleep(moment.uniform(0, 0.15))
        while_saving += run_.is_saving()
        run_.kill()
    assert Run(kind, base_model, pairs, killed).ends() == 0
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    print(f"{kind}: {kills} kills, {while_saving} of them while a checkpoint was being written")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ZeRO-3"])
def test_sigterm_saves_and_stops_with_a_status_of_its_own(
    kind: str, base_model: Path, pairs: Path, tmp_path: Path
) -> None:
    run_ = Run(kind, base_model, pairs, tmp_path / "out")
    assert run_.wait_for(lambda: newest_complete(run_.output_dir, tell=False))
    os.killpg(run_.process.pid, signal.SIGTERM)
    status, said = run_.ends(), run_.log.read_text()
    assert status == (STOPPED if kind == "plain" else 1), said[-3000:]  # torchrun has one status for all its workers'
    assert "which is saved. The same command with --resume_from_checkpoint auto goes on." in said
    assert Run(kind, base_model, pairs, run_.output_dir).ends() == 0
    assert "Going on from" in run_.log.read_text() and (run_.output_dir / "model.safetensors").exists()


def test_half_written_checkpoints_are_skipped_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for step in (2, 4, 6, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "global_step").mkdir(parents=True)
        for name in ("model.safetensors", "trainer_state.json", "global_step/rank_0.pt"):
            (checkpoint / name).write_text("weights")
        mark_complete(checkpoint)
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_text("weig")
    (tmp_path / "checkpoint-10" / COMPLETE).unlink()
    assert newest_complete(tmp_path, tell=True) == tmp_path / "checkpoint-2"
    said = capsys.readouterr().out.splitlines()
    assert [line.split("checkpoint-")[1] for line in said] == [
        "10: it was not saved to its end.",
        "6: model.safetensors has 4 of 7 bytes.",
        "4: trainer_state.json is missing.",
    ]
    (tmp_path / "checkpoint-2" / "global_step" / "rank_0.pt").unlink()
    assert what_is_missing(tmp_path / "checkpoint-2") == "global_step/rank_0.pt is missing"
    assert newest_complete(tmp_path, tell=False) is None
