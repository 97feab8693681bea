"""Load the pairs and build the models that the benchmarks run on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.generated import dialogues, lists
from reward_model.data.dataset import load_pairs
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.tokenization import load_tokenizer, set_unused_pad_token, tokenize_pairs

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = str(ROOT / "models/SmolLM2-135M-Instruct")
# Models with random weights: Llamas with 25 M and 3 M parameters without the embeddings, and a Qwen3.5 as large as the
# first, with the proportions of Qwen3.5-0.8B: three linear-attention layers for each full-attention layer.
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "random": {"model_type": "llama", **SIZES},
    "tiny": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "qwen3_5": {
        "model_type": "qwen3_5_text", **SIZES, "num_key_value_heads": 2, "head_dim": 64, "linear_num_key_heads": 8,
        "linear_num_value_heads": 8,
    },
}  # fmt: skip


def load_model_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model directory, or the demo model's for a name in RANDOM_MODELS."""
    if model in RANDOM_MODELS:
        return load_tokenizer(DEMO_MODEL, str(ROOT / "data/demo/chatml.jinja"))
    return load_tokenizer(model)


def load_workload(
    data: str, model: str, pairs: int, responses: int, max_length: int, directory: str
) -> tuple[PreTrainedTokenizerBase, Dataset, Dataset]:
    """Return the tokenizer of `model`, the pairs as messages for trl, and the same pairs tokenized.

    Args:
        data: A file of pairs, or `dialogues` or `lists` to generate them.
        model: A model directory or a name in RANDOM_MODELS.
        pairs: Maximum number of pairs to load.
        responses: Number of responses to each prompt, for `lists`.
        max_length: Maximum number of tokens on the longer side; longer pairs are dropped.
        directory: Where to write generated pairs.
    """
    tokenizer = load_model_tokenizer(model)
    source = Path(data)
    if data in ("dialogues", "lists"):
        generated = dialogues(pairs) if data == "dialogues" else lists(pairs, responses)
        source = Path(directory) / "pairs.jsonl"
        source.write_text("".join(json.dumps(pair) + "\n" for pair in generated))
    rows = load_pairs(str(source))[0]
    if data != "lists":
        rows = rows.shuffle(seed=0)
    tokenized = tokenize_pairs(rows, tokenizer, None, None, "benchmark")
    short = np.flatnonzero(np.array(tokenized["length"][:]) <= max_length)[:pairs]
    set_unused_pad_token(tokenizer, [tokenized])
    messages = [{side: json.loads(row[side]) for side in ("chosen", "rejected")} for row in rows.select(short)]
    return tokenizer, Dataset.from_list(messages), tokenized.select(short)


def build_model(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a model with the same random weights in every call, or the model in a directory."""
    torch.manual_seed(0)
    if sizes := RANDOM_MODELS.get(name):
        config = AutoConfig.for_model(**sizes, vocab_size=len(tokenizer), max_position_embeddings=8192, num_labels=1)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32)
    set_pad_token(model, tokenizer)
    return model
