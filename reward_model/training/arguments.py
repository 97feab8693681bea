"""Arguments of train.py: trl's dataclasses with additional arguments, and defaults that suit reward models."""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import IntervalStrategy
from trl import ModelConfig, RewardConfig, ScriptArguments

from reward_model import InputError
from reward_model.model.checkpoint import stored_parameters
from reward_model.training.loss import LOSSES

# Full fine-tuning by model size: SmolLM2-135M learned well at 3e-5 and 5e-5; published models with 7B or more used 2e-6
# to 1e-5. LoRA needs about ten times that rate (Schulman et al. 2025, "LoRA Without Regret").
LEARNING_RATE = {"LoRA": 1e-4, "small": 3e-5, "large": 1e-5}
SMALL = 1_000_000_000  # parameters


@dataclass
class DataArguments(ScriptArguments):
    """trl's ScriptArguments, plus the data arguments of this repository."""

    eval_size: float = HfArg(
        default=0.02,
        help="Size of the held-out split if the data has no test split: a fraction below 1, a number of "
        "pairs, or 0. The split is by prompt, so no prompt is in both splits.",
    )
    shared_prefix: bool = HfArg(
        default=True,
        help="Compute the prefix shared by chosen and rejected only once, without padding: the same loss and "
        "gradients, several times faster. False pads as trl does; --train_sampling_strategy group_by_length then "
        "reduces the padding.",
    )
    benchmark_files: list[str] = HfArg(
        default_factory=list,
        help="Labeled pairs (files or directories, as for evaluate.py) on which accuracy is logged for each subset "
        "at every evaluation. The held-out pairs are then logged as eval_held_out_…",
    )
    overwrite_output_dir: bool = HfArg(default=False, help="Train even if output_dir contains a model or checkpoints.")
    dry_run: bool = HfArg(
        default=False,
        help="Run two steps on the longest pairs, report their memory use and an estimate of the total run time, and "
        "save nothing.",
    )
    allow_stripped_reasoning: bool = HfArg(
        default=False, help="Train even if the chat template drops tools, or tool calls or reasoning in the answers."
    )


@dataclass
class TrainingArguments(RewardConfig):
    """trl's RewardConfig, with bf16 where it is fast, TensorBoard logs, and distributed training on CPUs as well."""

    num_train_epochs: float = HfArg(
        default=1.0, help="Number of epochs, which may be a fraction. Reward models overfit early."
    )
    learning_rate: float = HfArg(
        default=LEARNING_RATE["large"],
        help="Defaults to 1e-4 for LoRA, 3e-5 for full fine-tuning of a local model below 1B parameters, and "
        "1e-5 otherwise.",
    )
    eval_strategy: str = HfArg(
        default="steps", help="When to evaluate the held-out pairs.", metadata={"choices": ["no", "steps", "epoch"]}
    )
    eval_steps: float | None = HfArg(
        default=0.2, help="Steps between evaluations; a value below 1 is a fraction of all steps."
    )
    report_to: None | str | list[str] = HfArg(
        default="tensorboard", help="Where to log curves: tensorboard, wandb, … or none."
    )
    bf16: bool | None = HfArg(default=None, help="bf16 autocast; on by default if the GPU supports it.")
    loss_type: str = HfArg(
        default="margin",
        help="bradley_terry: -log sigmoid(chosen - rejected). margin: -log sigmoid(chosen - rejected - margin), "
        "where the margin is 0 if the data has no margins. scaled: bradley_terry multiplied by the margin.",
        metadata={"choices": list(LOSSES)},
    )
    template_date: str | None = HfArg(
        default=None,
        help="A date such as 2024-07-26, written into a chat template that would otherwise print today's date, so "
        "that training, scoring and serving render the same text.",
    )
    chat_template_kwargs: str | None = HfArg(
        default=None,
        help="Values for chat template variables, such as '{\"enable_thinking\": false}'. They are written "
        "into the template, so that training, scoring and serving render the same text.",
    )
    split_special_tokens: bool = HfArg(
        default=False,
        help="Treat special tokens in texts (such as <|im_end|>) as ordinary text: the saved chat template "
        "inserts a space into them, in training, scoring and serving.",
    )
    group_by_prompt: bool | None = HfArg(
        default=None,
        help="Keep the pairs of a prompt together in a batch, so that each of its answers is computed only once. "
        "On by default if prompts have several pairs.",
    )
    balance_ranks: bool = HfArg(
        default=True, help="Distribute the pairs in a step so that all devices and micro-steps have similar loads."
    )
    max_tokens_per_micro_batch: int | None = HfArg(
        default=None,
        help="Split a micro-batch with more token positions than this into several passes, with the same "
        "gradients, so that long pairs do not exhaust the memory.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.deepspeed, str):
            read_mapping(Path(self.deepspeed), "--deepspeed")
            if "RANK" not in os.environ and not find_spec("mpi4py"):
                raise InputError(
                    "--deepspeed needs a launcher, even for a single GPU. Start with sh train.sh or torchrun."
                )
        if self.fsdp:
            raise InputError("--fsdp is not supported: packed rows and saving are untested with it. Use sh train.sh.")
        if self.bf16 is None and not self.fp16:
            self.bf16 = bf16_is_fast()
        has_gpu = torch.accelerator.is_available()
        if self.bf16 and not (has_gpu or self.use_cpu):
            raise InputError("--bf16 needs a GPU; on a CPU, float32 is used. Remove the argument.")
        self.dataloader_pin_memory &= has_gpu
        if self.deepspeed is not None and not has_gpu:
            import deepspeed  # takes seconds to import

            # This op is compiled on first use, which fails if the path contains a space; gloo replaces it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not has_gpu:
            # Without this, accelerate sees a single process under torchrun, and DeepSpeed's batch size check fails.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = str(self.deepspeed is not None).lower()
            PartialState(cpu=self.deepspeed is None, backend="gloo")
            self.accelerator_config = {"use_configured_state": True}
        super().__post_init__()
        if self.n_gpu > 1:
            print(f"Training on one of {self.n_gpu} GPUs. To use all of them, run sh train.sh with the same arguments.")
            # Private: Trainer would use nn.DataParallel, which trl rejects, and offers no other way to prevent it.
            # test_one_of_several_gpus_is_used fails if this no longer works.
            self._n_gpu = 1


@dataclass
class ModelArguments(ModelConfig):
    """trl's ModelConfig, with LoRA that trains and saves the reward head, and a dtype that suits the hardware."""

    dtype: str | None = HfArg(
        default=None,
        help="Dtype of the loaded weights. Defaults to bfloat16 if bf16 is on and the run uses LoRA or "
        "DeepSpeed, which keep the trained weights in fp32, and to float32 otherwise.",
        metadata={"choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    lora_task_type: str = HfArg(default="SEQ_CLS", help="LoRA task type. SEQ_CLS trains the reward head `score`.")
    lora_dropout: float = HfArg(default=0.0, help="Dropout applied to the inputs of LoRA.")

    def __post_init__(self) -> None:
        if self.use_peft and self.lora_target_modules is None:
            self.lora_target_modules = ["all-linear"]
        super().__post_init__()


def bf16_is_fast() -> bool:
    """Return whether bf16 is faster than fp32. On a 2-core AVX2 CPU, it was 130 times slower."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def parse_arguments(argv: list[str], default_file: Path) -> tuple[DataArguments, TrainingArguments, ModelArguments]:
    """Parse a command line, which may start with a JSON or YAML file; later arguments override the file.

    Without arguments, read `default_file` and make its directory the working directory, so that a debugger can be
    started in any directory. Paths are relative to the working directory.
    """
    if not argv:
        os.chdir(default_file.parent)
        argv = [default_file.name]
    source = "the command line"
    if argv[0].endswith((".json", ".yaml", ".yml")):
        source = argv[0]
        argv = [*file_to_argv(Path(source)), *argv[1:]]
    parser = HfArgumentParser(
        (DataArguments, TrainingArguments, ModelArguments),
        allow_abbrev=False,
        usage="train.py [arguments.json] [--argument value …]      (without arguments: reads train_args.json)",
    )
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(f"Unknown argument {unknown[0]} in {source}. See .venv/bin/python train.py --help")
    small = (stored_parameters(given.model_name_or_path) or SMALL) < SMALL
    mode = "LoRA" if given.use_peft else "small" if small else "large"
    parser.set_defaults(learning_rate=LEARNING_RATE[mode])
    try:
        data_args, training_args, model_args = parser.parse_args_into_dataclasses(argv)
    except (ValueError, TypeError, OSError) as error:  # Transformers and trl explain what they reject
        raise InputError(" ".join(str(error).split())) from error
    if model_args.dtype is None:
        halved = training_args.bf16 and (model_args.use_peft or training_args.deepspeed is not None)
        model_args.dtype = "bfloat16" if halved else "float32"
    return data_args, training_args, model_args


def schedule_line(args: TrainingArguments, model_args: ModelArguments) -> str:
    """Return a line that describes the run's schedule, because the defaults depend on the mode."""
    mode = "LoRA" if model_args.use_peft else "Full fine-tuning"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epoch(s)"
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.eval_steps or 1
    every = f"every {steps:.0%} of the run" if steps < 1 else f"every {steps} steps"
    evaluated = {"no": "at the end", "steps": every, "epoch": "after each epoch"}[
        IntervalStrategy(args.eval_strategy).value
    ]
    return f"{mode}: learning rate {args.learning_rate:g}, {length}, {pairs} pairs per step, evaluation {evaluated}"


def read_mapping(path: Path, argument: str = "") -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file; errors mention `argument`, the option that the file belongs to."""
    name, is_yaml = f"{argument} {path}".strip(), path.suffix in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if is_yaml else json.loads(text)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name} is not valid {'YAML' if is_yaml else 'JSON'}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} must contain an object with one key per argument, not a {type(found).__name__}.")
    return found


def file_to_argv(path: Path) -> list[str]:
    """Convert a JSON or YAML file to the equivalent command line, so that one parser checks both."""
    argv = []
    for name, value in read_mapping(path).items():
        if value is not None:
            values = value if isinstance(value, list) else [value if isinstance(value, str) else json.dumps(value)]
            argv += [f"--{name}", *map(str, values)]
    return argv
