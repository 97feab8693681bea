"""Model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311): the share of a GPU's peak that a run reaches."""

import torch
from torch import nn

# TFLOP/s, dense, in bf16 and fp16: NVIDIA's data sheets. The first name that the device's name contains counts.
PEAK = {"GB200": 2500, "B200": 2250, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312}


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a GPU in FLOP/s, or None if it is unknown, as for a MIG instance."""
    return next((1e12 * peak for name, peak in PEAK.items() if name in device_name and "MIG" not in device_name), None)


def flops_per_position(model: nn.Module) -> int | None:
    """Return the operations that one token position takes in forward and backward, or None for a mixture of experts.

    Each weight takes 2 in forward and 2 for the gradient of its input, and 2 for its own gradient if it is trained
    (Kaplan et al. 2020, arXiv:2001.08361). Recomputation does not count. Products of queries and keys are left out:
    1.5 % for 7B and conversations of 1,000 tokens.
    """
    if getattr(model.config.get_text_config(), "num_experts_per_tok", None):
        return None
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [weight for weight in model.parameters() if id(weight) not in tables]
    if any(weight.dtype == torch.uint8 for weight in weights):  # 4 bits, two in a byte
        return None
    # ZeRO-3 leaves parameters empty, with their size in ds_numel.
    return sum(getattr(weight, "ds_numel", weight.numel()) * (6 if weight.requires_grad else 4) for weight in weights)
