"""Pairs to a batch: one packed row, or trl's padded rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from reward_model.model.packing import Group, pack, positions, tree

SIDES = ("chosen_ids", "rejected_ids")


@dataclass
class PairCollator(DataCollatorForPreference):
    """trl's collator, or, with `shared_prefix`, one packed row; the rewards of a batch are [chosen…, rejected…].

    Examples have `chosen_ids`, `rejected_ids` and optionally `prompt` (a key; pairs of one prompt share a tree) and
    `margin`. Beside the model's inputs the batch tells `real_tokens` (those of both sides) and `padded_positions`
    (those the padded batch has) and, if there is a limit of `max_tokens`, has its `examples`, for `split`.
    `rope_switch` is that of the model (`reward_model.model.attention.rope_switch`).
    """

    shared_prefix: bool = True
    max_tokens: int | None = None
    rope_switch: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(example[side]) for example in examples for side in SIDES]
        if not self.shared_prefix:
            batch = super().torch_call(examples)
        else:
            groups, branches = trees(examples, self.rope_switch)
            batch = pack(groups)
            batch["end_positions"] = batch["end_positions"][branches]
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])  # trl counts tokens with it
            if "margin" in examples[0]:
                batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        if self.max_tokens:
            batch["examples"] = np.array(examples, dtype=object)  # which no one takes apart on the way to the device
        if "place" in examples[0]:
            batch["places"] = np.array([example["place"] for example in examples], dtype=object)
        return batch | {"real_tokens": sum(lengths), "padded_positions": len(lengths) * max(lengths)}

    def split(self, examples: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Cut a batch into parts of at most `max_tokens` positions, and at least one pair, each."""
        parts: list[list[dict[str, Any]]] = [[]]
        for example in examples:
            if parts[-1] and self._positions([*parts[-1], example]) > (self.max_tokens or 0):
                parts.append([])
            parts[-1].append(example)
        return parts

    def _positions(self, examples: list[dict[str, Any]]) -> int:
        if self.shared_prefix:
            return sum(map(positions, trees(examples, self.rope_switch)[0]))
        return 2 * len(examples) * max(len(example[side]) for example in examples for side in SIDES)


def trees(examples: list[dict[str, Any]], switch: int | None = None) -> tuple[list[Group], list[int]]:
    """Trees of the pairs, and the branches, numbered through all of them, that are [chosen…, rejected…].

    Pairs of one prompt share a tree that has each distinct answer once, unless the sides of each have so much more in
    common than all have that trees of their own are smaller.
    """
    prompts: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        prompts.setdefault(example.get("prompt", number), []).append(number)
    groups: list[Group] = []
    branches, begun = np.zeros((2, len(examples)), dtype=int), 0
    for numbers in prompts.values():
        layouts = [
            [(part, *_tree([examples[number] for number in part], switch)) for part in parts]
            for parts in ([numbers], [[number] for number in numbers])
        ]
        for part, group, sides in min(layouts, key=lambda layout: sum(positions(group) for _, group, _ in layout)):
            branches[:, part] = np.add(sides, begun)
            groups.append(group)
            begun += len(group[1])
    return groups, branches.ravel().tolist()


def _tree(pairs: list[dict[str, Any]], switch: int | None) -> tuple[Group, list[list[int]]]:
    """The tree of all answers of some pairs, and which of its branches the chosen and the rejected ones are."""
    distinct: dict[tuple[int, ...], int] = {}
    sides = [[distinct.setdefault(tuple(pair[side]), len(distinct)) for pair in pairs] for side in SIDES]
    return tree(list(distinct), switch), sides
