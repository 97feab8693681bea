"""Labelled answers to prompts, read from files, and their scores.

An item is one prompt with answers that are better and answers that are worse: one of each in a pair, and several in the
public benchmarks (benchmarks.py).
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
from reward_model.data.convert import read
from reward_model.data.formats import Options
from reward_model.data.pair import Messages, message_text, prompt_key, shared_messages
from reward_model.data.readers import hub_rows, read_rows, train_and_test_files
from reward_model.evaluation.benchmarks import RM_BENCH, item_accuracy, item_protocol

SAYS_NOTHING = ("dataset", "data", "test", "train", "eval")  # as the name of a file
EXCERPT = 200  # characters of a message, to know it by


@dataclass(frozen=True)
class Item:
    """A prompt with better (`chosen`) and worse (`rejected`) answers, as whole conversations."""

    place: str
    subset: str
    protocol: str
    chosen: list[Messages]
    rejected: list[Messages]
    tools: Any = None
    id: str | None = None
    domain: str = ""  # of RM-Bench

    @property
    def conversations(self) -> list[Messages]:
        """All of them, chosen first: the order of scores."""
        return [*self.chosen, *self.rejected]

    @property
    def pairs(self) -> list[dict[str, Messages]]:
        """Every chosen answer against every rejected one."""
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in product(self.chosen, self.rejected)]

    @property
    def prompt(self) -> Messages:
        """What the answers share."""
        return shared_messages({"chosen": self.chosen[0], "rejected": self.rejected[0]})

    @property
    def key(self) -> str:
        """Equal for equal items, wherever they lie."""
        return xxh3_64_hexdigest(json.dumps([self.conversations, self.tools], sort_keys=True).encode())


def load_items(sources: Iterable[str], protocol: str = "auto", skipped: list[str] | None = None) -> list[Item]:
    """The items of files, folders or hub ids, in order.

    Raises InputError at the first row that is none; with a list `skipped`, what it would say is added to that.
    """
    rows_of: dict[str, Iterable[tuple[int, Any]]] = {}
    for source in sources:
        train_files, test_files = train_and_test_files(source)
        rows_of |= {str(file): read_rows(file) for file in test_files or train_files} or {source: hub_rows(source)}
    stems = Counter(map(_stem, rows_of))
    items: list[Item] = []
    for source, rows in rows_of.items():
        label = stem = _stem(source)
        if stem.lower() in SAYS_NOTHING or stems[stem] > 1:  # LLMBar has six files dataset.json
            label = Path(source).resolve().parent.name
        items += _items(source, list(rows), protocol, label, skipped)
    if not items:
        raise InputError(f"{', '.join(rows_of)}: no labelled pairs in there.")
    return items


def _stem(source: str) -> str:
    """The name of a file without endings and the number of its part ("test-00000-of-00001.parquet")."""
    return re.sub(r"-\d+-of-\d+$", "", Path(source).name.split(".")[0])


def _items(
    source: str, rows: list[tuple[int, Any]], protocol: str, label: str, skipped: list[str] | None
) -> Iterator[Item]:
    stem = _stem(source)
    by_file = stem if stem.startswith(RM_BENCH) else None  # chat_filtered.json of RM-Bench has no domains in its rows
    for reading in read(rows, source, Options(pairing="all")):
        bad = [pair for pair in reading.pairs if isinstance(pair, RowError)]
        for error in (error for error in bad if error.reason != "tie"):
            if skipped is None:
                raise InputError(f"{reading.place}: {error} (evaluate.py --skip_bad leaves such rows out.)")
            skipped.append(f"{reading.place}: {error}")
        pairs = [pair for pair in reading.pairs if not isinstance(pair, RowError)]
        if bad or not pairs:
            continue
        row, where, is_lists = reading.row, reading.place, reading.format == "lists"
        subset = pairs[0].get("subset") or pairs[0].get("source") or label
        # Several answers on both sides become one item, all other rows one for each pair.
        width = len(row["rejected"]) if is_lists else 1
        for group in [pairs] if is_lists else [[pair] for pair in pairs]:
            chosen, rejected = [pair["chosen"] for pair in group[::width]], [pair["rejected"] for pair in group[:width]]
            found = item_protocol(subset, len(chosen), len(rejected)) if protocol == "auto" else protocol
            if protocol not in ("auto", "pairs") and len(chosen) + len(rejected) == 2:
                raise InputError(f"{where}: a pair; --protocol {found} judges lists of answers. Leave it out.")
            if found == "rm-bench" and (len(chosen), len(rejected)) != (3, 3):
                sizes = f"not {len(chosen)} and {len(rejected)}"
                raise InputError(f"{where}: RM-Bench has 3 chosen and 3 rejected answers, {sizes}.")
            tools, id_, domain = group[0].get("tools"), group[0].get("id"), str(row.get("domain") or by_file or subset)
            yield Item(where, subset, found, chosen, rejected, tools, id_, domain)


@dataclass
class Scored:
    """Items with the scores of their conversations (chosen first)."""

    items: list[Item]
    scores: list[list[float]]

    def __post_init__(self) -> None:
        cuts = [len(item.chosen) for item in self.items]
        self.split = [(scores[:cut], scores[cut:]) for scores, cut in zip(self.scores, cuts, strict=True)]
        for item, scores in zip(self.items, self.scores, strict=True):
            for messages, score in zip(item.conversations, scores, strict=True):
                if not math.isfinite(score):
                    text = (
                        f"the score is {score}, of the conversation that ends with {message_text(messages[-1])[:80]!r}"
                    )
                    raise InputError(f"{item.place}: {text}; look at the model's weights and dtype.")
        # margins[i][j]: score of chosen answer i less that of rejected answer j
        self.margins = [np.subtract.outer(chosen, rejected) for chosen, rejected in self.split]
        self.protocols = np.array([item.protocol for item in self.items])
        each = list(zip(self.protocols, self.split, strict=True))
        self.right = np.array([item_accuracy(protocol, *scores) for protocol, scores in each])
        self.strict = np.array([item_accuracy(protocol, *scores, tie=0.0) for protocol, scores in each])
        self.subsets = np.array([item.subset for item in self.items])
        self.prompts = np.array([prompt_key(item.prompt) for item in self.items], dtype=np.uint64)

    def records(self) -> Iterator[dict[str, Any]]:
        """One object for each item, as written to scores.jsonl; texts by their begin."""
        for item, both, right, key in zip(self.items, self.split, self.right, self.prompts, strict=True):
            yield {
                "key": item.key,
                "prompt_key": int(key),
                "place": item.place,
                "subset": item.subset,
                "protocol": item.protocol,
                "right": float(right),
                "chosen_scores": both[0],
                "rejected_scores": both[1],
                "prompt": message_text(item.prompt[-1])[:EXCERPT],
                "chosen": [message_text(messages[-1])[:EXCERPT] for messages in item.chosen],
                "rejected": [message_text(messages[-1])[:EXCERPT] for messages in item.rejected],
            }
