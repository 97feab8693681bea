"""What is refused before any weight is loaded: every mistake of a set-up at once, each in a sentence."""

import errno
import importlib.util
import math
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from huggingface_hub import HfApi
from peft import get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import is_liger_kernel_available
from trl import get_peft_config

from reward_model import InputError
from reward_model.data.dataset import check_eval_size, load_subsets
from reward_model.data.readers import check_hub
from reward_model.model.attention import check_head
from reward_model.model.chat_template import pin_arguments, pin_date, split_special_tokens
from reward_model.model.checkpoint import check_base_model
from reward_model.model.loading import load_model
from reward_model.model.template_validation import check_rows, prove_template
from reward_model.model.tokenization import load_tokenizer
from reward_model.training.arguments import DataArguments, ModelArguments, TrainingArguments
from reward_model.training.checkpointing import resume_from
from reward_model.training.data import read_pairs, sample
from reward_model.training.run_record import compare, record

# Numbers, what they must be, and whether one is; an argument left at None is not asked.
RANGES: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("learning_rate", "from 0 to 1", lambda value: 0 <= value <= 1),
    ("num_train_epochs", "above 0", lambda value: 0 < value < 1e6),
    ("max_steps", "1 or more, or -1 for whole epochs", lambda value: value == -1 or value > 0),
    (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_length "
        "save_total_limit dataset_num_proc lora_r lora_alpha",
        "1 or more",
        lambda value: 1 <= value < 2**31,
    ),
    ("seed data_seed", "from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    ("eval_steps save_steps logging_steps", "above 0", lambda value: 0 < value < math.inf),
    ("weight_decay max_grad_norm center_rewards_coefficient", "0 or more", lambda value: 0 <= value < math.inf),
    ("label_smoothing_factor", "from 0 to below 0.5", lambda value: 0 <= value < 0.5),
]
# Arguments of trl and Transformers that would do nothing here, or harm.
NO_USE = {
    "torch_compile": "it would compile anew for every batch: no two have the same lengths",
    "dataset_streaming": "pairs are tokenized once, before training",
    "dataset_config": "name the data set's files or folder instead",
    "pad_token": "train.py takes one that stands in no conversation",
}


# What an evaluation logs; a benchmark's name stands before it where there are benchmarks.
FIGURES = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")


@dataclass
class Inputs:
    """What a run is made of, as the checks have read it."""

    tokenizer: PreTrainedTokenizerBase
    skeleton: PreTrainedModel  # the model's shapes, without weights; with adapters under LoRA
    train_pairs: Dataset
    eval_pairs: Dataset | None
    benchmarks: dict[str, Dataset]
    record: dict[str, Any]  # for run.json


def check_setup(data_args: DataArguments, training_args: TrainingArguments, model_args: ModelArguments) -> Inputs:
    """Read all but the weights; raises one InputError with everything that is wrong."""
    name, data, tell = model_args.model_name_or_path, data_args.dataset_name, training_args.process_index == 0
    if data is None or name is None:
        needed = "--model_name_or_path and --dataset_name are needed"
        raise InputError(f"{needed}; .venv/bin/python train.py --help says more.")
    problems = check_numbers(data_args, training_args, model_args) + check_words(data_args, training_args, model_args)
    read: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    asked = training_args.resume_from_checkpoint
    with collected(problems):
        check_output(Path(training_args.output_dir), training_args, data_args.overwrite_output_dir, tell)
    with collected(problems):
        check_base_model(name)
        check_hub(name, "model")
        with collected(problems):
            read["tokenizer"] = tokenizer = load_tokenizer(
                name,
                training_args.chat_template_path,
                trust_remote_code=training_args.trust_remote_code,
                revision=model_args.model_revision,
            )
            if training_args.template_date:
                tokenizer.chat_template = pin_date(tokenizer.chat_template, training_args.template_date)
            if training_args.chat_template_kwargs:
                tokenizer.chat_template = pin_arguments(tokenizer.chat_template, training_args.chat_template_kwargs)
            warnings = prove_template(tokenizer)
            if training_args.split_special_tokens:
                split_special_tokens(tokenizer)
            if (eos := training_args.eos_token) and eos not in tokenizer.get_vocab():
                raise InputError(f"--eos_token {eos}: {name} has no such token. Leave it out.")
        read["skeleton"] = skeleton(training_args, model_args)
        # Text does not reach a vision tower, and by default DDP waits for the gradients of all parameters.
        config = read["skeleton"].config
        if training_args.ddp_find_unused_parameters is None and config.get_text_config() is not config:
            training_args.ddp_find_unused_parameters = True
        if not problems:  # a number out of range would be reported twice
            check_libraries(read["skeleton"], training_args)
    with collected(problems), training_args.main_process_first(desc="data"):
        read["train_pairs"], read["eval_pairs"] = read_pairs(data_args, tell)
        read["record"] = started_with = record(data_args, training_args, model_args)
        marks = {"weights": started_with["weights"], "data files": started_with["arguments"]["data"]}
        if resumed := training_args.resume_from_checkpoint:
            compare(read["record"], Path(training_args.output_dir), asked not in ("auto", "True", "true"), tell)
            if not (any(Path(resumed).glob("optimizer*")) or any(Path(resumed).glob("global_step*"))) and tell:
                print(f"{resumed} has no optimizer's state; Adam begins anew.")
    with collected(problems), training_args.main_process_first(desc="benchmarks"):
        read["benchmarks"] = load_subsets(data_args.benchmark_files)
        check_metric(training_args, list(read["benchmarks"]))
    if not problems:
        with collected(problems):
            files = [read["train_pairs"], read["eval_pairs"], *read["benchmarks"].values()]
            pairs = [pair for file in files if file for pair in sample(file)]
            warnings += check_rows(pairs, read["tokenizer"], data_args.allow_stripped_reasoning)
            print(*(f"{line}\n" for line in warnings if tell), sep="", end="")
    own = {"--resume_from_checkpoint": training_args.resume_from_checkpoint, **marks}
    of_rank_0 = gather_object([own])[0]
    if not problems:
        problems += [
            f"{name}: {own[name]}, on rank 0 {value}. Use storage that all nodes share, or equal copies."
            for name, value in of_rank_0.items()
            if own[name] != value
        ]
    raise_on_all_ranks(problems)
    return Inputs(**read)


@contextmanager
def reported(arguments: Any, *names: str) -> Iterator[None]:
    """Turn any exception of a library into an InputError: the arguments that it comes from, and the library's words."""
    try:
        yield
    except Exception as error:
        given = [(name, getattr(arguments, name)) for name in names]
        shown = " ".join(f"--{name} {getattr(value, 'value', value)}" for name, value in given if value is not None)
        raise InputError(f"{shown}: {' '.join(str(error).split())}") from error


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """A mistake ends the block and is written down; on several ranks any error is, as the others wait for this one."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError):
            if not torch.distributed.is_initialized():
                raise
            traceback.print_exc()
        problems.append(str(error) or repr(error))


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Run a block that only some ranks may fail in, and raise its error on all of them.

    A rank that raises alone leaves the others waiting in their next collective. A block in which a rank that fails
    would leave out a collective of its own must not be run under this.
    """
    problems: list[str] = []
    with collected(problems):
        yield
    raise_on_all_ranks(problems)


def raise_on_all_ranks(problems: list[str]) -> None:
    """Raise one InputError with the problems of all ranks on every rank."""
    each: list[list[str]] = gather_object([problems])
    lines = list(dict.fromkeys(line for found in each for line in found))
    for number, line in enumerate(lines):
        ranks = [str(rank) for rank, found in enumerate(each) if line in found]
        lines[number] = line if len(ranks) == len(each) else f"rank {', '.join(ranks)}: {line}"
    if lines:
        raise InputError("\nerror: ".join(lines))


def check_numbers(*arguments: Any) -> list[str]:
    """What is wrong with single numbers."""
    given = {field.name: getattr(part, field.name) for part in arguments for field in fields(part)}
    problems = [
        f"--{name} {given[name]:g}: it must be {wanted}."
        for names, wanted, holds in RANGES
        for name in names.split()
        if isinstance(given[name], int | float) and not holds(given[name])
    ]
    with collected(problems):
        check_eval_size(given["eval_size"])
    return problems


def check_words(data_args: DataArguments, training_args: TrainingArguments, model_args: ModelArguments) -> list[str]:
    """What is wrong with arguments beside each other, or with the hardware."""
    has_gpu = torch.accelerator.is_available() and not training_args.use_cpu
    problems = [
        f"--{name} has no place here: {why}. Leave it out."
        for name, why in NO_USE.items()
        if getattr(data_args, name, None) or getattr(training_args, name, None)
    ]
    if not has_gpu and (training_args.fp16 or model_args.dtype == "float16"):
        problems.append("--fp16 and --dtype float16 need a GPU; a CPU trains in float32. Leave it out.")
    if training_args.activation_offloading and not has_gpu:
        problems.append("--activation_offloading needs a GPU. Leave it out.")
    if training_args.use_liger_kernel and not is_liger_kernel_available():
        problems.append("--use_liger_kernel needs liger-kernel: pip install liger-kernel")
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not importlib.util.find_spec("bitsandbytes"):
        problems.append("--load_in_4bit and --load_in_8bit need bitsandbytes: pip install bitsandbytes")
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
        problems.append("--load_in_4bit and --load_in_8bit need --use_peft: quantised weights cannot be trained.")
    if model_args.use_peft and model_args.lora_task_type != "SEQ_CLS":
        problems.append(
            f"--lora_task_type {model_args.lora_task_type}: only SEQ_CLS trains the reward head and saves it. Leave it "
            "out."
        )
    if not model_args.use_peft:
        given = [item for item in fields(model_args) if item.name.startswith(("lora_", "use_rslora", "use_dora"))]
        problems += [
            f"--{item.name} does nothing without --use_peft; add that, or leave it out."
            for item in given
            if getattr(model_args, item.name) != item.default
        ]
    for name in {*(training_args.report_to or [])} - {*get_available_reporting_integrations()}:
        problems.append(f"--report_to {name}: not installed, or not known to Transformers; pip install it, or none.")
    for mismatch in training_args.hf_deepspeed_config.mismatches if training_args.deepspeed else []:
        problems.append(f'--deepspeed contradicts an argument: {mismatch[2:]}. Write "auto" in the file.')
    return problems


def check_libraries(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Raise InputError for arguments that a library would reject only after data and weights are loaded.

    The libraries are asked themselves, with `model` on the meta device and one weight on the CPU, so they report what
    is not installed, missing or contradictory.
    """
    steps = max(args.max_steps, 1000)
    with reported(args, "optim", "optim_args"):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        given = next((options.pop(name) for name in ("params", "model", "optimizer_dict") if name in options), None)
        optimizer = optimizer_class(given or torch.nn.Linear(1, 1).parameters(), **options)
    with reported(args, "lr_scheduler_type", "lr_scheduler_kwargs"):
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    with reported(args, "gradient_checkpointing_kwargs"):
        settings = {"use_reentrant": True, **(args.gradient_checkpointing_kwargs or {})}
        checkpoint(torch.relu, torch.ones(1, requires_grad=True), **settings)
    if args.push_to_hub:
        with reported(args, "push_to_hub"):
            HfApi(token=args.hub_token).whoami()


def check_metric(training_args: TrainingArguments, benchmarks: list[str]) -> None:
    """Raise InputError for a --metric_for_best_model that no evaluation gives: Trainer looks it up after the first."""
    files = [f"{name}_" for name in ("held_out", *benchmarks)] if benchmarks else [""]
    known = [f"{file}{figure}" for file in files for figure in FIGURES]
    metric, saves_best = training_args.metric_for_best_model, training_args.save_strategy == "best"
    if training_args.eval_strategy == "no" or not (metric or saves_best):
        return
    if str(metric).removeprefix("eval_") not in known:
        raise InputError(f"--metric_for_best_model {metric}: choose one of {', '.join(known)}.")


def check_output(output_dir: Path, training_args: TrainingArguments, overwrite: bool, tell: bool) -> None:
    """Sets `resume_from_checkpoint` to a path; raises InputError for a place that cannot be written or is taken."""
    place = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no folder")
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError(
            f"--output_dir {output_dir}: nothing can be written there ({place}: {error.strerror})."
        ) from None
    asked = training_args.resume_from_checkpoint
    training_args.resume_from_checkpoint = resume_from(asked, output_dir, tell)
    begun = any(output_dir.glob("checkpoint-*")) and asked != "auto"
    if overwrite or training_args.resume_from_checkpoint:
        return
    if begun or any(output_dir.glob("*.safetensors")):
        raise InputError(
            f"{output_dir} holds a trained model or checkpoints. Choose another --output_dir, go on from the last "
            "checkpoint (--resume_from_checkpoint True), or write over it (--overwrite_output_dir True)."
        )


def load_options(training_args: TrainingArguments, model_args: ModelArguments) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that the run's arguments give."""
    return {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "trust_remote_code": training_args.trust_remote_code,
        **(training_args.model_init_kwargs or {}),
    }


def skeleton(training_args: TrainingArguments, model_args: ModelArguments) -> PreTrainedModel:
    """Return the model on torch's meta device, where no weight is read.

    Raises InputError for a config without a reward model, for weights that do not fit it, and for LoRA that finds no
    module to adapt.
    """
    unset_hf_deepspeed_config()  # or the shapes would be split over the ranks
    try:
        options = load_options(training_args, model_args)
        model = load_model(model_args.model_name_or_path, new_head=True, device_map="meta", **options)
    finally:
        if training_args.deepspeed:
            set_hf_deepspeed_config(training_args.hf_deepspeed_config)
    check_head(model)
    if model_args.use_peft and model_args.lora_r > 0 and model_args.lora_task_type == "SEQ_CLS":
        try:
            with torch.device("meta"):
                model = get_peft_model(model, get_peft_config(model_args))
        except ValueError as error:
            raise InputError(f"LoRA: {' '.join(str(error).split())} See --lora_target_modules.") from None
    return model
