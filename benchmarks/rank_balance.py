"""Compare random and balanced distributions of pairs over ranks, in a simulation and in training on two ranks.

    python -m benchmarks.rank_balance --data pairs.jsonl --ranks 2 8 16 --batch_size 2 4
    python -m benchmarks.rank_balance --data dialogues --batch_size 4 2 --rounds 3 --json out.json

`--data` is a file of pairs, `dialogues` or `lists`, as for benchmarks/training_speed.py. The table shows the positions
on the slowest rank divided by those on the average rank. With `--rounds`, two single-threaded processes train a
randomly initialized Llama (`--model`) on the first 96 pairs, for one epoch in each order; the orders alternate.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import logging

from benchmarks.timing import StepTimes, step_times
from benchmarks.workload import RANDOM_MODELS, ROOT, build_model, load_workload
from reward_model.model.modeling import install
from reward_model.model.packing_check import choose_attention
from reward_model.training.arguments import TrainingArguments
from reward_model.training.collator import PairCollator
from reward_model.training.sampler import StepSampler
from reward_model.training.trainer import ExactRewardTrainer

ORDERS = {"random": False, "balanced": True}


def simulate(pairs: Any, ranks: int, batch_size: int) -> dict[str, float]:
    """Return the ratio of the slowest rank's positions to the average rank's, for the full steps of ten epochs."""
    ratios = {}
    for order, balance in ORDERS.items():
        sampler = StepSampler(pairs, batch_size, ranks, group_by_prompt=False, balance_ranks=balance)
        steps = len(pairs) // (batch_size * ranks)
        loads = []
        for sampler.epoch in range(10):
            batches = np.array(list(sampler))[: steps * ranks * batch_size].reshape(steps, ranks, batch_size)
            loads.append(sampler.positions[batches].sum(2))
        positions = np.concatenate(loads)
        ratios[order] = float(positions.max(1).sum() / positions.mean(1).sum())
    return ratios


def train(args: argparse.Namespace, pairs: Any, tokenizer: Any, directory: str) -> dict[str, Any]:
    """Return the seconds per epoch, the losses and the rank_balance of both orders, on this rank."""
    figures: dict[str, Any] = {order: {"seconds": []} for order in ORDERS}
    for round_ in range(args.rounds + 1):  # the first is the warm-up
        for order in list(ORDERS)[:: -1 if round_ % 2 else 1]:
            model = build_model(args.model, tokenizer)
            install(model)
            choose_attention(model, tokenizer.pad_token_id)
            config = TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=args.batch_size[0],
                num_train_epochs=1,
                dataloader_drop_last=True,
                learning_rate=1e-5,
                gradient_checkpointing=False,
                group_by_prompt=False,
                balance_ranks=ORDERS[order],
                remove_unused_columns=False,
                max_length=None,
                logging_steps=1,
                eval_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = ExactRewardTrainer(
                model=model,
                args=config,
                train_dataset=pairs,
                processing_class=tokenizer,
                data_collator=PairCollator(tokenizer.pad_token_id),
                callbacks=[StepTimes],
            )
            trainer.train()
            logs = [log for log in trainer.state.log_history if "rank_balance" in log]
            figures[order] |= {key: [log[key] for log in logs] for key in ("loss", "rank_balance")}
            if round_:
                figures[order]["seconds"].append(step_times(trainer).seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="tiny", choices=RANDOM_MODELS)
    parser.add_argument("--pairs", type=int, default=1000, help="maximum number of pairs; default: %(default)s")
    parser.add_argument(
        "--answers", type=int, default=4, help="responses to each prompt, for lists; default: %(default)s"
    )
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[2, 4], help="pairs on each rank")
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of training on two ranks with the first batch size"
    )
    parser.add_argument("--json", type=Path, help="also write the training results to this file")
    args = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer, _, pairs = load_workload(args.data, args.model, args.pairs, args.answers, args.max_length, directory)
        if "WORLD_SIZE" in os.environ:
            torch.set_num_threads(1)
            figures = train(args, pairs.select(range(min(len(pairs), 96))), tokenizer, directory)
            if os.environ["RANK"] == "0":
                print_report(args, figures)
            return
    print(f"{args.data}, {len(pairs)} pairs: positions on the slowest rank divided by those on the average rank")
    print(f"{'ranks':>6}{'pairs/rank':>12}{'random':>10}{'balanced':>10}{'gain':>8}")
    for ranks, batch_size in itertools.product(args.ranks, args.batch_size):
        if ranks * batch_size <= len(pairs):
            ratios = simulate(pairs, ranks, batch_size)
            gain = ratios["random"] / ratios["balanced"]
            print(f"{ranks:>6}{batch_size:>12}{ratios['random']:>10.2f}{ratios['balanced']:>10.2f}{gain:>7.2f}x")
    if args.rounds:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
        subprocess.run([*launch, "-m", "benchmarks.rank_balance", *sys.argv[1:]], cwd=ROOT, check=True)


def print_report(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    ratios = np.array(figures["random"]["seconds"]) / np.array(figures["balanced"]["seconds"])
    steps = len(figures["random"]["loss"])
    print(f"\ntrained {args.model} on two ranks, {args.batch_size[0]} pairs each, {steps} steps, {args.rounds} rounds")
    for order in ORDERS:
        speed = steps * 2 * args.batch_size[0] / np.median(figures[order]["seconds"])
        print(f"{order:<10}{speed:>8.2f} pairs/s, rank_balance {np.mean(figures[order]['rank_balance']):.3f}")
    difference = np.abs(np.subtract(figures["random"]["loss"], figures["balanced"]["loss"])).max()
    print(f"balanced is {np.median(ratios):.2f} times as fast ({ratios.min():.2f} to {ratios.max():.2f})")
    print(f"largest difference between losses {difference:.0e}")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), **figures}, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
