"""Load a model with one score per conversation, and accept only weights that match its config.

Transformers randomly initializes weights that it does not find, and ignores weights that it does not know. Its loading
report lists both.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from reward_model import InputError


def load_model(name: str, new_head: bool = False, **options: Any) -> PreTrainedModel:
    """Load a directory or Hub id as a sequence classifier with one label.

    Args:
        name: Directory or Hub id.
        new_head: Accept weights without a reward head, and reject quantized weights, as training requires.
        options: Arguments for `from_pretrained`.

    Raises:
        InputError: The model cannot be loaded, or its weights do not match its config.
    """
    shared = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    try:
        config = AutoConfig.from_pretrained(name, **shared)
    except Exception as error:  # config classes raise errors of many types
        raise InputError(f"{name}: config.json cannot be loaded: {_words(error)}") from error
    quantized = getattr(config, "quantization_config", None)
    if new_head and quantized:
        raise InputError(
            f"{name} is quantized ({quantized.get('quant_method')}), and quantized weights cannot be trained. "
            "Start from the original model; --load_in_4bit True --use_peft quantizes it for training."
        )
    options |= {"num_labels": 1, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(name, **options)
            # Falcon fixes its attention when the model is built, and its alibi biases differ between sdpa and eager.
            if model.config._attn_implementation == "sdpa" and not model._can_set_attn_implementation():
                options["attn_implementation"] = "eager"
                model, report = AutoModelForSequenceClassification.from_pretrained(name, **options)
    except Exception as error:  # a missing package, a broken file, an unsupported architecture
        raise InputError(f"{name}: the model cannot be loaded: {_words(error)}") from error
    check_report(name, model, report, new_head)
    return model


def check_report(name: str, model: PreTrainedModel, report: dict[str, Any], new_head: bool) -> None:
    """Raise InputError if Transformers' loading report for `model` lists weights that do not match its config."""
    missing = set(report["missing_keys"]) - ({"score.weight"} if new_head else set())
    found = _names(report["unexpected_keys"])
    if missing:
        raise InputError(
            f"{name}: {_names(missing)} are missing from the weights and would be random"
            + (f"; the weights contain {found} instead" if found else "")
            + ". Save the unwrapped model again, or copy the weights that belong to config.json."
        )
    if report["mismatched_keys"]:
        key, stored, wanted = min(report["mismatched_keys"])
        raise InputError(
            f"{name}: {key} has the shape {list(stored)} in the weights but {list(wanted)} according to config.json. "
            "Copy the config.json that belongs to the weights."
        )
    if unknown := _ignored(model, report["unexpected_keys"]):
        raise InputError(
            f"{name}: the weights contain {_names(unknown)}, which config.json does not describe and which would be "
            "ignored. Copy the config.json that belongs to the weights."
        )


def _ignored(model: PreTrainedModel, unexpected: Any) -> set[str]:
    """Return the unexpected weights that matter: additional layers, and parts of existing modules, such as a bias.

    Heads for other tasks, vision towers and the like are not part of the model and do not matter. Neither do the layers
    in DeepSeek-V3 and its relatives that predict tokens beyond the next one.
    """
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    further = range(layers, layers + (getattr(config, "num_nextn_predict_layers", None) or 0))
    unexpected = [key for key in unexpected if not key.startswith(tuple(f"model.layers.{n}." for n in further))]
    known = {re.sub(r"\.\d+\.", ".*.", key) for key in model.state_dict()}
    modules = {name for name, module in model.named_modules() if not any(module.children())}
    return {key for key in unexpected if re.sub(r"\.\d+\.", ".*.", key) in known or key.rpartition(".")[0] in modules}


def check_head(model: PreTrainedModel) -> None:
    """Raise InputError unless the model is a decoder with a linear head `score`, as vLLM's LAST pooling expects."""
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} has no linear head `score` over the last token of a decoder, so vLLM would return "
            "different scores. Start from a decoder-only language model (Llama, Qwen, Mistral, …)."
        )


def _names(keys: Any) -> str:
    names = sorted(keys)
    return f"{', '.join(names[:3])}" + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Transformers' table of missing weights, which `check_report` replaces."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
