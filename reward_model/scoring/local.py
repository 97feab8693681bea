"""Score conversations with Transformers, on packed rows if the model supports them, as in training."""

import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from reward_model import InputError
from reward_model.data.conversations import ScoringRow
from reward_model.model.checkpoint import check_base_model, check_reward_model, check_saved_template, set_pad_token
from reward_model.model.loading import load_model
from reward_model.model.modeling import rope_switch
from reward_model.model.packing import Group, pack, positions, tree
from reward_model.model.packing_check import pad, prepare_for_scoring
from reward_model.model.reference_scores import read_normalization
from reward_model.model.tokenization import load_tokenizer, render, token_ids

Conversation = list[dict[str, Any]]
SEED = 42  # the default of train.py's --seed
# Token positions in a batch. On a CPU, larger batches are 15% slower and take more memory (docs/benchmarks.md).
# 32,768 positions keep a GPU busy even if the model is small; more would only delay the next rows of the output.
CPU_BUDGET, LARGEST_BUDGET = 4096, 32768


def load_reward_model(directory: str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a reward model and its tokenizer, ready for `score`.

    `dtype` defaults to float32 on a CPU, and to the dtype of the weights on an accelerator.
    """
    check_reward_model(directory)
    tokenizer = load_tokenizer(directory)
    check_saved_template(tokenizer, directory)
    device = _device()
    dtype = dtype or ("float32" if device.type == "cpu" else "auto")
    model = prepare_for_scoring(load_model(directory, dtype=dtype).to(device), tokenizer.pad_token_id)
    model.normalization = read_normalization(Path(directory))
    return model, tokenizer


def load_untrained(base_model: str, directory: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base model of a reward model with an untrained head, and the tokenizer of the reward model.

    Args:
        base_model: Directory or Hub id. Its head is the random one with which train.py starts by default.
        directory: Directory of the reward model.
    """
    check_base_model(base_model)
    tokenizer = load_tokenizer(directory)
    set_seed(SEED)
    model = load_model(base_model, new_head=True, dtype=torch.float32)
    set_pad_token(model, tokenizer)
    return prepare_for_scoring(model.to(_device()), tokenizer.pad_token_id), tokenizer


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: list[list[Conversation]],
    tokens_per_batch: int | None = None,
    tools: list[Any] | None = None,
) -> list[list[float]]:
    """Return one score for each conversation in each group, in order. A group's shared prefix is computed only once.

    Args:
        model: Model from `load_reward_model`.
        tokenizer: Its tokenizer.
        groups: Conversations that may have a shared prefix: a pair, or n answers to one prompt.
        tokens_per_batch: Token positions in a forward pass; `batch_budget(model)` by default.
        tools: For each group, the assistant's tools, or None.

    Raises:
        InputError: If the template rejects a conversation, or if it is longer than the model's context.
    """
    each = zip(groups, tools or [None] * len(groups), strict=True)
    tokens = [encode(group, model, tokenizer, its_tools) for group, its_tools in each]
    scores: list[list[float]] = [[] for _ in groups]
    often = 0.1 if sys.stderr.isatty() else 5  # seconds; a log file keeps every update of the bar
    progress = tqdm(total=sum(map(len, groups)), desc="Scoring", unit="conversation", mininterval=often)
    sizes = [positions(to_group(group, model)) for group in tokens]
    for numbers in _batches(sizes, tokens_per_batch or batch_budget(model)):
        batch = score_batch(model, tokenizer, [tokens[number] for number in numbers])
        for number, values in zip(numbers, batch, strict=True):
            scores[number] = values
            progress.update(len(values))
    progress.close()
    return scores


def encode(
    group: list[Conversation], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tools: Any = None
) -> list[list[int]]:
    """Return the token ids of each conversation.

    Raises:
        InputError: If the template rejects one, or if one is longer than the model's context.
    """
    tokens = token_ids([render(messages, tokenizer, tools) for messages in group], tokenizer)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and len(longest := max(tokens, key=len)) > limit:
        start = tokenizer.decode(longest[:60])
        raise InputError(f"a conversation of {len(longest)} tokens exceeds the model's context of {limit}: {start!r} …")
    return tokens


def score_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: list[list[list[int]]]
) -> list[list[float]]:
    """Return the scores of groups of token ids from one forward pass, or from more if a GPU runs out of memory."""
    try:
        return _score_batch(model, tokenizer, groups)
    except torch.OutOfMemoryError:
        if len(groups) == 1:
            raise
    # Retry outside of `except`, where the traceback would keep the tensors of the failed pass alive.
    torch.accelerator.empty_cache()
    middle = len(groups) // 2
    halves = groups[:middle], groups[middle:]
    return [scores for half in halves for scores in score_batch(model, tokenizer, half)]


@torch.no_grad()
def _score_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: list[list[list[int]]]
) -> list[list[float]]:
    if model.packs:
        inputs = pack([to_group(group, model) for group in groups])
    else:
        inputs = pad([ids for group in groups for ids in group], tokenizer.pad_token_id)
    inputs = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
    mean, sigma = getattr(model, "normalization", (0.0, 1.0))
    values = iter(((model(**inputs, use_cache=False).logits.flatten() - mean) / sigma).tolist())
    return [[next(values) for _ in group] for group in groups]


def score_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens_per_batch: int, rows: Iterable[ScoringRow]
) -> Iterator[tuple[ScoringRow, list[float] | str]]:
    """Yield each row of a file with its scores or an error, in order, scoring batches of `tokens_per_batch`."""
    batch: list[tuple[ScoringRow, list[list[int]]]] = []
    filled = 0
    for row in rows:
        tokens: list[list[int]] = []
        try:
            tokens = [] if row.error else encode(row.conversations, model, tokenizer, row.tools)
        except InputError as error:
            row = row._replace(error=str(error))
        size = positions(to_group(tokens, model)) if tokens else 0
        if batch and filled + size > tokens_per_batch:
            yield from _score_batch_of_rows(model, tokenizer, batch)
            batch, filled = [], 0
        batch.append((row, tokens))
        filled += size
    yield from _score_batch_of_rows(model, tokenizer, batch)


def _score_batch_of_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[tuple[ScoringRow, list[list[int]]]]
) -> Iterator[tuple[ScoringRow, list[float] | str]]:
    groups = [tokens for _, tokens in batch if tokens]
    scores = iter(score_batch(model, tokenizer, groups) if groups else [])
    for row, tokens in batch:
        values = next(scores) if tokens else []
        is_finite = all(map(math.isfinite, values))
        yield (
            row,
            row.error or (values if is_finite else f"the scores are {values}; check the weights and the --dtype."),
        )


def to_group(group: list[list[int]], model: PreTrainedModel) -> Group:
    """Return conversations with their shared prefix split off, or with an empty prefix if the model needs padding."""
    return tree(group, rope_switch(model.config)) if model.packs else ([], group)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def batch_budget(model: PreTrainedModel) -> int:
    """Return the number of token positions to score in one batch, based on the free memory of the model's device.

    Without gradients, only one layer's activations exist at a time. For each position, the estimate counts three MLP
    widths (gate, up and their product) and eight hidden states (residual, norm, query, key, value, gathered keys and
    values, output) in the model's dtype, plus two hidden states in fp32 for the norm. Half of the free memory is left
    for fragmentation, and for attention and experts that need more; `score_batch` halves a batch that does not fit.
    """
    if model.device.type != "cuda":
        return CPU_BUDGET
    config = model.config.get_text_config()
    widths = 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size) + 8 * config.hidden_size
    position = widths * model.dtype.itemsize + 8 * config.hidden_size  # bytes
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(CPU_BUDGET, min(free // 2 // position, LARGEST_BUDGET))


def _batches(sizes: list[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of group indices: similar sizes, and at most `budget` positions unless one group has more."""
    batch: list[int] = []
    filled = 0
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if batch and filled + sizes[number] > budget:
            yield batch
            batch, filled = [], 0
        batch.append(number)
        filled += sizes[number]
    if batch:
        yield batch
