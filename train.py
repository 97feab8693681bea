"""Train a discriminative (Bradley-Terry) reward model on preference pairs with trl's RewardTrainer.

    python train.py                                   # reads train_args.json next to train.py (F5 in VS Code)
    python train.py my_args.json --max_steps 10       # reads a JSON or YAML file; later arguments override it
    python train.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name pairs.jsonl --output_dir save/run
    python train.py … --use_peft --lora_r 32 --lora_alpha 16 --learning_rate 1e-4    # LoRA; the head is trained in full
    sh train.sh                                       # DeepSpeed ZeRO-3 on all GPUs of this node
    NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 sh train.sh                      # on each node, with its own NODE_RANK

python train.py --help lists all arguments: trl's ScriptArguments, RewardConfig and ModelConfig, plus those defined in
reward_model/training/arguments.py.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit quietly on Ctrl-C while slow imports run

import warnings
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import get_peft_config, get_quantization_config

from reward_model import STOPPED, InputError, print_traceback
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.loading import load_model
from reward_model.model.lora import check_adapter, merge_adapter
from reward_model.model.modeling import install, rope_switch
from reward_model.model.reference_scores import write_reference_scores
from reward_model.training.argument_checks import report_error
from reward_model.training.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    parse_arguments,
    schedule_line,
)
from reward_model.training.callbacks import AttentionChooser, TrainingMonitor
from reward_model.training.checkpointing import (
    CheckpointWriter,
    GracefulShutdown,
    exit_with_message,
    report_disk_full,
)
from reward_model.training.collator import PairCollator
from reward_model.training.data import check_tokens, tokenize_all
from reward_model.training.dry_run import DRY_RUN_ARGUMENTS, dry_run_line, select_longest
from reward_model.training.model_card import upload_model, write_model_card
from reward_model.training.ranks import on_all_ranks
from reward_model.training.run_record import write_record
from reward_model.training.trainer import ExactRewardTrainer, configure_trainer
from reward_model.training.validation import check_setup, load_options

HERE = Path(__file__).resolve().parent


def main(argv: list[str]) -> ExactRewardTrainer:
    """Parse a command line, train a reward model, save it, and return the trainer.

    Raises:
        InputError: If an argument, the model or the data is invalid. The message lists all problems found up front.
    """
    data_args, training_args, model_args = parse_arguments(argv, default_file=HERE / "train_args.json")
    if training_args.process_index == 0:
        print(schedule_line(training_args, model_args))

    # Check everything before loading any weights.
    setup = check_setup(data_args, training_args, model_args)
    with on_all_ranks():
        train_dataset, eval_datasets = tokenize_all(
            setup.train_pairs, setup.eval_pairs, setup.benchmarks, setup.tokenizer, data_args, training_args
        )
        check_tokens({"training": train_dataset, **eval_datasets}, setup.skeleton, training_args.process_index == 0)

    model = load_base_model(setup.tokenizer, training_args, model_args)
    has_other_towers = model.config.get_text_config() is not model.config
    configure_trainer(training_args, setup.checkpoint, bool(eval_datasets), has_other_towers)
    if data_args.dry_run:
        train_dataset, steps = select_longest(training_args, train_dataset)
        for name, value in DRY_RUN_ARGUMENTS.items():
            setattr(training_args, name, value)
    trainer = build_trainer(
        model, setup.tokenizer, train_dataset, eval_datasets, data_args, training_args, get_peft_config(model_args)
    )
    with on_all_ranks():
        if trainer.is_world_process_zero() and not (data_args.dry_run or setup.checkpoint):
            write_record(setup.record, Path(training_args.output_dir))

    metrics = train(trainer)
    if data_args.dry_run:
        trainer.accelerator.print(dry_run_line(trainer, steps))
        trainer.accelerator.end_training()
        return trainer
    save(trainer, model_args, metrics, bool(eval_datasets), setup.record)
    return trainer


def load_base_model(
    tokenizer: PreTrainedTokenizerBase, training_args: TrainingArguments, model_args: ModelArguments
) -> PreTrainedModel:
    """Load the base model with a new reward head, set `tokenizer`'s pad token, and prepare it for packed rows."""
    set_seed(training_args.seed)  # so that the new, random reward head is the same in every run
    model = load_model(
        model_args.model_name_or_path,
        new_head=True,
        quantization_config=get_quantization_config(model_args),
        **load_options(training_args, model_args),
    )
    set_pad_token(model, tokenizer)
    install(model, training_args.disable_dropout)
    return model


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_datasets: dict[str, Dataset],
    data_args: DataArguments,
    training_args: TrainingArguments,
    peft_config: Any,
) -> ExactRewardTrainer:
    """Build the trainer, and convert the trainable weights to fp32."""
    collator = PairCollator(
        tokenizer.pad_token_id,
        shared_prefix=data_args.shared_prefix,
        max_tokens=training_args.max_tokens_per_micro_batch,
        rope_switch=rope_switch(model.config),
    )
    longest = train_dataset.select(np.argsort(train_dataset["length"][:])[-3:])
    writer = CheckpointWriter(training_args.save_total_limit)
    training_args.save_total_limit = None  # CheckpointWriter deletes old checkpoints
    trainer = ExactRewardTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets if data_args.benchmark_files else eval_datasets.get("held_out"),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[AttentionChooser(collator, list(longest)), TrainingMonitor(tokenizer), writer, GracefulShutdown()],
    )
    if not trainer.is_deepspeed_enabled:  # DeepSpeed keeps its own fp32 master weights
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # in bf16, most updates at a small learning rate would be rounded away
                parameter.data = parameter.data.float()
    held_out = len(eval_datasets.get("held_out", []))
    trainer.accelerator.print(
        f"{len(train_dataset)} training and {held_out} held-out pairs, {type(model).__name__} in {model.dtype}, "
        f"bf16 autocast {'on' if training_args.bf16 else 'off'}, pad token {tokenizer.pad_token!r}"
    )
    return trainer


def train(trainer: ExactRewardTrainer) -> dict[str, float]:
    """Train and return the metrics. If a signal interrupted the run, exit with status 75 once a checkpoint is saved."""
    callbacks = {type(callback): callback for callback in trainer.callback_handler.callbacks}
    with callbacks[TrainingMonitor].explain_out_of_memory(), report_disk_full(Path(trainer.args.output_dir)):
        result = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    step = trainer.state.global_step
    if trainer.throughput:
        trainer.accelerator.print(trainer.throughput.summary(result.metrics["train_runtime"]))
    else:
        trainer.accelerator.print(f"Training is already complete (step {step}).")
    if callbacks[GracefulShutdown].stopped:
        trainer.accelerator.print(f"Saved checkpoint-{step} and stopped. Pass --resume_from_checkpoint auto to resume.")
        trainer.accelerator.end_training()
        sys.exit(STOPPED)
    return result.metrics


def save(
    trainer: ExactRewardTrainer,
    model_args: ModelArguments,
    metrics: dict[str, float],
    has_eval: bool,
    record: dict[str, Any],
) -> None:
    """Save a complete model (with LoRA, the merged model) for Transformers and vLLM, and evaluate it."""
    tokenizer, output_dir = trainer.processing_class, Path(trainer.args.output_dir)
    adapter_dir = output_dir / "adapter" if model_args.use_peft else None
    with report_disk_full(output_dir):
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        trainer.save_model(str(adapter_dir or output_dir))
        trainer.accelerator.print("Saved the model. Computing its reference scores.")
        write_reference_scores(trainer.model, tokenizer, output_dir)
    eval_metrics = trainer.evaluate() if has_eval else {}
    if has_eval:
        trainer.log_metrics("eval", eval_metrics)
        trainer.save_metrics("eval", eval_metrics)
    trainer.accelerator.wait_for_everyone()
    dtype = str(trainer.model.dtype).removeprefix("torch.")
    # Merging on rank 0 takes minutes. If the process group stayed open, NCCL would abort the waiting ranks.
    trainer.accelerator.end_training()
    if not trainer.is_world_process_zero():
        return
    if adapter_dir:
        if trainer.args.world_size > 1:  # torchrun limits each rank to one thread
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(f"Merging the adapter into {model_args.model_name_or_path}.")
        unset_hf_deepspeed_config()  # ZeRO-3 would partition the merged model
        merge_adapter(adapter_dir, check_adapter(adapter_dir), output_dir, dtype)
        if model_args.load_in_4bit or model_args.load_in_8bit:
            print("The adapter was trained on quantized but merged into original weights, so scores differ slightly.")
    write_model_card(output_dir, record, metrics, eval_metrics, trainer.hub_model_id)
    if trainer.args.push_to_hub:
        with report_error(trainer.args, "push_to_hub"):
            upload_model(output_dir, trainer.hub_model_id, trainer.args)
    print(f"Reward model: {output_dir}   Serve it: sh infer_vllm.sh {quote(str(output_dir))}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # printed for every call: thousands of lines
    try:
        main(sys.argv[1:])
    except InputError as error:
        print_traceback()
        exit_with_message(f"error: {error}", 1)
    except KeyboardInterrupt:
        exit_with_message("Stopped. Pass --resume_from_checkpoint auto to resume from the last checkpoint.", STOPPED)
