"""Measure a reward model's accuracy (with intervals), calibration and biases on labeled pairs and public benchmarks.

    python evaluate.py --model save/demo data/demo/eval.jsonl --output save/demo-evaluation
    python evaluate.py --url http://127.0.0.1:5001 rewardbench.parquet rm_bench.json  # use a vLLM server
    python evaluate.py --model save/demo --suite save/suite  # run all public benchmarks and print one table row
    python evaluate.py compare save/evaluation-a save/evaluation-b  # compare two --output directories
    python evaluate.py parity save/demo --url http://127.0.0.1:5001 data/demo/eval.jsonl  # do the scores match?

DATA is anything that prepare_data.py reads: a file, a directory (its test files, if any) or a Hub id. Rows that
list several chosen or rejected answers are judged by the protocol of their benchmark (see docs/evaluation.md).
Pass --output to write metrics.json, scores.jsonl and report.html.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from client import MODEL, RewardClient, ServerError
from reward_model import InputError, print_traceback
from reward_model.scoring.reference_check import DRIFT, FP32_NOISE, ROUNDING, compare_scores, text_difference, tokenize

if TYPE_CHECKING:
    from reward_model.evaluation.items import Item


def accuracy(args: argparse.Namespace) -> None:
    """Evaluate a model or a server on labeled pairs (the default command)."""
    from reward_model.evaluation import report
    from reward_model.evaluation.benchmarks import official_results
    from reward_model.evaluation.items import ScoredItems, load_items
    from reward_model.evaluation.suite import suite_notes, suite_scores, suite_table

    if args.output:
        report.create_output_directory(args.output)  # fail now, not after an hour of scoring
    skipped: list[str] | None = [] if args.skip_bad else None
    items = load_items(args.data, args.protocol, skipped, all_files=args.suite)
    scored = ScoredItems(items, local_scores(args, items) if args.model else served_scores(args, items))
    figures = report.compute_figures(scored)
    if args.base_model:
        before = ScoredItems(items, local_scores(args, items, untrained=True))
        figures["before"] = report.compute_figures(before)["all"]
    results = official_results(scored) if args.suite else {}
    if args.suite:
        figures["suite"] = suite_scores(results)
    print(report.summary(figures))
    if args.suite:
        print("", suite_table(args.model or args.url, figures["suite"]), "", *suite_notes(results), sep="\n")
    if skipped:
        figures["skipped"] = skipped
        print(f"Skipped {len(skipped)} bad rows, for example:", *skipped[:3], sep="\n  ")
    if args.output:
        report.write(args.output, args.model or args.url, figures, scored)
        print(f"-> {args.output}/metrics.json, scores.jsonl, report.html")


def local_scores(args: argparse.Namespace, items: list["Item"], untrained: bool = False) -> list[list[float]]:
    """Return scores from --model or, if `untrained`, from --base_model with a random head and --model's template."""
    from reward_model.scoring.local import load_reward_model, load_untrained, score

    loaded = load_untrained(args.base_model, args.model) if untrained else load_reward_model(args.model)
    return score(*loaded, [item.conversations for item in items], tools=[item.tools for item in items])


def served_scores(args: argparse.Namespace, items: list["Item"]) -> list[list[float]]:
    """Return the scores from the server."""
    from tqdm import tqdm

    each = [(messages, item.tools) for item in items for messages in item.conversations]
    client = RewardClient(args.url, args.served_model_name, concurrency=args.concurrency)
    scores = client.map(client.score, *zip(*each, strict=True))
    interval = 0.1 if sys.stderr.isatty() else 5  # seconds; a log file keeps every update of the progress bar
    values = iter(list(tqdm(scores, desc="Scoring", total=len(each), unit="conversation", mininterval=interval)))
    return [[next(values) for _ in item.conversations] for item in items]


def compare(args: argparse.Namespace) -> None:
    """Compare two evaluations (--output directories) of the same pairs and print the differences, B minus A."""
    from reward_model.evaluation.compare import load_run, paired_differences

    if args.output and args.output.exists():
        raise InputError(f"--output {args.output} already exists. Remove it or pass another file.")
    runs = [load_run(args.a), load_run(args.b)]
    differences, disagree = paired_differences(*runs)
    print(differences.to_string(float_format="{:.3f}".format, formatters={"p_value": "{:.3g}".format}))
    missing = max(map(len, runs)) - int(differences["items"].iloc[-1])
    print(f"The runs disagree on {len(disagree)} items" + (f"; {missing} are in only one run." if missing else "."))
    for item in disagree[: args.show].itertuples():
        better = "A" if item.right_a > item.right_b else "B"
        print(f"  only {better} is right: {item.place} ({item.subset}) {' '.join(item.prompt.split())[:100]}")
    if args.output:
        result = {"subsets": differences.reset_index(names="subset").to_dict("records")}
        result["disagree"] = disagree.to_dict("records")
        args.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parity(args: argparse.Namespace) -> None:
    """Check that a server gives the same scores as Transformers; if not, name the rule that it breaks."""
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
    # Score one conversation at a time, without a shared prefix, like a script that calls Transformers directly.
    groups = score(model, tokenizer, [[messages] for messages, _ in each], tools=[tools for _, tools in each])
    local = [value for (value,) in groups]
    served = [value for values in served_scores(args, items) for value in values]
    differences = np.abs(np.subtract(local, served))
    worst = int(differences.argmax())
    half = rounding_noise(Path(args.model)) or 0.1 * float(np.std(local))
    noise = max(FP32_NOISE, half * ROUNDING[str(model.dtype).removeprefix("torch.")])
    correlation = spearmanr(local, served).statistic if len(local) > 2 else 1.0
    messages, tools = each[worst]
    found = f"{differences[worst]:.1e} (rounding in {model.dtype} explains up to {DRIFT * noise:.0e})"
    print(f"{len(local)} conversations: largest difference {found}, rank correlation {correlation:.6f}")
    print(f"worst: {local[worst]:+.6f} local, {served[worst]:+.6f} served: {message_text(messages[-1])[:80]!r}")
    is_fault, reason = compare_scores(local, served, noise, half)
    if not reason:
        return
    received = tokenize(RewardClient(args.url, args.served_model_name), messages, tools)
    sent = token_ids([render(messages, tokenizer, tools)], tokenizer)[0]
    if received and received[0] != sent:
        is_fault, reason = True, text_difference(tokenizer.decode(sent), received[1])
    if is_fault:
        raise InputError(f"the scores differ: {reason}")
    print(f"warning: the scores differ: {reason}")


def reference(args: argparse.Namespace) -> None:
    """Write reference scores for a model that has none; infer_vllm.sh checks the server against them."""
    from reward_model.model.reference_scores import FILE, write_reference_scores
    from reward_model.scoring.local import load_reward_model

    write_reference_scores(*load_reward_model(args.model, "float32"), Path(args.model))
    print(f"-> {args.model}/{FILE}")


def normalize(args: argparse.Namespace) -> None:
    """Normalize a model's scores, in every engine, to mean 0 and standard deviation 1 on the given data."""
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
        raise InputError(f"the scores of {len(values)} conversations have standard deviation {sigma}. Pass more data.")
    file.write_text(json.dumps({"logit_mean": mean, "logit_sigma": sigma}) + "\n", encoding="utf-8")
    write_reference_scores(model, tokenizer, Path(args.model))
    print(f"{len(values)} scores: mean {mean:.4f}, standard deviation {sigma:.4f} -> {file} (delete this file to undo)")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; the default command is "accuracy"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", description="evaluate.py COMMAND --help")
    commands = {}
    for run in (accuracy, compare, parity, reference, normalize):
        commands[run.__name__] = subparsers.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        commands[run.__name__].set_defaults(run=run)
    for name in ("accuracy", "parity"):
        add = commands[name].add_argument
        add("--url", required=name == "parity", help="server started by infer_vllm.sh; set VLLM_API_KEY to its key")
        add("--served_model_name", default=MODEL, help="name of the model on the server (default: %(default)s)")
        add("--concurrency", type=int, default=8, help="number of concurrent requests (default: 8)")
    for name in ("parity", "reference", "normalize"):
        commands[name].add_argument("model", help="directory of the reward model")
    for name in ("accuracy", "parity", "normalize"):
        commands[name].add_argument("data", nargs="+", metavar="DATA")
    add = commands["accuracy"].add_argument
    add("--model", help="directory of the reward model, scored with Transformers")
    add("--base_model", help="also evaluate this model with an untrained head")
    add("--protocol", default="auto", choices=["auto", "pairs", "best", "ties", "rm-bench"])
    add("--suite", action="store_true", help="treat DATA as directories of benchmarks; print one row for a model card")
    add("--skip_bad", action="store_true", help="skip bad rows and list them in metrics.json")
    add("--output", type=Path, help="directory for metrics.json, scores.jsonl and report.html")
    add = commands["compare"].add_argument
    add("a", type=Path)
    add("b", type=Path)
    add("--show", type=int, default=20, help="number of disagreements to print (default: 20)")
    add("--output", type=Path, help="JSON file for the differences and all disagreements")
    has_command = argv[:1] and argv[0] in (*commands, "-h", "--help")
    args = parser.parse_args(argv if has_command else ["accuracy", *argv])
    if args.run is accuracy and bool(args.model) == bool(args.url):
        commands["accuracy"].error("pass either --model DIRECTORY or --url URL.")
    if args.run is accuracy and args.base_model and not args.model:
        commands["accuracy"].error("--base_model requires --model, whose chat template it uses.")
    return args


def main(argv: list[str]) -> None:
    """Run a command; print an expected error as one sentence and exit."""
    try:
        args = parse_arguments(argv)
        args.run(args)
    except (InputError, ServerError, OSError) as error:
        print_traceback()
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C needs no cleanup; exit without a traceback
    main(sys.argv[1:])
