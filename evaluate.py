"""Accuracy of a reward model on labelled pairs, in all and per source.

python evaluate.py --model save/my-run pairs.jsonl
"""

import argparse
import json
import sys

from reward_model import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description="Share of pairs whose chosen answer scores higher (a tie is a half).")
    parser.add_argument("--model", required=True, help="folder of a reward model, scored with Transformers")
    parser.add_argument("data", help="pairs: a .json, .jsonl or .parquet file, a folder of them, or a hub id")
    args = parser.parse_args()

    from reward_model.pairs import load_pairs
    from reward_model.scoring import load_reward_model, score

    pairs, test_pairs = load_pairs(args.data)
    pairs = pairs if test_pairs is None else test_pairs
    conversations = [[json.loads(pair["chosen"]), json.loads(pair["rejected"])] for pair in pairs]
    rewards = score(*load_reward_model(args.model), conversations)

    by_source: dict[str, list[float]] = {}
    for source, (chosen, rejected) in zip(pairs["source"], rewards, strict=True):
        right = 0.5 if chosen == rejected else float(chosen > rejected)
        by_source.setdefault(source or "(no source)", []).append(right)
        by_source.setdefault("all", []).append(right)
    print(f"{'source':<24}{'pairs':>7}{'accuracy':>10}")
    for source, right in sorted(by_source.items(), key=lambda item: item[0] == "all"):
        print(f"{source:<24}{len(right):>7}{sum(right) / len(right):>10.3f}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
