"""Weights that do not match config.json stop training and scoring, with the names of the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_model import InputError
from reward_model.model.loading import load_model

Tensors = dict[str, torch.Tensor]


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new, 1) if old else new + key: value for key, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


def with_one(key: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: torch.ones(shape)}


# Change of the weights, expected message.
MISMATCHED = {
    "torch.compile": (renamed("", "_orig_mod."), r"missing.* would be random; the weights contain _orig_mod\."),
    "DDP": (renamed("", "module."), r"the weights contain module\."),
    "FSDP": (renamed("layers.0.", "layers.0._fsdp_wrapped_module."), r"layers\.0\._fsdp_wrapped_module"),
    "activation checkpointing": (renamed("mlp.", "_checkpoint_wrapped_module.mlp."), "_checkpoint_wrapped_module"),
    "PEFT, not merged": (renamed("q_proj.", "q_proj.base_layer."), r"q_proj\.base_layer\.weight"),
    "trl's value head": (renamed("model.", "pretrained_model.model."), r"pretrained_model\.model"),
    "one layer is missing": (
        without("layers.1."),
        r"layers\.1\..* and \d+ more weights are missing",
    ),
    "one tensor is missing": (without("layers.0.mlp.up_proj"), r"model\.layers\.0\.mlp\.up_proj\.weight are missing"),
    "a further layer": (with_one("model.layers.2.mlp.up_proj.weight", 96, 128), r"contain model.layers.2.*be ignored"),
    "a bias": (with_one("model.layers.0.mlp.up_proj.bias", 96), r"up_proj\.bias, which config.json does not describe"),
    "another shape": (with_one("model.norm.weight", 64), r"model\.norm\.weight has the shape \[64\] in the weights"),
}
# Other heads and other parts of a larger model are ignored.
ACCEPTED = {
    "as saved": lambda tensors: tensors,
    "a language model's head": with_one("lm_head.weight", 640, 128),
    "a value head": with_one("v_head.summary.weight", 1, 128),
    "a vision tower": with_one("visual.blocks.0.attn.qkv.weight", 8, 8),
    "rotary frequencies": with_one("model.layers.0.self_attn.rotary_emb.inv_freq", 16),
    "without the body's prefix": renamed("model.", ""),
}


def test_layers_for_multi_token_prediction_are_ignored(base_model, tmp_path: Path) -> None:
    """Transformers reports them for models of DeepSeek-V3's architecture with another number of layers."""
    directory = changed(base_model, tmp_path / "model", with_one("model.layers.2.mlp.up_proj.weight", 96, 128))
    config = Path(directory, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_nextn_predict_layers": 1}))
    load_model(directory, new_head=True)


def changed(directory: Path, target: Path, change: Callable[[Tensors], Tensors]) -> str:
    shutil.copytree(directory, target)
    tensors = change(load_file(directory / "model.safetensors"))
    save_file({key: value.clone() for key, value in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    return str(target)


@pytest.mark.parametrize("trained", [False, True], ids=["base", "reward model"])
@pytest.mark.parametrize("kind", MISMATCHED)
def test_weights_that_do_not_match_the_config_are_refused(
    kind: str, trained: bool, base_model, tiny_reward_model, tmp_path: Path
) -> None:
    change, message = MISMATCHED[kind]
    directory = changed(tiny_reward_model if trained else base_model, tmp_path / "model", change)
    for options in ({}, {"device_map": "meta"}):  # with and without reading the weights
        with pytest.raises(InputError, match=message):
            load_model(directory, new_head=not trained, **options)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_weights_with_additional_parts_are_loaded(kind: str, base_model, tmp_path: Path) -> None:
    expected = load_file(base_model / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    model = load_model(changed(base_model, tmp_path / "model", ACCEPTED[kind]), new_head=True)
    torch.testing.assert_close(model.model.layers[1].mlp.up_proj.weight, expected)


def test_reward_model_without_its_head_is_refused(tiny_reward_model, tmp_path: Path) -> None:
    directory = changed(tiny_reward_model, tmp_path / "model", without("score"))
    with pytest.raises(InputError, match=r"score\.weight are missing"):
        load_model(directory)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes", "mxfp4"])
def test_quantized_base_is_refused(method: str, base_model, tmp_path: Path) -> None:
    directory = shutil.copytree(base_model, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(InputError, match=rf"is quantized \({method}\).* Start from the original model"):
        load_model(str(directory), new_head=True, quantization_config=None)
