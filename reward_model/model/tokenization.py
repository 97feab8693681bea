"""Tokenize pairs with the checkpoint's chat template, without adding or truncating tokens."""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reward_model import InputError
from reward_model.data.dataset import code_stamp
from reward_model.data.pair import common_prefix_length
from reward_model.model.chat_template import render, single_template

# Below this many pairs, starting processes takes longer than tokenizing.
PAIRS_WORTH_PROCESSES = 5_000
# Words found in the names of special tokens that chat templates do not use, in order of preference.
SPARE_TOKENS = ("pad", "reserved", "unused", "unk", "endoftext")


def load_tokenizer(model: str, chat_template_path: str | None = None, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer from a directory or Hub id, with its chat template.

    Args:
        model: Directory or Hub id.
        chat_template_path: A .jinja file, or the directory or Hub id of a tokenizer, whose template is used instead.
        kwargs: Arguments for `AutoTokenizer.from_pretrained`.

    Raises:
        InputError: The tokenizer or the template cannot be loaded.
    """
    tokenizer = _load(model, **kwargs)
    if chat_template_path and chat_template_path.endswith((".jinja", ".j2")):
        if not Path(chat_template_path).is_file():
            raise InputError(f"--chat_template_path {chat_template_path} does not exist.")
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    elif chat_template_path:
        tokenizer.chat_template = _load(chat_template_path).chat_template
    tokenizer.chat_template = single_template(tokenizer.chat_template, model)
    return tokenizer


def _load(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    try:
        # A tekken.json next to the tokenizer is ignored: its tokenizer has no chat template.
        tokenizer = AutoTokenizer.from_pretrained(name, mistral_format=False, **kwargs)
    except Exception as error:  # tokenizer classes raise errors of many types
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: the tokenizer cannot be loaded: {words}") from error
    if not tokenizer.encode("text", add_special_tokens=False):  # some classes load without any files
        raise InputError(f"{name}: the tokenizer cannot be loaded: its files are missing.")
    return tokenizer


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of rendered conversations. The template has already written the special tokens."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def tokenize_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, num_proc: int | None, name: str
) -> Dataset:
    """Return the pairs as token ids, in the same order. The result is cached by `datasets`.

    Args:
        pairs: Dataset from `load_pairs`.
        tokenizer: Tokenizer with a chat template.
        max_length: Maximum length of a side in tokens. Longer pairs are dropped, and their number is printed.
        num_proc: Number of processes; None chooses by the size of the dataset.
        name: Name of the pairs in messages.

    Returns:
        A dataset with `chosen_ids`, `rejected_ids`, `prefix_length` (shared tokens), `length` (of the longer side),
        `positions` (in a packed row), `prompt`, `place` and, if the pairs have it, `margin`.

    Raises:
        InputError: No pair is short enough, or the chat template rejects a conversation.
    """
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 16) if len(pairs) >= PAIRS_WORTH_PROCESSES else None
    # With its default key, `datasets` would miss the cache, because a tokenizer's pickle changes with use, and would
    # return stale results after a code change, because imported functions are hashed by name. `_fingerprint` is
    # private; without it, the contents would have to be hashed. test_tokenization.py fails if the cache is not used.
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer
    key = Hasher.hash((pairs._fingerprint, code_stamp(), vocabulary, tokenizer.chat_template))
    tokenized = pairs.map(
        _tokenize_batch,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer},
        num_proc=num_proc,
        remove_columns=[column for column in pairs.column_names if column not in ("margin", "prompt", "place")],
        new_fingerprint=key,
        desc=f"Tokenizing {name} pairs",
    )
    if tokenized.features["margin"].dtype == "null" or pairs[0]["margin"] is None:
        tokenized = tokenized.remove_columns("margin")
    if max_length is None:
        return tokenized
    lengths = np.array(tokenized["length"][:])
    fits = np.flatnonzero(lengths <= max_length)
    if len(fits) == 0:
        raise InputError(
            f"All {len(lengths)} {name} pairs are longer than --max_length {max_length} tokens (by their longer side): "
            f"shortest {lengths.min()}, median {np.median(lengths):.0f}, longest {lengths.max()}. Raise --max_length."
        )
    if len(fits) < len(lengths):
        PartialState().print(
            f"{name}: dropped {len(lengths) - len(fits)} of {len(lengths)} pairs with a side longer than --max_length "
            f"{max_length} tokens (the longest has {lengths.max()})."
        )
        tokenized = tokenized.select(fits)
    return tokenized


def stored_ids(pairs: Dataset) -> Iterator[np.ndarray]:
    """Yield all token ids in the table from `tokenize_pairs`, chunk by chunk and without copying.

    This includes the ids of rows that `pairs` does not select.
    """
    for side in ("chosen_ids", "rejected_ids"):
        for chunk in pairs.data.column(side).chunks:
            yield chunk.flatten().to_numpy()


def set_unused_pad_token(tokenizer: PreTrainedTokenizerBase, tokenized: list[Dataset]) -> None:
    """Set a pad token that no conversation contains: the tokenizer's own, a spare special token, or a new one.

    Transformers reads the reward at the rightmost token that is not the pad token, vLLM at the last token. They would
    silently differ for a conversation that ends with the pad token. This is why eos is never used: other data may end
    with it.
    """
    present = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)  # by token id
    for pairs in tokenized:
        for ids in stored_ids(pairs):
            present[ids] = True
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    spare = [token for word in SPARE_TOKENS for token in special if word in token.lower()]
    for token in (tokenizer.pad_token, *spare):
        in_use = token in (None, tokenizer.eos_token, tokenizer.bos_token)
        if not in_use and not present[tokenizer.convert_tokens_to_ids(token)]:
            break
    else:
        vocabulary = tokenizer.get_vocab()
        token = next(name for name in (f"<|pad{n or ''}|>" for n in count()) if name not in vocabulary)
    tokenizer.add_special_tokens({"pad_token": token})


def _tokenize_batch(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for side in ("chosen", "rejected"):
        texts = []
        for conversation, tools, place in zip(batch[side], batch["tools"], batch["place"], strict=True):
            try:
                texts.append(render(json.loads(conversation), tokenizer, json.loads(tools) if tools else None))
            except InputError as error:
                raise InputError(f"{place}: {side}: {error}") from error
        columns[f"{side}_ids"] = token_ids(texts, tokenizer)
    both = list(zip(columns["chosen_ids"], columns["rejected_ids"], strict=True))
    for pair, place in zip(both, batch["place"], strict=True):
        if not all(pair):
            raise InputError(f"{place}: the chat template renders empty text. Pass a different template.")
    columns["prefix_length"] = [common_prefix_length(pair) for pair in both]
    columns["length"] = [max(map(len, pair)) for pair in both]
    columns["positions"] = [
        sum(map(len, pair)) - prefix for pair, prefix in zip(both, columns["prefix_length"], strict=True)
    ]
    return columns
