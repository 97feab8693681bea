"""The group that measures the speed and memory of LoRA training, for several layouts of the same kind of pairs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from transformers import PreTrainedModel

from benchmarks.check_gpu.models import build_model, random_prompts, to_device
from benchmarks.check_gpu.table import Row
from benchmarks.timing import matmul_peak, timing_events
from reward_model.model.attention import NAME
from reward_model.model.packing import pack
from reward_model.training.collator import SIDES, PairCollator
from reward_model.training.throughput import flops_per_position, peak_flops

Batch = dict[str, Any]


def pack_without_sharing(examples: list[dict]) -> Batch:
    """Return a packed row in which each conversation is a separate sequence, as in FlashAttention without padding."""
    return pack([([], [example[side]]) for side in SIDES for example in examples])


# Name, responses to each prompt, attention, collator.
LAYOUTS: list[tuple[str, int, str, Callable[[list[dict]], Batch]]] = [
    ("padded, SDPA (as stock trl)", 2, "sdpa", PairCollator(0, shared_prefix=False)),
    ("packed without sharing", 2, NAME, pack_without_sharing),
    ("packed, shared prefix", 2, NAME, PairCollator(0)),
    ("tree of 4 responses", 4, NAME, PairCollator(0)),
    ("tree of 7 responses", 7, NAME, PairCollator(0)),
]


def lora_model(device: str, sizes: dict[str, int]) -> PreTrainedModel:
    """Return a model as train.py prepares it for LoRA: frozen weights in bf16, trained ones in fp32, checkpointing."""
    model = build_model(sizes, device, torch.bfloat16)
    layers = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    inject_adapter_in_model(LoraConfig(r=32, lora_alpha=16, target_modules=layers), model)
    model.score.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def fill(prompts: list[list[dict]], budget: int, collate: Callable[[list[dict]], Batch]) -> tuple[Batch, int]:
    """Return the largest batch of the first prompts that fits `budget` token positions, and its number of pairs."""
    examples: list[dict] = []
    batch: Batch = {}
    for prompt in prompts:
        larger = collate(examples + prompt)
        if batch and larger["input_ids"].numel() > budget:
            break
        batch, examples = larger, examples + prompt
    return batch, len(examples)


def time_layout(model: PreTrainedModel, batch: Batch) -> float:
    """Return the seconds per step: forward, backward and optimizer."""
    device = model.device.type
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    events, steps = timing_events(device, 2), 3 if device == "cuda" else 1
    for step in range(steps + 1):
        if step == 1:  # after the warm-up
            events[0].record()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
        (-F.logsigmoid(chosen - rejected).mean()).backward()
        optimizer.step()
    events[1].record()
    if device == "cuda":
        torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1000 / steps


def speed(device: str, sizes: dict[str, int], budgets: tuple[int, ...], attend: Callable) -> Iterator[Row]:
    """Time every layout with batches of at most `budgets` token positions, and then the parts of attention."""
    cuda = device == "cuda"
    known = peak_flops(torch.cuda.get_device_name()) if cuda else None
    peak = known or 1e9 * matmul_peak()
    yield Row("peak for MFU", f"{peak / 1e12:.2f} TFLOP/s, {'data sheet' if known else 'measured'}")
    model = lora_model(device, sizes)
    flops = flops_per_position(model) or 0
    scale = 1.0 if cuda else 0.05
    for budget in budgets:
        for name, responses, attention, collate in LAYOUTS:
            batch, pairs = fill(random_prompts(64, responses, scale), budget, collate)
            positions = batch["input_ids"].numel()
            model.set_attn_implementation(attention)
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = time_layout(model, to_device(batch, device))
            text = (
                f"{pairs} pairs, {positions:,} positions: {positions / seconds:,.0f} positions/s, "
                f"{pairs / seconds:.2f} pairs/s, MFU {flops * positions / seconds / peak:.1%}"
            )
            if cuda:
                used, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
                text += f", {used:.1f} GB allocated, {reserved:.1f} GB reserved"
            yield Row(f"{name}, at most {budget:,} positions", text)
    yield time_gather(device, sizes, budgets[-1], attend)


@torch.no_grad()
def time_gather(device: str, sizes: dict[str, int], budget: int, attend: Callable, rounds: int = 10) -> Row:
    """Compare the time for gathering keys and values with that of the attention kernel, in one layer's forward pass."""
    scale = 1.0 if device == "cuda" else 0.05
    row = to_device(fill(random_prompts(64, 2, scale), budget, PairCollator(0))[0], device)
    heads, key_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    size = sizes["hidden_size"] // heads
    query, key, value = (
        torch.randn(row["input_ids"].shape[1], number, size, device=device, dtype=torch.bfloat16)
        for number in (heads, key_heads, key_heads)
    )
    sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    index = row["key_index"]
    gather_ms = kernel_ms = 0.0
    for number in range(rounds + 1):
        events = timing_events(device, 3)
        events[0].record()
        keys, values = key.index_select(0, index), value.index_select(0, index)
        events[1].record()
        attend(query, keys, values, *sequences, scale=size**-0.5, window=None)
        events[2].record()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:  # the first is the warm-up
            gather_ms += events[0].elapsed_time(events[1]) / rounds
            kernel_ms += events[1].elapsed_time(events[2]) / rounds
    text = f"gather {gather_ms:.3f} ms, kernel {kernel_ms:.3f} ms, {len(index):,} keys for {len(query):,} queries"
    return Row("key_index gather against the kernel", text)
