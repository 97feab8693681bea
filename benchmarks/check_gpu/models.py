"""Build models with random weights and pairs with random tokens, in memory or as a directory for train.py."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.check_gpu.packages import ROOT
from reward_model.model.attention import NAME
from reward_model.model.modeling import install

VOCABULARY = 8192
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
ONE_BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build_model(sizes: dict[str, int], device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a Qwen2 reward model that accepts packed rows; its random weights are the same in every call."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, num_labels=1, pad_token_id=0, max_position_embeddings=32768, **sizes)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    install(model)
    model.set_attn_implementation(NAME)
    return model


def random_prompts(number: int, responses: int, scale: float = 1.0) -> list[list[dict[str, Any]]]:
    """Return, for each prompt, all pairs of its responses, in the form that the collator expects.

    Lengths are distributed around the means in UltraFeedback (185 tokens for a prompt, 305 for a response), multiplied
    by `scale`, and are at most 1,024 each.
    """
    random = np.random.default_rng(0)

    def tokens(mean: float, spread: float) -> list[int]:
        length = int(min(1024, random.lognormal(np.log(mean * scale) - spread**2 / 2, spread)))
        return random.integers(3, VOCABULARY, max(2, length)).tolist()

    prompts = []
    for key in range(number):
        prompt = tokens(185, 1.0)
        conversations = [prompt + tokens(305, 0.6) for _ in range(responses)]
        pairs = combinations(conversations, 2)
        prompts.append([{"prompt": str(key), "chosen_ids": a, "rejected_ids": b} for a, b in pairs])
    return prompts


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def save_model(directory: Path, sizes: dict[str, int], device: str) -> Path:
    """Save a random model, and a tokenizer trained on the demo pairs, as train.py loads them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = map(json.loads, (ROOT / "data/demo/train.jsonl").read_text("utf-8").splitlines())
    bpe.train_from_iterator([message["content"] for row in rows for message in row["chosen"]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (ROOT / "data/demo/chatml.jinja").read_text("utf-8")
    tokenizer.save_pretrained(directory)
    build_model(sizes, device, torch.bfloat16).save_pretrained(directory)
    return directory
