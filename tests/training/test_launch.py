"""train.sh starts one process per GPU that torch can use, and leaves time to save after SIGTERM."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, run
from torch.distributed.launcher.api import LaunchConfig

from reward_model.training.arguments import parse_arguments
from reward_model.training.dry_run import dry_run_line
from reward_model.training.launch import BUILD_SECONDS, remove_stale_build_locks, usable_gpus

LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\n  MIG 1g.10gb Device 0: (UUID: MIG-0)\nGPU 1: NVIDIA H100"
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts an nvidia-smi with a given output on PATH."""

    def install(text: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<END\n{text}\nEND\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


WITHOUT_GPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")


@WITHOUT_GPU
@pytest.mark.parametrize(("text", "visible"), [(NO_DRIVER, None), (LISTED, ""), (LISTED, "-1")])
def test_no_gpu_is_counted_without_a_driver_or_if_hidden(
    text: str, visible: str | None, nvidia_smi, monkeypatch
) -> None:
    nvidia_smi(text)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == 0


def test_gpus_that_torch_sees_are_counted(nvidia_smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch torch to report a node of eight GPUs with CUDA_VISIBLE_DEVICES=0,1,2."""
    nvidia_smi(LISTED)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert usable_gpus() == 3


@WITHOUT_GPU
@pytest.mark.slow
def test_gpus_that_torch_cannot_use_stop_the_run(nvidia_smi, tmp_path: Path) -> None:
    nvidia_smi(LISTED)
    result = run("sh", ROOT / "train.sh", OUTPUT_DIR=str(tmp_path / "out"), check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"nvidia-smi lists 2 GPU(s), but torch {torch.__version__} can use none of them" in result.stderr


def test_build_locks_of_killed_runs_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    held, left = (tmp_path / name / "lock" for name in ("held", "left"))
    for lock in (held, left):
        lock.parent.mkdir()
        lock.touch()
        os.utime(lock, (0, time.time() - BUILD_SECONDS - 1))
    with held.open():
        remove_stale_build_locks()
    assert held.exists() and not left.exists()


def python_call(tmp_path: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment that train.sh passes to Python, which is replaced by a script."""
    checkout = tmp_path / "a checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "train.sh", checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; echo ENVIRONMENT; env\n')
    python.chmod(0o755)
    arguments, _, variables = run("sh", checkout / "train.sh", **environment).stdout.partition("ENVIRONMENT\n")
    return arguments.splitlines()[1:], dict(line.split("=", 1) for line in variables.splitlines() if "=" in line)


def test_stopped_run_has_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", python_call(tmp_path)[1]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert LaunchConfig(1, 1, 1).shutdown_timeout == 900
    given = python_call(tmp_path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60")[1]
    assert given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "60"


def test_number_of_processes_can_be_set(tmp_path: Path) -> None:
    assert "--nproc_per_node" not in python_call(tmp_path)[0]
    arguments, _ = python_call(tmp_path, NPROC_PER_NODE="2")
    assert arguments[arguments.index("--nproc_per_node") + 1] == "2"


def test_train_py_accepts_the_defaults_of_train_sh(tmp_path: Path) -> None:
    call, variables = python_call(tmp_path)
    arguments = call[next(n for n, word in enumerate(call) if word.endswith("train.py")) + 1 :]
    at = arguments.index("--deepspeed")
    training = parse_arguments([*arguments[:at], *arguments[at + 2 :]], ROOT / "none")[1]
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 1)
    assert (training.max_tokens_per_micro_batch, training.ddp_timeout) == (16384, 10800)
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert python_call(tmp_path, **{name: "backend:native"})[1]["PYTORCH_ALLOC_CONF"] == "backend:native"


def test_dry_run_reports_reserved_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the memory figures that torch reports for a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 30.1e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 41.2e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1e9, 80e9))
    trainer = SimpleNamespace(state=SimpleNamespace(log_history=[{"pairs_per_second": 4.0}]), train_dataset=range(64))
    assert "30.1 GB (reserved: 41.2) of 80.0 GB" in dry_run_line(trainer, 10)
