"""Load the pairs of a run, and check that the model can process their tokens and distinguish the two sides."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_model import InputError
from reward_model.data.dataset import load_pairs, split_by_prompt
from reward_model.data.readers import data_files
from reward_model.model.tokenization import set_unused_pad_token, stored_ids, tokenize_pairs
from reward_model.training.arguments import DataArguments, TrainingArguments

SAMPLE_SIZE = 48  # pairs of each dataset that are rendered as a check before training


def read_pairs(data_args: DataArguments, verbose: bool) -> tuple[Dataset, Dataset | None]:
    """Return the training pairs, and the test pairs or None if the data has no test split.

    A `pairs.eval.jsonl` next to `pairs.jsonl` is used as the test split; prepare_data.py writes it.
    """
    name = str(data_args.dataset_name)
    if ".rejected." in Path(name).name:
        raise InputError(f"{name} contains rows that prepare_data.py rejected. Pass the file without .rejected.")
    if data_files(name) and (data_args.dataset_train_split, data_args.dataset_test_split) != ("train", "test"):
        raise InputError(f"--dataset_train_split and --dataset_test_split need a Hub dataset; {name} is a local path.")
    train_pairs, test_pairs = load_pairs(name, data_args.dataset_train_split, data_args.dataset_test_split)
    stem, _, suffix = Path(name).name.partition(".")
    eval_file = Path(name).with_name(f"{stem}.eval.{suffix}")
    if Path(name).is_file() and eval_file.is_file() and data_args.eval_size:
        test_pairs = load_pairs(str(eval_file))[0]
        if verbose:
            print(f"Held-out pairs: {eval_file}, found next to the training file. Pass --eval_size 0 to ignore it.")
    if test_pairs is not None:
        repeated = count_repeated(train_pairs, test_pairs)
        if repeated > len(test_pairs) / 2:
            raise InputError(
                f"{name}: {repeated} of {len(test_pairs)} test pairs are also training pairs, so accuracy on them is "
                "meaningless. Remove them: .venv/bin/python prepare_data.py --exclude_prompts"
            )
        if repeated and verbose:
            print(f"{repeated} of {len(test_pairs)} test pairs are also training pairs.")
    return train_pairs, test_pairs


def count_repeated(train_pairs: Dataset, test_pairs: Dataset) -> int:
    """Return the number of test pairs that are also training pairs, reading the training pairs in chunks."""
    tests: Counter[tuple[str, str]] = Counter(zip(test_pairs["chosen"][:], test_pairs["rejected"][:], strict=True))
    seen: set[tuple[str, str]] = set()
    for batch in train_pairs.select_columns(["chosen", "rejected"]).iter(1000):
        seen.update(pair for pair in zip(batch["chosen"], batch["rejected"], strict=True) if pair in tests)
    return sum(tests[pair] for pair in seen)


def sample_pairs(pairs: Dataset) -> list[dict[str, Any]]:
    """Return evenly spaced pairs, with conversations and tools parsed from JSON, and each pair's location."""
    rows = pairs.select(np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLE_SIZE), dtype=int)).to_list()
    return [
        {name: json.loads(row[name] or "null") for name in ("chosen", "rejected", "tools")} | {"place": row["place"]}
        for row in rows
    ]


def tokenize_all(
    train_pairs: Dataset,
    eval_pairs: Dataset | None,
    benchmarks: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    args: TrainingArguments,
) -> tuple[Dataset, dict[str, Dataset]]:
    """Tokenize the training pairs and the evaluation sets (by name), and set an unused pad token in `tokenizer`.

    Training and held-out pairs longer than --max_length are dropped. Without test pairs, training pairs are held
    out according to --eval_size.
    """
    with args.main_process_first(desc="tokens"):
        limits = args.max_length, args.dataset_num_proc
        train_dataset = tokenize_pairs(train_pairs, tokenizer, *limits, "training")
        if eval_pairs is None:
            train_dataset, held_out = split_by_prompt(train_dataset, data_args.eval_size, args.seed)
        else:
            held_out = tokenize_pairs(eval_pairs, tokenizer, *limits, "held-out")
        eval_datasets = {"held_out": held_out} if len(held_out) else {}
        for name, pairs in benchmarks.items():
            eval_datasets[name] = tokenize_pairs(pairs, tokenizer, None, args.dataset_num_proc, name)
    set_unused_pad_token(tokenizer, [train_dataset, *eval_datasets.values()])
    return train_dataset, eval_datasets


def check_tokens(tokenized: dict[str, Dataset], model: PreTrainedModel, verbose: bool) -> None:
    """Raise InputError for pairs that the model cannot process or distinguish.

    Args:
        tokenized: Datasets from `tokenize_pairs`, by name.
        model: The model, or its skeleton on the meta device.
        verbose: Print how many pairs have identical token ids on both sides.
    """
    config = model.config.get_text_config()
    limit, vocabulary = getattr(config, "max_position_embeddings", None), config.vocab_size
    for name, pairs in tokenized.items():
        if limit and (longest := max(pairs["length"][:], default=0)) > limit:
            fix = f"Pass --max_length {limit}." if name in ("training", "held_out") else "Remove it from the file."
            raise InputError(f"The longest {name} pair has {longest} tokens; the model takes at most {limit}. {fix}")
        if (largest := max((ids.max(initial=0) for ids in stored_ids(pairs)), default=0)) >= vocabulary:
            raise InputError(
                f"The tokenizer produced token id {largest}, but the model's vocabulary has only {vocabulary} tokens. "
                "Use the tokenizer that belongs to the model."
            )
        near = np.flatnonzero(np.array(pairs["prefix_length"][:]) == np.array(pairs["length"][:]) - 1)
        equal = sum(row["chosen_ids"] == row["rejected_ids"] for row in pairs.select(near))
        if equal == len(pairs) > 0:
            raise InputError(f"All {equal} {name} pairs have identical token ids on both sides. Check the template.")
        if equal and verbose:
            print(
                f"{name}: {equal} of {len(pairs)} pairs have identical token ids on both sides; the loss ignores them."
            )
