"""Any common preference data in; checked pairs, the rows that were not good, and a report out.

    python prepare_data.py data/demo/train.jsonl --output save/pairs.jsonl --eval_size 0.05
    python prepare_data.py data/demo data/formats/alpaca.json@format=alpaca,cap=1000 --output save/pairs.jsonl \\
        --exclude_prompts data/demo/eval.jsonl --tokenizer models/SmolLM2-135M-Instruct --max_length 2048
    python prepare_data.py data/formats/fields.csv --prompt question --input context --candidates first second \\
        --label preferred --label_first A --label_second B --label_tie same --output save/pairs.jsonl

A SOURCE is a .json, .jsonl, .jsonl.gz, .csv, .parquet or .arrow file, a folder of them (searched below, hidden files
left out), or a hub id (owner/name[:split]).
Behind an @ it may have a format of its own, a cap (at most so many pairs, chosen at random) and a weight (its share of
the mix is in proportion to it): SOURCE@format=alpaca,cap=1000,weight=2.
Beside pairs.jsonl come pairs.rejected.jsonl, pairs.report.json, pairs.report.html and, with --eval_size,
pairs.eval.jsonl. Bad rows are set aside with the reason, never silently; --strict stops at the first one instead.
Doubtful ones (duplicates, odd characters, answers cut off) are counted and kept, unless --drop names them.
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from reward_model import InputError
from reward_model.data.formats import FORMATS, Options
from reward_model.data.readers import check_hub
from reward_model.data.split import check_eval_size
from reward_model.data.statistics import DOUBTS, Work
from reward_model.data.workers import Source


def parse_source(text: str, format_: str) -> Source:
    """A SOURCE with its own format, cap and weight."""
    name, found, settings = text.rpartition("@")
    if not found or not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", settings):
        return Source(text, format_)
    own = dict(setting.split("=") for setting in settings.split(","))
    format_ = own.get("format", format_)
    if own.keys() - {"format", "cap", "weight"} or format_ not in ("auto", *FORMATS):
        raise InputError(f"{text}: behind the @ stand format ({', '.join(FORMATS)}), cap or weight.")
    try:
        weight = float(own["weight"]) if "weight" in own else None
        cap = int(own["cap"]) if "cap" in own else None
    except ValueError:
        weight = cap = 0
    if (weight is not None and not 0 < weight < math.inf) or (cap is not None and cap < 1):
        raise InputError(f"{text}: weight is a number above 0, cap a whole number above 0.")
    return Source(name, format_, weight, cap)


def parse_arguments() -> argparse.Namespace:
    """The command line; see the docstring of this file."""
    formats = "; ".join(f"{name}: {format_.description}" for name, format_ in FORMATS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--output", type=Path, required=True, help="pairs.jsonl")
    overwrite = "replace files beside --output that this script has not made"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    parser.add_argument("--format", default="auto", choices=["auto", *FORMATS], help=f"auto: by content. {formats}")
    held = "share (below 1) or number of pairs to hold out, by prompt (default: %(default)s, none)"
    parser.add_argument("--eval_size", type=float, default=0, help=held)
    exclude = "files whose prompts must not be trained on (benchmarks): pairs with such a prompt are set aside"
    parser.add_argument("--exclude_prompts", nargs="+", default=[], metavar="FILE", help=exclude)
    similarity = "from this Jaccard similarity on, two prompts are one (default: 0.8)"
    parser.add_argument("--exclude_similarity", type=float, metavar="SHARE", help=similarity)
    tokenizer = "folder or hub id: lengths in tokens, its template is tried, control tokens in texts are counted"
    parser.add_argument("--tokenizer", metavar="MODEL", help=tokenizer)
    parser.add_argument("--max_length", type=int, help="set aside pairs with a longer side, in tokens (--tokenizer)")
    drop = f"doubtful pairs to set aside, which are counted and kept otherwise: all, {', '.join(DOUBTS)}"
    parser.add_argument("--drop", nargs="+", default=[], choices=[*DOUBTS, "all"], metavar="DOUBT", help=drop)
    parser.add_argument("--strict", action="store_true", help="stop at the first bad row")
    ties = "drop: only counted; keep-both-out: written to pairs.rejected.jsonl; stop: an error (default: %(default)s)"
    parser.add_argument("--ties", default="drop", choices=["drop", "keep-both-out", "stop"], help=ties)
    parser.add_argument("--seed", type=int, default=0, help="of the mix, caps and the held-out pairs (default: 0)")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--system", metavar="TEXT", help="system message of every conversation that has none")
    ignore = "fields to leave out: one that may be part of the conversation, but has no place in a pair, stops the run"
    parser.add_argument("--ignore", nargs="+", default=[], metavar="FIELD", help=ignore)
    scores = parser.add_argument_group("answers with a score each")
    pairing = "best against each other one, all pairs, or neighbours in rank (default: %(default)s)"
    scores.add_argument("--pairing", default="best", choices=["best", "all", "adjacent"], help=pairing)
    scores.add_argument("--min_gap", type=float, default=0.0, help="least difference of scores (default: %(default)s)")
    scores.add_argument("--margin_from_gap", action="store_true", help="keep the difference of scores as margin")
    named = parser.add_argument_group("any other layout, by its fields (dotted paths)")
    named.add_argument("--prompt", metavar="FIELD", help="text or messages")
    named.add_argument("--input", dest="context", metavar="FIELD", help="text put behind the prompt")
    named.add_argument("--chosen", metavar="FIELD", help="the better answer: text or messages")
    named.add_argument("--rejected", metavar="FIELD", help="the worse answer")
    named.add_argument(
        "--candidates", nargs=2, metavar="FIELD", help="two answers, in place of the better and the worse"
    )
    named.add_argument("--label", metavar="FIELD", help="what says which of the candidates is better")
    for name, what in {"first": "the first is better", "second": "the second is", "tie": "neither is"}.items():
        named.add_argument(f"--label_{name}", nargs="+", default=[], metavar="VALUE", help=f"labels for: {what}")
    args = parser.parse_args()
    by_fields, labels = args.chosen or args.candidates, args.label_first and args.label_second
    is_named = any((args.prompt, args.context, args.label, args.label_first, args.label_second, args.label_tie))
    if bool(args.chosen) != bool(args.rejected):
        parser.error("--chosen FIELD needs --rejected FIELD, and the other way round.")
    if args.chosen and args.candidates:
        parser.error("give --chosen and --rejected, or --candidates, not both.")
    if args.candidates and not (args.label and labels):
        parser.error("--candidates needs --label FIELD, --label_first VALUE and --label_second VALUE.")
    if is_named and not by_fields:
        parser.error("--prompt, --input and --label need --chosen and --rejected, or --candidates.")
    if args.context and not args.prompt:
        parser.error("--input FIELD is put behind the prompt: give --prompt FIELD.")
    if args.max_length and not args.tokenizer:
        parser.error("--max_length counts tokens: name the tokenizer, --tokenizer MODEL.")
    if args.exclude_similarity is not None and not args.exclude_prompts:
        parser.error("--exclude_similarity compares with the prompts of --exclude_prompts FILE; name one.")
    if args.exclude_similarity is not None and not 0 < args.exclude_similarity <= 1:
        parser.error(f"--exclude_similarity {args.exclude_similarity}: give a share above 0, at most 1.")
    if "control tokens" in args.drop and not args.tokenizer:
        parser.error("--drop 'control tokens': name the tokenizer whose tokens they are, --tokenizer MODEL.")
    if args.output.suffix != ".jsonl":
        parser.error(f"--output {args.output}: pairs are written as .jsonl.")
    if by_fields:
        args.format = "fields"
    check_eval_size(args.eval_size)
    return args


def main() -> None:
    args = parse_arguments()
    # Imported where they are needed, so that a mistake in the arguments shows sooner.
    from reward_model.data.prepare import check_output, output_files, prepare

    sources = [parse_source(source, args.format) for source in args.sources]
    if any(source.format == "fields" for source in sources) and not (args.chosen or args.candidates):
        raise InputError("format=fields needs --chosen and --rejected, or --candidates.")
    if len(sources) == 1 and sources[0].weight:
        raise InputError(f"{args.sources[0]}: a weight is a share of a mix, and there is one source. Leave it out.")
    check_output(args.output, [*(source.name for source in sources), *args.exclude_prompts], args.overwrite)
    given: dict[str, Any] = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    work = Work(Options(**given), DOUBTS if "all" in args.drop else tuple(args.drop))
    if args.tokenizer:
        check_hub(args.tokenizer, "model")
        from reward_model.model.token_lengths import TokenLengths

        lengths = TokenLengths(args.tokenizer, args.max_length)
        work = work._replace(token_lengths=lengths, control_tokens=lengths.control_tokens)
    if args.exclude_prompts:
        from reward_model.data.contamination import Contamination

        contamination = Contamination(args.exclude_prompts, args.exclude_similarity or 0.8)
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
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        sys.exit(130)
