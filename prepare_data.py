"""Any common preference data in; checked pairs, the rows that were not good, and a report out.

    python prepare_data.py ../shared/data/dpo_en_demo.json --output data/pairs.jsonl --eval_size 0.05
    python prepare_data.py hh.jsonl.gz arena.parquet@cap=20000 extra.csv@format=alpaca --output data/pairs.jsonl \\
        --exclude_prompts benchmark.jsonl --tokenizer save/demo --max_length 2048
    python prepare_data.py mine.jsonl --prompt question --candidates a.text b.text --label winner \\
        --label_first A --label_second B --label_tie same --output data/pairs.jsonl

A SOURCE is a .json, .jsonl, .jsonl.gz, .csv or .parquet file, a folder of them, or a hub id (owner/name[:split]).
Behind an @ it may have a format of its own, a cap (at most so many pairs, chosen at random) and a weight (its share of
the mix is in proportion to it): SOURCE@format=alpaca,cap=1000,weight=2.
Beside pairs.jsonl come pairs.rejected.jsonl, pairs.report.json, pairs.report.html and, with --eval_size,
pairs.eval.jsonl. Bad rows are set aside with the reason, never silently; --strict stops at the first one instead.
Doubtful ones (duplicates, odd characters, answers cut off) are counted and kept, unless --drop names them.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from reward_model import InputError
from reward_model.data.features import DOUBTS, Work
from reward_model.data.formats import FORMATS, Options
from reward_model.data.workers import Source


def parse_source(text: str, format_: str) -> Source:
    """A SOURCE with its own format, cap and weight."""
    name, found, settings = text.rpartition("@")
    if not found or not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", settings):
        return Source(text, format_)
    own = dict(setting.split("=") for setting in settings.split(","))
    try:
        weight, cap = float(own.pop("weight", 0)) or None, int(own.pop("cap", 0)) or None
    except ValueError as error:
        raise InputError(f"{text}: weight and cap are numbers ({error}).") from None
    source = Source(name, own.pop("format", format_), weight, cap)
    if own or source.format not in ("auto", *FORMATS):
        raise InputError(f"{text}: behind the @ stand format ({', '.join(FORMATS)}), cap or weight.")
    return source


def parse_arguments() -> argparse.Namespace:
    """The command line; see the docstring of this file."""
    formats = "; ".join(f"{name}: {format_.description}" for name, format_ in FORMATS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--output", type=Path, required=True, help="pairs.jsonl")
    overwrite = "replace files beside --output that this script has not made"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    parser.add_argument(
        "--format", default="auto", choices=["auto", *FORMATS], help=f"recognised by content. {formats}"
    )
    parser.add_argument("--eval_size", type=float, default=0, help="share (or number) of pairs to hold out, by prompt")
    exclude = "files whose prompts must not be trained on (benchmarks): pairs with such a prompt are set aside"
    parser.add_argument("--exclude_prompts", nargs="+", default=[], metavar="FILE", help=exclude)
    similarity = "from this Jaccard similarity on, two prompts are one (0.8)"
    parser.add_argument("--exclude_similarity", type=float, default=0.8, help=similarity)
    parser.add_argument("--tokenizer", help="model folder or hub id: lengths in tokens, and its template is tried")
    parser.add_argument("--max_length", type=int, help="set aside pairs with a longer side, in tokens (--tokenizer)")
    drop = "kept unless named here, and counted in any case"
    parser.add_argument("--drop", nargs="+", default=[], choices=[*DOUBTS, "all"], help=drop)
    parser.add_argument("--strict", action="store_true", help="stop at the first bad row")
    ties = "drop: only counted; keep-both-out: written to pairs.rejected.jsonl; stop: an error"
    parser.add_argument("--ties", default="drop", choices=["drop", "keep-both-out", "stop"], help=ties)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_proc", type=int, default=os.cpu_count())
    scores = parser.add_argument_group("answers with a score each")
    pairing = "best against each other one, all pairs, or neighbours in rank"
    scores.add_argument("--pairing", default="best", choices=["best", "all", "adjacent"], help=pairing)
    scores.add_argument("--min_gap", type=float, default=0.0, help="least difference of scores")
    scores.add_argument("--margin_from_gap", action="store_true", help="keep the difference of scores as margin")
    named = parser.add_argument_group("any other layout, by its fields (dotted paths)")
    for name in ("prompt", "chosen", "rejected", "label"):
        named.add_argument(f"--{name}", metavar="FIELD")
    named.add_argument("--input", dest="context", metavar="FIELD", help="text put behind the prompt")
    named.add_argument("--candidates", nargs=2, metavar="FIELD")
    for name in ("label_first", "label_second", "label_tie"):
        named.add_argument(f"--{name}", nargs="+", default=[], metavar="VALUE")
    ignore = "fields to leave out: one that may be part of the conversation, but has no place in a pair, stops the run"
    parser.add_argument("--ignore", nargs="+", default=[], metavar="FIELD", help=ignore)
    parser.add_argument("--system", help="system message put before every conversation that has none")
    args = parser.parse_args()
    by_fields = args.chosen or args.candidates
    if by_fields:
        args.format = "fields"
    if args.chosen and not args.rejected:
        parser.error("--chosen FIELD needs --rejected FIELD.")
    if args.candidates and not (args.label and args.label_first and args.label_second):
        parser.error("--candidates needs --label FIELD, --label_first VALUE and --label_second VALUE.")
    if args.format == "fields" and not by_fields:
        parser.error("--format fields needs --chosen and --rejected, or --candidates.")
    if args.max_length and not args.tokenizer:
        parser.error("--max_length counts tokens: name the tokenizer, --tokenizer MODEL.")
    if args.output.suffix != ".jsonl":
        parser.error(f"--output {args.output}: pairs are written as .jsonl.")
    return args


def main() -> None:
    args = parse_arguments()
    # Imported where they are needed, so that a mistake in the arguments shows sooner.
    from reward_model.data.prepare import check_output, output_files, prepare

    sources = [parse_source(source, args.format) for source in args.sources]
    check_output(args.output, [*(source.name for source in sources), *args.exclude_prompts], args.overwrite)
    given: dict[str, Any] = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    work = Work(Options(**given), DOUBTS if "all" in args.drop else tuple(args.drop))
    if args.tokenizer:
        from reward_model.model.token_lengths import TokenLengths

        work = work._replace(token_lengths=TokenLengths(args.tokenizer, args.max_length))
    if args.exclude_prompts:
        from reward_model.data.contamination import Contamination

        contamination = Contamination(args.exclude_prompts, args.exclude_similarity)
        work = work._replace(check_prompt=contamination.check)
    how = {name: getattr(args, name) for name in ("eval_size", "ties", "strict", "seed", "num_proc")}
    prepared = prepare(sources, args.output, work, **how)

    from reward_model.data.report import html, statistics, terminal

    figures = statistics(prepared)
    made = {name: path for name, path in output_files(args.output).items() if name != "eval" or path.exists()}
    files = {"files": [path.name for path in made.values()]}  # what a later run may replace
    text = json.dumps(files | figures, indent=2, ensure_ascii=False)
    made["report"].write_text(text + "\n", encoding="utf-8")
    made["page"].write_text(html(args.output.name, figures, prepared), encoding="utf-8")
    print(terminal(figures))
    print(f"-> {', '.join(map(str, made.values()))}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
