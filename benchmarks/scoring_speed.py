"""Compare the speed of scoring with that of a plain padded Transformers loop on the same model and conversations.

    python -m benchmarks.scoring_speed --data best-of-n --model random          # 100 long prompts with 16 answers each
    python -m benchmarks.scoring_speed --data save/benchmarks/en.jsonl --model random --groups 40

The plain loop is what most scripts do: padded batches of 16 conversations in the given order, with the same tokens.
`--model random` is a random Llama whose body has 25 M parameters.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel, logging

from reward_model.evaluation.items import load_items
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.packing_check import prepare_for_scoring
from reward_model.model.tokenization import load_tokenizer, render
from reward_model.scoring.local import score

ROOT = Path(__file__).resolve().parent.parent

DEMO_MODEL = str(ROOT / "models/SmolLM2-135M-Instruct")
WORDS = (
    "the of to and a in is it you that he was for on are with as his they at be this from have or by one had".split()
)


def best_of_n(prompts: int, answers: int) -> list[list[list[dict[str, Any]]]]:
    """Return prompts of about 400 words with answers of about 60."""
    random = np.random.default_rng(0)

    def text(words: float) -> str:
        return " ".join(random.choice(WORDS, max(1, int(words))))

    groups = []
    for _ in range(prompts):
        user = {"role": "user", "content": text(random.normal(400, 50))}
        replies = [text(random.lognormal(4, 0.5)) for _ in range(answers)]
        groups.append([[user, {"role": "assistant", "content": reply}] for reply in replies])
    return groups


@torch.no_grad()
def plain(model: PreTrainedModel, tokenizer: Any, groups: list[list[Any]], batch_size: int) -> list[float]:
    """Compute scores as most scripts do."""
    texts = [render(messages, tokenizer) for group in groups for messages in group]
    scores = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(batch, add_special_tokens=False, padding=True, return_tensors="pt")
        scores += model(**inputs, use_cache=False).logits.flatten().tolist()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="best-of-n", help="best-of-n, or a file of pairs")
    parser.add_argument("--model", default="random", help="random, or the directory of a reward model")
    parser.add_argument("--groups", type=int, default=100, help="number of prompts")
    parser.add_argument("--answers", type=int, default=16, help="answers to each prompt, for best-of-n")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=2048, help="skip groups with a longer conversation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    logging.set_verbosity_error()
    template = str(ROOT / "data/demo/chatml.jinja") if args.model == "random" else None
    tokenizer = load_tokenizer(DEMO_MODEL if args.model == "random" else args.model, template)
    torch.manual_seed(0)
    if args.model == "random":
        tokenizer.pad_token = "<file_sep>"
        sizes: dict[str, Any] = {
            "num_labels": 1,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
        }
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **sizes)
        stock = AutoModelForSequenceClassification.from_config(config).eval()
    else:
        stock = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    set_pad_token(stock, tokenizer)
    ours = type(stock)(stock.config).eval()
    ours.load_state_dict(stock.state_dict())
    prepare_for_scoring(ours, tokenizer.pad_token_id)

    if args.data == "best-of-n":
        groups = best_of_n(args.groups, args.answers)
    else:
        groups = [item.conversations for item in load_items([args.data])]
        longest = [max(len(tokenizer(render(m, tokenizer))["input_ids"]) for m in group) for group in groups]
        groups = [group for group, length in zip(groups, longest, strict=True) if length <= args.max_length][
            : args.groups
        ]

    seconds: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        expected = plain(stock, tokenizer, groups, args.batch_size)
        middle = time.perf_counter()
        scores = [value for group in score(ours, tokenizer, groups) for value in group]
        seconds.append((middle - started, time.perf_counter() - middle))
    difference = float(np.abs(np.subtract(scores, expected)).max())
    ratios = [stock_time / our_time for stock_time, our_time in seconds]
    plain_speed, our_speed = (len(scores) / np.median(times) for times in zip(*seconds, strict=True))
    print(f"{args.data}, {args.model}: {len(groups)} prompts, {len(scores)} conversations, {args.rounds} rounds")
    print(f"plain loop {plain_speed:.2f} conversations/s, ours {our_speed:.2f} conversations/s")
    print(
        f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), largest difference {difference:.1e}"
    )
    if args.json:
        figures = {"plain": plain_speed, "ours": our_speed, "ratios": ratios, "largest_difference": difference}
        args.json.write_text(json.dumps({"arguments": vars(args), **figures}, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
