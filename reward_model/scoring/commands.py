"""Commands in client.py that need more than `requests`: score or rank a file, and check a server's scores."""

import argparse
import sys
from pathlib import Path
from typing import Any

from reward_model import InputError
from reward_model.data.conversations import ScoringRow, read_conversations
from reward_model.data.readers import place_of, read_rows
from reward_model.scoring.files import Scores, as_line, open_partial_output, score_file
from reward_model.scoring.reference_check import check_reference_scores


def run_command(command: str, client: Any, args: argparse.Namespace) -> None:
    """Run `check` or `rank`, or score a file, using a RewardClient; exit with status 1 if any row has an error."""
    if command == "check":
        print(check_reference_scores(Path(args.model_dir), client, args.dtype))
        return
    if args.pairs_out and (command != "rank" or Path(args.pairs_out).exists()):
        problem = "already exists; choose a different file" if command == "rank" else "needs the command rank"
        raise InputError(f"--pairs_out {args.pairs_out} {problem}.")

    def score_row(row: ScoringRow) -> tuple[ScoringRow, Scores]:
        return row, row.error or client.score_group(row.conversations, row.tools)

    source, output = Path(args.input), Path(args.output)
    partial = open_partial_output(source, output)
    failed = score_file(source, partial, lambda rows: client.map(score_row, rows), False, command == "rank")
    if args.pairs_out:
        write_pairs(output, Path(args.pairs_out))
    sys.exit(1 if failed else 0)


def write_pairs(ranked: Path, pairs_out: Path) -> None:
    """Write the best and worst answers to each prompt as a training pair."""
    pairs = 0
    with open(pairs_out, "w", encoding="utf-8") as file:
        for number, row in read_rows(ranked):
            if isinstance(row, dict) and len(set(row.get("scores", []))) > 1:
                found = read_conversations(row, place_of(ranked, number))
                best, worst = (found.conversations[row["order"][end]] for end in (0, -1))
                tools = {"tools": found.tools} if found.tools else {}
                file.write(as_line({"chosen": best, "rejected": worst} | tools) + "\n")
                pairs += 1
    print(f"{pairs:,} pairs of best and worst answers -> {pairs_out}")
