"""Trainer callbacks: choose how attention runs before the first step, and stop or warn when training goes wrong."""

import json
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
from reward_model.model.modeling import installed_model
from reward_model.model.packing_check import choose_attention
from reward_model.training.checkpointing import newest_complete
from reward_model.training.collator import SIDES, PairCollator

MAX_DRIFT = 30.0  # largest accepted change in the mean reward since the first log


class AttentionChooser(TrainerCallback):
    """Decide before the first step whether the model trains on packed or padded rows.

    If the model cannot take packed rows, the collator pads every batch, and a printed line gives the reason.

    Args:
        collator: The collator used by the run.
        pairs: The longest training examples.
    """

    def __init__(self, collator: PairCollator, pairs: list[dict[str, Any]]) -> None:
        self.collator = collator
        self.pairs = [(list(pair[SIDES[0]]), list(pair[SIDES[1]])) for pair in pairs]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Choose packed or padded rows, and print the reason for padding."""
        half, collator = args.bf16 or args.fp16, self.collator
        with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, half):
            reason = choose_attention(
                model, collator.pad_token_id, self.pairs, collator.shared_prefix, half or args.tf32
            )
        collator.shared_prefix = reason is None
        if reason and state.is_world_process_zero:
            print(f"Shared-prefix training is off, batches are padded: {reason}.")


class TrainingMonitor(TrainerCallback):
    """Stop if weights are not finite, warn about drifting rewards, and explain out-of-memory errors.

    Args:
        tokenizer: Decodes the tokens of a bad batch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.batches: list[dict[str, Any]] = []  # those of the current step
        self.first_log: dict[str, Any] = {}
        self.has_warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Restore the first log of a resumed run, and start recording the batches of each step."""
        self.first_log = next((log for log in state.log_history if "loss" in log), {})
        installed_model(model).register_forward_pre_hook(self._remember_batch, with_kwargs=True)

    def _remember_batch(self, model: nn.Module, args: tuple, batch: dict[str, Any]) -> None:
        if model.training:
            self.batches.append(batch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Discard the batches of the step."""
        self.batches.clear()

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Raise InputError if a weight is not finite. Runs on all ranks."""
        # ZeRO-3 leaves the parameters empty; ds_tensor holds this rank's shard of each.
        parts = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
        if not all(gather_object([bool(part.isfinite().all()) for part in parts])):
            raise InputError(f"The weights are not finite after step {state.global_step}, so they were not saved.")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Warn once if the mean reward has drifted by more than MAX_DRIFT."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        self.first_log = self.first_log or logs
        # Measure drift from the first log, because untrained scores are far from 0 if the final norm is large.
        first, mean = (float(log.get("mean_reward", 0)) for log in (self.first_log, logs))
        if abs(mean - first) > MAX_DRIFT and not self.has_warned:
            self.has_warned = True
            print(
                f"Warning: The mean reward has drifted from {first:.0f} to {mean:.0f}, and bf16 resolves large rewards "
                "poorly. To keep rewards near 0, pass --center_rewards_coefficient 0.01"
            )

    def stop_at_bad_batch(self, loss: float, norm: float, args: Any, step: int) -> None:
        """Write the batches of the current step to bad_batch_RANK.json and raise InputError. Runs on all ranks."""
        file = Path(args.output_dir, f"bad_batch_{args.process_index}.json")
        rows = [
            {"places": list(batch.get("places", [])), "text": self.tokenizer.batch_decode(batch["input_ids"])}
            for batch in self.batches
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        places = gather_object([place for row in rows for place in row["places"]])
        last = newest_complete(file.parent)
        raise InputError(
            f"Step {step + 1}: the loss is {loss:g} and the gradient norm is {norm:g}. The pairs of this step are "
            f"{', '.join(places[:8])}{' …' if len(places) > 8 else ''}; {file} lists all of them. Usual causes: a "
            "learning rate that is too high, a huge margin, corrupt weights."
            + (f" The newest complete checkpoint is {last}." if last else "")
        )

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Turn an out-of-memory error into an InputError that describes the batch and suggests arguments to change."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, but the plain class on a CPU
            if not re.search("out of memory|can't allocate memory", str(error)):
                raise
            batch = self.batches[-1] if self.batches else {}
            tokens, places = batch["input_ids"].numel() if batch else 0, list(batch.get("places", []))
            raise InputError(
                f"Out of memory in a batch of {tokens:,} token positions in {len(places)} pairs (the first is "
                f"{(places or ['unknown'])[0]}): {str(error).splitlines()[0][:160]} Set --max_tokens_per_micro_batch "
                f"{max(tokens // 2, 1)}, a smaller --per_device_train_batch_size with more "
                "--gradient_accumulation_steps, --gradient_checkpointing True, a smaller --max_length, or --use_peft. "
                "To try the longest pairs, pass --dry_run True"
            ) from error
