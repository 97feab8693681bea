r"""Convert preference data in any common format to validated pairs, and report on the pairs and on bad rows.

    python prepare_data.py data/demo/train.jsonl --output save/pairs.jsonl --eval_size 0.05
    python prepare_data.py data/demo data/formats/alpaca.json@format=alpaca,cap=1000 --output save/pairs.jsonl \
        --exclude_prompts data/demo/eval.jsonl --tokenizer models/SmolLM2-135M-Instruct --max_length 2048
    python prepare_data.py data/formats/fields.csv --prompt question --input context --candidates first second \
        --label preferred --label_first A --label_second B --label_tie same --output save/pairs.jsonl

A SOURCE is a .json, .jsonl, .jsonl.gz, .csv, .parquet or .arrow file, a directory of such files (searched recursively,
skipping hidden files), or a Hub id (owner/name[:split]). SOURCE@format=alpaca,cap=1000,weight=2 sets a source's format,
the maximum number of pairs to take from it (at random), and its weight in the mix.

The outputs are pairs.jsonl, pairs.rejected.jsonl, pairs.report.json, pairs.report.html and, with --eval_size,
pairs.eval.jsonl. Bad rows are set aside with a reason; --strict stops at the first of them. Pairs with a warning
(duplicates, control characters, broken encoding) are counted and kept, unless --drop names the warning.
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path

from reward_model import InputError, print_traceback
from reward_model.data.formats import FORMATS, Options
from reward_model.data.pair import WARNINGS
from reward_model.data.readers import check_hub
from reward_model.data.workers import ConversionConfig, Source

SIMILARITY = 0.8  # the default of --exclude_similarity


def main() -> None:
    """Run the command-line interface."""
    args = parse_arguments()
    # Import this only after checking the arguments, because the import takes seconds.
    from reward_model.data.prepare import check_output, output_files, prepare

    sources = [parse_source(source, args.format) for source in args.sources]
    if any(source.format == "fields" for source in sources) and not (args.chosen or args.candidates):
        raise InputError("format=fields needs --chosen and --rejected, or --candidates.")
    check_output(args.output, [*(source.name for source in sources), *args.exclude_prompts], args.overwrite)
    arguments = {name: getattr(args, name) for name in ("eval_size", "ties", "strict", "seed", "num_proc")}
    prepared = prepare(sources, args.output, conversion_config(args), **arguments)

    from reward_model.data.report import compute_figures, html, summary  # loads matplotlib, which workers do not need

    figures = compute_figures(prepared)
    made = {name: path for name, path in output_files(args.output).items() if name != "eval" or path.exists()}
    report = {"files": [path.name for path in made.values()]} | figures  # a later run may overwrite these files
    made["report"].write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    made["page"].write_text(html(args.output.name, figures, prepared), encoding="utf-8")
    print(summary(figures))
    print(f"-> {', '.join(map(str, made.values()))}")


def conversion_config(args: argparse.Namespace) -> ConversionConfig:
    """Load the tokenizer and the excluded prompts, and return the settings for converting and validating rows."""
    options = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    config = ConversionConfig(Options(**options), WARNINGS if "all" in args.drop else tuple(args.drop))
    if args.tokenizer:
        check_hub(args.tokenizer, "model")
        from reward_model.model.token_lengths import TokenLengths

        lengths = TokenLengths(args.tokenizer, args.max_length)
        config = config._replace(token_lengths=lengths, control_tokens=lengths.control_tokens)
    if args.exclude_prompts:
        from reward_model.data.quality import ExcludedPrompts

        config = config._replace(check_prompt=ExcludedPrompts(args.exclude_prompts, args.exclude_similarity).check)
    return config


def parse_source(text: str, format_: str) -> Source:
    """Parse a SOURCE argument: its name, format (`format_` by default), cap and weight."""
    name, separator, settings = text.rpartition("@")
    if not separator or not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", settings):
        return Source(text, format_)
    values = dict(setting.split("=") for setting in settings.split(","))
    format_ = values.get("format", format_)
    if values.keys() - {"format", "cap", "weight"} or format_ not in ("auto", *FORMATS):
        raise InputError(f"{text}: after the @, pass format ({', '.join(FORMATS)}), cap or weight.")
    try:
        weight = float(values["weight"]) if "weight" in values else None
        cap = int(values["cap"]) if "cap" in values else None
    except ValueError:
        weight = cap = 0
    if (weight is not None and not 0 < weight < math.inf) or (cap is not None and cap < 1):
        raise InputError(f"{text}: weight must be a positive number and cap a positive integer.")
    return Source(name, format_, weight, cap)


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    formats = "; ".join(f"{name}: {format_.description}" for name, format_ in FORMATS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE")
    add("--output", type=Path, required=True, help="path of pairs.jsonl")
    add("--overwrite", action="store_true", help="overwrite files next to --output that this script did not write")
    add("--format", default="auto", choices=["auto", *FORMATS], help=f"auto: detect it from the content. {formats}")
    add(
        "--eval_size",
        type=float,
        default=0,
        help="fraction (below 1) or number of pairs to hold out, by prompt (default: 0)",
    )
    add(
        "--exclude_prompts",
        nargs="+",
        default=[],
        metavar="FILE",
        help="set aside pairs whose prompt occurs in these files",
    )
    add(
        "--exclude_similarity",
        type=float,
        default=SIMILARITY,
        help="minimum Jaccard similarity (default: 0.8)",
    )
    add("--tokenizer", metavar="MODEL", help="measure lengths in tokens, and try the chat template on every pair")
    add("--max_length", type=int, help="set aside pairs if either conversation is longer than this many tokens")
    warnings = f"set aside pairs with these warnings: all, {', '.join(WARNINGS)}"
    add("--drop", nargs="+", default=[], choices=[*WARNINGS, "all"], metavar="WARNING", help=warnings)
    add("--strict", action="store_true", help="stop at the first bad row")
    ties = "count them, write them to pairs.rejected.jsonl, or stop at the first (default: drop)"
    add("--ties", default="drop", choices=["drop", "keep-both-out", "stop"], help=ties)
    add("--seed", type=int, default=0, help="seed for the mix, the caps and the held-out pairs (default: 0)")
    add("--num_proc", type=int, default=os.cpu_count(), help="number of processes (default: one per core)")
    add("--system", metavar="TEXT", help="system message for conversations without one")
    add("--ignore", nargs="+", default=[], metavar="FIELD", help="fields to ignore")
    add = parser.add_argument_group("answers, each with a score or rank").add_argument
    pairing = "pair the best answer with every other, all answers with each other, or neighbors in rank (default: best)"
    add("--pairing", default="best", choices=["best", "all", "adjacent"], help=pairing)
    add("--min_gap", type=float, default=0.0, help="minimum score difference within a pair (default: 0)")
    add("--margin_from_gap", action="store_true", help="use the score difference as the margin")
    add = parser.add_argument_group("other formats, by field name (dotted paths)").add_argument
    add("--prompt", metavar="FIELD", help="text or messages")
    add("--input", dest="context", metavar="FIELD", help="text to append to the prompt")
    add("--chosen", metavar="FIELD", help="the better answer: text or messages")
    add("--rejected", metavar="FIELD", help="the worse answer")
    add("--candidates", nargs=2, metavar="FIELD", help="two answers, instead of --chosen and --rejected")
    add("--label", metavar="FIELD", help="field that identifies the better candidate")
    for name, meaning in {"first": "the first is better", "second": "the second is better", "tie": "a tie"}.items():
        add(f"--label_{name}", nargs="+", default=[], metavar="VALUE", help=f'--label values that mean "{meaning}"')
    args = parser.parse_args()
    if problem := argument_conflict(args):
        parser.error(problem)
    if args.chosen or args.candidates:
        args.format = "fields"
    return args


def argument_conflict(args: argparse.Namespace) -> str | None:
    """Return an error message if the arguments conflict, otherwise None."""
    if bool(args.chosen) != bool(args.rejected):
        return "--chosen and --rejected must be passed together."
    if args.chosen and args.candidates:
        return "pass either --chosen and --rejected, or --candidates."
    if args.candidates and not (args.label and args.label_first and args.label_second):
        return "--candidates needs --label, --label_first and --label_second."
    if (args.prompt or args.context or args.label) and not (args.chosen or args.candidates):
        return "--prompt, --input and --label need --chosen and --rejected, or --candidates."
    if args.context and not args.prompt:
        return "--input is appended to the prompt: pass --prompt."
    if args.exclude_similarity != SIMILARITY and not args.exclude_prompts:
        return "--exclude_similarity compares prompts with excluded ones: pass --exclude_prompts."
    if not 0 < args.exclude_similarity <= 1:
        return f"--exclude_similarity {args.exclude_similarity:g}: pass a number above 0 and at most 1."
    if args.max_length and not args.tokenizer:
        return "--max_length counts tokens: pass --tokenizer."
    if "control tokens" in args.drop and not args.tokenizer:
        return "--drop 'control tokens' needs a tokenizer that defines these tokens: pass --tokenizer."
    if args.output.suffix != ".jsonl":
        return f"--output {args.output}: pass a .jsonl file."
    return None


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        print_traceback()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        sys.exit(130)
