"""Caches are rebuilt when the code changes, and no conversation contains the pad token."""

from pathlib import Path

import pytest
from datasets import Dataset
from helpers import conversation, demo_pairs, jsonl

from reward_model.data import dataset
from reward_model.model import tokenization


def test_caches_are_rebuilt_when_the_code_changes(
    few_pairs: Path, make_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    rows = Dataset.from_list(demo_pairs()[:6])  # as loaded from the Hub
    found = []
    for stamp in ("original", "original", "changed"):
        monkeypatch.setattr(dataset, "code_stamp", lambda stamp=stamp: stamp)
        monkeypatch.setattr(tokenization, "code_stamp", lambda stamp=stamp: stamp)
        pairs = dataset.load_pairs(str(few_pairs))[0]
        tokenized = tokenization.tokenize_pairs(with_fixed_fingerprint(pairs), tokenizer, None, None, "training")
        found.append(
            [d.cache_files[0]["filename"] for d in (pairs, dataset._validated_dataset("hub", rows), tokenized)]
        )
    assert found[0] == found[1], "nothing was cached"
    assert all(before != after for before, after in zip(found[1], found[2], strict=True))


def with_fixed_fingerprint(pairs: Dataset) -> Dataset:
    """Set the same fingerprint each time, so that only the hash of the code can change the cache of the tokens."""
    pairs._fingerprint = "the same rows"
    return pairs


@pytest.mark.parametrize(
    ("text", "pad_token"), [("?", "<|endoftext|>"), ("<|endoftext|>", "<|pad|>"), ("<|endoftext|><|pad|>", "<|pad1|>")]
)
def test_pad_token_is_in_no_conversation(text: str, pad_token: str, make_tokenizer, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    if "<|pad|>" in text:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|pad|>"]})
    pair = {side: conversation(text, f"I was {side}.") for side in ("chosen", "rejected")}
    pairs = dataset.load_pairs(str(jsonl(tmp_path / "pairs.jsonl", [pair])))[0]
    tokenized = tokenization.tokenize_pairs(pairs, tokenizer, None, None, "training")
    tokenization.set_unused_pad_token(tokenizer, [tokenized])
    assert tokenizer.pad_token == pad_token
    assert tokenizer.convert_tokens_to_ids(pad_token) == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in [*tokenized["chosen_ids"][0], *tokenized["rejected_ids"][0]]
