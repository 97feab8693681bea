"""Collate pairs into one packed row, or into padded rows as trl does."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from reward_model.model.packing import Group, pack, positions, tree

SIDES = ("chosen_ids", "rejected_ids")


@dataclass
class PairCollator(DataCollatorForPreference):
    """Collate pairs so that the rewards of the batch are in the order `[chosen…, rejected…]`.

    Examples contain `chosen_ids` and `rejected_ids`, and optionally `margin`, `place` and `prompt` (a key: pairs with
    the same prompt share a tree). The batch contains the model inputs, `real_tokens` (counted on both
    sides), `padded_positions` (the size of the padded batch) and, if `max_tokens` is set, the `examples` for `split`.

    Args:
        shared_prefix: Return one packed row; if False, return padded rows.
        max_tokens: Maximum number of token positions in a pass, for `split`.
        rope_switch: The value of `reward_model.model.modeling.rope_switch` for the model.
    """

    shared_prefix: bool = True
    max_tokens: int | None = None
    rope_switch: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate examples into a batch."""
        lengths = [len(example[side]) for example in examples for side in SIDES]
        if not self.shared_prefix:
            batch = super().torch_call(examples)
        else:
            groups, branches = trees(examples, self.rope_switch)
            batch = pack(groups)
            batch["end_positions"] = batch["end_positions"][branches]
            if "margin" in examples[0]:
                batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        if self.max_tokens:
            batch["examples"] = np.array(examples, dtype=object)  # accelerate does not move an object array
        if "place" in examples[0]:
            batch["places"] = np.array([example["place"] for example in examples], dtype=object)
        return batch | {"real_tokens": sum(lengths), "padded_positions": len(lengths) * max(lengths)}

    def split(self, examples: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Split examples into parts of at most `max_tokens` positions; each part has at least one pair."""
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
    """Arrange pairs in trees; return the trees and the branch numbers of `[chosen…, rejected…]`.

    Pairs with the same prompt share a tree that contains each distinct answer once. If separate trees are smaller,
    because the two sides of each pair have a longer common prefix than all answers, each pair gets its own.
    Branches are numbered across all trees.
    """
    prompts: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        prompts.setdefault(example.get("prompt", number), []).append(number)
    groups: list[Group] = []
    branches, start = np.zeros((2, len(examples)), dtype=int), 0
    for numbers in prompts.values():
        layouts = [
            [(part, *_tree([examples[number] for number in part], switch)) for part in parts]
            for parts in ([numbers], [[number] for number in numbers])
        ]
        for part, group, sides in min(layouts, key=lambda layout: sum(positions(group) for _, group, _ in layout)):
            branches[:, part] = np.add(sides, start)
            groups.append(group)
            start += len(group[1])
    return groups, branches.ravel().tolist()


def _tree(pairs: list[dict[str, Any]], switch: int | None) -> tuple[Group, list[list[int]]]:
    """Return the tree of all answers in `pairs`, and the branch numbers of their chosen and rejected sides."""
    distinct: dict[tuple[int, ...], int] = {}
    sides = [[distinct.setdefault(tuple(pair[side]), len(distinct)) for pair in pairs] for side in SIDES]
    return tree(list(distinct), switch), sides
