"""Choose the attention of a run before its first step."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from reward_model.model.attention_choice import choose_attention
from reward_model.training.collator import SIDES, PairCollator


class AttentionChooser(TrainerCallback):
    """Decide before the first step whether the model trains on packed or on padded rows.

    If the model cannot take packed rows, the collator pads from the first batch on, and one line says why.

    Args:
        collator: The collator of the run.
        pairs: The longest examples of the run.
    """

    def __init__(self, collator: PairCollator, pairs: list[dict[str, Any]]) -> None:
        self.collator = collator
        self.pairs = [(list(pair[SIDES[0]]), list(pair[SIDES[1]])) for pair in pairs]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        half, collator = args.bf16 or args.fp16, self.collator
        with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, half):
            reason = choose_attention(
                model, collator.pad_token_id, self.pairs, collator.shared_prefix, half or args.tf32
            )
        collator.shared_prefix = reason is None
        if reason and state.is_world_process_zero:
            print(f"Shared-prefix training is off, batches are padded: {reason}.")
