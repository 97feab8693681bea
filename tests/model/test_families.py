"""Training, infer_transformers.py, reference scores and merged models give the same score for every architecture.

The reference is Transformers with eager attention, one conversation at a time.
"""

import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, PADDED, TWO_REGIMES
from helpers import conversation, demo_pairs, tiny_config
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from infer_transformers import infer_transformers
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.loading import load_model
from reward_model.model.lora import check_adapter, merge_adapter
from reward_model.model.modeling import install, rope_switch
from reward_model.model.packing_check import choose_attention
from reward_model.model.reference_scores import FILE, write_reference_scores
from reward_model.model.tokenization import load_tokenizer, render, token_ids
from reward_model.training.collator import PairCollator

ALL = {**ARCHITECTURES, **TWO_REGIMES, **{name: changes for name, (changes, _) in PADDED.items()}}
# Answers of different lengths, so that a padded batch has padding and a packed row has several prefixes.
CONVERSATIONS = [pair[side] for pair in demo_pairs()[:2] for side in ("chosen", "rejected")]
CONVERSATIONS += [conversation("2 + 2?", "4."), conversation("2 + 2?", "It is five, I think.")]


def eager_scores(directory: Path, conversations: list[list[dict]], tools: list, tokenizer) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        texts = [render(messages, tokenizer, used) for messages, used in zip(conversations, tools, strict=True)]
        return [model(torch.tensor([ids])).logits.item() for ids in token_ids(texts, tokenizer)]


def check_reference_scores(directory: Path, tokenizer) -> None:
    reference = json.loads((directory / FILE).read_text())["conversations"]
    conversations, tools = ([entry[key] for entry in reference] for key in ("messages", "tools"))
    expected = eager_scores(directory, conversations, tools, tokenizer)
    assert [entry["score"] for entry in reference] == pytest.approx(expected, abs=1e-4)


# `make check` runs one of each kind: packed, soft-capped, two rotary regimes, no attention interface, ALiBi, and
# another head size.
QUICK = {"qwen2", "gemma2 soft-capped", "phi3 longrope", "stablelm", "falcon alibi", "deepseek_v3"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ALL])
def test_every_path_gives_the_same_score(name: str, make_tokenizer, tmp_path: Path) -> None:
    base, trained, adapter, merged = (tmp_path / part for part in ("base", "trained", "adapter", "merged"))
    torch.manual_seed(0)
    config = tiny_config(name.split()[0], initializer_range=0.2, **ALL[name])
    # Mistral 4 has no causal LM class: it is the text part of a multimodal model.
    auto_class = AutoModel if name == "mistral4" else AutoModelForCausalLM
    auto_class.from_config(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    tokenizer = load_tokenizer(str(base))

    # Training
    model = load_model(str(base), new_head=True, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    set_pad_token(model, tokenizer)
    install(model)
    packs = choose_attention(model, tokenizer.pad_token_id) is None
    assert packs == (name not in PADDED)
    collator = PairCollator(tokenizer.pad_token_id, shared_prefix=packs, rope_switch=rope_switch(model.config))
    ids = token_ids([render(messages, tokenizer) for messages in CONVERSATIONS], tokenizer)
    pairs = [{"chosen_ids": one, "rejected_ids": other} for one, other in zip(ids[::2], ids[1::2], strict=True)]
    with torch.no_grad():
        rewards = model.eval()(**collator(pairs), use_cache=False).logits.view(2, -1).T.flatten()
    model.save_pretrained(trained)
    tokenizer.save_pretrained(trained)
    write_reference_scores(model, tokenizer, trained)

    expected = eager_scores(trained, CONVERSATIONS, [None] * len(CONVERSATIONS), tokenizer)
    assert max(expected) - min(expected) > 0.1, "the scores are too similar for a comparison"
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert infer_transformers(str(trained), CONVERSATIONS) == pytest.approx(expected, abs=1e-4)
    check_reference_scores(trained, tokenizer)

    # LoRA
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(load_model(str(base), new_head=True, dtype=torch.float32), lora)
    wrapped.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    merge_adapter(adapter, check_adapter(adapter), merged)
    check_reference_scores(merged, tokenizer)
