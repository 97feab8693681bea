"""Choose how the attention of a loaded model runs: packed, padded or eager.

Training, scoring, evaluation, merging and reference scores all use `choose_attention`, so they agree. The reference is
Transformers' eager attention, because `sdpa` silently ignores what it cannot compute, such as Gemma 2's soft-capping.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from reward_model.model.attention import NAME
from reward_model.model.mixers import MIXER_LAYERS
from reward_model.model.modeling import install, installed_model, rope_switch
from reward_model.model.packing import Group, pack, tree

# Largest accepted relative difference between the hidden states that are fed to the reward head, in fp32 and in half
# precision. Measured (table in tests/model/test_packing_check.py): with correct packing, they differ by 1e-6 in fp32
# and by 2% in half precision (by 6% in one pair out of 40); with a leak, by 12% or more in every pair. So several pairs
# are compared, and the one that differs least decides.
IN_FP32, IN_HALF = 1e-3, 5e-2
PACKABLE_LAYERS = {"full_attention", "sliding_attention"} | MIXER_LAYERS
# What sdpa supports beyond causal attention.
COMPUTED_BY_SDPA = {"attention_mask", "dropout", "is_causal=False"}
Pair = tuple[list[int], list[int]]


def prepare_for_scoring(model: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """Prepare `model` for scoring, and return it. `model.packs` is True if it accepts packed rows."""
    install(model)
    model.packs = choose_attention(model.eval(), pad_token_id) is None
    return model


@torch.no_grad()
def choose_attention(
    model: nn.Module,
    pad_token_id: int | None,
    pairs: Sequence[Pair] = (),
    shared_prefix: bool = True,
    half: bool = False,
) -> str | None:
    """Set the attention of a model prepared by `install`, and return why rows must be padded, or None.

    Three short probes are run with eager attention, packed and, if need be, padded; `pairs` are run packed and padded.
    Pass the longest pairs: differences beyond a sliding window show only there. All ranks must call this together; they
    run the same forward passes, as ZeRO-3 requires, and reach the same decision.

    Args:
        model: The model, possibly inside a wrapper (DeepSpeed, PEFT).
        pad_token_id: Token id for the padded rows.
        pairs: Pairs of conversations as token ids.
        shared_prefix: Whether packed rows are wanted.
        half: Whether the model computes in lower precision although its weights are in fp32 (autocast, TF32).
    """
    inner = installed_model(model)
    # Private attributes, because the public set_attn_implementation only warns. test_families.py fails if they change.
    if not (inner._supports_sdpa and inner._can_set_attn_implementation()):
        return f"the attention of {type(inner).__name__} does more than SDPA (sinks or similar)"
    own, training = inner.config._attn_implementation, model.training
    tolerance = IN_HALF if half or next(model.parameters()).dtype != torch.float32 else IN_FP32
    model.eval()
    probes = _probes(inner.config.get_text_config().vocab_size, pad_token_id)
    inner.set_attn_implementation("eager")
    eager = last_states(model, probes, pad_token_id)
    inner.set_attn_implementation(NAME)
    reason = _packing_problem(model, probes, eager, pad_token_id, tolerance)
    if reason is None and not shared_prefix:
        reason = "--shared_prefix is False"
    if reason is None:
        reason = _longest_pairs_problem(model, pairs, pad_token_id, tolerance)
    if reason:
        inner.set_attn_implementation(own)
        ignored = own == "sdpa" and inner.path_counts.unsupported - COMPUTED_BY_SDPA
        if ignored or not _difference(last_states(model, probes, pad_token_id), eager) <= tolerance:
            inner.set_attn_implementation("eager")
    model.train(training)
    return reason


def _packing_problem(
    model: nn.Module, probes: list[Pair], eager: torch.Tensor, pad_token_id: int | None, tolerance: float
) -> str | None:
    """Return the reason why the model cannot use packed rows, or None if its outputs on packed probes match `eager`."""
    inner = installed_model(model)
    counts, config, name = inner.path_counts, inner.config.get_text_config(), type(inner).__name__
    counts.unsupported.clear()
    if other := set(getattr(config, "layer_types", None) or []) - PACKABLE_LAYERS:
        return f"{name} has layers of the type {', '.join(sorted(other))}"
    calls = counts.attention_calls
    difference = _difference(last_states(model, probes, pad_token_id, packed=True), eager)
    if missed := max(0, config.num_hidden_layers - (counts.attention_calls - calls)):
        counts.unsupported.add(f"{missed} of {config.num_hidden_layers} layers that cannot process packed rows")
    if counts.unsupported:
        return f"{name} uses {', '.join(sorted(counts.unsupported))}"
    if counts.attention_dropout:
        return f"{', '.join(counts.attention_dropout)} is not 0 and --disable_dropout is False"
    if not difference <= tolerance:
        return f"packed rows change the hidden states of {name} by {difference:.2g}"
    return None


def _longest_pairs_problem(
    model: nn.Module, pairs: Sequence[Pair], pad_token_id: int | None, tolerance: float
) -> str | None:
    """Return why `pairs` cannot be packed, or None.

    Hidden states are compared rather than rewards, whose noise grows with the norm of the head.
    """
    quiet = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
    differences = []
    # This takes about a second on a GPU; the progress bar appears if it takes longer.
    for pair in tqdm(pairs, "Comparing packed with padded rows", leave=False, delay=2, disable=quiet):
        packed, reference = (last_states(model, [pair], pad_token_id, packed) for packed in (True, False))
        differences.append(_difference(packed, reference))
    if not differences or (difference := min(differences)) <= tolerance:
        return None
    return f"packed rows change the hidden states at the end of the longest pairs by {difference:.2g}"


def last_states(model: nn.Module, pairs: list[Pair], pad_token_id: int | None, packed: bool = False) -> torch.Tensor:
    """Return the hidden states fed to the head, `(2 * pairs, hidden)`, for one packed row or one padded batch."""
    inner = installed_model(model)
    states: list[torch.Tensor] = []
    hook = inner.score.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].float()))
    if packed:
        groups: list[Group] = [tree(pair, rope_switch(inner.config)) for pair in pairs]
        batch: dict[str, Any] = pack(groups)
    else:
        batch = pad([ids for pair in pairs for ids in pair], pad_token_id)
    batch = {name: v.to(inner.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
    model(**batch, use_cache=False)
    hook.remove()
    return states[0]


def pad(conversations: list[list[int]], pad_token_id: int | None) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, `(conversations, longest)`, of token ids padded on the right."""
    rows = [torch.tensor(ids) for ids in conversations]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id or 0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def _difference(states: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the relative difference (worse side) of the pair that differs least; take the maximum over ranks."""
    each = (states - reference).norm(dim=-1) / reference.norm(dim=-1)
    least = each.view(-1, 2).amax(1).min()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MAX)
    return least.item()


def _probes(vocabulary: int, pad_token_id: int | None) -> list[Pair]:
    """Return three pairs of token ids spread over the vocabulary, with prefixes and branches of different lengths."""
    tokens = [(7919 * number) % vocabulary for number in range(1, 120)]
    ids = iter([token for token in tokens if token != pad_token_id])
    pairs = []
    for prefix, chosen, rejected in ((11, 5, 9), (3, 14, 2), (17, 1, 8)):
        shared, *branches = ([next(ids) for _ in range(length)] for length in (prefix, chosen, rejected))
        pairs.append((shared + branches[0], shared + branches[1]))
    return pairs
