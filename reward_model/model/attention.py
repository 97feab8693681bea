"""Attention over packed rows, registered with Transformers' AttentionInterface as "shared_prefix".

Each branch of a packed row (see packing.py) is one variable-length sequence: its queries attend causally to the keys of
its prefix and to its own keys, aligned at the end. On CUDA this is a single call to torch's `varlen_attn`; elsewhere
SDPA runs sequence by sequence with the same arguments.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from reward_model.model.modeling import PathCounts

NAME = "shared_prefix"
# Maximum number of queries in a masked SDPA call, so that its mask stays small compared with the activations.
MASKED_QUERIES = 1024
# Lets query heads share key heads. torch 2.11 always does so, without this argument.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
# Arguments that models pass to attention but that do not affect its result.
HARMLESS = {
    "mixer_layout",
    "position_ids",
    "use_cache",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}


def _mask(*, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Return SDPA's mask for a padded batch; packed rows need no mask."""
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
    path_counts: "PathCounts | None" = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over a packed row, or over a padded batch if `cu_seq_lens_q` is None. Transformers sets the signature.

    Queries are `(1, heads, tokens, size)`; keys and values may have fewer heads. `sliding_window` is the maximum number
    of keys that a query sees, including its own. The arguments from `cu_seq_lens_q` to `key_index` come from `pack`,
    and `path_counts` records any other arguments that may change the result.

    Returns:
        The output, `(1, tokens, heads, size)`, and None.
    """
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
    # Record problems instead of raising: under ZeRO-3, the probes must run to the end on every rank.
    path_counts.unsupported |= extra
    sequences = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    query, key, value = (_autocast(states[0].transpose(0, 1)) for states in (query, key, value))
    key, value = key.index_select(0, key_index), value.index_select(0, key_index)
    if _has_kernel(query.device) and _kernel_takes(query, value):
        output = _varlen_attention(query, key, value, *sequences, scale=scaling, window=sliding_window)
    else:
        if path_counts.lengths[0] is not cu_seq_lens_q:  # once for all layers, as tolist() waits for the GPU
            path_counts.lengths = cu_seq_lens_q, (cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist())
        output = sequence_attention(
            query, key, value, *sequences, scale=scaling, window=sliding_window, lengths=path_counts.lengths[1]
        )
    # JetMoE calls `view` on the output, so it must be contiguous.
    return output.contiguous()[None], None


def _autocast(states: torch.Tensor) -> torch.Tensor:
    """Cast to autocast's dtype, as SDPA does, because rotary embeddings leave query and key in fp32."""
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
    """Run FlashAttention on the row in a single call. `make check-gpu`, not yet run, compares it with SDPA in fp32."""
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
    """Run SDPA sequence by sequence. Attention is causal within a sequence and aligned at its end.

    Args:
        query: `(queries, heads, size)`.
        key: `(keys, key heads, size)`.
        value: `(keys, key heads, size)`.
        cu_seq_q: Boundaries of the sequences in `query`, `(sequences + 1,)`.
        cu_seq_k: Boundaries of the sequences in `key`.
        max_q: Unused; part of the signature of `varlen_attn`.
        max_k: Unused.
        scale: Factor applied to the query-key products.
        window: Maximum number of keys that a query sees, including its own.
        lengths: Lengths of the sequences in `query` and in `key`, if they are already on the CPU.

    Returns:
        `(queries, heads, size)`.
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
