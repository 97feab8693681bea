"""Support packed rows in layers with a recurrent state: linear attention (Qwen3.5, Qwen3-Next) and Mamba (Zamba2).

Such a layer reads tokens in order, so one branch of a row must not follow another. `install_mixers` replaces `forward`
on each layer instance: first the prefixes run in batches, and each leaves a state; then the branches run in batches,
each starting from the state of its prefix. So each prefix is computed only once here as well. The layer's own code does
all the computation; the states are passed through Transformers' cache interface.
"""

import inspect
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MIXER_LAYERS = {"linear_attention", "mamba", "hybrid"}  # values of layer_types in configs


class ForkedState:
    """Cache for one mixer during one call. Unlike Transformers' cache, it keeps the states in the autograd graph.

    Args:
        conv: The last inputs of the convolution, `(batch, channels, kernel size)`.
        recurrent: The recurrent state, `(batch, heads, …)`.
    """

    record_past = True  # makes the layer use its general path for single tokens, too

    def __init__(self, conv: torch.Tensor | None = None, recurrent: torch.Tensor | None = None) -> None:
        self.conv_states, self.recurrent_states = [conv], [recurrent]
        self.is_continued = conv is not None

    def __getitem__(self, layer_idx: int) -> "ForkedState":
        return self

    @property
    def layers(self) -> "ForkedState":
        """The cache itself, which returns itself for any layer index, because it serves a single layer."""
        return self

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int = 0) -> bool:
        """Return whether the layer continues from the state of a prefix."""
        return self.is_continued

    def update_conv_state(
        self, states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 4, **kwargs: Any
    ) -> torch.Tensor:
        """Return the convolution's inputs, preceded by the last ones from the prefix, and keep the new last ones."""
        states = torch.cat([self.conv_states[0], states], dim=-1) if self.is_continued else states
        self.conv_states[0] = F.pad(states, (conv_kernel_size, 0))[..., -conv_kernel_size:]
        return states

    def update_recurrent_state(self, states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
        """Keep and return the recurrent state."""
        self.recurrent_states[0] = states
        return states


def join_states(batches: list[ForkedState]) -> list[torch.Tensor]:
    """Return the states of all prefixes, followed by an empty state, which index -1 selects; [] without prefixes."""
    each = [[*batch.conv_states, *batch.recurrent_states] for batch in batches]
    joined = (torch.cat(states) for states in zip(*each, strict=True))
    return [F.pad(states, (0, 0) * (states.dim() - 1) + (0, 1)) for states in joined]


def install_mixers(model: nn.Module, path_counts: Any) -> bool:
    """Make the recurrent layers of `model` accept packed rows, and return whether there are any."""
    mixers = [
        module
        for module in model.modules()
        if {"cache_params", "attention_mask"} <= inspect.signature(type(module).forward).parameters.keys()
        and hasattr(module, "conv1d")
    ]
    for mixer in mixers:
        mixer.path_counts = path_counts
        mixer.forward = MethodType(_forward, mixer)
    return bool(mixers)


def _forward(
    self: nn.Module, hidden_states: torch.Tensor, *args: Any, mixer_layout: Any = None, **kwargs: Any
) -> torch.Tensor:
    """Run a recurrent layer on a packed row if there is a layout (`packing.mixer_layout`), otherwise as usual."""
    forward = type(self).forward
    if mixer_layout is None:
        return forward(self, hidden_states, *args, **kwargs)
    self.path_counts.attention_calls += 1
    tokens = F.pad(hidden_states[0], (0, 0, 0, 1))  # row -1 is padding
    outputs, states = [], []
    for prefixes in mixer_layout["prefixes"]:
        states.append(ForkedState())
        outputs.append(forward(self, tokens[prefixes], cache_params=states[-1], attention_mask=(prefixes >= 0).long()))
    joined = join_states(states)
    for branches, groups in zip(mixer_layout["branches"], mixer_layout["groups"], strict=True):
        state = ForkedState(*(part[groups] for part in joined)) if joined else None
        outputs.append(forward(self, tokens[branches], cache_params=state, attention_mask=None))
    return torch.cat([output.flatten(0, 1) for output in outputs])[mixer_layout["order"]][None]
