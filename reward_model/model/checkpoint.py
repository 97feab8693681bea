"""What a folder holds (a reward model, an adapter, a causal LM), and whether all of it is there.

`python -m reward_model.model.checkpoint FOLDER` prints the dtype of a full reward model, in which it must be served;
for anything else it says what that is and exits with 1. It imports neither torch nor weights.
"""

import json
import sys
from datetime import datetime
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reward_model import InputError
from reward_model.model.chat_template import pin_date, single_template
from reward_model.model.template_validation import prove_template

MARKED = 2**20  # bytes of each file, three times


def check_reward_model(folder: str) -> dict[str, Any]:
    """The config of a full reward model in a local folder; InputError says what the folder is instead, and the cure."""
    path = Path(folder)
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is a LoRA adapter; merge it into its base model first: .venv/bin/python merge_lora.py {folder} "
            "OUTPUT_DIR"
        )
    if not (path / "config.json").is_file():
        found = "has no config.json" if path.is_dir() else "is no folder"
        raise InputError(f"{folder} {found}; give the --output_dir of train.py, or another reward model's folder.")
    config = read_config(path)
    architecture = (config.get("architectures") or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise InputError(
            f"{folder} holds {architecture}, which has no reward head: it is not a trained reward model. "
            f"Train one: .venv/bin/python train.py --model_name_or_path {folder} …"
        )
    check_one_label(config, folder)
    check_weights(path, config)
    return config


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a model folder, or another file of this kind."""
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / name} is broken: {error}. Copy or download it again.") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder / name} is no object, but a {type(config).__name__}.")
    return config


def check_one_label(config: dict[str, Any], folder: str) -> None:
    """Refuse a classifier with another number of labels than one."""
    labels = config.get("num_labels") or len(config.get("id2label") or {"0": "", "1": ""})
    if labels != 1:
        raise InputError(
            f"{folder} is a classifier with {labels} labels; a reward model has one. Start from the model it was "
            "trained from instead."
        )


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a model directory without weights, and a reward model without its head. Loading checks the rest."""
    names = stored_tensors(folder)
    if names is None:
        if not list(folder.glob("pytorch_model*.bin")):
            raise InputError(f"{folder} has a config.json but no weights (model.safetensors); copy or download them.")
        return
    has_head = any(name.endswith("score.weight") for name in names)
    if (config.get("architectures") or [""])[0].endswith("ForSequenceClassification") and not has_head:
        raise InputError(
            f"{folder} says that it is a reward model, but its weights have no reward head (score.weight), so its "
            "scores would be random. Train it anew, or copy the weights that belong to it."
        )


def stored_tensors(folder: Path, name: str = "model") -> dict[str, list[int]] | None:
    """Return the shapes of the tensors in `name`.safetensors or the files of its index; None where neither exists.

    Raises InputError for a file that is missing or broken.
    """
    index, files = folder / f"{name}.safetensors.index.json", [folder / f"{name}.safetensors"]
    if not files[0].is_file():
        if not index.is_file():
            return None
        try:
            files = [folder / file for file in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
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
    """Parameters of a model folder; None for a hub id, or what is no model."""
    try:
        tensors = stored_tensors(Path(name or "no folder"))
    except InputError:
        return None  # told by the check of the folder
    return sum(map(prod, tensors.values())) if tensors else None


def weights_mark(name: str | Path) -> str | None:
    """By which the weights of a local folder are known again: a hash of their sizes, begins and ends."""
    mark, files = sha256(), sorted(Path(name).glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as content:
            size = content.seek(0, 2)
            mark.update(str(size).encode())
            for place in (0, size // 2, max(0, size - MARKED)):
                content.seek(place)
                mark.update(content.read(MARKED))
    return mark.hexdigest() if files else None


def check_base_model(name: str, argument: str = "--model_name_or_path") -> None:
    """Refuse, before anything is loaded, a local folder that cannot be trained from; a hub id is left to the hub."""
    path = Path(name)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise InputError(f"{argument} {name}: no such folder, and no hub id (owner/name).")
        return
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{name} is a LoRA adapter; merge it first: .venv/bin/python merge_lora.py {name} OUTPUT_DIR")
    if not (path / "config.json").is_file():
        raise InputError(f"{argument} {name}: no config.json there; give a model folder or a hub id.")
    config = read_config(path)
    if (config.get("architectures") or [""])[0].endswith("ForSequenceClassification"):
        check_one_label(config, name)
    check_weights(path, config)
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN_TYPES

    if (model_type := config.get("model_type")) not in KNOWN_TYPES and "auto_map" not in config:
        raise InputError(
            f"{name}: Transformers has no {model_type} model with one score per conversation "
            "(AutoModelForSequenceClassification); start from another architecture."
        )


def set_pad_token(model: Any, tokenizer: Any) -> None:
    """Let the model know the tokenizer's pad token, with a row of the embedding for it where it is a new one."""
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)


def light_tokenizer(folder: str) -> Any:
    """Return the tokenizer of a directory, if possible without AutoTokenizer, whose import takes seconds."""
    from transformers import PreTrainedTokenizerFast

    if not (Path(folder) / "tokenizer.json").is_file():
        from reward_model.model.tokenization import load_tokenizer

        return load_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = single_template(tokenizer.chat_template, folder)
    return tokenizer


def check_template(tokenizer: Any, folder: str) -> None:
    """Refuse a chat template that cannot be trusted. One of others that prints today's date is only warned of, as
    nothing else renders what they trained with."""
    template = tokenizer.chat_template
    pinned = pin_date(str(template or ""), datetime.now().date().isoformat())
    if template and template != pinned:
        print(
            f"warning: the chat template of {folder} prints today's date, so scores change from day to day. To hold "
            "them, write a date in the place of strftime_now(…) in its chat_template.jinja.",
            file=sys.stderr,
        )
    tokenizer.chat_template = pinned
    prove_template(tokenizer)
    tokenizer.chat_template = template


if __name__ == "__main__":
    try:
        config = check_reward_model(sys.argv[1])
        check_template(light_tokenizer(sys.argv[1]), sys.argv[1])
        print(config.get("dtype") or config.get("torch_dtype") or "auto")
    except InputError as error:
        sys.exit(f"error: {error}")
