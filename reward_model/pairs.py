"""Preference pairs: reading them from files or a hub, checking each one, and splitting them by prompt.

The one record, here and everywhere: {"chosen": [message, …], "rejected": [message, …]} with optional "margin" (float),
"source", "subset", "id" (strings) and "tools"; a message is {"role": …, "content": "text"}.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from reward_model import InputError

SUFFIXES = (".json", ".jsonl", ".parquet")
TEST_NAMES = ("test", "eval", "valid", "dev")
ROLES = ("system", "developer", "user", "assistant", "tool")
LABELS = ("source", "subset", "id")

# Conversations are kept as JSON text: rows whose messages carry different keys (tool_calls, name) fit one Arrow column.
FEATURES = Features(
    {name: Value("string") for name in ("chosen", "rejected", "tools", "prompt", "place", *LABELS)}
    | {"margin": Value("float64")}
)


def load_pairs(name: str, train_split: str = "train", test_split: str = "test") -> tuple[Dataset, Dataset | None]:
    """Checked pairs of a file, a folder or a hub id, as (training pairs, test pairs or None if there is no test split).

    In a folder, files whose names begin with test, eval, valid or dev are the test split. Columns: `chosen`, `rejected`
    and `tools` as JSON text, `margin`, `source`, `subset`, `id`, `prompt` (a hash of what the two sides share) and
    `place`. Raises InputError at the first row that is not a pair. Cached by `datasets` until a file changes.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        tests = [file for file in files if file.name.lower().startswith(TEST_NAMES)]
        trains = [file for file in files if file not in tests]
        if not trains:
            raise InputError(f"{name}: no training file in this folder; put {', '.join(SUFFIXES)} files there.")
        return _cached_pairs(trains), _cached_pairs(tests) if tests else None
    if path.suffix in SUFFIXES or path.exists():
        if path.suffix not in SUFFIXES or not path.is_file():
            found = f"{path.suffix or 'this kind of'} file" if path.exists() else "no such file"
            raise InputError(f"{name}: {found}; give a {', '.join(SUFFIXES)} file, a folder of them, or a hub id.")
        return _cached_pairs([path]), None
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
    prompts = np.array(pairs["prompt"][:])
    unique, counts = np.unique(prompts, return_counts=True)
    if len(unique) < 2:
        raise InputError(f"All {len(pairs)} pairs share one prompt, so none can be held out; add a test file.")
    wanted = eval_size * len(pairs) if eval_size < 1 else eval_size
    order = np.random.default_rng(seed).permutation(len(unique))
    taken = int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1
    held_out = np.isin(prompts, unique[order[: min(taken, len(unique) - 1)]])
    return pairs.select(np.flatnonzero(~held_out)), pairs.select(np.flatnonzero(held_out))


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) for every row of a .json, .jsonl or .parquet file; a place is file:line, or file:row from 1."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows = (row for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024) for row in batch.to_pylist())
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
        return
    with open(path, encoding="utf-8") as file:
        first = file.read(1)
        file.seek(0)
        if path.suffix == ".json" and first == "[":
            rows = _parse(file.read(), path, 1)
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parse(line, path, number)


def check_pair(row: Any, place: str) -> dict[str, Any]:
    """The pair in a row, or an InputError that names the place, what is wrong and how to mend it."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: an object with chosen and rejected is needed, found {type(row).__name__}.")
    for side in ("chosen", "rejected"):
        if row.get(side) is None:
            raise InputError(f"{place}: no {side!r} (keys: {', '.join(row)}); a pair needs chosen and rejected.")
    chosen, rejected = (check_conversation(row[side], f"{place}: {side}") for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise InputError(f"{place}: chosen and rejected are equal; such a pair teaches nothing, remove it.")
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or math.isnan(margin)):
        raise InputError(f"{place}: margin is {margin!r}; it must be a number, or left out.")
    same = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in same] or chosen[:1]
    return {
        "chosen": json.dumps(chosen, ensure_ascii=False),
        "rejected": json.dumps(rejected, ensure_ascii=False),
        "tools": json.dumps(row["tools"]) if row.get("tools") else None,
        "prompt": hashlib.md5(json.dumps(shared).encode()).hexdigest(),
        "place": place,
        "margin": margin,
        **{label: None if row.get(label) is None else str(row[label]) for label in LABELS},
    }


def check_conversation(messages: Any, place: str) -> list[dict[str, Any]]:
    """The messages of a conversation without empty keys, or an InputError that names the place."""
    if not isinstance(messages, list) or not messages:
        found = "empty" if isinstance(messages, list) else f"a {type(messages).__name__}"
        raise InputError(f'{place} is {found}; it must be a list of messages {{"role": …, "content": …}}.')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise InputError(f'{place}, message {number} is not {{"role": …, "content": …}}: {str(message)[:60]!r}.')
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise InputError(f"{place}, message {number} has the role {role!r}; known are {', '.join(ROLES)}.")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(f"{place}, message {number} has a content that is no text: {str(content)[:60]!r}.")
    if messages[-1]["role"] != "assistant":
        raise InputError(
            f"{place} ends with a {messages[-1]['role']!r} message; the reward is that of an answer, so the last "
            "message must be the assistant's."
        )
    if not (messages[-1].get("content") or "").strip() and not messages[-1].get("tool_calls"):
        raise InputError(f"{place} ends with an empty answer; remove the pair or fill it in.")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not valid JSON ({error.msg}, {error.colno=}).") from None


def _cached_pairs(files: list[Path]) -> Dataset:
    # The cache of `datasets` goes by these arguments; this file stands among them since its checks may change, too.
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in (*files, Path(__file__))]
    return _generate(_pairs_of_files, {"files": files, "stamps": str(stamps)}, ", ".join(map(str, files)))


def _checked(name: str, rows: Dataset) -> Dataset:
    return _generate(_pairs_of_hub, {"name": name, "rows": rows}, name)


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


def _pairs_of_files(files: list[Path], stamps: str) -> Iterator[dict[str, Any]]:
    for file in files:
        for place, row in read_rows(file):
            yield check_pair(row, place)


def _pairs_of_hub(name: str, rows: Dataset) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        yield check_pair(row, f"{name}: row {number}")
