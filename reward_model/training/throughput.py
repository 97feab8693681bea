"""Measure the speed of a run: pairs and tokens per second, positions saved, rank balance, and MFU.

MFU is model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311): the share of a GPU's peak that a run reaches.
"""

import time

import torch
from accelerate import Accelerator
from torch import nn

from reward_model.model.modeling import installed_model

# Dense TFLOP/s in bf16 and fp16, from NVIDIA's data sheets. The first entry whose name is in the device name is used.
PEAK = {"GB200": 2500, "B200": 2250, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312}


def peak_flops(device_name: str) -> float | None:
    """Return a GPU's peak throughput in FLOP/s, or None if it is unknown (for example, for a MIG instance)."""
    return next((1e12 * peak for name, peak in PEAK.items() if name in device_name and "MIG" not in device_name), None)


def flops_per_position(model: nn.Module) -> int | None:
    """Return the floating-point operations per token position, forward and backward, or None if they are unknown.

    Each weight takes 2 operations in the forward pass, 2 for the gradient of its input and, if it is trained, 2 for its
    own gradient (Kaplan et al. 2020, arXiv:2001.08361). Recomputation is not counted, nor are query-key products (1.5%
    for a 7B model and conversations of 1,000 tokens). The count is unknown for mixtures of experts and 4-bit weights.
    """
    if getattr(model.config.get_text_config(), "num_experts_per_tok", None):
        return None
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [weight for weight in model.parameters() if id(weight) not in tables]
    if any(weight.dtype == torch.uint8 for weight in weights):  # 4-bit weights, two per byte
        return None
    # ZeRO-3 leaves parameters empty, with their size in ds_numel.
    return sum(getattr(weight, "ds_numel", weight.numel()) * (6 if weight.requires_grad else 4) for weight in weights)


def speed(counts: list[int], seconds: float) -> dict[str, float]:
    """Return the metrics to log, given the counts of pairs, tokens and positions processed in `seconds`."""
    pairs, tokens, positions, padded_positions = counts
    return {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "positions_saved": 1 - positions / padded_positions,
    }


class Throughput:
    """Measure a run between its logs. Every method that returns metrics must be called on all ranks.

    Args:
        model: A model prepared by `reward_model.model.modeling.install`, which does the counting.
        accelerator: Sums the counts over all ranks.
        half: Whether the run computes in bf16 or fp16, for which the peak is known.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, half: bool) -> None:
        self.accelerator = accelerator
        self.path_counts = installed_model(model).path_counts
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() and half else None
        flops = flops_per_position(model) if peak else None
        self.share_of_peak = flops / peak / accelerator.num_processes if flops and peak else None
        self.since, self.before = time.perf_counter(), self._counts()
        self.positions = [self.before[2]]  # on this rank: at the last log and after each step since

    def end_step(self) -> None:
        """Record the positions that this rank has computed; call this after each optimizer step."""
        self.positions.append(self._counts()[2])

    def log(self) -> dict[str, float]:
        """Return the metrics since the last call."""
        now, counts = time.perf_counter(), self._counts()
        seconds, new = now - self.since, [after - before for after, before in zip(counts, self.before, strict=True)]
        self.since, self.before = now, counts
        new = self._over_ranks(new)
        metrics = {"num_tokens": new[1], **speed(new, seconds)}
        if self.share_of_peak:
            metrics["mfu"] = self.share_of_peak * new[2] / seconds
            metrics["mfu_as_if_padded"] = self.share_of_peak * new[3] / seconds
        if self.accelerator.num_processes > 1:
            computed = torch.tensor(self.positions, device=self.accelerator.device).diff()[None]
            each = self.accelerator.gather(computed).double()  # (ranks, steps)
            metrics["rank_balance"] = (each.mean(0).sum() / each.amax(0).sum()).item()
        self.positions = self.positions[-1:]
        return metrics

    def summary(self, seconds: float) -> str:
        """Return a one-line summary of all steps so far, given the elapsed `seconds`."""
        counts = self._over_ranks(self._counts())
        metrics = speed(counts, seconds)
        return (
            f"{counts[0]:,} pairs in {seconds:.0f} s: {metrics['pairs_per_second']:.2f} pairs/s, "
            f"{metrics['tokens_per_second']:,.0f} tokens/s, {metrics['positions_saved']:.0%} of {counts[3]:,} token "
            "positions saved"
        )

    def _counts(self) -> list[int]:
        counts = self.path_counts
        return [counts.pairs, counts.real_tokens, counts.positions, counts.padded_positions]

    def _over_ranks(self, counts: list[int]) -> list[int]:
        return self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device)).tolist()
