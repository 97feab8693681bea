"""How good is a reward model, and can one believe it: accuracy on labelled pairs, its intervals, calibration, biases.

    python evaluate.py --model save/demo data/demo/eval.jsonl --output save/demo-evaluation
    python evaluate.py --url http://127.0.0.1:5001 rewardbench.parquet rm_bench.json        # a server of infer_vllm.sh
    python evaluate.py compare save/evaluation-a save/evaluation-b              # --output folders, on the same pairs
    python evaluate.py parity save/demo --url http://127.0.0.1:5001 data/demo/eval.jsonl      # the same scores there?

DATA is anything that prepare_data.py reads: a file, a folder (its held-out files, if it has some) or a hub id. Lists of
chosen and rejected answers are judged as their benchmarks do (reward_model/evaluation/benchmarks.py says how).
With --output: metrics.json, scores.jsonl and report.html, a page to look at.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from client import MODEL, RewardClient, ServerError
from reward_model import InputError
from reward_model.scoring.reference_check import DRIFT, FP32_NOISE, ROUNDING, compare_scores, text_difference, tokenize

if TYPE_CHECKING:
    from reward_model.evaluation.items import Item


def accuracy(args: argparse.Namespace) -> None:
    """Measure a model or a server on labelled pairs (this runs where no command is named)."""
    from reward_model.evaluation import report
    from reward_model.evaluation.items import Scored, load_items

    if args.output:
        report.check_folder(args.output)  # not after an hour of scoring
    skipped: list[str] | None = [] if args.skip_bad else None
    items = load_items(args.data, args.protocol, skipped)
    scored = Scored(items, local_scores(args, items) if args.model else served_scores(args, items))
    found = report.figures(scored)
    if args.base_model:
        found["before"] = report.figures(Scored(items, local_scores(args, items, untrained=True)))["all"]
    print(report.terminal(found))
    if skipped:
        found["skipped"] = skipped
        print(f"{len(skipped)} bad rows left out, such as", *skipped[:3], sep="\n  ")
    if args.output:
        report.write(args.output, args.model or args.url, found, scored)
        print(f"-> {args.output}/metrics.json, scores.jsonl, report.html")


def local_scores(args: argparse.Namespace, items: list["Item"], untrained: bool = False) -> list[list[float]]:
    """Scores of the trained model, or of its base model with a random head, rendered as the trained model renders."""
    from reward_model.scoring.local import load_reward_model, load_untrained, score

    loaded = load_untrained(args.base_model, args.model) if untrained else load_reward_model(args.model)
    return score(*loaded, [item.conversations for item in items], tools=[item.tools for item in items])


def served_scores(args: argparse.Namespace, items: list["Item"]) -> list[list[float]]:
    """Scores from the server, some requests at a time."""
    from tqdm import tqdm

    each = [(messages, item.tools) for item in items for messages in item.conversations]
    client = RewardClient(args.url, args.served_model_name or MODEL, concurrency=args.concurrency or 8)
    asked = client.map(client.score, *zip(*each, strict=True))
    often = 0.1 if sys.stderr.isatty() else 5  # seconds: a log keeps every state of the bar
    values = iter(list(tqdm(asked, desc="Asking", total=len(each), unit="conversation", mininterval=often)))
    return [[next(values) for _ in item.conversations] for item in items]


def compare(args: argparse.Namespace) -> None:
    """Paired differences of two runs (--output folders) on the same pairs, B less A."""
    from reward_model.evaluation.compare import load_run, paired_differences

    if args.output and args.output.exists():
        raise InputError(f"--output {args.output} is there already; remove it, or choose another.")
    runs = [load_run(args.a), load_run(args.b)]
    found, disagree = paired_differences(*runs)
    print(found.to_string(float_format="{:.3f}".format, formatters={"p_value": "{:.3g}".format}))
    missing = max(map(len, runs)) - int(found["items"].iloc[-1])
    print(f"They disagree on {len(disagree)} items" + (f"; {missing} stand in one run only." if missing else "."))
    for item in disagree[: args.show].itertuples():
        better = "A" if item.right_a > item.right_b else "B"
        print(f"  only {better} is right: {item.place} ({item.subset}) {' '.join(item.prompt.split())[:100]}")
    if args.output:
        result = {
            "subsets": found.reset_index(names="subset").to_dict("records"),
            "disagree": disagree.to_dict("records"),
        }
        args.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parity(args: argparse.Namespace) -> None:
    """Whether a server gives the scores that Transformers gives, and if not, which rule of scoring is broken."""
    import numpy as np
    from scipy.stats import spearmanr

    from reward_model.data.pair import message_text
    from reward_model.evaluation.items import load_items
    from reward_model.model.reference_scores import rounding_noise
    from reward_model.model.tokenization import render, token_ids
    from reward_model.scoring.local import load_reward_model, score

    items = load_items(args.data)
    each = [(messages, item.tools) for item in items for messages in item.conversations]
    model, tokenizer = load_reward_model(args.model)
    # One by one, so that nothing is shared, as a user of Transformers would.
    alone = score(model, tokenizer, [[messages] for messages, _ in each], tools=[tools for _, tools in each])
    here = [value for (value,) in alone]
    served = [value for values in served_scores(args, items) for value in values]
    differences = np.abs(np.subtract(here, served))
    worst = int(differences.argmax())
    half = rounding_noise(Path(args.model)) or 0.1 * float(np.std(here))
    noise = max(FP32_NOISE, half * ROUNDING[str(model.dtype).removeprefix("torch.")])
    rank_correlation = spearmanr(here, served).statistic if len(here) > 2 else 1.0
    messages, tools = each[worst]
    print(
        f"{len(here)} conversations: largest difference {differences[worst]:.1e} (rounding in {model.dtype} explains "
        f"{DRIFT * noise:.0e}), rank correlation {rank_correlation:.6f}"
    )
    print(f"worst: {here[worst]:+.6f} here, {served[worst]:+.6f} served: {message_text(messages[-1])[:80]!r}")
    is_fault, why = compare_scores(here, served, noise, half)
    if why:
        received = tokenize(RewardClient(args.url, args.served_model_name or MODEL), messages, tools)
        expected = token_ids([render(messages, tokenizer, tools)], tokenizer)[0]
        if received and received[0] != expected:
            is_fault, why = True, text_difference(tokenizer.decode(expected), received[1])
        if is_fault:
            raise InputError(f"the scores differ: {why}")
        print(f"warning: the scores differ: {why}")


def contract(args: argparse.Namespace) -> None:
    """Write the score contract of a reward model that was made without one; infer_vllm.sh checks it at every start."""
    from reward_model.model.reference_scores import FILE, write_reference_scores
    from reward_model.scoring.local import load_reward_model

    write_reference_scores(*load_reward_model(args.model, "float32"), Path(args.model))
    print(f"-> {args.model}/{FILE}")


def normalise(args: argparse.Namespace) -> None:
    """Let the scores of a model have mean 0 and deviation 1 on reference data, wherever they are asked for."""
    import numpy as np

    from reward_model.evaluation.items import load_items
    from reward_model.model.reference_scores import NORMALIZATION_FILE, write_reference_scores
    from reward_model.scoring.local import load_reward_model, score

    items, file = load_items(args.data), Path(args.model, NORMALIZATION_FILE)
    model, tokenizer = load_reward_model(args.model, "float32")
    model.normalization = 0.0, 1.0
    groups = score(model, tokenizer, [item.conversations for item in items], tools=[item.tools for item in items])
    values = [value for group in groups for value in group]
    mean, sigma = model.normalization = float(np.mean(values)), float(np.std(values))
    if not 0 < sigma < np.inf:
        raise InputError(f"the scores of {len(values)} conversations have the deviation {sigma}; give more data.")
    file.write_text(json.dumps({"logit_mean": mean, "logit_sigma": sigma}) + "\n", encoding="utf-8")
    write_reference_scores(model, tokenizer, Path(args.model))
    print(f"{len(values)} scores had mean {mean:.4f} and deviation {sigma:.4f} -> {file} (remove it to undo that)")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", description="evaluate.py COMMAND --help")
    sub = {}
    for run in (accuracy, compare, parity, contract, normalise):
        sub[run.__name__] = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub[run.__name__].set_defaults(run=run)
    for one in (sub["accuracy"], sub["parity"]):
        text = "a server started by infer_vllm.sh; an API key is read from VLLM_API_KEY"
        one.add_argument("--url", required=one is sub["parity"], help=text)
        one.add_argument("--served_model_name", help="default: base_reward")
        one.add_argument("--concurrency", type=int, help="requests at a time, default: 8")
    one = sub["accuracy"]
    one.add_argument("--model", help="folder of a reward model, scored with Transformers")
    one.add_argument("--base_model", help="measure this model, with a head that was not trained, as well")
    one.add_argument("data", nargs="+", metavar="DATA")
    one.add_argument("--protocol", default="auto", choices=["auto", "pairs", "best", "ties", "rm-bench"])
    one.add_argument("--skip_bad", action="store_true", help="leave bad rows out, and list them in metrics.json")
    one.add_argument("--output", type=Path, help="folder for metrics.json, scores.jsonl and report.html")
    one = sub["compare"]
    one.add_argument("a", type=Path)
    one.add_argument("b", type=Path)
    one.add_argument("--show", type=int, default=20, help="items on which they disagree")
    one.add_argument("--output", type=Path, help="a .json file for figures and all disagreements")
    sub["contract"].add_argument("model")
    for one in (sub["parity"], sub["normalise"]):
        one.add_argument("model")
        one.add_argument("data", nargs="+", metavar="DATA")
    named = argv[:1] and argv[0] in (*sub, "-h", "--help")
    args = parser.parse_args(argv if named else ["accuracy", *argv])
    if args.run is accuracy and bool(args.model) == bool(args.url):
        sub["accuracy"].error("give --model DIR or --url URL.")
    if args.run is accuracy and args.model and (args.served_model_name or args.concurrency):
        sub["accuracy"].error("--served_model_name and --concurrency are for a server: --url URL.")
    if args.run is accuracy and args.base_model and not args.model:
        sub["accuracy"].error("--base_model needs --model, whose chat template it is rendered with.")
    return args


def main(argv: list[str]) -> None:
    try:
        args = parse_arguments(argv)
        args.run(args)
    except (InputError, ServerError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is written before the end; among imports, a traceback less
    main(sys.argv[1:])
