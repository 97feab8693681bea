"""Score conversations with Transformers, without a server.

    python infer_transformers.py save/demo "question" "answer" ["another answer" ...]      # best first
    python infer_transformers.py save/demo --input conversations.jsonl --output scores.jsonl

    from infer_transformers import infer_transformers
    infer_transformers("save/demo", [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]])

Each row of the input is a conversation ({"messages": [...]}), a prompt with its answers ({"prompt": ..., "responses":
[...]}), or a preference pair in any layout that train.py reads. Any row can also contain the assistant's "tools". The
output contains the same rows in the same order, each with "score", with "scores" (one for each answer), with
"chosen_score" and "rejected_score", or with "error". Rows are written batch by batch, so an interrupted run can resume.
"""

import argparse
import signal
import sys
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from reward_model import InputError, print_traceback
from reward_model.data.messages import answer_messages, prompt_messages
from reward_model.data.pair import Messages, check_conversation
from reward_model.scoring.files import open_partial_output, score_file
from reward_model.scoring.reference_check import DRIFT


def infer_transformers(
    model: str, conversations: list[Messages], tools: list[dict[str, Any]] | None = None, dtype: str | None = None
) -> list[float]:
    """Return the raw score of each conversation.

    Args:
        model: Directory of a reward model.
        conversations: Conversations to score. A prompt is computed only once if the answers to it are adjacent.
        tools: Tools available to the assistant, shared by all conversations.
        dtype: Defaults to float32 on a CPU, otherwise to the dtype of the weights.
    """
    from reward_model.scoring.local import load_reward_model, score

    checked = [check_conversation(messages, "a conversation") for messages in conversations]
    groups = [list(answers) for _, answers in groupby(checked, key=lambda messages: messages[:-1])]
    scores = score(*load_reward_model(model, dtype), groups, tools=[tools] * len(groups))
    return [value for group in scores for value in group]


def score_input(args: argparse.Namespace) -> int:
    """Score the rows in a file, and return the number of rows with an error."""
    from reward_model.model.reference_scores import drift, rounding_noise
    from reward_model.scoring.local import batch_budget, load_reward_model, score_rows

    output = open_partial_output(args.input, args.output)
    model, tokenizer = load_reward_model(args.model, args.dtype)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on, Ctrl-C prints how to resume
    exact = str(model.dtype) == "torch.float32"
    noise = rounding_noise(Path(args.model))
    if not exact and (found := drift(model, tokenizer, Path(args.model))) > DRIFT * noise:
        print(f"warning: scores drift by up to {found:.2g} in {model.dtype}; try --dtype float32.", file=sys.stderr)
    budget = args.tokens_per_batch or batch_budget(model)
    return score_file(args.input, output, partial(score_rows, model, tokenizer, budget), exact)


def main(argv: list[str]) -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a reward model, such as the --output_dir of train.py")
    parser.add_argument("question", nargs="?")
    parser.add_argument("answers", nargs="*", metavar="answer")
    parser.add_argument("--input", type=Path, help="rows to score: .jsonl, .jsonl.gz, .json, .csv or .parquet")
    parser.add_argument("--output", type=Path, help=".jsonl file for the rows and their scores; resumed if it exists")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, help="default: float32 on a CPU, otherwise the dtype of the weights")
    parser.add_argument("--tokens_per_batch", type=int, help="default: based on the free GPU memory; 4096 on a CPU")
    args = parser.parse_args(argv)
    if args.input and args.output and not args.question:
        sys.exit(1 if score_input(args) else 0)
    elif args.question and args.answers and not (args.input or args.output):
        conversations = [prompt_messages(args.question) + answer_messages(answer) for answer in args.answers]
        scores = infer_transformers(args.model, conversations, dtype=args.dtype)
        for value, answer in sorted(zip(scores, args.answers, strict=True), reverse=True):
            print(f"{value:+.4f}  {answer}")
    else:
        parser.error("pass a question and answers, or --input and --output.")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit quietly on Ctrl-C while slow imports run
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print_traceback()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. Scored rows are kept; run the same command to resume.", file=sys.stderr)
        sys.exit(130)
