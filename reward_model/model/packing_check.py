"""Decide how a loaded model's attention runs: packed, padded or eager. Training, scoring and merging all ask here.

The reference is Transformers' eager attention: `sdpa` ignores, without a warning, what it cannot do, such as the
soft-capping of Gemma 2.
"""

from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from reward_model.model.attention import NAME, install, rope_switch
from reward_model.model.packing import Group, pack, tree

# Largest relative difference of the hidden states that enter the reward head, in fp32 and in half precision. Measured
# (table in tests/model/test_packing_check.py): correct packing differs by 1e-6 and by 2 %, one pair in 40 by 6 %; a
# leak by 12 % and more, in every pair. So several pairs are compared, and the one that differs least decides.
IN_FP32, IN_HALF = 1e-3, 5e-2
Pair = tuple[list[int], list[int]]


def prepare(model: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """Return `model` ready for scoring; `model.packs` is whether it takes packed rows."""
    install(model)
    model.packs = choose_attention(model.eval(), pad_token_id) is None
    return model


@torch.no_grad()
def choose_attention(
    model: nn.Module,
    pad_token_id: int | None,
    pairs: list[Pair] = [],  # noqa: B006
    shared_prefix: bool = True,
    half: bool = False,
) -> str | None:
    """Set the attention of a model that has been through `install`, and return why rows must be padded, if they must.

    Compares packed rows with padded ones, and sdpa with eager attention, on three short probes; then packed with padded
    rows on `pairs`. Pass the longest pairs: what only shows beyond a window shows there. All ranks call this
    together, make the same forward passes, as ZeRO-3 needs, and decide alike.

    Args:
        model: The model, which a wrapper (DeepSpeed, PEFT) may contain.
        pad_token_id: Token id for the padded rows.
        pairs: Pairs of conversations as token ids.
        shared_prefix: Whether packed rows are wanted.
        half: Whether half precision computes, where the dtype of the weights does not say so (autocast, TF32).
    """
    reward_model: PreTrainedModel = next(module for module in model.modules() if hasattr(module, "path_counts"))
    counts, config = reward_model.path_counts, reward_model.config.get_text_config()
    allowed = IN_HALF if half or next(model.parameters()).dtype != torch.float32 else IN_FP32
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    # Private names without a public form: set_attn_implementation only warns. test_families.py fails if they change.
    if not (reward_model._supports_sdpa and reward_model._can_set_attn_implementation()):
        return f"the attention of {type(reward_model).__name__} does more than SDPA (sinks or the like)"

    training, own, unsupported = model.training, reward_model.config._attn_implementation, counts.unsupported
    model.eval()
    unsupported.clear()
    probes = _probes(config.vocab_size, pad_token_id)
    reward_model.set_attn_implementation("eager")
    eager = last_states(model, probes, pad_token_id)
    reward_model.set_attn_implementation(NAME)
    reason: str | None
    if kinds:
        reason = f"layers of the kind {', '.join(sorted(kinds))} do more than attend to earlier tokens"
    else:
        calls = counts.attention_calls
        difference = _difference(last_states(model, probes, pad_token_id, packed=True), eager)
        if left_out := max(0, config.num_hidden_layers - (counts.attention_calls - calls)):
            unsupported.add(f"{left_out} of {config.num_hidden_layers} layers that take no packed row")
        if unsupported:
            reason = f"{type(reward_model).__name__} uses {', '.join(sorted(unsupported))}"
        elif not shared_prefix:
            reason = "--shared_prefix is False"
        elif counts.attention_dropout:
            reason = f"{', '.join(counts.attention_dropout)} is not 0 and --disable_dropout is False"
        elif not difference <= allowed:
            reason = f"packed rows change the hidden states of {type(reward_model).__name__} by {difference:.2g}"
        else:
            reason = _longest_differ(model, pairs, pad_token_id, allowed)
    if reason:
        reward_model.set_attn_implementation(own)
        # What sdpa computes although it is more than causal attention.
        ignored = own == "sdpa" and unsupported - {"attention_mask", "dropout", "is_causal=False"}
        if ignored or not _difference(last_states(model, probes, pad_token_id), eager) <= allowed:
            reward_model.set_attn_implementation("eager")
    model.train(training)
    return reason


def last_states(model: nn.Module, pairs: list[Pair], pad_token_id: int | None, packed: bool = False) -> torch.Tensor:
    """Return the hidden states at the last tokens, (2 * pairs, hidden), of one packed row or of one padded batch."""
    reward_model = next(module for module in model.modules() if hasattr(module, "path_counts"))
    states: list[torch.Tensor] = []
    hook = reward_model.score.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].float()))
    if packed:
        switch = rope_switch(reward_model.config)
        groups: list[Group] = [tree(pair, switch) for pair in pairs]
        batch: dict[str, Any] = pack(groups)
    else:
        batch = padded([ids for pair in pairs for ids in pair], pad_token_id)
    batch = {name: v.to(reward_model.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
    model(**batch, use_cache=False)
    hook.remove()
    return states[0]


def padded(conversations: list[list[int]], pad_token_id: int | None) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, (conversations, longest), of token ids padded on the right."""
    rows = [torch.tensor(ids) for ids in conversations]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id or 0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def _longest_differ(model: nn.Module, pairs: list[Pair], pad_token_id: int | None, allowed: float) -> str | None:
    """Return why `pairs` cannot be packed, if they all differ from the padded path. Rewards would be no measure, as
    their noise grows with the norm of the head."""
    quiet = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
    differences = []
    # A second on a GPU; the bar is for what takes longer.
    for pair in tqdm(pairs, "Comparing packed with padded rows", leave=False, delay=2, disable=quiet):
        packed, reference = (last_states(model, [pair], pad_token_id, packed) for packed in (True, False))
        differences.append(_difference(packed, reference))
    if not pairs or (difference := min(differences)) <= allowed:
        return None
    return f"packed rows change the hidden states at the end of the longest pairs by {difference:.2g}"


def _difference(states: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest relative difference within a pair, of the pair that differs least, and of all ranks."""
    each = (states - reference).norm(dim=-1) / reference.norm(dim=-1)
    least = each.view(-1, 2).amax(1).min()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MAX)
    return least.item()


def _probes(vocabulary: int, pad_token_id: int | None) -> list[Pair]:
    """Three pairs of token ids spread over the vocabulary, with prefixes and branches of different lengths."""
    tokens = [(7919 * number) % vocabulary for number in range(1, 120)]
    ids = iter([token for token in tokens if token != pad_token_id])
    pairs = []
    for prefix, chosen, rejected in ((11, 5, 9), (3, 14, 2), (17, 1, 8)):
        shared, *branches = ([next(ids) for _ in range(length)] for length in (prefix, chosen, rejected))
        pairs.append((shared + branches[0], shared + branches[1]))
    return pairs
