"""Compare the training speed of packed rows with that of the stock trl.RewardTrainer.

    python -m benchmarks.training_speed --data data/demo/train.jsonl --model models/SmolLM2-135M-Instruct
    python -m benchmarks.training_speed --data dialogues --model random --pairs 64 --batch_size 8 --json out.json
    python -m benchmarks.training_speed --data lists --answers 4 --model random --pairs 24 --batch_size 6

Both sides train on the same pairs in the same order, with the same dtype and optimizer, in one process, and alternate
from round to round. `stock` is trl's trainer with its own tokenization, collator and padded forward pass; `packed` is
this repository; for lists, `packed_pairs` is `packed` without trees. If the GPU supports bf16, all use bf16 autocast.

`--data` is a file of pairs, or `dialogues` (generated, about 150 tokens shared and 50 more on each side), or `lists`
(generated, all pairs of `--answers` responses to each prompt, as long as UltraFeedback's). `--model` is a model
directory, or a model with random weights: `random` or `tiny`, a Llama with 25 M or 3 M parameters without the
embeddings, or `qwen3_5`, whose linear-attention layers use the installed kernels on both sides.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import logging
from trl import RewardConfig, RewardTrainer

from benchmarks.timing import StepTimes, matmul_peak, peak_memory_mb, step_times
from benchmarks.workload import ROOT, build_model, load_workload
from reward_model.model.modeling import install
from reward_model.model.packing_check import choose_attention
from reward_model.training.arguments import TrainingArguments, bf16_is_fast
from reward_model.training.collator import PairCollator
from reward_model.training.trainer import ExactRewardTrainer

SIDES = ("stock", "packed_pairs", "packed")
PHASES = ("step", "forward_backward", "first_forward_backward")


def build_trainers(args: argparse.Namespace, directory: str, sides: tuple[str, ...]) -> dict[str, RewardTrainer]:
    """Return a trainer for each side, with identical copies of one model and the same pairs."""
    tokenizer, messages, tokenized = load_workload(
        args.data, args.model, args.pairs, args.answers, args.max_length, directory
    )
    model = build_model(args.model, tokenizer)
    # Without `prompt`, which is a key, pairs are not joined into trees.
    rows = {"stock": messages, "packed_pairs": tokenized.remove_columns("prompt"), "packed": tokenized}
    trainers = {}
    for side in sides:
        stock = side == "stock"
        config = (RewardConfig if stock else TrainingArguments)(
            output_dir=f"{directory}/{side}",
            per_device_train_batch_size=args.batch_size,
            max_steps=args.pairs // args.batch_size,
            max_length=None,
            learning_rate=1e-5,
            bf16=bf16_is_fast(),
            gradient_checkpointing=args.gradient_checkpointing,
            train_sampling_strategy="sequential",
            remove_unused_columns=stock,
            logging_steps=1,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        side_model = copy.deepcopy(model)
        if stock:
            side_model.set_attn_implementation(args.stock_attention)
        else:
            install(side_model)
            if reason := choose_attention(side_model, tokenizer.pad_token_id):
                sys.exit(f"error: {args.model} does not support packed rows: {reason}")
        trainers[side] = (RewardTrainer if stock else ExactRewardTrainer)(
            model=side_model,
            args=config,
            train_dataset=rows[side],
            processing_class=copy.deepcopy(tokenizer),
            data_collator=None if stock else PairCollator(pad_token_id=tokenizer.pad_token_id),
            callbacks=[StepTimes],
        )
    return trainers


def gradients(trainer: RewardTrainer, batch: dict) -> torch.Tensor:
    """Return the gradients of all parameters after one batch, as one vector."""
    trainer.model.train()
    trainer.model.zero_grad()
    with torch.autocast(trainer.args.device.type, torch.bfloat16, trainer.args.bf16):
        chosen, rejected = trainer.model(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
    (-F.logsigmoid(chosen - rejected).mean()).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def activation_memory(side: str) -> float:
    """Return the MB that a step takes beyond weights, gradients and optimizer states, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.training_speed", *sys.argv[1:], "--memory_of", side]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_activation_memory(args: argparse.Namespace) -> None:
    """Print the peak after all batches minus the peak after one step on the shortest pair."""
    with tempfile.TemporaryDirectory() as directory:
        (trainer,) = build_trainers(args, directory, (args.memory_of,)).values()
        rows = trainer.train_dataset
        lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
        trainer.args.max_steps, trainer.train_dataset = 1, rows.select([int(np.argmin(lengths))])
        trainer.train()
        states = peak_memory_mb()
        trainer.args.max_steps, trainer.train_dataset = args.pairs // args.batch_size, rows
        trainer.train()
        print(peak_memory_mb() - states)


def measure(args: argparse.Namespace, sides: tuple[str, ...], memory: dict[str, float]) -> dict[str, Any]:
    """Train all sides for all rounds, and return the figures for the report."""
    seconds: dict[str, dict[str, list[float]]] = {side: {phase: [] for phase in PHASES} for side in sides}
    losses, first_gradients, flops, peak = {}, {}, {}, 0.0
    with tempfile.TemporaryDirectory() as directory:
        trainers = build_trainers(args, directory, sides)
        batches = {side: list(trainer.get_train_dataloader()) for side, trainer in trainers.items()}
        for side in sides:  # this is also the warm-up
            with FlopCounterMode(display=False) as counter:
                first_gradients[side] = gradients(trainers[side], batches[side][0])
            flops[side] = counter.get_total_flops()
        for number in range(args.rounds):
            for side in sides[:: -1 if number % 2 else 1]:
                trainers[side].train()
                times = step_times(trainers[side])
                phases = times.seconds, sum(times.forward_backward), times.forward_backward[0]
                for phase, value in zip(PHASES, phases, strict=True):
                    seconds[side][phase].append(value)
                losses.setdefault(side, [log["loss"] for log in trainers[side].state.log_history if "loss" in log])
            peak = max(peak, matmul_peak())  # in every round, because the speed of a shared machine varies

    pairs = len(batches["packed"]) * args.batch_size
    positions = {side: sum(batch["input_ids"].numel() for batch in batches[side]) for side in sides}
    figures: dict[str, Any] = {"matmul_peak_gflops": peak, "position_ratio": positions["stock"] / positions["packed"]}
    for side in sides:
        step, forward_backward, first = (np.median(seconds[side][phase]) for phase in PHASES)
        figures[side] = {
            "pairs_per_second": pairs / step,
            "forward_backward_pairs_per_second": pairs / forward_backward,
            "forward_backward_gflops": flops[side] / first / 1e9,
            "token_positions": positions[side],
            "peak_memory_mb": memory[side],
        }
    for side in sides[:-1]:
        for phase in ("step", "forward_backward"):
            ratios = np.array(seconds[side][phase]) / np.array(seconds["packed"][phase])
            name = f"{phase}_ratio" if side == "stock" else f"{phase}_ratio_to_{side}"
            figures[name] = {"median": np.median(ratios), "min": ratios.min(), "max": ratios.max()}
    expected = first_gradients["stock"]
    difference = (first_gradients["packed"] - expected).norm() / expected.norm()
    figures["largest_loss_difference"] = np.abs(np.subtract(losses["stock"], losses["packed"])).max()
    figures["relative_gradient_difference"] = difference.item()
    return figures


def print_report(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures as a table, one column per side."""
    print(f"\n{args.data}, {args.model}, {args.pairs} pairs, batch size {args.batch_size}, {args.rounds} rounds")
    sides = [side for side in SIDES if side in figures]
    print(f"{'':<36}" + "".join(f"{side:>14}" for side in sides) + f"{'ratio':>10}")
    stock, packed = figures["stock"], figures["packed"]
    for name in stock:
        smaller_is_better = name in ("token_positions", "peak_memory_mb")
        ratio = stock[name] / packed[name] if smaller_is_better else packed[name] / stock[name]
        print(f"{name:<36}" + "".join(f"{figures[side][name]:>14,.2f}" for side in sides) + f"{ratio:>10.2f}")
    for name, ratio in figures.items():
        if "_ratio" in name and isinstance(ratio, dict):
            print(f"{name.replace('_', ' ')}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    peak = figures["matmul_peak_gflops"]
    print(f"matmul peak {peak:.1f} GFLOP/s; packed runs at {packed['forward_backward_gflops'] / peak:.0%} of it")
    print(
        f"largest difference between losses {figures['largest_loss_difference']:.1e}, "
        f"relative difference between gradients {figures['relative_gradient_difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=16, help="pairs per round; default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--answers", type=int, default=4, help="responses to each prompt, for lists; default: %(default)s"
    )
    parser.add_argument("--stock_attention", default="sdpa", help="attention of the stock side; default: %(default)s")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.memory_of:
        print_activation_memory(args)
        return
    sides = SIDES if args.data == "lists" else ("stock", "packed")
    figures = measure(args, sides, {side: activation_memory(side) for side in sides})
    print_report(args, figures)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), **figures}, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
