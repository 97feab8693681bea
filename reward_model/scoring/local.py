"""Score conversations with Transformers, using packed rows as in training if the model supports them."""

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
# Token positions in a batch. On a CPU, larger batches are 15% slower and use more memory (docs/benchmarks.md). 32,768
# positions keep a GPU busy even if the model is small; a larger batch would only delay the next rows of the output.
CPU_BUDGET, LARGEST_BUDGET = 4096, 32768


def load_reward_model(directory: str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer, ready for `score`.

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
    """Load a reward model's base model with an untrained head, and the reward model's tokenizer.

    Args:
        base_model: Directory or Hub id. It gets the same random head that train.py starts with by default.
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
    """Return a score for each conversation in each group, in order, computing the prefix shared by a group only once.

    Args:
        model: Model from `load_reward_model`.
        tokenizer: Its tokenizer.
        groups: Lists of conversations that may share a prefix: a pair, or n answers to one prompt.
        tokens_per_batch: Token positions in a forward pass; `batch_budget(model)` by default.
        tools: The assistant's tools, or None, for each group.

    Raises:
        InputError: If the template rejects a conversation, or if one is longer than the model's context.
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
    """Return the token ids of each conversation in a group.

    Raises:
        InputError: If the template rejects a conversation, or if one is longer than the model's context.
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
    """Score groups of token ids in a single forward pass, or in several if a GPU runs out of memory."""
    try:
        return _score_batch(model, tokenizer, groups)
    except torch.OutOfMemoryError:
        if len(groups) == 1:
            raise
    # Retry outside of `except`: inside it, the traceback would keep the failed pass's tensors alive.
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
    """Score rows in batches of `tokens_per_batch` positions; yield each row, in order, with its scores or an error."""
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
    """Split off the prefix that conversations share; leave it empty if the model needs padded batches."""
    return tree(group, rope_switch(model.config)) if model.packs else ([], group)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def batch_budget(model: PreTrainedModel) -> int:
    """Return the number of token positions to score in one batch, based on the free memory of the model's device.

    Without gradients, only one layer's activations exist at a time. For each position, the estimate counts three MLP
    widths (gate, up and their product) and eight hidden states (residual, norm, query, key, value, gathered keys and
    values, output) in the model's dtype, plus two hidden states in fp32 for the norm. Half of the free memory is
    reserved for fragmentation, and for attention or experts that need more than this estimate; `score_batch` splits a
    batch that does not fit in half.
    """
    if model.device.type != "cuda":
        return CPU_BUDGET
    config = model.config.get_text_config()
    widths = 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size) + 8 * config.hidden_size
    position = widths * model.dtype.itemsize + 8 * config.hidden_size  # bytes
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(CPU_BUDGET, min(free // 2 // position, LARGEST_BUDGET))


def _batches(sizes: list[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of indices of similarly sized groups, with at most `budget` positions unless one group has more."""
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
