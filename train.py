"""Train a discriminative (Bradley-Terry) reward model on preference pairs with trl's RewardTrainer.

    python train.py                                   # reads train_args.json beside this file (F5 in VS Code)
    python train.py my_args.json --max_steps 10       # the same arguments from a JSON or YAML file; those behind it win
    python train.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name pairs.jsonl --output_dir save/run
    python train.py … --use_peft --lora_r 32 --lora_alpha 16 --learning_rate 1e-4        # LoRA, reward head in full
    sh train.sh                                       # DeepSpeed ZeRO-3 on every GPU of this node
    NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 sh train.sh                      # the same line on each of several nodes

All arguments: python train.py --help. They are those of trl's ScriptArguments, RewardConfig and ModelConfig; what is
ours is in reward_model/training/arguments.py.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports, which take seconds, would be a traceback

import warnings
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import get_peft_config, get_quantization_config

from reward_model import InputError
from reward_model.data.dataset import split_by_prompt
from reward_model.model.attention import install, rope_switch
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.loading import load_model
from reward_model.model.lora import check_adapter, merge_adapter
from reward_model.model.reference_scores import write_reference_scores
from reward_model.model.tokenization import set_unused_pad_token, tokenize_pairs
from reward_model.training.arguments import parse_arguments, schedule_line
from reward_model.training.callbacks import AttentionChooser, Watch
from reward_model.training.checkpointing import STOPPED, StopAndSave, stop
from reward_model.training.collator import PairCollator
from reward_model.training.data import check_tokens
from reward_model.training.dry_run import only_longest, whole_run_line
from reward_model.training.run_record import write_record
from reward_model.training.trainer import ExactRewardTrainer
from reward_model.training.validation import check_setup, load_options, on_all_ranks

HERE = Path(__file__).resolve().parent


def main(argv: list[str]) -> ExactRewardTrainer:
    data_args, training_args, model_args = parse_arguments(argv, default_file=HERE / "train_args.json")
    if training_args.process_index == 0:
        print(schedule_line(training_args, model_args))

    # --- Data: all that can be wrong is told at once; then tokenized, dropped if too long, split by prompt ---------
    inputs = check_setup(data_args, training_args, model_args)
    tokenizer, max_length, num_proc = inputs.tokenizer, training_args.max_length, training_args.dataset_num_proc
    with on_all_ranks():
        with training_args.main_process_first(desc="tokens"):
            train_dataset = tokenize_pairs(inputs.train_pairs, tokenizer, max_length, num_proc, "training")
            if inputs.eval_pairs is None:
                train_dataset, eval_dataset = split_by_prompt(train_dataset, data_args.eval_size, training_args.seed)
            else:
                eval_dataset = tokenize_pairs(inputs.eval_pairs, tokenizer, max_length, num_proc, "held-out")
            eval_datasets = {"held_out": eval_dataset} if len(eval_dataset) else {}
            for name, pairs in inputs.benchmarks.items():
                eval_datasets[name] = tokenize_pairs(pairs, tokenizer, None, num_proc, name)
        check_tokens({"training": train_dataset, **eval_datasets}, inputs.skeleton, training_args.process_index == 0)
        set_unused_pad_token(tokenizer, [train_dataset, *eval_datasets.values()])
    # Done above; trl would filter row by row and clone a template once more.
    training_args.max_length = training_args.chat_template_path = None
    if not eval_datasets:
        training_args.eval_strategy = "no"

    # --- Model: any architecture with one score per conversation ---------------------------------------------------
    set_seed(training_args.seed)  # the new reward head is random, the same at every start
    model = load_model(
        model_args.model_name_or_path,
        new_head=True,
        quantization_config=get_quantization_config(model_args),
        **load_options(training_args, model_args),
    )
    training_args.model_init_kwargs = None
    set_pad_token(model, tokenizer)
    install(model, training_args.disable_dropout)
    training_args.disable_dropout = False  # done above; trl would take LoRA's dropout away as well
    collator = PairCollator(
        tokenizer.pad_token_id,
        shared_prefix=data_args.shared_prefix,
        max_tokens=training_args.max_tokens_per_micro_batch,
        rope_switch=rope_switch(model.config),
    )
    longest = train_dataset.select(np.argsort(train_dataset["length"][:])[-3:])
    if data_args.dry_run:
        train_dataset, steps = only_longest(training_args, train_dataset)

    # --- Training ---------------------------------------------------------------------------------------------------
    training_args.remove_unused_columns = False  # the columns are ours, the collator takes what it needs
    trainer = ExactRewardTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets if data_args.benchmark_files else eval_datasets.get("held_out"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[AttentionChooser(collator, list(longest)), saves := StopAndSave(), watch := Watch(tokenizer)],
    )
    if not trainer.is_deepspeed_enabled:  # which keeps fp32 master weights itself
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # in bf16 most steps of a small learning rate would be rounded away
                parameter.data = parameter.data.float()
    trainer.accelerator.print(
        f"{len(train_dataset)} training and {len(eval_dataset)} held-out pairs, {type(model).__name__} in "
        f"{model.dtype}, bf16 autocast {'on' if training_args.bf16 else 'off'}, pad token {tokenizer.pad_token!r}"
    )
    with on_all_ranks():
        if trainer.is_world_process_zero() and not (data_args.dry_run or training_args.resume_from_checkpoint):
            write_record(inputs.record, Path(training_args.output_dir))
    with watch.out_of_memory_told():
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if data_args.dry_run:
        trainer.accelerator.print(whole_run_line(trainer, steps))
        trainer.accelerator.end_training()
        return trainer
    trainer.accelerator.print(trainer.totals(result.metrics["train_runtime"]))
    if saves.stopped:
        trainer.accelerator.print(
            f"Stopped after step {trainer.state.global_step}, which is saved. The same command with "
            "--resume_from_checkpoint auto goes on."
        )
        trainer.accelerator.end_training()
        sys.exit(STOPPED)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()

    # --- Saving: what lies in output_dir is a full model for Transformers and vLLM, also after LoRA ----------------
    output_dir = Path(training_args.output_dir)
    adapter_dir = output_dir / "adapter" if model_args.use_peft else None
    trainer.save_model(str(adapter_dir or output_dir))
    trainer.accelerator.print("Saved; scoring the conversations of its score contract.")
    write_reference_scores(trainer.model, tokenizer, output_dir)
    if eval_datasets:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # Merging takes minutes and only rank 0: within the process group the others would wait until NCCL ends the run.
    if not trainer.is_world_process_zero():
        return trainer
    if adapter_dir:
        if training_args.world_size > 1:  # torchrun has given each rank one thread
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(f"Merging the adapter into {model_args.model_name_or_path}.")
        unset_hf_deepspeed_config()  # or the merged model would be split over the ranks again
        merge_adapter(adapter_dir, check_adapter(adapter_dir), output_dir, str(model.dtype).removeprefix("torch."))
        if model_args.load_in_4bit or model_args.load_in_8bit:
            print("Trained on quantised weights, merged into the whole ones: scores differ a little from training's.")
    print(f"Reward model: {output_dir}   Serve it: sh infer_vllm.sh {quote(str(output_dir))}")
    return trainer


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # one for each call: thousands of lines
    try:
        main(sys.argv[1:])
    except InputError as error:
        stop(f"error: {error}", 1)
    except KeyboardInterrupt:
        stop("Stopped. --resume_from_checkpoint auto goes on from the last whole checkpoint, if there is one.", STOPPED)
