"""From checked pairs to token ids: the checkpoint's own chat template, nothing added, nothing cut off."""

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
# Words in the names of special tokens that no chat template writes, best first.
SPARE_TOKENS = ("pad", "reserved", "unused", "unk", "endoftext")


def load_tokenizer(model: str, chat_template_path: str | None = None, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, with its chat template or with the one at `chat_template_path`: a .jinja
    file, or a folder or hub id whose tokenizer has a template.
    """

    tokenizer = _load(model, **kwargs)
    if chat_template_path and chat_template_path.endswith((".jinja", ".j2")):
        if not Path(chat_template_path).is_file():
            raise InputError(f"--chat_template_path {chat_template_path}: no such file.")
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    elif chat_template_path:
        tokenizer.chat_template = _load(chat_template_path).chat_template
    tokenizer.chat_template = single_template(tokenizer.chat_template, model)
    return tokenizer


def _load(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    try:
        # A tekken.json beside the tokenizer is left alone: its tokenizer has no chat template.
        tokenizer = AutoTokenizer.from_pretrained(name, mistral_format=False, **kwargs)
    except Exception as error:  # a missing file, a broken one: each class of tokenizers has its own errors
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: no tokenizer could be loaded from there: {words}") from error
    if not tokenizer.encode("text", add_special_tokens=False):  # some classes make one without any file
        raise InputError(f"{name}: no tokenizer could be loaded from there: its files are missing.")
    return tokenizer


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rendered conversations; the template has written every special token already, so none is added."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def tokenize_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, num_proc: int | None, name: str
) -> Dataset:
    """Columns `chosen_ids`, `rejected_ids`, `prefix_length` (tokens that both begin with), `length` (of the longer),
    `positions` (in a packed row), `prompt`, `place` and, where the pairs have one, `margin`, in the order of `pairs`.

    Pairs whose longer side has more than `max_length` tokens are dropped, and the number is printed. Raises InputError
    when nothing is left, and for a conversation that the template refuses. Cached by `datasets`.
    """
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 16) if len(pairs) >= PAIRS_WORTH_PROCESSES else None
    # Left alone, `datasets` would miss its cache (a tokenizer's pickle changes as it is used) and hit it after a change
    # of the code (imported functions are hashed by name).
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
            f"Every one of the {len(lengths)} {name} pairs is longer than --max_length {max_length} tokens (the longer "
            f"side counts): shortest {lengths.min()}, median {int(np.median(lengths))}, longest {lengths.max()}."
        )
    if len(fits) < len(lengths):
        PartialState().print(
            f"{name}: dropped {len(lengths) - len(fits)} of {len(lengths)} pairs with a side longer than --max_length "
            f"{max_length} tokens (the longest has {lengths.max()})."
        )
        tokenized = tokenized.select(fits)
    return tokenized


def stored_ids(pairs: Dataset) -> Iterator[np.ndarray]:
    """Yield all token ids in the table of `tokenize_pairs`, chunk by chunk and without a copy.

    These include the ids of rows that `pairs` no longer selects.
    """
    for side in ("chosen_ids", "rejected_ids"):
        for chunk in pairs.data.column(side).chunks:
            yield chunk.flatten().to_numpy()


def set_unused_pad_token(tokenizer: PreTrainedTokenizerBase, tokenized: list[Dataset]) -> None:
    """Set a pad token that no conversation contains: the tokenizer's own, a spare special token, or a new one.

    Transformers reads the reward at the rightmost token that is not the pad token, vLLM at the last token. They differ
    silently where a conversation ends with the pad token, so eos never qualifies: it is what the next data may contain.
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
            raise InputError(f"{place}: the tokenizer's chat template makes no text of it; give another template.")
    columns["prefix_length"] = [common_prefix_length(pair) for pair in both]
    columns["length"] = [max(map(len, pair)) for pair in both]
    columns["positions"] = [
        sum(map(len, pair)) - prefix for pair, prefix in zip(both, columns["prefix_length"], strict=True)
    ]
    return columns
