"""Make a Transformers sequence classifier accept packed rows, run its head in fp32, and count token positions.

`install` replaces `forward` on the instance, so no model code is patched and the saved config does not change. A batch
with `cu_seq_lens_q` is a packed row (see packing.py) and yields one reward per branch; any other batch is padded.
packing_check.py decides whether a model may take packed rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl.trainer.utils import disable_dropout_in_model

from reward_model.model.loading import check_head
from reward_model.model.mixers import install_mixers
from reward_model.model.packing import mixer_layout


class PathCounts:
    """Per-model state: counts, cached lengths, and what the layers pass to attention."""

    def __init__(self) -> None:
        self.positions = self.padded_positions = self.real_tokens = self.pairs = 0  # in training
        self.attention_calls = 0  # by attention and recurrent layers, on packed rows
        self.has_mixers = False  # whether the model has recurrent layers
        self.unsupported: set[str] = set()  # attention arguments that packed attention does not support
        self.attention_dropout: list[str] = []  # the config's nonzero rates by name, unless dropout is disabled
        self.lengths: tuple[Any, tuple[list[int], list[int]]] = (None, ([], []))  # cu_seq_lens_q, its lengths
        self.long_tokens: torch.Tensor | None = None  # mask: in conversations longer than `rope_switch`


def install(model: PreTrainedModel, disable_dropout: bool = True) -> None:
    """Prepare `model` for padded and packed batches. Call `choose_attention` before its first forward pass.

    Args:
        model: A decoder with the linear head `score`.
        disable_dropout: Set all dropout rates to 0.

    Raises:
        InputError: The model does not read its score at the last token.
    """
    check_head(model)
    model.path_counts = PathCounts()
    model.forward = MethodType(_forward, model)
    model.score.forward = MethodType(_score, model.score)
    if disable_dropout:
        zero_dropout(model)
    else:
        rates = model.config.get_text_config().to_dict().items()
        model.path_counts.attention_dropout = [key for key, rate in rates if "att" in key and "drop" in key and rate]
    model.path_counts.has_mixers = install_mixers(model, model.path_counts)
    if rope_switch(model.config):
        for module in model.modules():
            if getattr(module, "rope_type", None) == "longrope":
                module.path_counts = model.path_counts
                module.forward = MethodType(_rotary, module)


def installed_model(model: nn.Module) -> PreTrainedModel:
    """Return the model that `install` prepared, which may be inside a wrapper."""
    return next(module for module in model.modules() if hasattr(module, "path_counts"))


def zero_dropout(model: nn.Module) -> None:
    """Set all dropout rates to 0, including those that modules store as numbers, which trl's function ignores."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


def _score(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Run the head in fp32: in bf16, rewards near 10 are multiples of 1/16, and close pairs would tie."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def _forward(
    self: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    end_positions: torch.Tensor | None = None,
    real_tokens: int = 0,
    padded_positions: int = 0,
    **kwargs: Any,
) -> SequenceClassifierOutputWithPast:
    """Return rewards: `(branches, 1)` for a packed row, `(conversations, 1)` for a padded batch.

    Args:
        self: The model.
        input_ids: `(1, tokens)` for a packed row, or `(conversations, longest)`.
        attention_mask: Mask of a padded batch. The reward is read at its last token, whatever the pad token is.
        end_positions: Last token of each branch in a packed row, `(branches,)`.
        real_tokens: Number of tokens on both sides of all pairs, for the counts.
        padded_positions: Number of positions that the padded batch would have, for the counts.
        kwargs: Everything else that `pack` returns, and arguments for the body.
    """
    if self.training:
        self.path_counts.positions += input_ids.numel()
        self.path_counts.padded_positions += padded_positions
        self.path_counts.real_tokens += real_tokens
        self.path_counts.pairs += (len(input_ids) if end_positions is None else len(end_positions)) // 2
    for name in ("margin", "places"):  # used by the trainer only
        kwargs.pop(name, None)
    is_long, switch = None, rope_switch(self.config)
    if end_positions is None:
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, positions = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
        ends = rows, (attention_mask * positions).argmax(1)
        if switch:
            is_long = attention_mask.sum(1, keepdim=True) > switch
    else:
        attention_mask, ends = None, (torch.zeros_like(end_positions), end_positions)
        kwargs["path_counts"] = self.path_counts
        if self.path_counts.has_mixers:
            by_length = not is_deepspeed_zero3_enabled()  # ZeRO-3 needs equally many calls of a layer on all ranks
            kwargs["mixer_layout"] = mixer_layout(
                kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"], kwargs["key_index"], by_length
            )
        if switch:
            lengths, keys = kwargs["cu_seq_lens_k"].diff(), kwargs["key_index"]
            is_long = torch.zeros_like(input_ids, dtype=torch.bool)
            is_long[0, keys] = (lengths > switch).repeat_interleave(lengths, output_size=len(keys))
    body = getattr(self, self.base_model_prefix)
    with rotate_by_length(self, is_long):
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
    return SequenceClassifierOutputWithPast(logits=self.score(hidden[ends]))


def rope_switch(config: Any) -> int | None:
    """Return the length in tokens above which longrope (Phi-3.5, Phi-4-mini) uses its long factors, or None."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


@contextmanager
def rotate_by_length(model: PreTrainedModel, is_long: torch.Tensor | None) -> Iterator[None]:
    """Make longrope use its long factors only for the tokens in `is_long`, `(batch, tokens)` or `(batch, 1)`.

    None leaves the choice to Transformers, which chooses once for the batch.
    """
    model.path_counts.long_tokens = is_long
    try:
        yield
    finally:
        model.path_counts.long_tokens = None


def _rotary(self: nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return longrope's cosines and sines, chosen for each token by the length of its conversation.

    Transformers chooses the factors by the longest position in the batch, so a score would depend on the other
    conversations: https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
    """
    rotary, is_long, switch = type(self).forward, self.path_counts.long_tokens, rope_switch(self.config)
    if is_long is None or switch is None:
        return rotary(self, x, position_ids)
    short = rotary(self, x, position_ids.clamp(max=switch - 1))
    long = rotary(self, x, F.pad(position_ids, (0, 1), value=switch))  # position `switch` selects the long factors
    return tuple(torch.where(is_long[..., None], b[..., :-1, :], a) for a, b in zip(short, long, strict=True))
