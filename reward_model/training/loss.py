"""Losses for preference pairs, as functions of reward tensors of shape `(pairs,)`.

To add a loss, write a function with the signature of `bradley_terry` and add it to `LOSSES`, whose keys are the choices
of `--loss_type`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, smoothing: float) -> Tensor:
    """Return `-log sigmoid(chosen - rejected)`, ignoring the margin.

    Args:
        chosen: Rewards of the chosen conversations, `(pairs,)`.
        rejected: Rewards of the rejected conversations, `(pairs,)`.
        margin: Margins of the pairs, `(pairs,)`.
        smoothing: Probability that a label is wrong: the loss is `-(1 - smoothing) log sigmoid(difference)
            - smoothing log sigmoid(-difference)` (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf).

    Returns:
        One loss per pair, `(pairs,)`.
    """
    return _smoothed(chosen - rejected, smoothing)


def margin_bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, smoothing: float) -> Tensor:
    """Return `-log sigmoid(chosen - rejected - margin)` (Touvron et al. 2023, arXiv:2307.09288, section 3.2.2)."""
    return _smoothed(chosen - rejected - margin, smoothing)


def scaled_bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, smoothing: float) -> Tensor:
    """Return `-margin * log sigmoid(chosen - rejected)` (Wang et al. 2024, arXiv:2410.01257)."""
    return margin * bradley_terry(chosen, rejected, margin, smoothing)


def _smoothed(difference: Tensor, smoothing: float) -> Tensor:
    losses = -F.logsigmoid(difference)
    return losses + smoothing * difference if smoothing else losses  # log sigmoid(-x) = log sigmoid(x) - x


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "bradley_terry": bradley_terry,
    "margin": margin_bradley_terry,
    "scaled": scaled_bradley_terry,
}


def centering(chosen: Tensor, rejected: Tensor, coefficient: float | None) -> Tensor:
    """Return `coefficient * (chosen + rejected)^2`, `(pairs,)`, which keeps rewards near 0.

    Source: Eisenstein et al. 2023, arXiv:2312.09244.
    """
    return (coefficient or 0.0) * (chosen + rejected) ** 2


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    loss_type: str = "margin",
    label_smoothing: float = 0.0,
    center_coefficient: float | None = None,
) -> Tensor:
    """Return the training loss of each pair, including centering, `(pairs,)`. The loss of a batch is their mean.

    If the pairs have no margins, the loss is `bradley_terry`.
    """
    if margin is None:
        loss_type, margin = "bradley_terry", torch.zeros_like(chosen)
    losses = LOSSES[loss_type](chosen, rejected, margin, label_smoothing)
    return losses + centering(chosen, rejected, center_coefficient)
