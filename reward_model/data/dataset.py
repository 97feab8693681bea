"""Load validated preference pairs as a `datasets.Dataset` for training and evaluation, and split them by prompt."""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from reward_model import InputError
from reward_model.data.convert import convert_rows_strictly
from reward_model.data.pair import LABELS, SIDES, prompt_key, shared_messages
from reward_model.data.readers import check_hub, read_rows, train_and_test_files
from reward_model.data.tables import dataset_rows

# Conversations are JSON text: an Arrow column cannot hold messages with different keys (tool_calls, name).
FEATURES = Features(
    {name: Value("string") for name in ("chosen", "rejected", "tools", "prompt", "place", *LABELS)}
    | {"margin": Value("float64")}
)


def load_pairs(name: str, train_split: str = "train", test_split: str = "test") -> tuple[Dataset, Dataset | None]:
    """Return a dataset's validated training and test pairs; the test pairs are None if there is no test split.

    The datasets have the columns `chosen`, `rejected` and `tools` as JSON text, `margin`, `source`, `subset`, `id`,
    `prompt` (a hash) and `place`. Ties are skipped and counted. `datasets` caches the result until a file changes.

    Args:
        name: A file, a directory (whose test files are the test split, see `train_and_test_files`) or a Hub id.
        train_split: The split of a Hub dataset to train on.
        test_split: The split of a Hub dataset to evaluate on, if it exists.

    Raises:
        InputError: At the first bad row, or if a dataset contains only ties.
    """
    train_files, test_files = train_and_test_files(name)
    if train_files:
        return _validated_dataset(name, train_files), _validated_dataset(name, test_files) if test_files else None
    if test_files:
        found = ", ".join(file.name for file in test_files)
        raise InputError(f"{name}: no training files in this directory, only {found}. Add or rename one.")
    check_hub(name, "dataset")
    try:
        splits = load_dataset(name)
    except Exception as error:  # the Hub client raises errors of many types, with clear messages
        raise InputError(f"{name}: cannot load the dataset from the Hub: {error}") from error
    if train_split not in splits:
        raise InputError(f"{name}: no split {train_split!r}, only {', '.join(splits)}. Pass --dataset_train_split.")
    test = splits.get(test_split)
    return _validated_dataset(name, splits[train_split]), None if test is None else _validated_dataset(name, test)


def load_subsets(files: list[str]) -> dict[str, Dataset]:
    """Load labeled files and group their pairs by subset (or source); each key is the file name and the subset."""
    datasets = {}
    for file in files:
        pairs, test_pairs = load_pairs(file)
        pairs = pairs if test_pairs is None else test_pairs
        columns = pairs["subset"][:], pairs["source"][:]
        labels = np.array([subset or source or "all" for subset, source in zip(*columns, strict=True)])
        for label in dict.fromkeys(labels.tolist()):
            name = re.sub(r"[^\w-]+", "_", f"{Path(file).name.split('.')[0]}_{label}")
            datasets[name] = pairs.select(np.flatnonzero(labels == label))
    return datasets


def split_by_prompt(pairs: Dataset, eval_size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split pairs into training and held-out pairs, as chosen by `held_out`."""
    in_eval = held_out(np.array(pairs["prompt"][:]), eval_size, seed)
    return pairs.select(np.flatnonzero(~in_eval)), pairs.select(np.flatnonzero(in_eval))


def held_out(prompts: np.ndarray, eval_size: float, seed: int) -> np.ndarray:
    """Choose which pairs to hold out, so that no prompt is in both splits.

    Prompts are drawn at random, each with all of its pairs, until enough pairs are held out. At least half of the pairs
    are kept for training, so a prompt with too many pairs is skipped.

    Args:
        prompts: The key of each pair's prompt.
        eval_size: A fraction below 1 or a number of pairs; 0 holds out nothing.
        seed: The seed for the random order.

    Returns:
        A boolean array of shape (pairs,): True for held-out pairs.

    Raises:
        InputError: If the size is invalid or above half of the pairs, or if one prompt has more than half of them.
    """
    check_eval_size(eval_size)
    half = len(prompts) // 2
    wanted = eval_size * len(prompts) if eval_size < 1 else eval_size
    if wanted > half:
        raise InputError(f"--eval_size {eval_size:g} is more than half of {len(prompts)} pairs. Pass at most {half}.")
    unique, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    taken, pairs = [], 0
    for prompt in np.random.default_rng(seed).permutation(len(unique)).tolist():
        if pairs >= wanted:
            break
        if pairs + counts[prompt] <= half:
            taken.append(prompt)
            pairs += int(counts[prompt])
    if wanted and not taken:
        raise InputError(f"--eval_size {eval_size:g}: one prompt has most of the pairs. Add a test file instead.")
    return np.isin(inverse, taken)


def check_eval_size(eval_size: float) -> None:
    """Raise InputError if the size is not a fraction, a whole number of pairs, or 0. The dataset is not needed."""
    if not eval_size >= 0 or (eval_size > 1 and eval_size % 1):
        raise InputError(f"--eval_size {eval_size:g}: pass a fraction below 1, a number of pairs, or 0.")


@cache
def code_stamp() -> str:
    """Return a hash of this package's source code, so that cached datasets are rebuilt when the code changes."""
    package = Path(__file__).parents[1]
    return hashlib.md5(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))).hexdigest()


def _validated_dataset(name: str, data: list[Path] | Dataset) -> Dataset:
    """Build a dataset of the validated pairs in files or in a split of a Hub dataset, or load it from the cache."""
    stats = [file.stat() for file in data] if isinstance(data, list) else []
    stamp = f"{[(stat.st_size, stat.st_mtime_ns) for stat in stats]} {code_stamp()}"  # part of the cache key
    arguments = {"name": name, "data": data, "stamp": stamp}
    try:
        pairs = Dataset.from_generator(_dataset_columns, features=FEATURES, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise
    missing = sum(margin is None for margin in pairs["margin"][:])
    if 0 < missing < len(pairs):
        raise InputError(
            f"{name}: {missing} of {len(pairs)} pairs have no margin. Add margins to all pairs or to none."
        )
    return pairs


def _dataset_columns(name: str, data: list[Path] | Dataset, stamp: str) -> Iterator[dict[str, Any]]:
    if isinstance(data, list):
        sources = {str(file): read_rows(file) for file in data}
    else:
        sources = {name: enumerate(dataset_rows(data), 1)}
    is_empty = True
    for source, rows in sources.items():
        for converted in convert_rows_strictly(rows, source):
            for pair in converted.pairs:
                assert isinstance(pair, dict)  # convert_rows_strictly raises for anything else
                is_empty = False
                yield {
                    **{side: json.dumps(pair[side], ensure_ascii=False) for side in SIDES},
                    "tools": json.dumps(pair["tools"]) if "tools" in pair else None,
                    "prompt": f"{prompt_key(shared_messages(pair)):016x}",
                    "place": converted.place,
                    "margin": pair.get("margin"),
                    **{label: pair.get(label) for label in LABELS},
                }
    if is_empty:
        raise InputError(f"{name}: no pairs, only ties. In a pair, one answer must be better than the other.")
