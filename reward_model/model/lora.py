"""Check and merge LoRA adapters."""

from pathlib import Path

from reward_model import InputError
from reward_model.data.readers import check_hub
from reward_model.model.checkpoint import (
    check_base_model,
    read_config,
    set_pad_token,
    set_served_architecture,
    stored_tensors,
    weights_fingerprint,
)


def check_adapter(adapter: Path, base_model: str | None = None, force: bool = False) -> str:
    """Check that an adapter can be merged, and return the name of its base model.

    Args:
        adapter: Directory of the adapter.
        base_model: Directory or Hub id to use instead of the one in adapter_config.json.
        force: Accept a base model whose weights differ from those that the adapter was trained on.

    Raises:
        InputError: The adapter is incomplete, or its base model is missing or has different weights.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter} has no adapter_config.json. Pass a checkpoint from train.py --use_peft.")
    weights = stored_tensors(adapter, "adapter_model")
    if weights is None:
        raise InputError(f"{adapter} has no adapter_model.safetensors. Copy it, or pass another checkpoint.")
    if not any(name.endswith("score.weight") for name in weights):
        raise InputError(
            f"{adapter} has no trained reward head (score.weight), so its scores would be random. Train again with "
            "the task type SEQ_CLS."
        )
    recorded_base = read_config(adapter, "adapter_config.json").get("base_model_name_or_path")
    used = base_model or recorded_base
    if not used or (not Path(used).is_dir() and used.startswith((".", "/"))):
        raise InputError(f"The base model {used} of {adapter} does not exist. Pass --base_model DIRECTORY_OR_HUB_ID")
    check_base_model(used, "--base_model")
    if not Path(used).is_dir():
        check_hub(used, "model")
    if not (adapter / "tokenizer_config.json").is_file():
        raise InputError(f"{adapter} has no tokenizer. Copy the run's tokenizer files into it.")
    run = read_config(adapter.parent, "run.json") if (adapter.parent / "run.json").is_file() else {}
    if fingerprint := run.get("weights"):
        same = weights_fingerprint(used) == fingerprint
    else:
        same = Path(used).name == Path(recorded_base or used).name
    if not (same or force):
        raise InputError(
            f"{adapter} was trained on {recorded_base}, but {used} has different weights. Pass the base model of the "
            "run, or --force to merge anyway."
        )
    return used


def merge_adapter(adapter: Path, base_model: str, output_dir: Path, dtype: str = "auto") -> None:
    """Merge an adapter into its base model, and write the reward model with its reference scores to `output_dir`.

    Args:
        adapter: Directory of the adapter.
        base_model: The name that `check_adapter` returned.
        output_dir: Directory for the merged model.
        dtype: Dtype of the saved weights; "auto" keeps that of the base model. Weights are merged in fp32.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    from reward_model.model.loading import load_model
    from reward_model.model.packing_check import prepare_for_scoring
    from reward_model.model.reference_scores import write_reference_scores
    from reward_model.model.tokenization import load_tokenizer

    dtype = AutoConfig.from_pretrained(base_model).dtype if dtype == "auto" else getattr(torch, dtype)
    tokenizer = load_tokenizer(str(adapter))
    model = load_model(base_model, new_head=True, dtype=torch.float32)  # the adapter contains the head
    set_pad_token(model, tokenizer)
    try:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except RuntimeError as error:  # shapes that do not match
        raise InputError(f"{adapter} does not match {base_model}: {' '.join(str(error).split())[:300]}") from error
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise InputError(f"Merging {adapter} into {base_model} gives weights that are not finite; nothing was saved.")
    model.to(dtype or torch.float32).save_pretrained(output_dir)
    set_served_architecture(output_dir)
    tokenizer.save_pretrained(output_dir)
    print("Saved the merged model. Computing its reference scores.", flush=True)
    device = scoring_device(model.num_parameters())
    model = prepare_for_scoring(model.float().to(device), tokenizer.pad_token_id)
    write_reference_scores(model, tokenizer, output_dir)


def scoring_device(parameters: int) -> str:
    """Return "cuda" if an fp32 model with this many parameters can be scored on the GPU, otherwise "cpu"."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.empty_cache()  # free what training left in the cache
    return "cuda" if torch.cuda.mem_get_info()[0] > 4 * parameters + 4e9 else "cpu"  # 4 GB for the longest conversation
