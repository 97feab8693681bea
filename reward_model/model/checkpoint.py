"""Inspect a model directory without loading weights: what kind of model it contains, and whether it is complete.

`python -m reward_model.model.checkpoint DIRECTORY cpu|gpu` prints the dtype in which a reward model must be served, or
exits with status 1 and the reason why the directory cannot be served. It avoids importing torch, which takes seconds.
"""

import json
import sys
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reward_model import InputError
from reward_model.model.chat_template import pin_date, single_template
from reward_model.model.template_validation import check_template

HASHED_BYTES = 2**20  # at the start, the middle and the end of each weights file


def check_reward_model(directory: str) -> dict[str, Any]:
    """Return the config of a complete reward model in a local directory.

    Raises:
        InputError: The directory contains something else or is incomplete.
    """
    path = Path(directory)
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{directory} is a LoRA adapter. Merge it first: {merge_command(directory)}")
    if not (path / "config.json").is_file():
        problem = "has no config.json" if path.is_dir() else "is not a directory"
        raise InputError(f"{directory} {problem}. Pass the --output_dir of train.py or another reward model.")
    config = read_config(path)
    if not is_reward_model(config):
        architecture = (config.get("architectures") or ["a model of unknown architecture"])[0]
        raise InputError(
            f"{directory} contains {architecture}, which has no reward head. "
            f"Train a reward model from it: .venv/bin/python train.py --model_name_or_path {directory} …"
        )
    check_one_label(config, directory)
    check_weights(path, config)
    return config


def check_base_model(name: str, argument: str = "--model_name_or_path") -> None:
    """Raise InputError if training cannot start from `name`, a directory or a Hub id. Hub ids are not looked up."""
    path = Path(name)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise InputError(f"{argument} {name} is neither a directory nor a Hub id (owner/name).")
        return
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{argument} {name} is a LoRA adapter. Merge it first: {merge_command(name)}")
    if not (path / "config.json").is_file():
        raise InputError(f"{argument} {name} has no config.json. Pass a model directory or a Hub id.")
    config = read_config(path)
    if is_reward_model(config):
        check_one_label(config, name)
    check_weights(path, config)
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN_TYPES

    if (model_type := config.get("model_type")) not in KNOWN_TYPES and "auto_map" not in config:
        raise InputError(
            f"{name}: Transformers has no sequence classifier for {model_type} models "
            "(AutoModelForSequenceClassification). Start from another architecture."
        )


def merge_command(adapter: str) -> str:
    """Return the command that merges an adapter."""
    return f".venv/bin/python merge_lora.py {adapter} OUTPUT_DIR"


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the contents of config.json, or of another JSON file, in a model directory."""
    try:
        config = json.loads((directory / name).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"expected an object, found a {type(config).__name__}")
    except ValueError as error:
        raise InputError(f"{directory / name} is broken: {error}. Copy or download it again.") from error
    return config


def is_reward_model(config: dict[str, Any]) -> bool:
    """Return whether a config describes a sequence classifier."""
    return (config.get("architectures") or [""])[0].endswith("ForSequenceClassification")


def check_one_label(config: dict[str, Any], directory: str) -> None:
    """Raise InputError unless a classifier has exactly one label."""
    labels = config.get("num_labels") or len(config.get("id2label") or {"0": "", "1": ""})
    if labels != 1:
        raise InputError(
            f"{directory} is a classifier with {labels} labels; a reward model has 1. Start from its base model."
        )


def serving_dtype(config: dict[str, Any], device: str) -> str:
    """Return the dtype in which infer_vllm.sh serves a model on a "cpu" or "gpu".

    Raises:
        InputError: vLLM would fail to import the model.
    """
    text = config.get("text_config") or config
    if "qwen3_5" in str(text.get("model_type")) and not find_spec("torchvision"):
        raise InputError(
            "vLLM's implementation of Qwen3.5 needs torchvision, even for text. Install the build of torchvision that "
            f"matches torch {version('torch')}."
        )
    if device == "cpu":  # fp32 is faster, as most CPUs emulate bf16, but vLLM runs linear attention only in bf16
        return "bfloat16" if "linear_attention" in (text.get("layer_types") or []) else "float32"
    return config.get("dtype") or config.get("torch_dtype") or "auto"


def set_served_architecture(directory: Path) -> None:
    """Write the architecture name that vLLM knows to config.json; Transformers goes by the model type instead.

    vLLM serves `XForSequenceClassification` with its `XForCausalLM`. In multimodal families, Transformers does not name
    text classes consistently: Qwen3_5TextForSequenceClassification but Qwen3_5ForCausalLM, and likewise in Gemma 3.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not (directory / "config.json").is_file():
        return  # an adapter
    config = read_config(directory)
    causal_lm = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"), "")
    if is_reward_model(config) and causal_lm.endswith("ForCausalLM"):
        config["architectures"] = [causal_lm.removesuffix("ForCausalLM") + "ForSequenceClassification"]
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_weights(directory: Path, config: dict[str, Any]) -> None:
    """Raise InputError if there are no weights, or if a reward model has no head. Loading checks the rest."""
    names = stored_tensors(directory)
    if names is None:
        if not list(directory.glob("pytorch_model*.bin")):
            raise InputError(f"{directory} has no weights (model.safetensors). Copy or download them.")
        return
    if is_reward_model(config) and not any(name.endswith("score.weight") for name in names):
        raise InputError(
            f"{directory} has no reward head (score.weight) in its weights, so its scores would be random. Copy all "
            "weights of the reward model."
        )


def stored_tensors(directory: Path, name: str = "model") -> dict[str, list[int]] | None:
    """Return the shapes of the tensors in `name`.safetensors or its shards, or None if neither exists.

    Raises:
        InputError: If a shard is missing or a file is broken.
    """
    index, files = directory / f"{name}.safetensors.index.json", [directory / f"{name}.safetensors"]
    if not files[0].is_file():
        if not index.is_file():
            return None
        try:
            files = [directory / file for file in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is broken: {error}. Copy or download it again.") from error
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                found |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read: {error}. Copy or download it again.") from error
    return found


def stored_parameters(name: str | None) -> int | None:
    """Return the number of parameters in a model directory, or None for a Hub id or unreadable weights."""
    try:
        tensors = stored_tensors(Path(name or "no directory"))
    except InputError:
        return None  # reported by check_base_model
    return sum(map(prod, tensors.values())) if tensors else None


def weights_fingerprint(name: str | Path) -> str | None:
    """Return a hash of each weights file's size and of three parts of it, or None if there are no local weights."""
    digest, files = sha256(), sorted(Path(name).glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as content:
            size = content.seek(0, 2)
            digest.update(str(size).encode())
            for offset in (0, size // 2, max(0, size - HASHED_BYTES)):
                content.seek(offset)
                digest.update(content.read(HASHED_BYTES))
    return digest.hexdigest() if files else None


def set_pad_token(model: Any, tokenizer: Any) -> None:
    """Copy the tokenizer's pad token to the model's config, and add an embedding for it if the model has none."""
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)


def light_tokenizer(directory: str) -> Any:
    """Load the tokenizer from a directory, if possible without AutoTokenizer, which takes seconds to import."""
    from transformers import PreTrainedTokenizerFast

    if not (Path(directory) / "tokenizer.json").is_file():
        from reward_model.model.tokenization import load_tokenizer

        return load_tokenizer(directory)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer.chat_template = single_template(tokenizer.chat_template, directory)
    return tokenizer


def check_saved_template(tokenizer: Any, directory: str) -> None:
    """Check the chat template of a trained model, but only warn if it prints today's date.

    The model was trained with that template, so a different one would change its scores.
    """
    template = tokenizer.chat_template
    pinned = pin_date(str(template or ""), datetime.now().date().isoformat())
    if template and template != pinned:
        print(
            f"warning: the chat template of {directory} prints today's date, so scores change from day to day. Replace "
            "strftime_now(…) in its chat_template.jinja with a fixed date.",
            file=sys.stderr,
        )
    tokenizer.chat_template = pinned
    check_template(tokenizer)
    tokenizer.chat_template = template


if __name__ == "__main__":
    try:
        config = check_reward_model(sys.argv[1])
        check_saved_template(light_tokenizer(sys.argv[1]), sys.argv[1])
        print(serving_dtype(config, sys.argv[2]))
    except InputError as error:
        sys.exit(f"error: {error}")
