"""Scores of conversations with Transformers: what training computed, on packed rows where the model takes them."""

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from reward_model import InputError
from reward_model.checkpoint import check_reward_model
from reward_model.packed_row import common_prefix_length, pack
from reward_model.shared_prefix import install
from reward_model.tokenization import load_tokenizer, render, token_ids

Conversation = list[dict[str, Any]]


def load_reward_model(folder: str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in `dtype` or its own on an accelerator and in fp32 on CPU, and its tokenizer; ready for `score`."""
    check_reward_model(folder)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = dtype or ("float32" if device.type == "cpu" else "auto")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    model.packs = install(model) is None
    return model.eval().to(device), load_tokenizer(folder)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: list[list[Conversation]],
    tokens_per_batch: int = 4096,
) -> list[list[float]]:
    """One score per conversation; `groups` are conversations that may begin alike (a pair, n answers to one prompt).

    What a group shares is computed once. Scores are raw logits in the order given. Raises InputError for a conversation
    longer than the model's context.
    """
    flat = token_ids([render(conversation, tokenizer) for group in groups for conversation in group], tokenizer)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and (longest := max(map(len, flat))) > limit:
        raise InputError(f"A conversation has {longest} tokens, more than the {limit} that the model takes.")
    ids = iter(flat)
    tokens = [[next(ids) for _ in group] for group in groups]
    scores: list[list[float]] = [[] for _ in groups]
    progress = tqdm(total=len(flat), desc="Scoring", unit="conversation", disable=None)
    for numbers in _batches(tokens, tokens_per_batch):
        batch = [tokens[number] for number in numbers]
        inputs = _packed(batch) if model.packs else _padded(batch, tokenizer.pad_token_id)
        inputs = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
        values = iter(model(**inputs, use_cache=False).logits.flatten().tolist())
        for number in numbers:
            scores[number] = [next(values) for _ in tokens[number]]
        progress.update(sum(len(tokens[number]) for number in numbers))
    progress.close()
    return scores


def _batches(groups: list[list[list[int]]], budget: int) -> Iterator[list[int]]:
    """Numbers of groups of similar length, as many as fit into `budget` tokens, and at least one."""
    batch: list[int] = []
    filled = 0
    for number in sorted(range(len(groups)), key=lambda number: max(map(len, groups[number])), reverse=True):
        size = sum(map(len, groups[number]))
        if batch and filled + size > budget:
            yield batch
            batch, filled = [], 0
        batch.append(number)
        filled += size
    if batch:
        yield batch


def _packed(groups: list[list[list[int]]]) -> dict[str, Any]:
    split = [(group, common_prefix_length(group)) for group in groups]
    return pack([(group[0][:shared], [ids[shared:] for ids in group]) for group, shared in split])


def _padded(groups: list[list[list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    flat = [torch.tensor(ids) for group in groups for ids in group]
    ids = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in flat], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}
