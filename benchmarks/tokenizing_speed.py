"""Compare the speed of tokenizing pairs (chat template, tokens, shared prefix) with trl's on the same rows.

python -m benchmarks.tokenizing_speed --data dialogues --model models/SmolLM2-135M-Instruct
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from benchmarks.generated import dialogues
from benchmarks.workload import DEMO_MODEL
from reward_model.data.dataset import load_pairs
from reward_model.model.tokenization import load_tokenizer, tokenize_pairs


def timed(prepare: Callable[[], Dataset]) -> tuple[float, Dataset]:
    """Return the seconds that `prepare` takes, and its result."""
    started = time.perf_counter()
    prepared = prepare()
    return time.perf_counter() - started, prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="dialogues", help="a file of pairs, or dialogues: 4,000 generated pairs")
    parser.add_argument("--model", default=DEMO_MODEL, help="directory with the tokenizer")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    datasets.disable_caching()
    tokenizer = load_tokenizer(args.model)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(args.data)
        if args.data == "dialogues":
            source = Path(directory) / "dialogues.jsonl"
            source.write_text("".join(json.dumps(pair) + "\n" for pair in dialogues(4000)))
        pairs = load_pairs(str(source))[0]
        rows = Dataset.from_list([{side: json.loads(pair[side]) for side in ("chosen", "rejected")} for pair in pairs])
        config = RewardConfig(output_dir=directory, max_length=2048, dataset_num_proc=args.num_proc, bf16=False)
        times: list[tuple[float, float]] = []
        for _ in range(args.rounds):
            # Private, because trl tokenizes only when a trainer is built. The method does not use `self`.
            stock_seconds, stock_rows = timed(
                lambda: RewardTrainer._prepare_dataset(None, rows, tokenizer, config, "train")
            )
            our_seconds, our_rows = timed(lambda: tokenize_pairs(pairs, tokenizer, 2048, args.num_proc, "training"))
            times.append((stock_seconds, our_seconds))
    for side in ("chosen_ids", "rejected_ids"):
        if stock_rows[side][:] != our_rows[side][:]:
            sys.exit(f"error: {side} differ from trl's")
    stock, ours = np.median(times, axis=0)
    ratios = [stock_seconds / our_seconds for stock_seconds, our_seconds in times]
    length = np.mean(our_rows["length"][:])
    print(f"{args.data}: {len(pairs)} pairs, {length:.0f} tokens on the longer side, {args.num_proc=}")
    print(f"stock trl {len(pairs) / stock:,.0f} pairs/s, this repository {len(pairs) / ours:,.0f} pairs/s")
    print(f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
