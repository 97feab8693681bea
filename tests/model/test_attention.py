"""Packed rows give the rewards, losses and gradients of the padded batch; other models are padded, with a reason."""

import random

import pytest
import torch
from architectures import ARCHITECTURES, PADDED, REFUSED, reward_model
from helpers import LINEAR, ROOT, demo_pairs, jsonl
from torch._subclasses.fake_tensor import FakeTensorMode

import train as train_script
from reward_model import InputError
from reward_model.data.pair import common_prefix_length
from reward_model.model.attention import _varlen_attention, sequence_attention
from reward_model.model.modeling import install
from reward_model.model.packing import pack
from reward_model.model.packing_check import choose_attention, pad
from reward_model.training.collator import PairCollator

GENERATOR = random.Random(0)


def tokens(length: int) -> list[int]:
    return [GENERATOR.randrange(3, 640) for _ in range(length)]


# A prefix and its branches: an empty prefix, one branch, branches of one token, four branches.
GROUPS = [
    (tokens(5), [tokens(4), tokens(7)]),
    ([], [tokens(6), tokens(3)]),
    (tokens(9), [tokens(1), tokens(1)]),
    (tokens(1), [tokens(8)]),
    (tokens(12), [tokens(2), tokens(20), tokens(1), tokens(5)]),
]


def test_common_prefix_leaves_a_token_to_each_branch() -> None:
    assert common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1  # one conversation is a prefix of the other
    assert common_prefix_length([[1, 2], [3, 2]]) == 0
    assert common_prefix_length([[1] * 7, [1] * 7, [1] * 6 + [2]]) == 6


def test_empty_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack([([1, 2], [[3], []])])


@pytest.mark.parametrize("window", [None, 1, 4, 16])
def test_packed_attention_equals_a_dense_mask(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_model.model.attention.MASKED_QUERIES", 3)  # so that there are several blocks
    row = pack(GROUPS)
    group, branch, position = [], [], []
    for number, (prefix, branches) in enumerate(GROUPS):
        for part, (ids, start) in enumerate([(prefix, 0), *((ids, len(prefix)) for ids in branches)]):
            group += [number] * len(ids)
            branch += [part] * len(ids)  # 0 is the prefix
            position += range(start, start + len(ids))
    group, branch, position = map(torch.tensor, (group, branch, position))
    assert row["position_ids"][0].tolist() == position.tolist()

    sees = (group[:, None] == group) & ((branch == 0) | (branch[:, None] == branch)) & (position <= position[:, None])
    if window is not None:
        sees &= position > position[:, None] - window
    torch.manual_seed(0)
    query, key, value = (torch.randn(len(group), heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, 1)) * 0.3
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, 1))

    sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    index = row["key_index"]
    output = sequence_attention(query, key[index], value[index], *sequences, scale=0.3, window=window)
    torch.testing.assert_close(output, expected)


def rewards_and_gradients(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    rewards = model(**batch, use_cache=False).logits.flatten()
    torch.nn.functional.logsigmoid(rewards[::2].sum() - rewards[1::2].sum()).backward()
    return rewards.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def padded_batch() -> dict:
    return pad([prefix + branch for prefix, branches in GROUPS for branch in branches], pad_token_id=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_give_the_rewards_and_gradients_of_padded_rows(name: str) -> None:
    model = reward_model(name, ARCHITECTURES[name]).train()
    # The reference is Transformers' unchanged model with eager attention.
    rewards, gradients = rewards_and_gradients(model, padded_batch())
    install(model)
    assert choose_attention(model, pad_token_id=0) is None
    packed_rewards, packed_gradients = rewards_and_gradients(model, pack(GROUPS))
    assert rewards.std() > 0.1, "the rewards are too similar for a comparison"
    torch.testing.assert_close(packed_rewards, rewards, atol=1e-5, rtol=1e-5)
    assert (packed_gradients - gradients).norm() / gradients.norm() < 1e-4
    # The model still computes padded batches.
    torch.testing.assert_close(rewards_and_gradients(model, padded_batch())[0], rewards, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PADDED)
def test_other_architectures_are_padded_with_a_reason(name: str) -> None:
    changes, reason = PADDED[name]
    # Falcon cannot switch its attention after loading, and its SDPA differs; load_model loads it with eager attention.
    model = reward_model(name, changes, "eager" if name == "falcon alibi" else None).eval()
    install(model)
    assert reason in choose_attention(model, pad_token_id=0)
    rewards = model(**padded_batch()).logits
    torch.testing.assert_close(rewards, reward_model(name, changes).eval()(**padded_batch()).logits)


@pytest.mark.parametrize("name", REFUSED)
def test_architecture_without_a_linear_score_head_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no linear head `score`"):
        install(reward_model(name, REFUSED[name]))


def test_model_is_padded_if_packing_changes_its_hidden_states() -> None:
    model = reward_model("llama", {}).eval()
    install(model)
    # Every token of the layer sees its neighbor, as in a convolution.
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output + output.roll(1, dims=1))
    assert "change the hidden states of LlamaForSequenceClassification by" in choose_attention(model, pad_token_id=0)


RUNS = {
    "plain": [],
    "linear attention": [],
    "linear attention, LoRA": ["--use_peft", "--lora_r", "4", "--lora_dropout", "0"],
    "linear attention, gradient checkpointing": ["--gradient_checkpointing", "True"],
    "margins": ["margins"],
    "centered": ["--center_rewards_coefficient", "0.01"],
    "LoRA": ["--use_peft", "--lora_r", "4", "--lora_dropout", "0"],
    "gradient checkpointing": ["--gradient_checkpointing", "True"],
    "accumulation": ["--gradient_accumulation_steps", "2"],
}
TWENTY_STEPS = (
    "--max_steps 20 --per_device_train_batch_size 4 --learning_rate 1e-4 --max_length 512 --logging_steps 1 "
    "--report_to none --gradient_checkpointing False --eval_size 4 --eval_strategy steps --eval_steps 10 "
    "--save_strategy no"
)


QUICK = {"plain", "LoRA"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_training_on_packed_rows_equals_padded_training(name: str, tiny_model, base_model, tmp_path) -> None:
    model = tiny_model("qwen3_5_text", **LINEAR) if name.startswith("linear") else base_model
    rows = demo_pairs()[:30]  # 26 for training: six batches of 4 and one of 2
    more = [argument for argument in RUNS[name] if argument != "margins"]
    if name == "margins":
        rows = [row | {"margin": 0.1 * number} for number, row in enumerate(rows)]
    pairs = jsonl(tmp_path / "pairs.jsonl", rows)
    trainers = []
    for shared_prefix in ("True", "False"):
        paths = ["--model_name_or_path", str(model), "--dataset_name", str(pairs)]
        paths += ["--output_dir", str(tmp_path / shared_prefix), "--shared_prefix", shared_prefix]
        trainers.append(train_script.main([*paths, *TWENTY_STEPS.split(), *more]))
    logged = [trainer.state.log_history for trainer in trainers]
    for key, count in (("loss", 20), ("eval_loss", 3)):
        packed, padded = ([log[key] for log in history if key in log] for history in logged)
        assert len(packed) == count and packed == pytest.approx(padded, abs=1e-5)
    norms = [[log["grad_norm"] for log in history if "grad_norm" in log] for history in logged]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    saved = [log["positions_saved"] for log in logged[0] if "positions_saved" in log]
    assert min(saved) > 0.1 and all(log.get("positions_saved", 0) == 0 for log in logged[1])


def test_collator_orders_rewards_like_trl() -> None:
    examples = [
        {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5], "margin": 0.5},
        {"chosen_ids": [6], "rejected_ids": [7, 8], "margin": 0.0},
    ]
    batch = PairCollator(pad_token_id=0)(examples)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["end_positions"].tolist() == [2, 5, 4, 7]
    assert batch["margin"].tolist() == [0.5, 0.0]
    assert (batch["real_tokens"], batch["padded_positions"]) == (10, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("window", [None, 16])
def test_cuda_kernels_accept_the_arguments(dtype: torch.dtype, size: int, window: int | None) -> None:
    """Run the argument checks of varlen_attn and FlashAttention, forward and backward, on fake CUDA tensors.

    Autograd needs a torch built with CUDA, so the backward pass is called directly; tests/model/test_packing_check.py
    covers autograd on the CPU.
    """
    row = pack(GROUPS)
    lengths = row["max_length_q"], row["max_length_k"]
    tokens_, keys = row["input_ids"].shape[1], len(row["key_index"])
    shapes = [(tokens_, 8, size), (keys, 2, size), (keys, 2, size)]
    with FakeTensorMode(), torch.no_grad():
        states = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        cuts = [torch.empty(len(row["cu_seq_lens_q"]), dtype=torch.int32, device="cuda") for _ in range(2)]
        output = _varlen_attention(*states, *cuts, *lengths, scale=0.125, window=window)
        assert (output.shape, output.dtype, output.device.type) == (states[0].shape, dtype, "cuda")
        sides = -1 if window is None else window - 1, 0
        options = {"scale": 0.125, "window_size_left": sides[0], "window_size_right": sides[1]}
        kernels = torch.ops.aten
        _, lse, state, *_ = kernels._flash_attention_forward(
            *states, *cuts, *lengths, 0.0, window is None, False, **options
        )
        saved = output, *states, output, lse, *cuts, *lengths
        by_aten = kernels._flash_attention_backward(
            *saved, 0.0, window is None, state, torch.empty(0, device="cuda"), **options
        )
        by_torch = torch.ops.torch_attn._varlen_attn_backward(*saved, window is None, state, 0.125, list(sides))
    for gradients in (by_aten, by_torch):
        assert [(part.shape, part.dtype) for part in gradients] == [(shape, dtype) for shape in shapes]


def test_packing_does_not_change_the_saved_config(tmp_path) -> None:
    model = reward_model("qwen2", {})
    install(model)
    model.save_pretrained(tmp_path)
    assert "shared_prefix" not in (tmp_path / "config.json").read_text()
    assert "Qwen2ForSequenceClassification" in (tmp_path / "config.json").read_text()
    assert not (ROOT / "save" / "tests").exists()
