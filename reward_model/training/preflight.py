"""What is refused before or at the first step."""

from itertools import product
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback

from reward_model import InputError
from reward_model.training.collator import PairCollator

# Largest relative difference of the hidden states that enter the reward head, in fp32 and in half precision. Measured
# (the table is in tests/model/test_preflight.py): right packing differs by 1e-6 and by 2 %, one pair in 40 by 6 %; a
# leak by 12 % and more, in every pair. So several pairs are probed, and the one that differs least decides.
IN_FP32, IN_HALF = 1e-3, 5e-2


@torch.no_grad()
def packing_differs(model: nn.Module, pairs: list[dict[str, Any]], pad_token_id: int, largest: float) -> str | None:
    """Run each pair through the body on both paths; returns why the model cannot take packed rows, None if it can.

    `pairs` are examples of `PairCollator`. Where attention is asked for something it is not told how to do, the model
    is set back to its own attention and the reason returned. Where the hidden states at the last tokens of every pair
    differ all the same by more than `largest` of their norm, InputError is raised; rewards would not do, as their noise
    grows with the head's norm. Runs the same forwards on every rank, also under ZeRO-3.
    """
    reward_model = next(module for module in model.modules() if hasattr(module, "path_counts"))
    counts, training = reward_model.path_counts, model.training
    model.eval()
    calls, states = counts.attention_calls, []
    hook = reward_model.score.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].float()))
    probes = list(product(pairs, (False, True)))
    quiet = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
    # A second on a GPU; the bar is for what takes longer.
    for pair, shared_prefix in tqdm(probes, "Comparing packed with padded rows", leave=False, delay=2, disable=quiet):
        batch = PairCollator(pad_token_id=pad_token_id, shared_prefix=shared_prefix)([pair])
        batch = {k: v.to(reward_model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        model(**batch, use_cache=False)
    hook.remove()
    model.train(training)
    layers = reward_model.config.get_text_config().num_hidden_layers
    if (passed := (counts.attention_calls - calls) // len(pairs)) < layers:
        counts.unsupported.add(f"{layers - passed} of {layers} layers that take no packed row")
    if counts.unsupported:
        # SDPA leaves soft-capping out without a word; eager attention, like vLLM, does it.
        reward_model.set_attn_implementation("eager" if "softcap" in counts.unsupported else counts.own_attention)
        return f"{type(reward_model).__name__} uses {', '.join(sorted(counts.unsupported))}"
    differences = []
    for pair, padded, packed in zip(pairs, states[::2], states[1::2], strict=True):  # (2, tokens, hidden), (2, hidden)
        ends = [len(pair[side]) - 1 for side in ("chosen_ids", "rejected_ids")]
        padded = padded[torch.arange(2), ends]
        differences.append(((packed - padded).norm(dim=-1) / padded.norm(dim=-1)).max().item())
    difference = min(differences)
    if not difference <= largest:
        raise InputError(
            f"The last hidden states of a pair differ by {difference:.2g} of their norm between the shared-prefix "
            "and the padded path, so this model cannot train on packed rows. Train it padded: --shared_prefix False"
        )
    return None


class SharedPrefixGuard(TrainerCallback):
    """Before the first step, the hidden states of real pairs of the run must be the same on both paths.

    Give it the longest pairs: what only shows beyond a window or a chunk shows there. If the model cannot take packed
    rows, the collator pads from the first batch on, and one line says why.
    """

    def __init__(self, collator: PairCollator, pairs: list[dict[str, Any]]) -> None:
        self.collator, self.pairs = collator, pairs

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if not self.collator.shared_prefix:
            return
        half = args.bf16 or args.fp16 or args.tf32 or next(model.parameters()).dtype != torch.float32
        with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, args.bf16 or args.fp16):
            reason = packing_differs(model, self.pairs, self.collator.pad_token_id, IN_HALF if half else IN_FP32)
        if reason:
            self.collator.shared_prefix = False
            if state.is_world_process_zero:
                print(padded_line(reason))


def padded_line(reason: str) -> str:
    """The one line that announces the fall-back."""
    return f"Shared-prefix training is off, batches are padded: {reason}."
