"""Validate a run before any weights are loaded, and report all problems at once."""

import errno
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import get_peft_config

from reward_model import InputError
from reward_model.data.dataset import load_subsets
from reward_model.data.readers import check_hub
from reward_model.model.chat_template import pin_arguments, pin_date, split_special_tokens
from reward_model.model.checkpoint import check_base_model
from reward_model.model.loading import check_head, load_model
from reward_model.model.template_validation import check_rows, check_template
from reward_model.model.tokenization import load_tokenizer
from reward_model.training.argument_checks import (
    check_argument_conflicts,
    check_libraries,
    check_metric,
    check_numbers,
    report_error,
)
from reward_model.training.arguments import DataArguments, ModelArguments, TrainingArguments
from reward_model.training.checkpointing import find_checkpoint
from reward_model.training.data import read_pairs, sample_pairs
from reward_model.training.ranks import collect, raise_on_all_ranks
from reward_model.training.run_record import check_same_run, make_record

# Model types that vLLM 0.32 does not serve as they are saved (the table of families in docs/training.md).
NOT_SERVED = (
    "axk1 axk2 biogpt bloom diffllama doge gemma3 gpt_neo gpt_neox helium minicpm3 minimax ministral mpt persimmon "
    "phimoe zamba"
).split()


@dataclass
class Setup:
    """Everything that validation has read. Attributes that could not be read are left unset."""

    tokenizer: PreTrainedTokenizerBase = field(init=False)
    skeleton: PreTrainedModel = field(init=False)  # without weights, on the meta device; for LoRA, with its adapters
    train_pairs: Dataset = field(init=False)
    eval_pairs: Dataset | None = field(init=False)
    benchmarks: dict[str, Dataset] = field(init=False)
    record: dict[str, Any] = field(init=False)  # for run.json
    checkpoint: str | None = None  # to resume from
    warnings: list[str] = field(default_factory=list)


def check_setup(data_args: DataArguments, training_args: TrainingArguments, model_args: ModelArguments) -> Setup:
    """Read and check everything except the weights.

    Raises:
        InputError: Problems were found; the message lists all of them.
    """
    if data_args.dataset_name is None or model_args.model_name_or_path is None:
        raise InputError("Pass --model_name_or_path and --dataset_name. See .venv/bin/python train.py --help")
    setup, verbose = Setup(), training_args.process_index == 0
    problems = check_numbers(data_args, training_args, model_args)
    problems += check_argument_conflicts(data_args, training_args, model_args)
    with collect(problems):
        setup.checkpoint = check_output_dir(training_args, data_args.overwrite_output_dir, verbose)
    with collect(problems):
        check_base_model(model_args.model_name_or_path)
        check_hub(model_args.model_name_or_path, "model")
        with collect(problems):
            setup.tokenizer, warnings = load_training_tokenizer(training_args, model_args)
            setup.warnings += warnings
        setup.skeleton = load_skeleton(training_args, model_args)
        if (family := setup.skeleton.config.model_type) in NOT_SERVED:
            setup.warnings.append(
                f"vLLM 0.32 cannot serve {family} models as they are saved (see the table of families in "
                "docs/training.md). infer_transformers.py scores with the trained model."
            )
        if not problems:  # a number out of range would be reported twice
            check_libraries(setup.skeleton, training_args)
    with collect(problems), training_args.main_process_first(desc="data"):
        setup.train_pairs, setup.eval_pairs = read_pairs(data_args, verbose)
        setup.record = make_record(data_args, training_args, model_args)
        if setup.checkpoint:
            setup.warnings += check_resumed(setup.checkpoint, setup.record, training_args)
    with collect(problems), training_args.main_process_first(desc="benchmarks"):
        setup.benchmarks = load_subsets(data_args.benchmark_files)
        check_metric(training_args, list(setup.benchmarks))
    if not problems:
        with collect(problems):
            datasets = [setup.train_pairs, setup.eval_pairs, *setup.benchmarks.values()]
            pairs = [pair for dataset in datasets if dataset for pair in sample_pairs(dataset)]
            setup.warnings += check_rows(pairs, setup.tokenizer, data_args.allow_stripped_reasoning)
    different = rank_differences(setup)
    raise_on_all_ranks(problems or different)
    if verbose:
        print(*(f"{line}\n" for line in setup.warnings), sep="", end="")
    return setup


def check_output_dir(training_args: TrainingArguments, overwrite: bool, verbose: bool) -> str | None:
    """Check that the output directory can be written, and return the checkpoint to resume from, if any.

    Raises:
        InputError: The directory is not writable, contains a model or checkpoints that would be overwritten, or
            contains no checkpoint although one is required.
    """
    output_dir, resume = Path(training_args.output_dir), training_args.resume_from_checkpoint
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(f"--output_dir {output_dir} cannot be written ({existing}: {error.strerror}).") from error
    checkpoint = find_checkpoint(resume, output_dir, verbose)
    has_checkpoints = any(output_dir.glob("checkpoint-*")) and resume != "auto"
    if not (overwrite or checkpoint) and (has_checkpoints or any(output_dir.glob("*.safetensors"))):
        raise InputError(
            f"--output_dir {output_dir} already contains a model or checkpoints. Pass --resume_from_checkpoint auto to "
            "resume, --overwrite_output_dir True to start over, or another directory."
        )
    return checkpoint


def load_training_tokenizer(
    training_args: TrainingArguments, model_args: ModelArguments
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Return the tokenizer with the chat template of the run, after checking the template, and any warnings."""
    tokenizer = load_tokenizer(
        model_args.model_name_or_path,
        training_args.chat_template_path,
        trust_remote_code=training_args.trust_remote_code,
        revision=model_args.model_revision,
    )
    if training_args.template_date:
        tokenizer.chat_template = pin_date(tokenizer.chat_template, training_args.template_date)
    if training_args.chat_template_kwargs:
        tokenizer.chat_template = pin_arguments(tokenizer.chat_template, training_args.chat_template_kwargs)
    warnings = check_template(tokenizer)
    if training_args.split_special_tokens:
        split_special_tokens(tokenizer)
    if (eos := training_args.eos_token) and eos not in tokenizer.get_vocab():
        raise InputError(f"--eos_token {eos} is not in the vocabulary of {model_args.model_name_or_path}.")
    return tokenizer, warnings


def load_options(training_args: TrainingArguments, model_args: ModelArguments) -> dict[str, Any]:
    """Return the `from_pretrained` arguments that follow from the arguments of the run."""
    return {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "trust_remote_code": training_args.trust_remote_code,
        **(training_args.model_init_kwargs or {}),
    }


def load_skeleton(training_args: TrainingArguments, model_args: ModelArguments) -> PreTrainedModel:
    """Return the model on the meta device, where no weights are read; for LoRA, with its adapters.

    Raises:
        InputError: The model is not a decoder with a linear head, its weights do not match its config, or LoRA finds no
            module to adapt.
    """
    unset_hf_deepspeed_config()  # under ZeRO-3, parameters would be partitioned and have no shapes
    try:
        options = load_options(training_args, model_args)
        model = load_model(model_args.model_name_or_path, new_head=True, device_map="meta", **options)
    finally:
        if training_args.deepspeed:
            set_hf_deepspeed_config(training_args.hf_deepspeed_config)
    check_head(model)
    if model_args.use_peft and model_args.lora_r > 0 and model_args.lora_task_type == "SEQ_CLS":
        with report_error(model_args, "lora_target_modules"), torch.device("meta"):
            model = get_peft_model(model, get_peft_config(model_args))
    return model


def check_resumed(checkpoint: str, record: dict[str, Any], args: TrainingArguments) -> list[str]:
    """Check that a resumed run uses the same arguments as the original run, and return warnings."""
    named = args.resume_from_checkpoint not in ("auto", "True", "true")
    warnings = check_same_run(record, Path(args.output_dir), named)
    if not any(Path(checkpoint).glob("optimizer*")) and not any(Path(checkpoint).glob("global_step*")):
        warnings.append(f"{checkpoint} has no optimizer state; the optimizer is reinitialized.")
    return warnings


def rank_differences(setup: Setup) -> list[str]:
    """Return the differences between this rank and rank 0, which may read different storage. Runs on all ranks."""
    record = getattr(setup, "record", {"weights": None, "arguments": {"data": None}})
    own = {
        "--resume_from_checkpoint": setup.checkpoint,
        "weights": record["weights"],
        "data files": record["arguments"]["data"],
    }
    rank_0 = gather_object([own])[0]
    return [
        f"{name}: {own[name]} here, but {value} on rank 0. Use storage that all nodes share, or identical copies."
        for name, value in rank_0.items()
        if own[name] != value
    ]
