"""Check the arguments of a run: numbers, conflicts, missing packages, and values that libraries would reject later."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from huggingface_hub import HfApi
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available

from reward_model import InputError
from reward_model.data.dataset import check_eval_size
from reward_model.training.arguments import TrainingArguments
from reward_model.training.ranks import collect
from reward_model.training.trainer import METRICS

POSITIVE = (
    "num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_length "
    "save_total_limit dataset_num_proc eval_steps save_steps logging_steps lora_r lora_alpha"
).split()
UNSUPPORTED_ARGUMENTS = {
    "torch_compile": "every batch has a different length, so the model would be recompiled each time",
    "dataset_streaming": "pairs are tokenized once, before training",
    "dataset_config": "pass the files or the directory of the dataset instead",
    "pad_token": "train.py chooses a token that no conversation contains",
}


def check_numbers(*arguments: Any) -> list[str]:
    """Return a message for each number that is out of range."""
    given = {item.name: getattr(part, item.name) for part in arguments for item in fields(part)}
    problems = [
        f"--{name} {given[name]:g} must be greater than 0."
        for name in POSITIVE
        if isinstance(given[name], int | float) and not 0 < given[name] < 2**31
    ]
    if given["max_steps"] == 0 or given["max_steps"] < -1:
        problems.append(f"--max_steps {given['max_steps']} must be greater than 0, or -1 to train by epochs.")
    if not 0 <= given["label_smoothing_factor"] < 0.5:
        problems.append(f"--label_smoothing_factor {given['label_smoothing_factor']:g} must be in [0, 0.5).")
    with collect(problems):
        check_eval_size(given["eval_size"])
    return problems


def check_argument_conflicts(data_args: Any, training_args: Any, model_args: Any) -> list[str]:
    """Return a message for each argument that conflicts with another one, the hardware or the installed packages."""
    problems = [
        f"--{name} is not supported: {why}. Remove the argument."
        for name, why in UNSUPPORTED_ARGUMENTS.items()
        if getattr(data_args, name, None) or getattr(training_args, name, None)
    ]
    if not torch.accelerator.is_available() or training_args.use_cpu:
        if training_args.fp16 or model_args.dtype == "float16":
            problems.append("--fp16 and --dtype float16 need a GPU; on a CPU, float32 is used. Remove the argument.")
        if training_args.activation_offloading:
            problems.append("--activation_offloading needs a GPU. Remove the argument.")
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    if training_args.use_liger_kernel and not is_liger_kernel_available():
        problems.append("--use_liger_kernel needs a package: pip install liger-kernel")
    if quantized and not importlib.util.find_spec("bitsandbytes"):
        problems.append("--load_in_4bit and --load_in_8bit need a package: pip install bitsandbytes")
    if quantized and not model_args.use_peft:
        problems.append("--load_in_4bit and --load_in_8bit need --use_peft: quantized weights cannot be trained.")
    if model_args.use_peft and model_args.lora_task_type != "SEQ_CLS":
        problems.append(
            f"--lora_task_type {model_args.lora_task_type} does not save the reward head. Remove the argument; the "
            "default is SEQ_CLS."
        )
    if not model_args.use_peft:
        problems += [
            f"--{item.name} has no effect without --use_peft. Add --use_peft or remove the argument."
            for item in fields(model_args)
            if item.name.startswith(("lora_", "use_rslora", "use_dora"))
            and getattr(model_args, item.name) != item.default
        ]
    for name in {*(training_args.report_to or [])} - {*get_available_reporting_integrations()}:
        problems.append(f"--report_to {name} is not installed or is unknown to Transformers. Install it, or pass none.")
    for mismatch in training_args.hf_deepspeed_config.mismatches if training_args.deepspeed else []:
        problems.append(f'The --deepspeed file contradicts an argument: {mismatch[2:]}. Set the entry to "auto".')
    return problems


@contextmanager
def report_error(arguments: Any, *names: str) -> Iterator[None]:
    """Turn any exception that a library raises into an InputError that names the arguments at fault."""
    try:
        yield
    except Exception as error:
        given = [(name, getattr(arguments, name)) for name in names]
        shown = " ".join(f"--{name} {getattr(value, 'value', value)}" for name, value in given if value is not None)
        raise InputError(f"{shown}: {' '.join(str(error).split())}") from error


def check_libraries(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Let the libraries check arguments that they would otherwise reject only after data and weights are loaded.

    The optimizer and the scheduler are built for a single weight on the CPU, or for `model` on the meta device.
    """
    steps = max(args.max_steps, 1000)
    with report_error(args, "optim", "optim_args"):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        given = next((options.pop(name) for name in ("params", "model", "optimizer_dict") if name in options), None)
        optimizer = optimizer_class(given or torch.nn.Linear(1, 1).parameters(), **options)
    with report_error(args, "lr_scheduler_type", "lr_scheduler_kwargs"):
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    if args.gradient_checkpointing:
        with report_error(args, "gradient_checkpointing"):
            model.gradient_checkpointing_enable()  # JetMoE, for example, does not support it
    with report_error(args, "gradient_checkpointing_kwargs"):
        settings = {"use_reentrant": True, **(args.gradient_checkpointing_kwargs or {})}
        checkpoint(torch.relu, torch.ones(1, requires_grad=True), **settings)
    if args.push_to_hub:
        with report_error(args, "push_to_hub"):
            HfApi(token=args.hub_token).whoami()


def check_metric(training_args: TrainingArguments, benchmarks: list[str]) -> None:
    """Raise InputError if no evaluation reports --metric_for_best_model; Trainer would fail only after the first."""
    prefixes = [f"{name}_" for name in ("held_out", *benchmarks)] if benchmarks else [""]
    known = [f"{prefix}{metric}" for prefix in prefixes for metric in METRICS]
    metric, saves_best = training_args.metric_for_best_model, training_args.save_strategy == "best"
    if training_args.eval_strategy == "no" or not (metric or saves_best):
        return
    if str(metric).removeprefix("eval_") not in known:
        raise InputError(f"--metric_for_best_model {metric} is not reported. Choose one of {', '.join(known)}.")
