"""Measure time, memory and the peak speed of matrix products on a CPU or GPU."""

import resource
import time
from itertools import pairwise
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from reward_model.training.arguments import bf16_is_fast


def synchronized_time() -> float:
    """Return the time in seconds after a GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MB, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class StepTimes(TrainerCallback):
    """Time the steps of a run.

    Attributes:
        seconds: From the start of the first step to the end of the last, including the data loading between steps.
        forward_backward: Seconds of each step before the optimizer runs.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_begin = synchronized_time()
        if state.global_step == 0:
            self.started, self.forward_backward = self.step_begin, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.forward_backward.append(synchronized_time() - self.step_begin)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = synchronized_time() - self.started


def step_times(trainer: Trainer) -> StepTimes:
    """Return the StepTimes callback of a trainer."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StepTimes))


class HostEvent:
    """A replacement for torch.Event on a CPU, whose events do not measure time."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "HostEvent") -> float:
        """Return the milliseconds between this event and `end`."""
        return 1000 * (end.time - self.time)


def timing_events(device: str, number: int) -> list[Any]:
    """Return events with `record` and `elapsed_time`; on a GPU, the device itself takes the time."""
    return [torch.cuda.Event(enable_timing=True) if device == "cuda" else HostEvent() for _ in range(number)]


def matmul_peak(rounds: int = 10) -> float:
    """Return the GFLOP/s of the fastest of several matrix products, in the training dtype.

    On a GPU they are large, because a small product would end before the host launches the next one.
    """
    device, dtype = ("cuda", torch.bfloat16) if bf16_is_fast() else ("cpu", torch.float32)
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    a @ b  # loads the kernel
    events = timing_events(device, rounds + 1)
    events[0].record()
    for event in events[1:]:
        a @ b
        event.record()
    synchronized_time()
    return 2 * size**3 / min(start.elapsed_time(end) for start, end in pairwise(events)) / 1e6
