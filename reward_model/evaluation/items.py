"""Load labeled answers to prompts from files, and keep them with their scores.

An item is a prompt with better and worse answers: one of each in a pair, several in some public benchmarks.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from reward_model import InputError, RowError
from reward_model.data.convert import ConvertedRow, convert_rows
from reward_model.data.formats import Options
from reward_model.data.pair import Messages, Pair, message_text, prompt_key, shared_messages
from reward_model.data.readers import hub_rows, read_rows, train_and_test_files
from reward_model.evaluation.metrics import item_accuracy

RM_BENCH_DOMAINS = ("chat", "math", "code", "safety")
GENERIC_NAMES = ("dataset", "data", "test", "train", "eval")  # of files; the directory has the better name
EXCERPT = 200  # characters of a message in scores.jsonl


@dataclass(frozen=True)
class Item:
    """A prompt with better (`chosen`) and worse (`rejected`) answers, as complete conversations."""

    place: str
    subset: str
    protocol: str
    chosen: list[Messages]
    rejected: list[Messages]
    tools: Any = None
    id: str | None = None
    domain: str = ""  # RM-Bench

    @property
    def conversations(self) -> list[Messages]:
        """All conversations, chosen first; scores have the same order."""
        return [*self.chosen, *self.rejected]

    @property
    def pairs(self) -> list[Pair]:
        """Every chosen answer with every rejected answer."""
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in product(self.chosen, self.rejected)]

    @property
    def prompt(self) -> Messages:
        """The messages that the answers share."""
        return shared_messages({"chosen": self.chosen[0], "rejected": self.rejected[0]})

    @property
    def key(self) -> str:
        """A hash that is equal for equal items of any file."""
        return xxh3_64_hexdigest(json.dumps([self.conversations, self.tools], sort_keys=True).encode())


def load_items(sources: Iterable[str], protocol: str = "auto", skipped: list[str] | None = None) -> list[Item]:
    """Return the items of files, directories (their test files, if any) and Hub ids, in order.

    Args:
        sources: The sources.
        protocol: How items are judged, see `item_accuracy`; "auto" decides by the subset and the number of answers.
        skipped: If given, bad rows are skipped and described in this list.

    Raises:
        InputError: At the first bad row, unless `skipped` is given, or if no row has a valid pair.
    """
    rows_of: dict[str, Iterable[tuple[int, Any]]] = {}
    for source in sources:
        train_files, test_files = train_and_test_files(source)
        rows_of |= {str(file): read_rows(file) for file in test_files or train_files} or {source: hub_rows(source)}
    stems = Counter(map(_stem, rows_of))
    items: list[Item] = []
    for source, rows in rows_of.items():
        label = stem = _stem(source)
        if stem.lower() in GENERIC_NAMES or stems[stem] > 1:  # LLMBar has six files dataset.json
            label = Path(source).resolve().parent.name
        for converted in convert_rows(list(rows), source, Options(pairing="all")):
            errors = [pair for pair in converted.pairs if isinstance(pair, RowError)]
            for error in (error for error in errors if error.reason != "tie"):
                if skipped is None:
                    raise InputError(f"{converted.place}: {error} (Skip bad rows with evaluate.py --skip_bad.)")
                skipped.append(f"{converted.place}: {error}")
            if not errors:
                items += _row_items(converted, stem, label, protocol)
    if not items:
        raise InputError(f"{', '.join(rows_of)}: no labeled pairs.")
    return items


def _stem(source: str) -> str:
    """Return the name of a file without suffixes and the number of its part ("test-00000-of-00001.parquet")."""
    return re.sub(r"-\d+-of-\d+$", "", Path(source).name.split(".")[0])


def _row_items(converted: ConvertedRow, stem: str, label: str, protocol: str) -> Iterator[Item]:
    """Yield the items of a row: one if there are several answers on both sides, otherwise one for each pair."""
    pairs = [pair for pair in converted.pairs if isinstance(pair, dict)]
    is_lists = converted.format == "lists"
    width = len(converted.row["rejected"]) if is_lists else 1
    for group in [pairs] if is_lists else [[pair] for pair in pairs]:
        first = group[0]
        chosen, rejected = [pair["chosen"] for pair in group[::width]], [pair["rejected"] for pair in group[:width]]
        subset = first.get("subset") or first.get("source") or label
        found = item_protocol(subset, len(chosen), len(rejected)) if protocol == "auto" else protocol
        if protocol not in ("auto", "pairs") and len(chosen) + len(rejected) == 2:
            raise InputError(f"{converted.place}: a pair, but --protocol {found} judges lists of answers. Omit it.")
        if found == "rm-bench" and (len(chosen), len(rejected)) != (3, 3):
            sizes = f"{len(chosen)} chosen and {len(rejected)} rejected answers"
            raise InputError(f"{converted.place}: {sizes}, but RM-Bench has 3 of each. Pass another --protocol.")
        # Files of one domain, such as chat_filtered.json, have no domain in their rows.
        domain = converted.row.get("domain") or (stem if stem.startswith(RM_BENCH_DOMAINS) else subset)
        tools, id_ = first.get("tools"), first.get("id")
        yield Item(converted.place, subset, found, chosen, rejected, tools, id_, str(domain))


def item_protocol(subset: str, chosen: int, rejected: int) -> str:
    """Return the protocol of an item with these numbers of chosen and rejected answers."""
    if subset.lower() == "ties":
        return "ties"
    if (chosen, rejected) == (3, 3):
        return "rm-bench"
    if chosen > 1:
        return "ties"
    return "pairs" if rejected == 1 else "best"


class ScoredItems:
    """Items with the scores of their conversations.

    Args:
        items: The items.
        scores: The scores of `item.conversations` of each item.

    Attributes:
        split: For each item the scores of its chosen and of its rejected answers.
        margins: For each item an array of shape (chosen answers, rejected answers).
        right: The accuracy of each item by its protocol, a tie of a pair being 0.5; `strict` counts it as 0.
    """

    def __init__(self, items: list[Item], scores: list[list[float]]) -> None:
        self.items, self.scores = items, scores
        for item, values in zip(items, scores, strict=True):
            for messages, value in zip(item.conversations, values, strict=True):
                if not math.isfinite(value):
                    text = message_text(messages[-1])[:80]
                    found = f"the score of the conversation that ends with {text!r} is {value}"
                    raise InputError(f"{item.place}: {found}. Check the weights and the dtype of the model.")
        cuts = [len(item.chosen) for item in items]
        self.split = [(values[:cut], values[cut:]) for values, cut in zip(scores, cuts, strict=True)]
        self.margins = [np.subtract.outer(chosen, rejected) for chosen, rejected in self.split]
        self.protocols = np.array([item.protocol for item in items])
        judged = list(zip(self.protocols, self.split, strict=True))
        self.right = np.array([item_accuracy(protocol, *sides) for protocol, sides in judged])
        self.strict = np.array([item_accuracy(protocol, *sides, tie=0.0) for protocol, sides in judged])
        self.subsets = np.array([item.subset for item in items])
        self.prompts = np.array([prompt_key(item.prompt) for item in items], dtype=np.uint64)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield an object for each item, as written to scores.jsonl, with excerpts of the texts."""
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
