"""Checked preference pairs as a data set, for training and evaluation, from any layout that formats.py knows."""

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
from reward_model.data.arrow import dataset_rows
from reward_model.data.convert import read_strictly
from reward_model.data.pair import LABELS, SIDES, prompt_key, shared_messages
from reward_model.data.readers import check_hub, read_rows, train_and_test_files
from reward_model.data.split import held_out

# Conversations are kept as JSON text: rows whose messages carry different keys (tool_calls, name) fit one Arrow column.
FEATURES = Features(
    {name: Value("string") for name in ("chosen", "rejected", "tools", "prompt", "place", *LABELS)}
    | {"margin": Value("float64")}
)


def load_pairs(name: str, train_split: str = "train", test_split: str = "test") -> tuple[Dataset, Dataset | None]:
    """Checked pairs of a file, a folder or a hub id, as (training pairs, test pairs or None if there is no test split).

    In a folder, files whose names begin with test, eval, valid or dev, or contain ".eval.", are the test split.
    Columns: `chosen`, `rejected` and `tools` as JSON text, `margin`, `source`, `subset`, `id`, `prompt` (its key) and
    `place`. Raises InputError at the first row that is not a pair, and where there is none; ties are left out and
    counted. Cached by `datasets` until a file changes.
    """
    train_files, test_files = train_and_test_files(name)
    if train_files:
        return _pairs(name, train_files), _pairs(name, test_files) if test_files else None
    if test_files:
        raise InputError(
            f"{name}: no training file in this folder, only {', '.join(file.name for file in test_files)}."
        )
    check_hub(name, "dataset")
    try:
        splits = load_dataset(name)
    except Exception as error:  # whatever the hub client raises: its own words say it best
        raise InputError(f"{name}: neither a file or folder here nor a data set the hub gave: {error}") from error
    if train_split not in splits:
        raise InputError(f"{name}: no split {train_split!r}, only {', '.join(splits)}; name it: --dataset_train_split.")
    test = splits.get(test_split)
    return _pairs(name, splits[train_split]), None if test is None else _pairs(name, test)


def split_by_prompt(pairs: Dataset, eval_size: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training pairs, held-out pairs), by the rules of `held_out`."""
    in_eval = held_out(np.array(pairs["prompt"][:]), eval_size, seed)
    return pairs.select(np.flatnonzero(~in_eval)), pairs.select(np.flatnonzero(in_eval))


def by_subset(files: list[str]) -> dict[str, Dataset]:
    """Pairs of each subset (or source) of labelled files, under the name file_subset."""
    found = {}
    for file in files:
        pairs, test_pairs = load_pairs(file)
        pairs = pairs if test_pairs is None else test_pairs
        labels = np.array(
            [subset or source or "all" for subset, source in zip(pairs["subset"][:], pairs["source"][:], strict=True)]
        )
        for label in dict.fromkeys(labels.tolist()):
            name = re.sub(r"[^\w-]+", "_", f"{Path(file).name.split('.')[0]}_{label}")
            found[name] = pairs.select(np.flatnonzero(labels == label))
    return found


@cache
def code_stamp() -> str:
    """A hash of this package's source: whatever is cached by `datasets` is made anew when the code has changed."""
    package = Path(__file__).parents[1]
    return hashlib.md5(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))).hexdigest()


def _pairs(name: str, found: list[Path] | Dataset) -> Dataset:
    """Checked pairs of files or of a split from the hub."""
    # The cache of `datasets` goes by these arguments; the code stands among them since its checks may change, too.
    stats = [file.stat() for file in found] if isinstance(found, list) else []
    stamp = f"{[(stat.st_size, stat.st_mtime_ns) for stat in stats]} {code_stamp()}"
    try:
        pairs = Dataset.from_generator(
            _columns, features=FEATURES, gen_kwargs={"name": name, "found": found, "stamp": stamp}
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    missing = sum(margin is None for margin in pairs["margin"][:])
    if 0 < missing < len(pairs):
        raise InputError(f"{name}: {missing} of {len(pairs)} pairs have no margin; give all of them one, or none.")
    return pairs


def _columns(name: str, found: list[Path] | Dataset, stamp: str) -> Iterator[dict[str, Any]]:
    is_files = isinstance(found, list)
    sources = {str(file): read_rows(file) for file in found} if is_files else {name: enumerate(dataset_rows(found), 1)}
    none_yet = True
    for source, rows in sources.items():
        for reading in read_strictly(rows, source):
            for pair in reading.pairs:
                assert isinstance(pair, dict)  # read_strictly has raised what was not
                none_yet = False
                yield {
                    **{side: json.dumps(pair[side], ensure_ascii=False) for side in SIDES},
                    "tools": json.dumps(pair["tools"]) if "tools" in pair else None,
                    "prompt": f"{prompt_key(shared_messages(pair)):016x}",
                    "place": reading.place,
                    "margin": pair.get("margin"),
                    **{label: pair.get(label) for label in LABELS},
                }
    if none_yet:
        raise InputError(f"{name}: no pair in there, only ties; a pair needs an answer that is better.")
