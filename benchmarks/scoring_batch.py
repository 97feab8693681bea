"""Measure how the speed and memory of scoring depend on the number of token positions in a batch.

    python -m benchmarks.scoring_batch                                # a random Llama with 3 M parameters
    python -m benchmarks.scoring_batch --model save/demo --pairs 100  # a reward model

The pairs are generated dialogues. The batch sizes alternate; the table shows medians over the rounds. The second speed
is per second of CPU time instead of wall time: with OMP_NUM_THREADS=1, other processes hardly affect it. Memory is the
peak of the process in the first round, in which the batches grow, minus the peak after a warm-up.
"""

import argparse
import time

import numpy as np
from transformers import logging

from benchmarks.generated import dialogues
from benchmarks.timing import peak_memory_mb
from benchmarks.workload import RANDOM_MODELS, build_model, load_model_tokenizer
from reward_model.model.packing import positions
from reward_model.model.packing_check import prepare_for_scoring
from reward_model.scoring.local import batch_budget, encode, load_reward_model, score, to_group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, random or a directory; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.model in RANDOM_MODELS:
        tokenizer = load_model_tokenizer(args.model)
        tokenizer.pad_token = "<file_sep>"
        model = prepare_for_scoring(build_model(args.model, tokenizer), tokenizer.pad_token_id)
    else:
        model, tokenizer = load_reward_model(args.model)
    groups = [[pair["chosen"], pair["rejected"]] for pair in dialogues(args.pairs)]
    total = sum(positions(to_group(encode(group, model, tokenizer), model)) for group in groups)
    score(model, tokenizer, groups[:10])  # warm-up

    idle, peaks = peak_memory_mb(), {}
    seconds: dict[int, list[tuple[float, float]]] = {tokens: [] for tokens in args.tokens}
    for number in range(args.rounds):
        for tokens in sorted(args.tokens, reverse=bool(number % 2)):
            start, cpu_start = time.perf_counter(), time.process_time()
            score(model, tokenizer, groups, tokens)
            seconds[tokens].append((time.perf_counter() - start, time.process_time() - cpu_start))
            peaks.setdefault(tokens, peak_memory_mb() - idle)
    print(
        f"{args.model}: {len(groups)} pairs, {total:,} positions, {args.rounds} rounds; default {batch_budget(model):,}"
    )
    print(f"{'tokens':>8}{'positions/s':>13}{'per CPU second':>16}{'spread':>18}{'MB':>8}")
    for tokens, times in seconds.items():
        wall, cpu = np.median(times, axis=0)
        cpu_speeds = [total / cpu_seconds for _, cpu_seconds in times]
        spread = f"{min(cpu_speeds):,.0f} to {max(cpu_speeds):,.0f}"
        print(f"{tokens:>8,}{total / wall:>13,.0f}{total / cpu:>16,.0f}{spread:>18}{peaks[tokens]:>8,.0f}", flush=True)


if __name__ == "__main__":
    main()
