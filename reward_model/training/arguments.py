"""The arguments of train.py: trl's own dataclasses, with the defaults that a reward model and the hardware call for."""

import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.trainer_utils import IntervalStrategy
from trl import ModelConfig, RewardConfig, ScriptArguments

from reward_model import InputError
from reward_model.model.checkpoint import stored_parameters

# Full fine-tuning, by parameters: SmolLM2-135M learned well at 3e-5 and 5e-5; published models of 7B and more took 2e-6
# to 1e-5. LoRA takes ten times as much (Schulman et al. 2025, "LoRA Without Regret").
LEARNING_RATE = {"LoRA": 1e-4, "small": 3e-5, "large": 1e-5}
SMALL = 1_000_000_000  # parameters


@dataclass
class DataArguments(ScriptArguments):
    """trl's ScriptArguments and what is ours."""

    eval_size: float = field(
        default=0.02,
        metadata={
            "help": "Held-out pairs where the data has no test split: a share below 1, a number of pairs, or 0 for "
            "none. Split by prompt, so that no prompt stands on both sides."
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
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Train although output_dir holds a model or checkpoints."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Stop after two steps of the longest pairs, which are not kept, with the memory and the time that "
            "the whole run will take."
        },
    )
    allow_stripped_reasoning: bool = field(
        default=False,
        metadata={"help": "Train although the chat template leaves <think>…</think> out of answers."},
    )


@dataclass
class TrainingArguments(RewardConfig):
    """trl's RewardConfig, in bf16 where that is fast, with curves in TensorBoard, distributed on CPU as well."""

    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Epochs; the fraction is the part of the last one. Reward models overfit early."}
    )
    learning_rate: float = field(
        default=LEARNING_RATE["large"],
        metadata={
            "help": "By default 1e-4 for LoRA, 3e-5 for full fine-tuning of a local model below 1 B parameters, else "
            "1e-5."
        },
    )
    eval_strategy: str = field(
        default="steps", metadata={"help": "When held-out pairs are scored.", "choices": ["no", "steps", "epoch"]}
    )
    eval_steps: float | None = field(
        default=0.2, metadata={"help": "Steps between two evaluations; below 1, as a share of all steps."}
    )
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Where curves go: tensorboard, wandb, …; none for nowhere."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; by default where a GPU has it."})
    template_date: str | None = field(
        default=None,
        metadata={
            "help": "A day such as 2024-07-26 that is written into a chat template which would print today's date, for "
            "training, scoring and serving alike."
        },
    )
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={
            "help": "Values for variables of the chat template, as '{\"enable_thinking\": false}'; they are written "
            "into it, for training, scoring and serving alike."
        },
    )
    split_special_tokens: bool = field(
        default=False,
        metadata={
            "help": "Read special tokens in texts (<|im_end|>) as words that somebody wrote: the stored chat template "
            "sets a space into them, for training, scoring and serving alike."
        },
    )
    group_by_prompt: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the pairs of one prompt together in a batch, where each of its answers is then computed "
            "once; by default where a prompt has several pairs."
        },
    )
    balance_ranks: bool = field(
        default=True,
        metadata={"help": "Deal the pairs of a step out so that every device and micro-step has as much to compute."},
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Compute a micro-batch of more token positions in several passes, with the same gradients, so that "
            "long pairs do not run out of memory."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.deepspeed, str):
            read_object(Path(self.deepspeed), "--deepspeed ", "ds_config_zero3.json comes with this project.")
            if "RANK" not in os.environ and not find_spec("mpi4py"):
                raise InputError(
                    "--deepspeed needs a launcher, for a single GPU too. Start with sh train.sh or torchrun."
                )
        if self.fsdp:
            raise InputError("--fsdp: packed rows and saving were never tried under FSDP; use DeepSpeed: sh train.sh")
        if self.bf16 is None and not self.fp16:
            self.bf16 = bf16_is_fast()
        if self.bf16 and not (torch.accelerator.is_available() or self.use_cpu):
            raise InputError("--bf16 needs a GPU; a CPU trains in float32. Leave it out.")
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            # Left alone, accelerate takes torchrun without a GPU for one process, and DeepSpeed's batch check fails.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = str(self.deepspeed is not None).lower()
            if self.deepspeed is not None:
                import deepspeed  # seconds, so only here

                # It would be compiled at the first start, and not at all in a path with a space; gloo does its work.
                deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            PartialState(cpu=self.deepspeed is None, backend="gloo")
            self.accelerator_config = {"use_configured_state": True}
        super().__post_init__()
        if self.n_gpu > 1:
            print(f"One of {self.n_gpu} GPUs is used; sh train.sh with the same arguments uses all of them.")
            self._n_gpu = 1  # or Trainer would split every batch by nn.DataParallel, which trl refuses


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
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of LoRA's input."})

    def __post_init__(self) -> None:
        if self.use_peft and self.lora_target_modules is None:
            self.lora_target_modules = ["all-linear"]
        super().__post_init__()


def bf16_is_fast() -> bool:
    """Whether bf16 beats fp32 here: on a 2-core AVX2 machine it ran at 1/130 of the speed."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def parse_arguments(argv: list[str], default_file: Path) -> tuple[DataArguments, TrainingArguments, ModelArguments]:
    """Read the arguments from a command line, which may begin with a JSON or YAML file of arguments; those behind it
    win. If there are none, from `default_file`.

    Paths in `default_file` are relative to its folder, which becomes the working directory, so that a debugger can be
    started anywhere; all other paths are relative to where the user stands.
    """
    if not argv:
        os.chdir(default_file.parent)
        argv = [default_file.name]
    where = "the command line"
    if argv[0].endswith((".json", ".yaml", ".yml")):
        where = argv[0]
        argv = [*file_to_argv(Path(where)), *argv[1:]]
    parser = HfArgumentParser(
        (DataArguments, TrainingArguments, ModelArguments),
        allow_abbrev=False,
        usage="train.py [arguments.json] [--argument value …]      (without any: reads train_args.json)",
    )
    known = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in argv if word.startswith("--") and word.split("=")[0] not in known]
    if unknown:
        raise InputError(f"{where}: unknown argument {unknown[0]}; .venv/bin/python train.py --help lists all of them.")
    given = parser.parse_args(argv)
    small = (stored_parameters(given.model_name_or_path) or SMALL) < SMALL
    mode = "LoRA" if given.use_peft else "small" if small else "large"
    parser.set_defaults(learning_rate=LEARNING_RATE[mode])
    try:
        data_args, training_args, model_args = parser.parse_args_into_dataclasses(argv)
    except (ValueError, TypeError, OSError) as error:  # Transformers' own words on arguments it cannot take
        raise InputError(" ".join(str(error).split())) from error
    if model_args.dtype is None:
        halved = training_args.bf16 and (model_args.use_peft or training_args.deepspeed is not None)
        model_args.dtype = "bfloat16" if halved else "float32"
    return data_args, training_args, model_args


def schedule_line(args: TrainingArguments, model_args: ModelArguments) -> str:
    """What the run will do, in one line, since defaults differ by mode."""
    mode = "LoRA" if model_args.use_peft else "Full fine-tuning"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epoch(s)"
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.eval_steps or 1
    every = f"every {steps:.0%} of the run" if steps < 1 else f"every {steps} steps"
    evaluated = {"no": "at the end", "steps": every, "epoch": "after each epoch"}[
        IntervalStrategy(args.eval_strategy).value
    ]
    return f"{mode}: learning rate {args.learning_rate:g}, {length} of {pairs} pairs a step, evaluation {evaluated}"


def read_object(path: Path, name: str, cure: str) -> dict[str, Any]:
    """The object in a JSON or YAML file; errors begin with `name`, and end with `cure` where there is no file."""
    if not path.is_file():
        raise InputError(f"{name}{path}: no such file; {cure}")
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{name}{path}: not valid {path.suffix[1:].upper()} ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{name}{path}: one object is needed, found {type(found).__name__}.")
    return found


def file_to_argv(path: Path) -> list[str]:
    """The words of a command line that says the same as a JSON or YAML file, so that both are checked by one parser."""
    arguments = read_object(path, "", "give a JSON or YAML file of arguments.")

    def words(value: Any) -> list[str]:
        if isinstance(value, list):
            return [str(item) for item in value]
        return [value if isinstance(value, str) else json.dumps(value)]

    return [word for name, value in arguments.items() if value is not None for word in (f"--{name}", *words(value))]
