"""What dealing a step's pairs out evenly saves: a simulation over real lengths, and a real run on two ranks.

    python -m benchmarks.rank_balance --data pairs.jsonl --ranks 2 8 16 --batch_size 2 4
    python -m benchmarks.rank_balance --data dialogues --batch_size 4 2 --rounds 3 --json out.json

`--data` is any file of pairs, `dialogues` or `lists`, as for benchmarks/training_speed.py. The table has the positions
of the slowest rank over those of the mean one, in random order and balanced. With `--rounds` two processes of one
thread each then train a random Llama (`--model`) on the first 96 pairs, for an epoch in each order, in turns.
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

from benchmarks.training_speed import RANDOM, ROOT, StepTimes, make_model, make_rows, timing
from reward_model.model.modeling import install
from reward_model.model.packing_check import choose_attention
from reward_model.training.arguments import TrainingArguments
from reward_model.training.collator import PairCollator
from reward_model.training.sampler import StepSampler
from reward_model.training.trainer import ExactRewardTrainer

ORDERS = {"random": False, "balanced": True}


def simulate(pairs: Any, ranks: int, batch_size: int) -> dict[str, float]:
    """Positions of the slowest rank over the mean, summed over the whole steps of ten epochs."""
    found = {}
    for order, balance in ORDERS.items():
        sampler = StepSampler(pairs, batch_size, ranks, group_by_prompt=False, balance_ranks=balance)
        whole = len(pairs) // (batch_size * ranks)
        loads = []
        for sampler.epoch in range(10):
            batches = np.array(list(sampler))[: whole * ranks * batch_size].reshape(whole, ranks, batch_size)
            loads.append(sampler.positions[batches].sum(2))
        each = np.concatenate(loads)
        found[order] = float(each.max(1).sum() / each.mean(1).sum())
    return found


def train(args: argparse.Namespace, pairs: Any, tokenizer: Any, folder: str) -> dict[str, Any]:
    """Seconds of an epoch, losses and rank_balance of both orders, in this process of several."""
    found: dict[str, Any] = {order: {"seconds": []} for order in ORDERS}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for order in list(ORDERS)[:: -1 if round_ % 2 else 1]:
            model = make_model(args.model, tokenizer)
            install(model)
            choose_attention(model, tokenizer.pad_token_id)
            config = TrainingArguments(
                output_dir=folder,
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
            found[order] |= {key: [log[key] for log in logs] for key in ("loss", "rank_balance")}
            if round_:
                found[order]["seconds"].append(timing(trainer).seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="tiny", choices=RANDOM)
    parser.add_argument("--pairs", type=int, default=1000, help="at most; default: %(default)s")
    parser.add_argument("--answers", type=int, default=4, help="of each prompt, for lists; default: %(default)s")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[2, 4], help="of each rank, in pairs")
    parser.add_argument("--rounds", type=int, default=0, help="of training on two ranks, with the first batch size")
    parser.add_argument("--json", type=Path, help="write the figures of the training there, too")
    args = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, _, pairs = make_rows(args, folder)
        if "WORLD_SIZE" in os.environ:
            torch.set_num_threads(1)
            found = train(args, pairs.select(range(min(len(pairs), 96))), tokenizer, folder)
            if os.environ["RANK"] == "0":
                report(args, found)
            return
    print(f"{args.data}, {len(pairs)} pairs: positions of the slowest rank over the mean")
    print(f"{'ranks':>6}{'pairs each':>12}{'random':>10}{'balanced':>10}{'gain':>8}")
    for ranks, batch_size in itertools.product(args.ranks, args.batch_size):
        if ranks * batch_size <= len(pairs):
            waits = simulate(pairs, ranks, batch_size)
            gain = waits["random"] / waits["balanced"]
            print(f"{ranks:>6}{batch_size:>12}{waits['random']:>10.2f}{waits['balanced']:>10.2f}{gain:>7.2f}x")
    if args.rounds:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
        subprocess.run([*launch, "-m", "benchmarks.rank_balance", *sys.argv[1:]], cwd=ROOT, check=True)


def report(args: argparse.Namespace, found: dict[str, Any]) -> None:
    ratios = np.array(found["random"]["seconds"]) / np.array(found["balanced"]["seconds"])
    steps = len(found["random"]["loss"])
    print(f"\ntrained {args.model} on two ranks, {args.batch_size[0]} pairs each, {steps} steps, {args.rounds} rounds")
    for order, figures in found.items():
        speed = steps * 2 * args.batch_size[0] / np.median(figures["seconds"])
        print(f"{order:<10}{speed:>8.2f} pairs/s, rank_balance {np.mean(figures['rank_balance']):.3f}")
    difference = np.abs(np.subtract(found["random"]["loss"], found["balanced"]["loss"])).max()
    print(f"faster by {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    print(f"largest difference of losses {difference:.0e}")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), **found}, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
