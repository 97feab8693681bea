"""A run that is killed at any moment resumes from its last complete checkpoint and ends with the same weights."""

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

from reward_model import STOPPED
from reward_model.training.checkpointing import COMPLETE, newest_complete

# Fork each run from a process that has already imported train.py, so that ten kills do not wait for ten imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train"])
SETTINGS = (
    "--max_steps 15 --learning_rate 1e-3 --eval_size 4 --eval_strategy no --save_steps 3 --save_total_limit 2 "
    "--logging_steps 1 --report_to none --resume_from_checkpoint auto"
)
KINDS = {  # arguments and number of kills; on two ranks, half the batch size per rank
    "plain": ("--per_device_train_batch_size 4", 10),
    "LoRA": ("--per_device_train_batch_size 4 --use_peft --lora_r 4", 5),
    "ZeRO-3": ("--per_device_train_batch_size 2 --gradient_accumulation_steps 1", 3),
}


def run_train_script(arguments: list[str], log: Path) -> None:
    """Run train.py as a script in the current process, with its output in `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants. torchrun starts each worker in a new process group."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


class Run:
    """A training run in a separate process, or in several for two ranks."""

    def __init__(self, kind: str, model: Path, pairs: Path, output_dir: Path) -> None:
        arguments = [*SETTINGS.split(), *KINDS[kind][0].split()]
        self.output_dir, self.log, self.started = output_dir, output_dir.with_suffix(".log"), time.time()
        if kind != "ZeRO-3":
            paths = {"--model_name_or_path": model, "--dataset_name": pairs, "--output_dir": output_dir}
            arguments += [word for name, path in paths.items() for word in (name, str(path))]
            process = FORKS.Process(target=run_train_script, args=(arguments, self.log))
            process.start()
            self.kill, self.wait, self.is_running = process.kill, process.join, process.is_alive
            self.status: Callable[[], int | None] = lambda: process.exitcode
        else:
            variables = {"MODEL": str(model), "DATASET": str(pairs), "OUTPUT_DIR": str(output_dir)}
            env = {**os.environ, **variables, "NPROC_PER_NODE": "2"}
            command = ["sh", str(ROOT / "train.sh"), *arguments]
            with open(self.log, "w") as log:
                launcher = subprocess.Popen(command, stdout=log, stderr=log, env=env)
            self.kill, self.wait = lambda: [part.kill() for part in process_tree(launcher.pid)], launcher.wait
            self.is_running, self.status = lambda: launcher.poll() is None, launcher.poll
        self.pid = process.pid if kind != "ZeRO-3" else launcher.pid

    def finish(self) -> int | None:
        """Wait for the end of the run and return its exit status."""
        self.wait(timeout=900)  # train.sh may wait for the build lock of a killed run
        status = self.status()
        assert "Traceback" not in self.log.read_text() or status, self.log.read_text()[-3000:]
        return status

    def is_saving(self) -> bool:
        """Return whether this run has an incomplete checkpoint."""
        incomplete = [path for path in self.output_dir.glob("checkpoint-*") if not (path / COMPLETE).exists()]
        return any(path.exists() and path.stat().st_mtime > self.started for path in incomplete)

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Wait until a condition holds; return False if the run ends first."""
        while not condition():
            if not self.is_running():
                return False
            time.sleep(0.001)
        return True


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", demo_pairs()[:28])


@pytest.fixture(scope="module")
def uninterrupted(base_model: Path, pairs: Path, tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    """Return a function that returns the output directory and the seconds of an uninterrupted run of a kind."""
    runs: dict[str, SimpleNamespace] = {}

    def find_or_run(kind: str) -> SimpleNamespace:
        if kind not in runs:
            first = FORKS.Process(target=os.getpid)  # waits until the fork server has imported everything
            first.start()
            first.join()
            output_dir, started = tmp_path_factory.mktemp("uninterrupted") / kind, time.monotonic()
            assert Run(kind, base_model, pairs, output_dir).finish() == 0
            runs[kind] = SimpleNamespace(output_dir=output_dir, seconds=time.monotonic() - started)
        return runs[kind]

    return find_or_run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_end_with_the_same_weights(
    kind: str, uninterrupted, base_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Kill the run while it writes a checkpoint and at a random moment, in turns."""
    generator, kills, while_saving, finished = random.Random(0), 0, 0, 0
    seconds, output_dir = uninterrupted(kind).seconds, tmp_path / "killed 0"
    while not finished or kills < KINDS[kind][1]:
        run_ = Run(kind, base_model, pairs, output_dir)
        until = time.time() + generator.uniform(0, seconds)
        if kills < KINDS[kind][1] and run_.wait_for(run_.is_saving if kills % 2 == 0 else lambda: time.time() > until):  # noqa: B023
            time.sleep(generator.uniform(0, 0.02) if kills % 4 == 0 else 0)
            run_.kill()
            run_.wait()
            kills, while_saving = kills + 1, while_saving + run_.is_saving()
            continue
        assert run_.finish() == 0
        expected, found = weights(uninterrupted(kind).output_dir), weights(output_dir)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        finished, output_dir = finished + 1, tmp_path / f"killed {finished + 1}"
    print(f"{kind}: {kills} kills, {while_saving} of them during a save, {finished} runs finished")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ZeRO-3"])
def test_sigterm_saves_and_exits_with_status_75(kind: str, base_model: Path, pairs: Path, tmp_path: Path) -> None:
    run_ = Run(kind, base_model, pairs, tmp_path / "out")
    assert run_.wait_for(lambda: newest_complete(run_.output_dir))
    os.kill(run_.pid, signal.SIGTERM)
    status, output = run_.finish(), run_.log.read_text()
    assert status == STOPPED == 75 and "FutureWarning" not in output, output[-3000:]
    assert re.search(r"Saved checkpoint-\d+ and stopped\. Pass --resume_from_checkpoint auto to resume\.", output)
    assert Run(kind, base_model, pairs, run_.output_dir).finish() == 0
    assert "Resuming from" in run_.log.read_text() and (run_.output_dir / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_checkpoints_are_skipped_with_the_reason(kind: str, uninterrupted, tmp_path: Path, capsys) -> None:
    source = newest_complete(uninterrupted(kind).output_dir)
    weights_file = "adapter_model.safetensors" if kind == "LoRA" else "model.safetensors"
    states = [str(file.relative_to(source)) for file in source.rglob("*optim*") if file.is_file()]
    assert len(states) == (2 if kind == "ZeRO-3" else 1), "each rank saves one optimizer state"
    shutil.copytree(source, tmp_path / "checkpoint-1")
    expected = []
    for number, name in enumerate((weights_file, "trainer_state.json", *states, COMPLETE), 2):
        for truncated in (False, True):
            checkpoint = shutil.copytree(source, tmp_path / f"checkpoint-{2 * number + truncated}")
            if truncated and name != COMPLETE:
                os.truncate(checkpoint / name, 10)
                expected.append(f"{checkpoint}: {name} has 10 of {(source / name).stat().st_size:,} bytes.")
            else:
                (checkpoint / name).unlink()
                reason = "it was not saved completely" if name == COMPLETE else f"{name} is missing"
                expected.append(f"{checkpoint}: {reason}.")
    assert newest_complete(tmp_path, verbose=True) == tmp_path / "checkpoint-1"
    assert capsys.readouterr().out.splitlines() == [f"Skipped {line}" for line in expected[::-1]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 32 MB. Skip the test without the permission to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_run_resumes_after_a_full_disk(uninterrupted, base_model: Path, pairs: Path, small_disk: Path) -> None:
    run_ = Run("plain", base_model, pairs, small_disk / "out")
    assert run_.wait_for(lambda: newest_complete(run_.output_dir))
    os.kill(run_.pid, signal.SIGSTOP)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 100_000))
    os.kill(run_.pid, signal.SIGCONT)
    status, output = run_.finish(), run_.log.read_text()
    last = newest_complete(run_.output_dir)
    assert status == 1 and last, output[-2000:]
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    assert "the disk is full" in line and f"{last} is complete" in line and "Traceback" not in output
    filler.unlink()
    assert Run("plain", base_model, pairs, run_.output_dir).finish() == 0
    expected, found = weights(uninterrupted("plain").output_dir), weights(run_.output_dir)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
