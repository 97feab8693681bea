"""Rows per second of preparing pairs (template, tokens, shared prefix) against trl's own preparation of the same rows.

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
from reward_model.data.dataset import load_pairs
from reward_model.model.tokenization import load_tokenizer, tokenize_pairs

ROOT = Path(__file__).resolve().parent.parent


def seconds(prepare: Callable[[], Dataset]) -> tuple[float, Dataset]:
    begin = time.perf_counter()
    prepared = prepare()
    return time.perf_counter() - begin, prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="dialogues", help="a file of pairs, or dialogues: 4,000 generated ones")
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"), help="whose tokenizer")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    datasets.disable_caching()
    tokenizer = load_tokenizer(args.model)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(args.data)
        if args.data == "dialogues":
            source = Path(folder) / "dialogues.jsonl"
            source.write_text("".join(json.dumps(pair) + "\n" for pair in dialogues(4000)))
        pairs = load_pairs(str(source))[0]
        rows = Dataset.from_list([{side: json.loads(pair[side]) for side in ("chosen", "rejected")} for pair in pairs])
        config = RewardConfig(output_dir=folder, max_length=2048, dataset_num_proc=args.num_proc, bf16=False)
        times: list[tuple[float, float]] = []
        for _ in range(args.rounds):
            # The method reads nothing of the trainer itself.
            stock, theirs = seconds(lambda: RewardTrainer._prepare_dataset(None, rows, tokenizer, config, "train"))
            ours, mine = seconds(lambda: tokenize_pairs(pairs, tokenizer, 2048, args.num_proc, "training"))
            times.append((stock, ours))
    if theirs["chosen_ids"][:] != mine["chosen_ids"][:] or theirs["rejected_ids"][:] != mine["rejected_ids"][:]:
        sys.exit("error: the two sides made different tokens")
    stock, ours = np.median(times, axis=0)
    ratios = [a / b for a, b in times]
    print(
        f"{args.data}: {len(pairs)} pairs, {np.mean(mine['length'][:]):.0f} tokens on the longer side, {args.num_proc=}"
    )
    print(f"stock trl {len(pairs) / stock:,.0f} rows/s, ours {len(pairs) / ours:,.0f} rows/s")
    print(f"ratio {stock and np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
