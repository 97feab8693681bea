"""The arguments of train.py: trl's own dataclasses, with the defaults that a reward model and the hardware call for."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import HfArgumentParser
from trl import ModelConfig, RewardConfig, ScriptArguments

from reward_model import InputError


@dataclass
class DataArguments(ScriptArguments):
    """trl's ScriptArguments and what is ours."""

    eval_size: float = field(
        default=0.02,
        metadata={
            "help": "Held-out pairs where the data has no test split: a share below 1 or a number of pairs. Split by "
            "prompt, so that no prompt stands on both sides."
        },
    )
    shared_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute what chosen and rejected share once, without padding: the same loss and gradients, "
            "several times faster. False pads as trl does; then see --train_sampling_strategy group_by_length."
        },
    )
    benchmark_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled pairs (files or folders, as for evaluate.py) whose accuracy is logged, per subset, at "
            "every evaluation; the held-out pairs are then logged as eval_held_out_…"
        },
    )


@dataclass
class TrainingArguments(RewardConfig):
    """trl's RewardConfig, in bf16 where that is fast, with curves in TensorBoard, distributed on CPU as well."""

    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Where curves go: tensorboard, wandb, …; none for nowhere."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.deepspeed, str) and not Path(self.deepspeed).is_file():
            raise InputError(
                f"--deepspeed {self.deepspeed}: no such file; ds_config_zero3.json comes with this project."
            )
        if self.bf16 is None and not self.fp16:
            self.bf16 = bf16_is_fast()
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            # Left alone, accelerate takes torchrun without a GPU for one process, and DeepSpeed's batch check fails.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = str(self.deepspeed is not None).lower()
            PartialState(backend="gloo")
            self.accelerator_config = {"use_configured_state": True}
        super().__post_init__()


@dataclass
class ModelArguments(ModelConfig):
    """trl's ModelConfig for a model with one score: LoRA keeps the reward head, dtype follows the hardware."""

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the loaded weights. By default bfloat16 where bf16 is on and fp32 master weights stand "
            "elsewhere (DeepSpeed) or are few (LoRA), else float32.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    lora_task_type: str = field(default="SEQ_CLS", metadata={"help": "Task type for LoRA; SEQ_CLS trains `score`."})

    def __post_init__(self) -> None:
        if self.use_peft and self.lora_target_modules is None:
            self.lora_target_modules = ["all-linear"]
        super().__post_init__()


def bf16_is_fast() -> bool:
    """Whether bf16 beats fp32 here: on a 2-core AVX2 machine it ran at 1/130 of the speed."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def parse_arguments(argv: list[str], default_json: Path) -> tuple[DataArguments, TrainingArguments, ModelArguments]:
    """Read the arguments from a command line, from one JSON file, or, if there are none, from `default_json`.

    Paths in `default_json` are relative to its folder, which becomes the working directory, so that a debugger can be
    started anywhere; all other paths are relative to where the user stands.
    """
    if not argv:
        os.chdir(default_json.parent)
        argv = [default_json.name]
    where = "the command line"
    if len(argv) == 1 and argv[0].endswith(".json"):
        where = argv[0]
        argv = json_to_argv(Path(where))
    parser = HfArgumentParser(
        (DataArguments, TrainingArguments, ModelArguments),
        allow_abbrev=False,
        usage="train.py [--argument value …] | train.py arguments.json | train.py (reads train_args.json)",
    )
    known = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in argv if word.startswith("--") and word.split("=")[0] not in known]
    if unknown:
        raise InputError(f"{where}: unknown argument {unknown[0]}; python train.py --help lists all of them.")
    data_args, training_args, model_args = parser.parse_args_into_dataclasses(argv)
    if model_args.dtype is None:
        halved = training_args.bf16 and (model_args.use_peft or training_args.deepspeed is not None)
        model_args.dtype = "bfloat16" if halved else "float32"
    return data_args, training_args, model_args


def json_to_argv(path: Path) -> list[str]:
    """The words of a command line that says the same as a JSON file, so that both are checked by one parser."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSON file of arguments.")
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: one JSON object of arguments is needed, found {type(arguments).__name__}.")

    def words(value: Any) -> list[str]:
        if isinstance(value, list):
            return [str(item) for item in value]
        return [value if isinstance(value, str) else json.dumps(value)]

    return [word for name, value in arguments.items() if value is not None for word in (f"--{name}", *words(value))]
