"""How good is a reward model, and can one believe it: accuracy on labelled pairs, its intervals, calibration, biases.

    python evaluate.py --model save/demo data/demo/eval.jsonl --output save/demo-evaluation
    python evaluate.py --url http://127.0.0.1:5001 rewardbench.parquet rm_bench.json        # a server of infer_vllm.sh
    python evaluate.py compare save/evaluation-a save/evaluation-b              # --output folders, on the same pairs
    python evaluate.py parity save/demo --url http://127.0.0.1:5001 data/demo/eval.jsonl      # the same scores there?

DATA is anything that prepare_data.py reads: a file, a folder (its held-out files, if it has some) or a hub id. Lists of
chosen and rejected answers are judged as RewardBench 2 and RM-Bench do (reward_model/evaluation.py says how).
With --output: metrics.json, scores.jsonl and report.html, a page to look at.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client import ServerError
from client import score as served_score
from reward_model import InputError

if TYPE_CHECKING:
    from reward_model.evaluation.items import Item


def evaluate(args: argparse.Namespace) -> None:
    from reward_model.evaluation import items as evaluation
    from reward_model.evaluation import report as evaluation_report

    items = evaluation.load_items(args.data, args.protocol)
    scored = evaluation.Scored(items, local_scores(args, items) if args.model else served_scores(args, items))
    found = evaluation.figures(scored)
    if args.base_model:
        found["before"] = evaluation.figures(evaluation.Scored(items, local_scores(args, items, untrained=True)))["all"]
    print(evaluation.terminal(found))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "metrics.json").write_text(
            json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        with open(args.output / "scores.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in scored.records())
        page = evaluation_report.html(args.model or args.url, found, scored)
        (args.output / "report.html").write_text(page, encoding="utf-8")
        print(f"-> {args.output}/metrics.json, scores.jsonl, report.html")


def local_scores(args: argparse.Namespace, items: list["Item"], untrained: bool = False) -> list[list[float]]:
    """Scores of the trained model, or of its base model with a random head, rendered as the trained model renders."""
    from reward_model.scoring.local import load_reward_model, load_untrained, score

    loaded = load_untrained(args.base_model, args.model) if untrained else load_reward_model(args.model)
    return score(*loaded, [item.conversations for item in items], tools=[item.tools for item in items])


def served_scores(args: argparse.Namespace, items: list["Item"]) -> list[list[float]]:
    """Scores from the server, some requests at a time."""
    from tqdm import tqdm

    def ask(messages: list[dict[str, Any]], tools: Any) -> float:
        return served_score(messages, args.url, args.served_model_name, tools=tools)

    each = [(messages, item.tools) for item in items for messages in item.conversations]
    with ThreadPoolExecutor(args.concurrency) as pool:
        answers = pool.map(ask, *zip(*each, strict=True))
        values = iter(list(tqdm(answers, desc="Asking", total=len(each), unit="conversation", disable=None)))
    return [[next(values) for _ in item.conversations] for item in items]


def compare(args: argparse.Namespace) -> None:
    from reward_model.evaluation.report import compare

    runs = []
    for folder in (args.a, args.b):
        if not (folder / "scores.jsonl").is_file():
            raise InputError(f"{folder}: no scores.jsonl; make it with evaluate.py … --output {folder}")
        runs.append([json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()])
    found, disagree = compare(*runs)
    if not found["all"]["pairs"]:
        raise InputError(f"{args.a} and {args.b} have no pair in common; evaluate both on the same data.")
    print(f"{'subset':<28}{'items':>7}{'A':>8}{'B':>8}{'B - A':>8}{'95 % interval':>18}{'McNemar p':>11}")
    for name, row in found.items():
        limits = f"{row['low']:+.3f} to {row['high']:+.3f}"
        print(
            f"{name:<28}{row['pairs']:>7}{row['accuracy_a']:>8.3f}{row['accuracy_b']:>8.3f}{row['difference']:>+8.3f}"
            f"{limits:>18}{row['p_value']:>11.3g}"
        )
    missing = max(map(len, runs)) - found["all"]["pairs"]
    print(f"They disagree on {len(disagree)} items" + (f"; {missing} stand in one run only." if missing else "."))
    for item in disagree[: args.show]:
        better = "A" if item["a_right"] > item["b_right"] else "B"
        print(f"  only {better} is right: {item['place']} ({item['subset']}) {' '.join(item['prompt'].split())[:100]}")
    if args.output:
        args.output.write_text(
            json.dumps({"subsets": found, "disagree": disagree}, indent=2, ensure_ascii=False) + "\n"
        )


def parity(args: argparse.Namespace) -> None:
    from reward_model.evaluation.items import load_items
    from reward_model.model.tokenization import render, token_ids
    from reward_model.scoring.local import load_reward_model, score
    from reward_model.scoring.parity import cause, parity, served_tokens

    items = load_items(args.data)
    each = [(messages, item.tools) for item in items for messages in item.conversations]
    model, tokenizer = load_reward_model(args.model)
    # One by one, so that nothing is shared, as a user of Transformers would.
    alone = score(model, tokenizer, [[messages] for messages, _ in each], tools=[tools for _, tools in each])
    here = [value for (value,) in alone]
    served = [value for values in served_scores(args, items) for value in values]
    found = parity(here, served, str(model.dtype).removeprefix("torch."))
    (worst, tools), ours, theirs = (values[found["worst"]] for values in (each, here, served))
    print(
        f"{found['conversations']} conversations: largest difference {found['largest_difference']:.1e} (allowed "
        f"{found['tolerance']:.0e} in {model.dtype}), rank correlation {found['rank_correlation']:.6f}"
    )
    print(f"worst: {ours:+.6f} here, {theirs:+.6f} served: {str(worst[-1].get('content'))[:80]!r}")
    if not found["equal"]:
        key = os.environ.get("VLLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        received = served_tokens(args.url, args.served_model_name, worst, tools, headers)
        expected = token_ids([render(worst, tokenizer, tools)], tokenizer)[0]
        raise InputError(f"the scores differ: {cause(here, served, expected, received, tokenizer)}")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--url", help="a server started by infer_vllm.sh; an API key is read from VLLM_API_KEY")
    server.add_argument("--served_model_name", default="base_reward")
    server.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[server]
    )
    if argv[:1] == ["compare"]:
        parser = argparse.ArgumentParser(
            prog="evaluate.py compare", description="Paired differences of two runs, B less A."
        )
        parser.add_argument("a", type=Path)
        parser.add_argument("b", type=Path)
        parser.add_argument("--show", type=int, default=20, help="items on which they disagree")
        parser.add_argument("--output", type=Path, help="a .json file for figures and all disagreements")
        return parser.parse_args(argv[1:])
    if argv[:1] == ["parity"]:
        parser = argparse.ArgumentParser(
            prog="evaluate.py parity", description="The same scores here and there?", parents=[server]
        )
        parser.add_argument("model")
        parser.add_argument("data", nargs="+")
        args = parser.parse_args(argv[1:])
        if not args.url:
            parser.error("parity needs --url.")
        return args
    parser.add_argument("--model", help="folder of a reward model, scored with Transformers")
    parser.add_argument("--base_model", help="measure this model, with a head that was not trained, as well")
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("--protocol", default="auto", choices=["auto", "pairs", "best", "ties", "rm-bench"])
    parser.add_argument("--output", type=Path, help="folder for metrics.json, scores.jsonl and report.html")
    args = parser.parse_args(argv)
    if bool(args.model) == bool(args.url):
        parser.error("give --model DIR or --url URL.")
    if args.base_model and not args.model:
        parser.error("--base_model needs --model, whose chat template it is rendered with.")
    return args


if __name__ == "__main__":
    commands = {"compare": compare, "parity": parity}
    try:
        commands.get(sys.argv[1] if sys.argv[1:] else "", evaluate)(parse_arguments(sys.argv[1:]))
    except (InputError, ServerError, OSError) as error:
        sys.exit(f"error: {error}")
