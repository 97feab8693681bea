"""The groups that compare numbers: the attention kernel, gradients of a wide model, noise of a deep one."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from benchmarks.check_gpu.models import TINY, build_model, random_prompts, to_device
from benchmarks.check_gpu.table import Row
from reward_model.model.attention import sequence_attention
from reward_model.model.packing import pack
from reward_model.model.packing_check import IN_HALF, choose_attention, last_states
from reward_model.training.collator import PairCollator

Part = tuple[int, list[int]]  # tokens of a prefix and of each of its branches


class Case(NamedTuple):
    name: str
    parts: list[Part]
    heads: int
    key_heads: int
    size: int
    window: int | None = None


def relative_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return |found - expected| / |expected| over all tensors together."""
    errors = [(a.float() - b.float()).norm().double() for a, b in zip(found, expected, strict=True)]
    norms = [b.float().norm().double() for b in expected]
    return (torch.stack(errors).norm() / torch.stack(norms).norm()).item()


def kernel_cases(tokens: int) -> list[Case]:
    """Return the cases, whose lengths are multiples of `tokens`."""
    mixed = [(9 * tokens, [5 * tokens, 7 * tokens, 3 * tokens, 8 * tokens]), (0, [6 * tokens, 2 * tokens])]
    cases = [
        Case(f"prefix and branches, head size {size}, {key_heads} of 8 key heads", mixed, 8, key_heads, size, window)
        for size, key_heads, window in product((64, 128), (8, 2), (None, 4 * tokens))
    ]
    return [
        *cases,
        Case("28 heads, 4 key heads of size 128", mixed, 28, 4, 128),
        Case("a branch of one token", [(9 * tokens, [1, 5 * tokens]), (3 * tokens, [1, 1])], 28, 4, 128),
        Case("empty prefix", [(0, [6 * tokens, 2 * tokens]), (0, [1, 3 * tokens])], 28, 4, 128),
        Case("shorter than the prefix", [(9 * tokens, [5 * tokens, 3 * tokens])], 28, 4, 128, 3 * tokens),
    ]


def kernel(device: str, tokens: int, attend: Callable) -> Iterator[Row]:
    """Compare outputs and gradients of `attend` in half precision with SDPA in fp32, and count calls of the kernel."""
    for dtype, case in product((torch.bfloat16, torch.float16), kernel_cases(tokens)):
        row = to_device(pack([([0] * p, [[0] * b for b in branches]) for p, branches in case.parts]), device)
        sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
        torch.manual_seed(0)
        states = [
            torch.randn(row["input_ids"].shape[1], heads, case.size, device=device, dtype=dtype, requires_grad=True)
            for heads in (case.heads, case.key_heads, case.key_heads)
        ]
        results = []
        for attention, precision in ((attend, dtype), (sequence_attention, torch.float32)):
            query, key, value = (part.to(precision) for part in states)
            key, value = key[row["key_index"]], value[row["key_index"]]
            output = attention(query, key, value, *sequences, scale=case.size**-0.5, window=case.window)
            results.append([output, *torch.autograd.grad((output.float() ** 2).sum(), states)])
        worst = max(relative_difference([found], [exact]) for found, exact in zip(*results, strict=True))
        window = f", window {case.window}" if case.window else ""
        name = f"{str(dtype).removeprefix('torch.')}, {case.name}{window}"
        yield Row(name, f"differs by {worst:.1e} from SDPA in fp32", worst < 2e-2)
    yield count_kernel_calls(device)


@torch.no_grad()
def count_kernel_calls(device: str) -> Row:
    """Check that a packed batch in bf16 calls FlashAttention once in each layer."""
    model = build_model(TINY, device, torch.bfloat16)
    batch = to_device(PairCollator(0)(random_prompts(1, 4, scale=0.1)[0]), device)
    model(**batch, use_cache=False)  # warm-up
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model(**batch, use_cache=False)
    operator = "aten::_flash_attention_forward" if device == "cuda" else "aten::scaled_dot_product_attention"
    calls = {event.key: event.count for event in profiled.key_averages()}.get(operator, 0)
    layers = TINY["num_hidden_layers"]
    passed = calls == layers if device == "cuda" else calls > 0
    return Row("the kernel is called", f"{calls} calls of {operator} in {layers} layers", passed)


def rewards_and_gradients(
    model: PreTrainedModel, examples: list[dict], shared_prefix: bool, autocast: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the rewards and all gradients of the Bradley-Terry loss for one batch."""
    device = model.device.type
    batch = to_device(PairCollator(0, shared_prefix=shared_prefix)(examples), device)
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, autocast):
        rewards = model(**batch, use_cache=False).logits.squeeze(-1)
    chosen, rejected = rewards.chunk(2)
    (-F.logsigmoid(chosen - rejected).mean()).backward()
    return [rewards.detach()], [parameter.grad for parameter in model.parameters()]


def gradients(device: str, sizes: dict[str, int]) -> Iterator[Row]:
    """Compare padded and packed rows in bf16, each with padded rows in fp32, for a tree of four responses."""
    examples = random_prompts(1, 4, scale=0.5 if device == "cuda" else 0.1)[0]
    model = build_model(sizes, device, torch.float32)
    exact = rewards_and_gradients(model, examples, shared_prefix=False, autocast=False)
    for mode in ("fp32 weights and autocast", "bf16 weights"):
        autocast = mode != "bf16 weights"
        if not autocast:
            model = model.bfloat16()
        padded, packed = (rewards_and_gradients(model, examples, shared, autocast) for shared in (False, True))
        for number, name in enumerate(("rewards", "gradients")):
            reference = relative_difference(padded[number], exact[number])
            found = relative_difference(packed[number], exact[number])
            text = f"padded differ by {reference:.1e}, packed by {found:.1e} from padded in fp32"
            yield Row(f"{name}, {mode}", text, found < 2 * reference + 1e-3)


@torch.no_grad()
def noise(device: str, sizes: dict[str, int], pairs: int) -> Iterator[Row]:
    """Measure how much correct bf16 computations with a deep model differ: packed, padded, and one by one."""
    model = build_model(sizes, device, torch.bfloat16).eval()
    scale = 1.0 if device == "cuda" else 0.1
    examples = [(row["chosen_ids"], row["rejected_ids"]) for (row,) in random_prompts(pairs, 2, scale)]
    batches = [examples[start : start + 4] for start in range(0, pairs, 4)]
    packed = torch.cat([last_states(model, batch, 0, packed=True) for batch in batches])
    padded = torch.cat([last_states(model, batch, 0) for batch in batches])
    alone = torch.cat([last_states(model, [(ids,)], 0) for pair in examples for ids in pair])  # type: ignore[list-item]

    comparisons = {"packed against padded": (packed, padded), "padded against one by one": (padded, alone)}
    medians = []
    for name, (found, expected) in comparisons.items():
        each = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).view(-1, 2).amax(1)
        medians.append(each.median().item())
        text = f"relative difference in {pairs} pairs: median {medians[-1]:.1e}, largest {each.max():.1e}"
        bound = max(IN_HALF, 3 * medians[-1])
        yield Row(f"hidden states, {name}", text, medians[0] <= bound)
    deviation = model.score(alone).std()
    for name, (found, expected) in comparisons.items():
        difference = (model.score(found) - model.score(expected)).abs() / deviation
        text = f"mean {difference.mean():.1e}, largest {difference.max():.1e} standard deviations of the rewards"
        yield Row(f"rewards, {name}", text)
    reason = choose_attention(model, 0, examples[:3], half=True)
    yield Row("the check before training", reason or "accepts packed rows", reason is None)
