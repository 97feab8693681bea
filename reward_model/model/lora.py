"""A LoRA adapter: whether it can be merged into its base model, and merging it."""

from pathlib import Path

from reward_model import InputError
from reward_model.data.readers import check_hub
from reward_model.model.checkpoint import check_base_model, read_config, set_pad_token, stored_tensors, weights_mark


def check_adapter(adapter: Path, base: str | None = None, force: bool = False) -> str:
    """The base model of an adapter that can be merged; refuses `base` where the adapter was trained on another one."""
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: no adapter_config.json there; give a checkpoint of train.py --use_peft.")
    weights = stored_tensors(adapter, "adapter_model")
    if weights is None:
        raise InputError(f"{adapter} has no adapter_model.safetensors; copy it, or take another checkpoint.")
    if not any(name.endswith("score.weight") for name in weights):
        raise InputError(
            f"{adapter} has no trained reward head (score.weight), so its scores would be random. It was trained "
            "with another task type than SEQ_CLS; train again without --lora_task_type."
        )
    own = read_config(adapter, "adapter_config.json").get("base_model_name_or_path")
    used = base or own
    if not used or (not Path(used).is_dir() and used.startswith((".", "/"))):
        raise InputError(f"The base model {used} of {adapter} is not there; name it: --base_model FOLDER_OR_HUB_ID")
    check_base_model(used, "--base_model")
    if not Path(used).is_dir():
        check_hub(used, "model")
    if not (adapter / "tokenizer_config.json").is_file():
        raise InputError(f"{adapter} has no tokenizer; copy its tokenizer files from the run.")
    run = read_config(adapter.parent, "run.json") if (adapter.parent / "run.json").is_file() else {}
    recorded = run.get("weights")
    same = weights_mark(used) == recorded if recorded else Path(used).name == Path(own or used).name
    if not (same or force):
        raise InputError(
            f"{adapter} was trained on {own}, and {used} has other weights: the sum would be no model that was ever "
            "trained. --force merges all the same."
        )
    return used


def merge_adapter(adapter: Path, base: str, output_dir: Path, dtype: str = "auto") -> None:
    """Write the reward model that `adapter` and its base model (of `check_adapter`) make to `output_dir`.

    The sum is taken in fp32 and stored in `dtype`; "auto" is the base model's.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    from reward_model.model.loading import load_model
    from reward_model.model.packing_check import prepare
    from reward_model.model.reference_scores import write_reference_scores
    from reward_model.model.tokenization import load_tokenizer

    dtype = AutoConfig.from_pretrained(base).dtype if dtype == "auto" else getattr(torch, dtype)
    tokenizer = load_tokenizer(str(adapter))
    model = load_model(base, new_head=True, dtype=torch.float32)  # the adapter brings the head
    set_pad_token(model, tokenizer)
    try:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except RuntimeError as error:  # tensors of other shapes
        raise InputError(f"{adapter} does not fit {base}: {' '.join(str(error).split())[:300]}") from None
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise InputError(f"{adapter} and {base} make weights that are not finite (nan or infinity); nothing is saved.")
    model.to(dtype or torch.float32).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    print("Merged; scoring the conversations of its score contract.", flush=True)
    device = scoring_device(model.num_parameters())
    write_reference_scores(prepare(model.float().to(device), tokenizer.pad_token_id), tokenizer, output_dir)


def scoring_device(parameters: int) -> str:
    """Return "cuda" if the reference scores of an fp32 model with so many parameters fit there, "cpu" if not."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.empty_cache()  # of what a training run has left
    return "cuda" if torch.cuda.mem_get_info()[0] > 4 * parameters + 4e9 else "cpu"  # 4 GB for the longest conversation
