"""Scores of conversations with Transformers, without a server.

    python infer_transformers.py save/demo "question" "answer" ["another answer" …]         # best first
    python infer_transformers.py save/demo --input conversations.jsonl --output scores.jsonl

    from infer_transformers import infer_transformers
    infer_transformers("save/demo", [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]])

A row of the input is a conversation ({"messages": […]}), a prompt with answers ({"prompt": …, "responses": […]}), or
a pair ({"chosen": …, "rejected": …}), each with "tools" if the assistant had any. The output has the same rows in the
same order, with "score", "scores" (one for each response), or "chosen_score" and "rejected_score"; or with "error". It
is written batch by batch. If it is there already, in part, it is continued.
"""

import argparse
import math
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from client import DRIFT, FileError, Reading, answer_messages, look_at, prompt_messages, score_file
from reward_model import InputError
from reward_model.data.pair import Messages, check_conversation
from reward_model.data.readers import place_of, read_rows


def infer_transformers(
    model: str, conversations: list[Messages], tools: list[dict[str, Any]] | None = None, dtype: str | None = None
) -> list[float]:
    """Raw scores of conversations; neighbours that begin alike (n answers to one prompt) share that computation.

    `tools` are those that the assistant had in all of them; `dtype` is by default float32 on a CPU, elsewhere the
    model's.
    """
    from reward_model.scoring.local import load_reward_model, score

    groups: list[list[Messages]] = []
    for messages in conversations:
        messages = check_conversation(messages, "a conversation")
        if groups and groups[-1][0][:-1] == messages[:-1]:
            groups[-1].append(messages)
        else:
            groups.append([messages])
    scores = score(*load_reward_model(model, dtype), groups, tools=[tools] * len(groups))
    return [value for group in scores for value in group]


def score_rows(
    model: Any, tokenizer: Any, tokens_per_batch: int, readings: Iterable[Reading]
) -> Iterator[tuple[Reading, list[float] | str]]:
    """Each row with its scores or an error, in order, as many at a time as fit into a batch."""
    from reward_model.model.packing import positions
    from reward_model.scoring.local import encode, laid_out, score_batch

    batch: list[tuple[Reading, list[list[int]] | str]] = []

    def scored() -> Iterator[tuple[Reading, list[float] | str]]:
        groups = [tokens for _, tokens in batch if not isinstance(tokens, str)]
        scores = iter(score_batch(model, tokenizer, groups) if groups else [])
        for reading, tokens in batch:
            values = tokens if isinstance(tokens, str) else next(scores)
            finite = isinstance(values, str) or all(map(math.isfinite, values))
            yield reading, values if finite else f"the scores are {values}; look at the weights and the --dtype."

    filled = 0
    for reading in readings:
        tokens: list[list[int]] | str = reading.error
        try:
            if not tokens:
                conversations = [check_conversation(messages, "a conversation") for messages in reading.conversations]
                tokens = encode(conversations, model, tokenizer, reading.tools)
        except InputError as error:
            tokens = str(error)
        size = 0 if isinstance(tokens, str) else positions(laid_out(tokens, model))
        if batch and filled + size > tokens_per_batch:
            yield from scored()
            batch, filled = [], 0
        batch.append((reading, tokens))
        filled += size
    yield from scored()


def score_input(args: argparse.Namespace) -> int:
    """How many rows of the file have an error."""
    from reward_model.model.reference_scores import drift, rounding_noise
    from reward_model.scoring.local import batch_budget, load_reward_model

    if args.output.exists() and args.output.samefile(args.input):
        raise InputError("--output is the --input; choose another.")
    rows = ((place_of(args.input, number), row) for number, row in read_rows(args.input))
    output = look_at(args.output, rows)
    model, tokenizer = load_reward_model(args.model, args.dtype)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there is something to say
    exact = str(model.dtype) == "torch.float32"
    noise = rounding_noise(Path(args.model))
    if not exact and (found := drift(model, tokenizer, Path(args.model))) > DRIFT * noise:
        print(f"warning: in {model.dtype} scores drift by up to {found:.2g}; try --dtype float32.", file=sys.stderr)
    budget = args.tokens_per_batch or batch_budget(model)
    return score_file(output, partial(score_rows, model, tokenizer, budget), exact)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a reward model, as train.py leaves it, or of another with one label")
    parser.add_argument("question", nargs="?")
    parser.add_argument("answers", nargs="*", metavar="answer")
    parser.add_argument("--input", type=Path, help=".jsonl, .jsonl.gz, .json, .csv or .parquet")
    parser.add_argument("--output", type=Path, help="scores.jsonl; continued if it is there")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, help="default: float32 on a CPU, elsewhere that of the model")
    parser.add_argument("--tokens_per_batch", type=int, help="default: by the free memory of the GPU; 4096 on a CPU")
    args = parser.parse_args(argv)
    if args.input and args.output and not args.question:
        sys.exit(1 if score_input(args) else 0)
    elif args.question and args.answers and not (args.input or args.output):
        prompt = prompt_messages(args.question)
        conversations = [prompt + answer_messages(answer) for answer in args.answers]
        scores = infer_transformers(args.model, conversations, dtype=args.dtype)
        for value, answer in sorted(zip(scores, args.answers, strict=True), reverse=True):
            print(f"{value:+.4f}  {answer}")
    else:
        parser.error("give a question and answers, or --input and --output.")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among imports would be a traceback
    try:
        main(sys.argv[1:])
    except (InputError, FileError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. What was scored is kept; the same command goes on.", file=sys.stderr)
        sys.exit(130)
