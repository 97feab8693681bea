"""Callbacks of a run: choose how attention runs before the first step, and stop or warn when training goes wrong."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from reward_model import InputError
from reward_model.model.packing_check import choose_attention
from reward_model.training.checkpointing import newest_complete
from reward_model.training.collator import SIDES, PairCollator

DRIFTED = 30.0  # the mean reward, since the first log


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


class Watch(TrainerCallback):
    """Knows the batches of the present step, and what was warned of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.batches: list[dict[str, Any]] = []
        self.warned = False
        self.first: dict[str, Any] = {}  # log of the training loss

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.first = next((log for log in state.log_history if "loss" in log), {})  # of a resumed run
        body = next(module for module in model.modules() if hasattr(module, "path_counts"))
        body.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, model: nn.Module, args: tuple, batch: dict[str, Any]) -> None:
        if model.training:
            self.batches.append(batch)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        # ZeRO-3 leaves the parameters empty; each rank has a part of every one of them in ds_tensor.
        parts = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
        if not all(gather_object([bool(part.isfinite().all()) for part in parts])):
            raise InputError(f"After step {state.global_step} the weights are not finite; nothing more is saved.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.clear()

    def check_finite(self, loss: float, norm: float, args: Any, step: int) -> None:
        """Stop at a loss or a gradient that is not finite; of a gradient in fp16, its scaler takes care."""
        if math.isfinite(loss) and (args.fp16 or math.isfinite(norm)):
            return
        file = Path(args.output_dir, f"bad_batch_{args.process_index}.json")
        rows = [
            {"places": list(batch.get("places", [])), "text": self.tokenizer.batch_decode(batch["input_ids"])}
            for batch in self.batches
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        places = gather_object([place for row in rows for place in row["places"]])
        last = newest_complete(file.parent, tell=False)
        raise InputError(
            f"Step {step + 1}: the loss is {loss:g}, the gradient's norm {norm:g}. The pairs of this step are "
            f"{', '.join(places[:8])}{' …' if len(places) > 8 else ''}; {file} has all of them. Usual causes: a "
            f"learning rate that is too high, a huge margin, broken weights."
            + (f" {last} is from before." if last else "")
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs or not state.is_world_process_zero:
            return
        self.first = self.first or logs
        # Untrained scores can be far from 0: the final norm of some models is large.
        first, mean = (float(log.get("mean_reward", 0)) for log in (self.first, logs))
        if abs(mean - first) > DRIFTED and not self.warned:
            self.warned = True
            print(
                f"Warning: The mean reward has drifted from {first:.0f} to {mean:.0f}, and large rewards lose digits "
                "in bf16. --center_rewards_coefficient 0.01 keeps them near 0."
            )

    @contextmanager
    def out_of_memory_told(self) -> Iterator[None]:
        """The batch and the settings to change, where memory ran out."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU has no class for it
            if not re.search("out of memory|can't allocate memory", str(error)):
                raise
            batch = self.batches[-1] if self.batches else {}
            tokens, places = batch["input_ids"].numel() if batch else 0, list(batch.get("places", []))
            raise InputError(
                f"Out of memory at a batch of {tokens:,} token positions, {len(places)} pairs (the first is "
                f"{(places or ['unknown'])[0]}): {str(error).splitlines()[0][:160]} Set --max_tokens_per_micro_batch "
                f"{max(tokens // 2, 1)}, a smaller --per_device_train_batch_size with more "
                "--gradient_accumulation_steps, --gradient_checkpointing True, a smaller --max_length, or --use_peft; "
                "--dry_run True tries the longest."
            ) from None
