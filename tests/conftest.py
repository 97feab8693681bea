"""Fixtures: a small real tokenizer, tiny random models, trained models and vLLM servers."""

import shutil
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import (
    ARGUMENTS,
    CHATML,
    CHUNKED,
    HELD_OUT,
    PAIRS,
    VARIANTS,
    Server,
    demo_pairs,
    jsonl,
    rewards_in_training,
    tiny_config,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a vLLM server, which `make check` leaves out."""
    for item in items:
        if {"serve", "runs"} & set(item.fixturenames):
            item.add_marker("server")


@pytest.fixture(scope="session")
def make_tokenizer():
    """Return a function that makes a byte-level BPE tokenizer, trained on the demo pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([message["content"] for pair in demo_pairs() for message in pair["chosen"]], trainer)

    def make(template: str = CHATML, pad_token: str | None = "<|endoftext|>"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token=pad_token)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, make_tokenizer):
    """Return a function that writes a tiny random causal LM and returns its directory."""
    import torch
    from transformers import AutoModelForCausalLM

    def make(
        model_type: str = "qwen2", template: str = CHATML, pad_token: str | None = "<|endoftext|>", **changes: object
    ) -> Path:
        directory = tmp_path_factory.mktemp("models") / f"tiny {model_type}"  # paths may contain spaces
        torch.manual_seed(0)
        # Weights large enough for scores to depend on every token; heads of size 32, vLLM's minimum on a CPU.
        config = tiny_config(model_type, initializer_range=0.1, hidden_size=128, **changes)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        make_tokenizer(template, pad_token).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def base_model(tiny_model) -> Path:
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_reward_model(base_model: Path, tmp_path_factory) -> Path:
    """Write a reward model with a random head."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    directory = shutil.copytree(base_model, tmp_path_factory.mktemp("rm") / "a model")
    config = AutoConfig.from_pretrained(base_model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if weights are loaded; their names and shapes may be read."""
    from transformers import AutoModelForSequenceClassification

    load = AutoModelForSequenceClassification.from_pretrained

    def refuse(*args: object, device_map: str | None = None, **kwargs: object) -> object:
        if device_map == "meta":
            return load(*args, device_map=device_map, **kwargs)
        raise AssertionError("a model was loaded before the problem was found")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)


@pytest.fixture
def few_pairs(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "some pairs.jsonl", demo_pairs()[:24])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    jsonl(directory / "train.jsonl", demo_pairs()[:24])
    jsonl(directory / "eval.jsonl", HELD_OUT)
    return directory


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator:
    """Return a function that starts a server for each of several models and returns them when all are ready."""
    servers: list[Server] = []

    def start(*models: Path, flags: tuple[tuple[str, ...], ...] = ()) -> list[Server]:
        logs = tmp_path_factory.mktemp("logs")
        each = zip_longest(models, flags, fillvalue=())
        started = [Server(model, logs / f"{number}.log", 0, more) for number, (model, more) in enumerate(each)]
        servers.extend(started)
        for server in started:
            server.wait()
        return started

    yield start
    for server in servers:
        server.process.terminate()
    for server in servers:
        server.process.wait(timeout=60)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_model, serve) -> dict[str, SimpleNamespace]:
    """Train each variant with train.py, score it with the model of the trainer, and serve it with infer_vllm.sh."""
    import train as train_script

    runs = {}
    directory = tmp_path_factory.mktemp("parity")
    for name, model in VARIANTS.items():
        output_dir = directory / name
        arguments = ARGUMENTS.split()
        if "LoRA" in name:
            arguments += "--use_peft --lora_r 8 --lora_alpha 16 --split_special_tokens True".split()
            arguments += ["--chat_template_kwargs", '{"enable_thinking": false}']
        trainer = train_script.main(
            ["--model_name_or_path", str(tiny_model(**model)), "--output_dir", str(output_dir), "--dataset_name"]
            + [str(jsonl(directory / "pairs.jsonl", PAIRS)), *arguments]
        )
        assert trainer.data_collator.shared_prefix, "the run fell back to padded batches"
        runs[name] = SimpleNamespace(model=output_dir, in_training=rewards_in_training(trainer))
    # The last server prefills prompts of more than 128 tokens in chunks and caches prefixes.
    flags = ((), (), tuple(CHUNKED.split()))
    for run_, server in zip(runs.values(), serve(*(run.model for run in runs.values()), flags=flags), strict=True):
        run_.url, run_.log = server.url, server.log
    return runs
