"""Load prompts with labeled answers, and combine them with their scores.

An item is a prompt with better and worse answers: one of each for a pair, several in some public benchmarks.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from reward_model import InputError, RowError
from reward_model.data.convert import ConvertedRow, convert_rows
from reward_model.data.formats import Options
from reward_model.data.pair import Messages, Pair, message_text, prompt_key, shared_messages
from reward_model.data.readers import NumberedRow, data_files, hub_rows, place_of, read_rows, train_and_test_files
from reward_model.evaluation.layouts import find_layout
from reward_model.evaluation.metrics import item_accuracy

RM_BENCH_DOMAINS = ("chat", "math", "code", "safety")
GENERIC_NAMES = ("dataset", "data", "test", "train", "eval")  # uninformative file names, replaced by the directory's
EXCERPT = 200  # characters of each message kept in scores.jsonl


@dataclass(frozen=True)
class Item:
    """A prompt with better (`chosen`) and worse (`rejected`) answers, as complete conversations.

    `comparisons` holds index pairs (chosen, rejected) if the benchmark does not compare every chosen answer with every
    rejected one.
    """

    place: str
    subset: str
    protocol: str
    chosen: list[Messages]
    rejected: list[Messages]
    tools: Any = None
    id: str | None = None
    domain: str = ""  # RM-Bench only
    comparisons: list[tuple[int, int]] = field(default_factory=list)

    @property
    def conversations(self) -> list[Messages]:
        """All conversations, chosen first; scores are in the same order."""
        return [*self.chosen, *self.rejected]

    @property
    def compared(self) -> list[tuple[int, int]]:
        """The index pairs (chosen, rejected) that are compared: `comparisons` or, if empty, all combinations."""
        return self.comparisons or list(product(range(len(self.chosen)), range(len(self.rejected))))

    @property
    def pairs(self) -> list[Pair]:
        """The compared pairs of conversations, in the order of `compared`."""
        return [{"chosen": self.chosen[row], "rejected": self.rejected[column]} for row, column in self.compared]

    @property
    def prompt(self) -> Messages:
        """The messages that chosen and rejected share, without the answers, even if the answers are identical."""
        return shared_messages({"chosen": self.chosen[0], "rejected": self.rejected[0]})[: len(self.chosen[0]) - 1]

    @property
    def key(self) -> str:
        """A hash of the conversations and tools, the same for identical items from different files."""
        return xxh3_64_hexdigest(json.dumps([self.conversations, self.tools], sort_keys=True).encode())


def load_items(
    sources: Iterable[str], protocol: str = "auto", skipped: list[str] | None = None, all_files: bool = False
) -> list[Item]:
    """Return the items from files, directories (their test files, if any) and Hub ids, in order.

    Args:
        sources: Files, directories or Hub ids.
        protocol: How to judge items (see `item_accuracy`); "auto" chooses by the subset and the number of answers.
        skipped: If given, bad rows are skipped, and a message for each is appended to this list.
        all_files: Read every file in a directory: PPE Correctness, for example, is published as training files.

    Raises:
        InputError: A row is bad and `skipped` is not given, or no row contains a valid pair.
    """
    rows_of: dict[str, Iterable[NumberedRow]] = {}
    for source in sources:
        train_files, test_files = train_and_test_files(source)
        files = data_files(source) if all_files else test_files or train_files
        rows_of |= {str(file): read_rows(file) for file in files} or {source: hub_rows(source)}
    stems = Counter(map(_stem, rows_of))
    items: list[Item] = []
    for source, rows in rows_of.items():
        label = stem = _stem(source)
        if stem.lower() in GENERIC_NAMES or stems[stem] > 1:  # LLMBar has six files named dataset.json
            label = Path(source).resolve().parent.name
        for found in _source_items(list(rows), source, stem, label, protocol):
            if isinstance(found, Item):
                items.append(found)
            elif skipped is None:
                raise InputError(f"{found} (To skip bad rows, run evaluate.py with --skip_bad.)")
            else:
                skipped.append(found)
    if not items:
        raise InputError(f"{', '.join(rows_of)}: no labeled pairs found.")
    return items


def _source_items(rows: list[NumberedRow], source: str, stem: str, label: str, protocol: str) -> Iterator[Item | str]:
    """Yield the items from a source, and an error message for each bad row. Skip ties."""
    if rows and find_layout(rows[0][1]):
        for number, row in rows:
            try:
                yield _layout_item(row, source, place_of(source, number))
            except RowError as error:
                if error.reason != "tie":
                    yield f"{place_of(source, number)}: {error}"
        return
    for converted in convert_rows(rows, source, Options(pairing="all")):
        errors = [pair for pair in converted.pairs if isinstance(pair, RowError)]
        yield from (f"{converted.place}: {error}" for error in errors if error.reason != "tie")
        if not errors:
            yield from _row_items(converted, stem, label, protocol)


def _layout_item(row: Any, source: str, place: str) -> Item:
    """Return the item for a PPE or RMB row; raise RowError if the row has a different layout."""
    if isinstance(row, RowError):
        raise row
    read = find_layout(row)
    if read is None:
        raise RowError("another layout", "not a PPE or RMB row, although the file starts with one.")
    try:
        found = read(row, source)
        chosen, rejected = (found.conversations(answers) for answers in (found.chosen, found.rejected))
    except RowError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RowError("another layout", f"a field is missing or has the wrong type ({error!r}).") from error
    return Item(place, found.subset, found.protocol, chosen, rejected, comparisons=found.comparisons)


def _stem(source: str) -> str:
    """Return a file's name without its suffixes or shard number: "test" for test-00000-of-00001.parquet."""
    return re.sub(r"-\d+-of-\d+$", "", Path(source).name.split(".")[0])


def _row_items(converted: ConvertedRow, stem: str, label: str, protocol: str) -> Iterator[Item]:
    """Yield the items from a row: a single one if the row has lists of answers, otherwise one for each pair."""
    pairs = [pair for pair in converted.pairs if isinstance(pair, dict)]
    is_lists = converted.format == "lists"
    width = len(converted.row["rejected"]) if is_lists else 1
    for group in [pairs] if is_lists else [[pair] for pair in pairs]:
        first = group[0]
        chosen, rejected = [pair["chosen"] for pair in group[::width]], [pair["rejected"] for pair in group[:width]]
        subset = first.get("subset") or first.get("source") or label
        found = item_protocol(subset, len(chosen), len(rejected)) if protocol == "auto" else protocol
        if protocol not in ("auto", "pairs") and len(chosen) + len(rejected) == 2:
            raise InputError(f"{converted.place}: this is a pair, but --protocol {found} is for lists. Omit it.")
        if found == "rm-bench" and (len(chosen), len(rejected)) != (3, 3):
            sizes = f"{len(chosen)} chosen and {len(rejected)} rejected answers"
            raise InputError(f"{converted.place}: {sizes}, but RM-Bench has 3 of each. Pass a different --protocol.")
        # In files that cover a single domain, such as chat_filtered.json, rows do not name it.
        domain = converted.row.get("domain") or (stem if stem.startswith(RM_BENCH_DOMAINS) else subset)
        tools, id_ = first.get("tools"), first.get("id")
        yield Item(converted.place, subset, found, chosen, rejected, tools, id_, str(domain))


def item_protocol(subset: str, chosen: int, rejected: int) -> str:
    """Return the protocol for an item, given its subset and its numbers of chosen and rejected answers."""
    if subset.lower() == "ties":
        return "ties"
    if (chosen, rejected) == (3, 3):
        return "rm-bench"
    if chosen > 1:
        return "ties"
    return "pairs" if rejected == 1 else "best"


class ScoredItems:
    """Items together with the scores of their conversations.

    Args:
        items: The items.
        scores: For each item, the scores of `item.conversations`.

    Attributes:
        split: For each item, the scores of its chosen answers and those of its rejected answers.
        margins: For each item, an array of shape (pairs,), in the order of `item.compared`.
        right: For each item, its accuracy under its protocol. A tied pair counts as 0.5 here and as 0 in `strict`.
    """

    def __init__(self, items: list[Item], scores: list[list[float]]) -> None:
        self.items, self.scores = items, scores
        for item, values in zip(items, scores, strict=True):
            for messages, value in zip(item.conversations, values, strict=True):
                if not math.isfinite(value):
                    text = message_text(messages[-1])[:80]
                    found = f"the score of the conversation that ends with {text!r} is {value}"
                    raise InputError(f"{item.place}: {found}. Check the model's weights and dtype.")
        cuts = [len(item.chosen) for item in items]
        self.split = [(values[:cut], values[cut:]) for values, cut in zip(scores, cuts, strict=True)]
        self.margins = [
            np.array([chosen[row] - rejected[column] for row, column in item.compared])
            for item, (chosen, rejected) in zip(items, self.split, strict=True)
        ]
        self.protocols = np.array([item.protocol for item in items])
        judged = list(zip(self.protocols, self.split, self.margins, strict=True))
        self.right = np.array([item_accuracy(protocol, *sides, margins) for protocol, sides, margins in judged])
        self.strict = np.array(
            [item_accuracy(protocol, *sides, margins, tie=0.0) for protocol, sides, margins in judged]
        )
        self.subsets = np.array([item.subset for item in items])
        self.prompts = np.array([prompt_key(item.prompt) for item in items], dtype=np.uint64)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield an object for each item, as written to scores.jsonl, with excerpts from the messages."""
        for item, (chosen, rejected), right, key in zip(self.items, self.split, self.right, self.prompts, strict=True):
            yield {
                "key": item.key,
                "prompt_key": int(key),
                "place": item.place,
                "subset": item.subset,
                "protocol": item.protocol,
                "right": float(right),
                "chosen_scores": chosen,
                "rejected_scores": rejected,
                "prompt": message_text(item.prompt[-1])[:EXCERPT],
                "chosen": [message_text(messages[-1])[:EXCERPT] for messages in item.chosen],
                "rejected": [message_text(messages[-1])[:EXCERPT] for messages in item.rejected],
            }
