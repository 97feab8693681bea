"""Attention and pooled forward for packed rows, for any model that goes through Transformers' AttentionInterface.

`install` gives a *ForSequenceClassification model both ways: a batch that carries `cu_seq_lens_q` is a packed row and
yields one reward per branch; any other batch is handled as before. Either way the reward head computes in fp32.
Whether a model may take packed rows is decided in packing_check.py.
The CUDA call (`varlen_attn`) has not been run on a GPU yet; it takes the arguments that the CPU path, which is tested,
takes.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl.trainer.utils import disable_dropout_in_model

from reward_model import InputError

NAME = "shared_prefix"
# Queries of one masked SDPA call, so that its mask stays small beside the activations.
MASKED_QUERIES = 1024
# Let query heads share key heads: torch 2.11 has no such argument and always does.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
# What models pass to attention that does not change its result.
HARMLESS = {"position_ids", "use_cache", "is_causal", "output_attentions", "output_hidden_states", "return_dict"}


class PathCounts:
    """State of one model: token positions computed and what they represent, and what attention was asked to do."""

    def __init__(self) -> None:
        self.positions = self.padded_positions = self.real_tokens = self.pairs = 0
        self.attention_calls = 0
        self.unsupported: set[str] = set()
        self.attention_dropout: list[str] = []  # names in the config, unless dropout is off
        self.lengths: tuple[Any, tuple[list[int], list[int]]] = (None, ([], []))  # of the row with these cu_seq_lens_q
        self.long_tokens: torch.Tensor | None = None  # tokens of conversations beyond `rope_switch`, in a forward


def install(model: PreTrainedModel, disable_dropout: bool = True) -> None:
    """Let `model` count its token positions and accept packed rows; rewards come in fp32.

    Dropout is switched off unless `disable_dropout` is False. `choose_attention` must decide how attention runs before
    the model is used. Raises InputError for a model whose score is not that of the last token.
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
    if rope_switch(model.config):
        for module in model.modules():
            if getattr(module, "rope_type", None) == "longrope":
                module.path_counts = model.path_counts
                module.forward = MethodType(_rotary, module)


def rope_switch(config: Any) -> int | None:
    """Return the length in tokens beyond which longrope (Phi-3.5, Phi-4-mini) rotates by other factors, or None."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


def check_head(model: PreTrainedModel) -> None:
    """Refuse a model without the one head that training, merging and vLLM's LAST pooling know: `score` on a decoder."""
    if isinstance(getattr(model, "score", None), nn.Linear) and not model.config.is_encoder_decoder:
        return
    raise InputError(
        f"{type(model).__name__} has no linear head `score` over the last token of a decoder, so vLLM would serve "
        "another number than training computes; start from a decoder-only language model (Llama, Qwen, Mistral, …)."
    )


def zero_dropout(model: nn.Module) -> None:
    """All dropout: trl's disable_dropout leaves the rates that modules keep as numbers, as attention does."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


def _score(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The head's product in fp32: in bf16, rewards near 10 are multiples of 1/16, and close pairs would be ties."""
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
    """Return rewards, (branches, 1) at `end_positions` of a packed row or (conversations, 1) of a padded batch.

    Of a padded batch, the last token is the last one of the mask, whatever the pad token is.
    """
    if self.training:
        self.path_counts.positions += input_ids.numel()
        self.path_counts.padded_positions += padded_positions
        self.path_counts.real_tokens += real_tokens
        self.path_counts.pairs += (len(input_ids) if end_positions is None else len(end_positions)) // 2
    for not_for_the_body in ("margin", "places"):
        kwargs.pop(not_for_the_body, None)
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
        if switch:
            lengths, keys = kwargs["cu_seq_lens_k"].diff(), kwargs["key_index"]
            is_long = torch.zeros_like(input_ids, dtype=torch.bool)
            is_long[0, keys] = (lengths > switch).repeat_interleave(lengths, output_size=len(keys))
    body = getattr(self, self.base_model_prefix)
    with rotate_by_length(self, is_long):
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
    return SequenceClassifierOutputWithPast(logits=self.score(hidden[ends]))


@contextmanager
def rotate_by_length(model: PreTrainedModel, is_long: torch.Tensor | None) -> Iterator[None]:
    """Let longrope use its long factors for the tokens of `is_long`, (batch, tokens) or (batch, 1), and only for them.

    None leaves the choice to Transformers, which takes one regime for the batch.
    """
    model.path_counts.long_tokens = is_long
    try:
        yield
    finally:
        model.path_counts.long_tokens = None


def _rotary(self: nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cosines and sines of longrope, by the length of each token's own conversation.

    Transformers chooses the factors by the longest position in the batch, so a score would depend on the other
    conversations: https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
    """
    rotary, is_long, switch = type(self).forward, self.path_counts.long_tokens, rope_switch(self.config)
    if is_long is None or switch is None:
        return rotary(self, x, position_ids)
    short = rotary(self, x, position_ids.clamp(max=switch - 1))
    long = rotary(self, x, F.pad(position_ids, (0, 1), value=switch))  # one position beyond selects the long factors
    return tuple(torch.where(is_long[..., None], b[..., :-1, :], a) for a, b in zip(short, long, strict=True))


def _mask(*, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Packed rows come without a mask and need none; a padded batch gets the one that SDPA would get."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    key_index: torch.Tensor | None = None,
    path_counts: PathCounts | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention signature: query (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    if cu_seq_lens_q is None or cu_seq_lens_k is None or path_counts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    path_counts.attention_calls += 1
    extra = {name for name, argument in kwargs.items() if argument is not None} - HARMLESS
    if attention_mask is not None:
        extra.add("attention_mask")
    if dropout:
        extra.add("dropout")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        extra.add("is_causal=False")
    # Not raised: the guard's probe must run to its end on every rank, or ZeRO-3 would be left half way.
    path_counts.unsupported |= extra
    sequences = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    query, key, value = (_autocast(states[0].transpose(0, 1)) for states in (query, key, value))
    key, value = key.index_select(0, key_index), value.index_select(0, key_index)
    if _has_kernel(query.device) and _kernel_takes(query, value):
        output = _varlen_attention(query, key, value, *sequences, scale=scaling, window=sliding_window)
    else:
        if path_counts.lengths[0] is not cu_seq_lens_q:  # once for all layers, since a GPU has to be waited for
            path_counts.lengths = cu_seq_lens_q, (cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist())
        output = sequence_attention(
            query, key, value, *sequences, scale=scaling, window=sliding_window, lengths=path_counts.lengths[1]
        )
    # JetMoE views the output, so it must be contiguous.
    return output.contiguous()[None], None


def _autocast(states: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype, as SDPA would take them: rotary embeddings leave query and key in fp32."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _kernel_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    size = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and size == value.shape[-1] and size <= 256 and size % 8 == 0


def _varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """One FlashAttention call for the whole row. No one has run this on a GPU yet."""
    left = -1 if window is None else window - 1
    return varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=(left, 0), **GROUPED
    )


def sequence_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window: int | None,
    lengths: tuple[list[int], list[int]] | None = None,
) -> torch.Tensor:
    """SDPA, sequence by sequence: query (queries, heads, size), key and value (keys, key heads, size).

    Within a sequence, attention is causal and aligned to the end; `window` keys at most are seen, the own one included.
    """
    outputs = []
    lengths_q, lengths_k = lengths or (cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist())
    for q, k, v in zip(query.split(lengths_q), key.split(lengths_k), value.split(lengths_k), strict=True):
        q, k, v = (states.transpose(0, 1)[None] for states in (q, k, v))
        queries, keys = q.shape[2], k.shape[2]
        if queries == keys and (window is None or keys <= window):
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
            continue
        for start in range(0, queries, MASKED_QUERIES):
            stop = min(start + MASKED_QUERIES, queries)
            last = torch.arange(keys - queries + start, keys - queries + stop, device=q.device)[:, None]
            first_key = 0 if window is None else max(0, keys - queries + start - window + 1)
            key_range = slice(first_key, keys - queries + stop)
            at = torch.arange(first_key, keys - queries + stop, device=q.device)
            seen = at <= last if window is None else (at <= last) & (at > last - window)
            outputs.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, key_range], v[:, :, key_range], seen, scale=scale, enable_gqa=True
                )
            )
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
