"""The pairs of a run: which files they come from, and whether the model can take and tell apart their tokens."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from reward_model import InputError
from reward_model.data.dataset import load_pairs
from reward_model.data.readers import data_files
from reward_model.model.tokenization import stored_ids
from reward_model.training.arguments import DataArguments

SAMPLED = 48  # pairs of each file that are rendered


def read_pairs(data_args: DataArguments, tell: bool) -> tuple[Dataset, Dataset | None]:
    """(training pairs, test pairs or None), with the test pairs that prepare_data.py wrote beside a file."""
    name = str(data_args.dataset_name)
    if ".rejected." in Path(name).name:
        raise InputError(f"{name}: these are the rows that prepare_data.py left out; give the file without .rejected")
    if data_files(name) and (data_args.dataset_train_split, data_args.dataset_test_split) != ("train", "test"):
        raise InputError(f"{name} is no data set of the hub, so --dataset_train_split and …_test_split do nothing.")
    train_pairs, test_pairs = load_pairs(name, data_args.dataset_train_split, data_args.dataset_test_split)
    stem, _, suffix = Path(name).name.partition(".")
    beside = Path(name).with_name(f"{stem}.eval.{suffix}")
    if Path(name).is_file() and beside.is_file() and data_args.eval_size:
        test_pairs = load_pairs(str(beside))[0]
        if tell:
            print(f"Held out: {beside}, beside the training file; --eval_size 0 leaves it.")
    if test_pairs is not None:
        if (same := in_both(train_pairs, test_pairs)) > len(test_pairs) / 2:
            raise InputError(
                f"{name}: {same} of {len(test_pairs)} test pairs are training pairs too, so a test would say nothing; "
                ".venv/bin/python prepare_data.py --exclude_prompts takes them out."
            )
        if same and tell:
            print(f"{same} of {len(test_pairs)} test pairs are training pairs too.")
    return train_pairs, test_pairs


def in_both(train_pairs: Dataset, test_pairs: Dataset) -> int:
    """How many test pairs are training pairs, too; of these, which may be millions, a few are held at a time."""
    tests: Counter[tuple[str, str]] = Counter(zip(test_pairs["chosen"][:], test_pairs["rejected"][:], strict=True))
    seen: set[tuple[str, str]] = set()
    for batch in train_pairs.select_columns(["chosen", "rejected"]).iter(1000):
        seen.update(pair for pair in zip(batch["chosen"], batch["rejected"], strict=True) if pair in tests)
    return sum(tests[pair] for pair in seen)


def sample(pairs: Dataset) -> list[dict[str, Any]]:
    """Return some pairs, evenly spread, with conversations and tools as objects, and their place."""
    rows = pairs.select(np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLED), dtype=int)).to_list()
    return [
        {name: json.loads(row[name] or "null") for name in ("chosen", "rejected", "tools")} | {"place": row["place"]}
        for row in rows
    ]


def check_tokens(tokenized: dict[str, Dataset], model: PreTrainedModel, tell: bool) -> None:
    """Refuse pairs that the model cannot take or cannot tell apart; `tokenized` has files by their name."""
    config = model.config.get_text_config()
    limit, vocabulary = getattr(config, "max_position_embeddings", None), config.vocab_size
    for name, pairs in tokenized.items():
        if limit and (longest := max(pairs["length"][:], default=0)) > limit:
            cure = f"--max_length {limit}" if name in ("training", "held_out") else "take it out of the file"
            raise InputError(f"The longest of the {name} pairs has {longest} tokens, the model takes {limit}: {cure}")
        if (largest := max((ids.max(initial=0) for ids in stored_ids(pairs)), default=0)) >= vocabulary:
            raise InputError(
                f"The tokenizer has the token {largest}, the model only {vocabulary} of them; they do not belong "
                "together."
            )
        near = np.flatnonzero(np.array(pairs["prefix_length"][:]) == np.array(pairs["length"][:]) - 1)
        equal = sum(row["chosen_ids"] == row["rejected_ids"] for row in pairs.select(near))
        if equal == len(pairs) > 0:
            raise InputError(f"In each of the {equal} {name} pairs both sides become the same tokens.")
        if equal and tell:
            print(f"{name}: in {equal} of {len(pairs)} pairs both sides become the same tokens; they teach nothing.")
