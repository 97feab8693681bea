"""Checked preference pairs as a data set, for training and evaluation, from any layout that formats.py knows."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from reward_model import InputError, RowError
from reward_model.data.files import place, read_rows, train_and_test_files
from reward_model.data.formats import Options, convert, recognise
from reward_model.data.pair import LABELS, SIDES, check_pair, shared_messages
from reward_model.data.split import held_out

CURE = "(prepare_data.py sets such rows aside and keeps the rest.)"

# Conversations are kept as JSON text: rows whose messages carry different keys (tool_calls, name) fit one Arrow column.
FEATURES = Features(
    {name: Value("string") for name in ("chosen", "rejected", "tools", "prompt", "place", *LABELS)}
    | {"margin": Value("float64")}
)


def load_pairs(name: str, train_split: str = "train", test_split: str = "test") -> tuple[Dataset, Dataset | None]:
    """Checked pairs of a file, a folder or a hub id, as (training pairs, test pairs or None if there is no test split).

    In a folder, files whose names begin with test, eval, valid or dev, or contain ".eval.", are the test split.
    Columns: `chosen`, `rejected` and `tools` as JSON text, `margin`, `source`, `subset`, `id`, `prompt` (a hash of what
    the two sides share) and `place`. Raises InputError at the first row that is not a pair; ties are left out and
    counted. Cached by `datasets` until a file changes.
    """
    train_files, test_files = train_and_test_files(name)
    if train_files:
        return _cached_pairs(train_files), _cached_pairs(test_files) if test_files else None
    if test_files:
        raise InputError(
            f"{name}: no training file in this folder, only {', '.join(file.name for file in test_files)}."
        )
    try:
        splits = load_dataset(name)
    except Exception as error:  # whatever the hub client raises: its own words say it best
        raise InputError(f"{name}: neither a file or folder here nor a data set the hub gave: {error}") from error
    if train_split not in splits:
        raise InputError(f"{name}: no split {train_split!r}, only {', '.join(splits)}; name it: --dataset_train_split.")
    test = splits.get(test_split)
    return _checked(name, splits[train_split]), None if test is None else _checked(name, test)


def split_by_prompt(pairs: Dataset, eval_size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off about `eval_size` of the pairs (a share below 1, or a number) so that no prompt is on both sides."""
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


def _cached_pairs(files: list[Path]) -> Dataset:
    # The cache of `datasets` goes by these arguments; the code stands among them since its checks may change, too.
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = f"{stamps} {code_stamp()}"
    return _generate(_pairs_of_files, {"files": files, "stamp": stamp}, ", ".join(map(str, files)))


def _checked(name: str, rows: Dataset) -> Dataset:
    return _generate(_pairs_of_hub, {"name": name, "rows": rows, "stamp": code_stamp()}, name)


def _generate(generator: Any, gen_kwargs: dict[str, Any], name: str) -> Dataset:
    try:
        pairs = Dataset.from_generator(generator, features=FEATURES, gen_kwargs=gen_kwargs)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    missing = sum(margin is None for margin in pairs["margin"][:])
    if 0 < missing < len(pairs):
        raise InputError(f"{name}: {missing} of {len(pairs)} pairs have no margin; give all of them one, or none.")
    return pairs


def _pairs_of_files(files: list[Path], stamp: str) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from _pairs(read_rows(file), str(file))


def _pairs_of_hub(name: str, rows: Dataset, stamp: str) -> Iterator[dict[str, Any]]:
    yield from _pairs(enumerate(rows, 1), name)


def _pairs(rows: Iterable[tuple[int, Any]], source: str) -> Iterator[dict[str, Any]]:
    rows, ties = iter(rows), 0
    first = list(islice(rows, 100))
    format_ = None
    for number, row in chain(first, rows):
        try:
            if isinstance(row, RowError):
                raise row
            format_ = format_ or recognise((row for _, row in first), source)
            for pair in convert(row, format_, Options()):
                yield _columns(check_pair(pair), place(source, number))
        except RowError as error:
            if error.reason != "tie":
                raise InputError(f"{place(source, number)}: {error} {CURE}") from None
            ties += 1
    if ties:
        print(f"{source}: {ties} ties left out.")


def _columns(pair: dict[str, Any], place: str) -> dict[str, Any]:
    return {
        **{side: json.dumps(pair[side], ensure_ascii=False) for side in SIDES},
        "tools": json.dumps(pair["tools"]) if "tools" in pair else None,
        "prompt": hashlib.md5(json.dumps(shared_messages(pair)).encode()).hexdigest(),
        "place": place,
        "margin": pair.get("margin"),
        **{label: pair.get(label) for label in LABELS},
    }
