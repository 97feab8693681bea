"""Pairs to a batch: one packed row, or trl's padded rows."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from reward_model.model.packing import pack


@dataclass
class PairCollator(DataCollatorForPreference):
    """trl's collator, or, with `shared_prefix`, one packed row; the rewards of a batch are [chosen…, rejected…].

    Examples have `chosen_ids`, `rejected_ids`, `prefix_length` and optionally `margin`. Beside the model's inputs the
    batch tells `real_tokens` (those of both sides) and `padded_positions` (those the padded batch has).
    """

    shared_prefix: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(example[side]) for example in examples for side in ("chosen_ids", "rejected_ids")]
        if not self.shared_prefix:
            batch = super().torch_call(examples)
        else:
            groups = []
            for example in examples:
                shared = example["prefix_length"]
                chosen, rejected = example["chosen_ids"], example["rejected_ids"]
                groups.append((chosen[:shared], [chosen[shared:], rejected[shared:]]))
            batch = pack(groups)
            batch["end_positions"] = batch["end_positions"].view(-1, 2).T.flatten()
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])  # trl counts tokens with it
            if "margin" in examples[0]:
                batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        return batch | {"real_tokens": sum(lengths), "padded_positions": len(lengths) * max(lengths)}
