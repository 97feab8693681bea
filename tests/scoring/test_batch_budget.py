"""How many token positions a batch has, by device memory, and what happens when a GPU has too little."""

from types import SimpleNamespace

import pytest
import torch
from helpers import conversation

from reward_model.scoring import local

QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944}
QWEN_72B = {"hidden_size": 8192, "intermediate_size": 29568}


@pytest.mark.parametrize(
    ("device", "sizes", "dtype", "free", "expected"),
    [
        ("cpu", QWEN_7B, torch.float32, 200, 4096),
        ("cuda", QWEN_7B, torch.bfloat16, 64, 32768),  # an H100 after 15 GB of weights: the largest batch
        ("cuda", QWEN_7B, torch.bfloat16, 8, 20032),  # a card of 24 GB
        ("cuda", QWEN_7B, torch.float32, 8, 10790),
        ("cuda", QWEN_72B, torch.bfloat16, 5, 6684),
        ("cuda", QWEN_7B, torch.bfloat16, 0.1, 4096),  # nearly full: the least, and halves if that does not fit
        ("cuda", {"hidden_size": 3584}, torch.bfloat16, 8, 23251),  # a config that does not name the MLP's width
    ],
)
def test_budget_by_free_memory(device, sizes, dtype, free, expected, monkeypatch) -> None:
    config = SimpleNamespace(**sizes)
    model = SimpleNamespace(
        device=torch.device(device), dtype=dtype, config=SimpleNamespace(get_text_config=lambda: config)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * 1e9), int(80e9)))
    assert local.batch_budget(model) == expected


def test_batch_that_does_not_fit_is_halved(tiny_reward_model, monkeypatch) -> None:
    model, tokenizer = local.load_reward_model(str(tiny_reward_model))
    groups = [local.encode([conversation("Hi", f"Number {number}.")], model, tokenizer) for number in range(7)]
    expected = local.score_batch(model, tokenizer, groups)
    forward, sizes = model.forward, []

    def forward_in_little_memory(input_ids: torch.Tensor, **inputs):
        sizes.append(input_ids.numel())
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", forward_in_little_memory)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    limit = sum(len(ids) for group in groups for ids in group) // 3
    found = local.score_batch(model, tokenizer, groups)
    assert len(sizes) > 3
    assert [value for (value,) in found] == pytest.approx([value for (value,) in expected], abs=1e-5)
    limit = 1
    with pytest.raises(torch.OutOfMemoryError):
        local.score_batch(model, tokenizer, groups)
