"""Scores of conversations with Transformers, without a server.

    python infer_transformers.py save/demo "question" "answer" ["another answer" …]         # best first
    python infer_transformers.py save/demo --input conversations.jsonl --output scores.jsonl

    from infer_transformers import infer_transformers
    infer_transformers("save/demo", [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]])

A row of the input is a conversation ({"messages": […]}), a prompt with answers ({"prompt": …, "responses": […]}), or
a pair ({"chosen": …, "rejected": …}), each with "tools" if the assistant had any. The output has the same rows in the
same order, with "score", "scores" (one for each response), or "chosen_score" and "rejected_score". If the output is
there already, in part, it is continued.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from reward_model import InputError, RowError
from reward_model.data.fields import tools_of
from reward_model.data.files import place_of, read_rows
from reward_model.data.messages import answer_messages
from reward_model.data.pair import SIDES, Messages, check_conversation
from reward_model.data.reader import conversations_of

ROWS = 2048  # sorted by length, scored and written at a time: what a stopped run may lose


def infer_transformers(
    model: str, conversations: list[Messages], tools: list[dict[str, Any]] | None = None
) -> list[float]:
    """Raw scores of conversations; neighbours that begin alike (n answers to one prompt) share that computation.

    `tools` are those that the assistant had in all of them.
    """
    from reward_model.scoring.local import load_reward_model, score

    groups: list[list[Messages]] = []
    for messages in conversations:
        check_conversation(messages, "a conversation")
        if groups and groups[-1][0][:-1] == messages[:-1]:
            groups[-1].append(messages)
        else:
            groups.append([messages])
    scores = score(*load_reward_model(model), groups, tools=[tools] * len(groups))
    return [value for group in scores for value in group]


def with_scores(row: dict[str, Any], scores: list[float]) -> dict[str, Any]:
    """The row as it is written."""
    if all(side in row for side in SIDES):
        return row | dict(zip(("chosen_score", "rejected_score"), scores, strict=True))
    return row | ({"scores": scores} if "responses" in row else {"score": scores[0]})


def read_input(file: Path) -> Iterator[tuple[dict[str, Any], list[Messages]]]:
    """(row, its conversations), checked; a list of messages becomes an object.

    Raises InputError with the place of the first bad row.
    """
    for number, row in read_rows(file):
        try:
            found = list(conversations_of(row).values())
            yield row if isinstance(row, dict) else {"messages": row}, found
        except RowError as error:
            raise InputError(f"{place_of(file, number)}: {error} What was scored before it is kept.") from None


def whole_lines(output: Path) -> int:
    """Rows that an earlier run has written; half a line at the end, of a run that was killed, is cut off."""
    if not output.exists():
        return 0
    with open(output, "rb+") as file:
        done, size = 0, 0
        for line in file:
            if line.endswith(b"\n"):
                done, size = done + 1, size + len(line)
        file.truncate(size)
    return done


def score_file(args: argparse.Namespace) -> None:
    from reward_model.scoring.local import load_reward_model, score

    done = whole_lines(args.output)
    rows = read_input(args.input)
    if done:
        with open(args.output, encoding="utf-8") as written:
            for line, (row, messages) in zip(written, islice(rows, done), strict=False):
                earlier = json.loads(line)
                if earlier.keys() != with_scores(row, [0.0] * len(messages)).keys() or earlier != earlier | row:
                    raise InputError(
                        f"{args.output} holds scores of other rows than {args.input}; choose another --output."
                    )
        print(f"{done:,} rows are in {args.output} already.")
    model, tokenizer = load_reward_model(args.model, args.dtype)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "a", encoding="utf-8") as output:
        while chunk := list(islice(rows, ROWS)):
            groups = [messages for _, messages in chunk]
            found = score(model, tokenizer, groups, args.tokens_per_batch, [tools_of(row) for row, _ in chunk])
            for (row, _), scores in zip(chunk, found, strict=True):
                output.write(json.dumps(with_scores(row, scores), ensure_ascii=False) + "\n")
            output.flush()
            done += len(chunk)
    print(f"{done:,} rows -> {args.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a reward model, as train.py leaves it, or of another with one label")
    parser.add_argument("question", nargs="?")
    parser.add_argument("answers", nargs="*", metavar="answer")
    parser.add_argument("--input", type=Path, help=".jsonl, .jsonl.gz, .json, .csv or .parquet")
    parser.add_argument("--output", type=Path, help="scores.jsonl; continued if it is there")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, help="default: float32 on a CPU, elsewhere that of the model")
    parser.add_argument("--tokens_per_batch", type=int, default=4096)
    args = parser.parse_args()
    if args.input and args.output and not args.question:
        score_file(args)
    elif args.question and args.answers and not args.input:
        question = {"role": "user", "content": args.question}
        scores = infer_transformers(args.model, [[question, *answer_messages(answer)] for answer in args.answers])
        for value, answer in sorted(zip(scores, args.answers, strict=True), reverse=True):
            print(f"{value:+.4f}  {answer}")
    else:
        parser.error("give a question and answers, or --input and --output.")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
