"""A run that is killed at any moment costs no more than the last checkpoint: resumed, it ends with the same weights."""

import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from helpers import ROOT, demo_pairs, jsonl
from safetensors.torch import load_file

from reward_model.training.checkpointing import COMPLETE, STOPPED, newest_complete

# Starts a run by forking a process that has imported all, so that ten kills do not wait for ten imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train"])
SETTINGS = (
    "--max_steps 15 --learning_rate 1e-3 --eval_size 4 --eval_strategy no --save_steps 3 --save_total_limit 2 "
    "--logging_steps 1 --report_to none --resume_from_checkpoint auto"
)
KINDS = {  # arguments, kills; on two ranks half the batch
    "plain": ("--per_device_train_batch_size 4", 10),
    "LoRA": ("--per_device_train_batch_size 4 --use_peft --lora_r 4", 5),
    "ZeRO-3": ("--per_device_train_batch_size 2 --gradient_accumulation_steps 1", 3),
}


def script(words: list[str], log: Path) -> None:
    """train.py as a program, in a process that was forked for it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["train.py", *words]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started: torchrun's workers have process groups of their own."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


class Run:
    """A training run, in a process of its own, on two ranks in several."""

    def __init__(self, kind: str, model: Path, pairs: Path, output_dir: Path) -> None:
        words = [*SETTINGS.split(), *KINDS[kind][0].split()]
        self.output_dir, self.log, self.since = output_dir, output_dir.with_suffix(".log"), time.time()
        if kind != "ZeRO-3":
            words += ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
            process = FORKS.Process(target=script, args=(words, self.log))
            process.start()
            self.kill, self.wait, self.runs = process.kill, process.join, process.is_alive
            self.status: Callable[[], int | None] = lambda: process.exitcode
        else:
            paths = {"MODEL": str(model), "DATASET": str(pairs), "OUTPUT_DIR": str(output_dir)}
            env = {**os.environ, **paths, "NPROC_PER_NODE": "2", "MASTER_PORT": "29514"}
            command = ["sh", str(ROOT / "train.sh"), *words]
            with open(self.log, "w") as log:
                group = subprocess.Popen(command, stdout=log, stderr=log, env=env)
            self.kill, self.wait = lambda: [process.kill() for process in tree(group.pid)], group.wait
            self.runs, self.status = lambda: group.poll() is None, group.poll
        self.pid = process.pid if kind != "ZeRO-3" else group.pid

    def ends(self) -> int | None:
        self.wait(timeout=120)
        status = self.status()
        assert "Traceback" not in self.log.read_text() or status, self.log.read_text()[-3000:]
        return status

    def is_saving(self) -> bool:
        """Whether this run has begun a checkpoint that is not whole."""
        begun = [path for path in self.output_dir.glob("checkpoint-*") if not (path / COMPLETE).exists()]
        return any(path.exists() and path.stat().st_mtime > self.since for path in begun)

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Wait until it holds; False if the run ended first."""
        while not condition():
            if not self.runs():
                return False
            time.sleep(0.001)
        return True


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", demo_pairs()[:28])


@pytest.fixture(scope="module")
def whole(base_model: Path, pairs: Path, tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    """The undisturbed run of each kind: its folder, and the seconds it took."""
    runs: dict[str, SimpleNamespace] = {}

    def of(kind: str) -> SimpleNamespace:
        if kind not in runs:
            first = FORKS.Process(target=os.getpid)  # now all is imported
            first.start()
            first.join()
            folder, since = tmp_path_factory.mktemp("whole") / kind, time.monotonic()
            assert Run(kind, base_model, pairs, folder).ends() == 0
            runs[kind] = SimpleNamespace(folder=folder, seconds=time.monotonic() - since)
        return runs[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_end_with_the_same_weights(kind: str, whole, base_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Every other kill falls into the writing of a checkpoint, the others at any moment of the run."""
    moment, kills, while_saving, ended = random.Random(0), 0, 0, 0
    seconds, folder = whole(kind).seconds, tmp_path / "killed 0"
    while not ended or kills < KINDS[kind][1]:
        run_ = Run(kind, base_model, pairs, folder)
        until = time.time() + moment.uniform(0, seconds)
        if kills < KINDS[kind][1] and run_.wait_for(run_.is_saving if kills % 2 == 0 else lambda: time.time() > until):  # noqa: B023
            time.sleep(moment.uniform(0, 0.02) if kills % 4 == 0 else 0)
            run_.kill()
            run_.wait()
            kills, while_saving = kills + 1, while_saving + run_.is_saving()
            continue
        assert run_.ends() == 0
        expected, found = weights(whole(kind).folder), weights(folder)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        ended, folder = ended + 1, tmp_path / f"killed {ended + 1}"
    print(
        f"{kind}: {kills} kills, {while_saving} of them while a checkpoint was being written, {ended} runs to the end"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ZeRO-3"])
def test_sigterm_saves_and_stops_with_a_status_of_its_own(
    kind: str, base_model: Path, pairs: Path, tmp_path: Path
) -> None:
    run_ = Run(kind, base_model, pairs, tmp_path / "out")
    assert run_.wait_for(lambda: newest_complete(run_.output_dir))
    os.kill(run_.pid, signal.SIGTERM)
    status, said = run_.ends(), run_.log.read_text()
    assert status == STOPPED and "FutureWarning" not in said, said[-3000:]
    assert re.search(r"Saved checkpoint-\d+ and stopped\. Pass --resume_from_checkpoint auto to resume\.", said)
    assert Run(kind, base_model, pairs, run_.output_dir).ends() == 0
    assert "Resuming from" in run_.log.read_text() and (run_.output_dir / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_written_checkpoints_are_skipped_by_name(kind: str, whole, tmp_path: Path, capsys) -> None:
    source = newest_complete(whole(kind).folder)
    weights_file = "adapter_model.safetensors" if kind == "LoRA" else "model.safetensors"
    states = [str(file.relative_to(source)) for file in source.rglob("*optim*") if file.is_file()]
    assert len(states) == (2 if kind == "ZeRO-3" else 1), "one of each rank"
    shutil.copytree(source, tmp_path / "checkpoint-1")
    expected = []
    for number, name in enumerate((weights_file, "trainer_state.json", *states, COMPLETE), 2):
        for half in (False, True):
            checkpoint = shutil.copytree(source, tmp_path / f"checkpoint-{2 * number + half}")
            if half and name != COMPLETE:
                os.truncate(checkpoint / name, 10)
                expected.append(f"{checkpoint}: {name} has 10 of {(source / name).stat().st_size:,} bytes.")
            else:
                (checkpoint / name).unlink()
                why = "it was not saved completely" if name == COMPLETE else f"{name} is missing"
                expected.append(f"{checkpoint}: {why}.")
    assert newest_complete(tmp_path, verbose=True) == tmp_path / "checkpoint-1"
    assert capsys.readouterr().out.splitlines() == [f"Skipped {line}" for line in expected[::-1]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_more_than_the_last_checkpoint(whole, base_model: Path, pairs: Path, small_disk) -> None:
    run_ = Run("plain", base_model, pairs, small_disk / "out")
    assert run_.wait_for(lambda: newest_complete(run_.output_dir))
    os.kill(run_.pid, signal.SIGSTOP)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 100_000))
    os.kill(run_.pid, signal.SIGCONT)
    status, said = run_.ends(), run_.log.read_text()
    last = newest_complete(run_.output_dir)
    assert status == 1 and last, said[-2000:]
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "the disk is full" in line and f"{last} is complete" in line and "Traceback" not in said
    filler.unlink()
    assert Run("plain", base_model, pairs, run_.output_dir).ends() == 0
    expected, found = weights(whole("plain").folder), weights(run_.output_dir)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
