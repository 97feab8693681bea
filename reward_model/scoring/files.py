"""Score the rows in a file with any scorer: resume interrupted runs, keep the order, record errors, rank answers."""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from reward_model import InputError
from reward_model.data.conversations import RESULTS, ScoringRow, read_conversations
from reward_model.data.readers import place_of, read_rows

Scores = list[float] | str  # a string is the reason why a row cannot be scored
Scorer = Callable[[Iterable[ScoringRow]], Iterable[tuple[ScoringRow, Scores]]]
SAMPLE = 16  # rows that are scored again to check that the output comes from the same model


class PartialOutput(NamedTuple):
    """An existing output: its number of rows, errors and bytes, a sample of its scores, and the rows still to score."""

    file: Path
    done: int
    failed: int
    size: int
    sample: list[tuple[ScoringRow, list[float]]]
    rows: Iterator[ScoringRow]


def open_partial_output(source: Path, output: Path) -> PartialOutput:
    """Match the rows in an existing output with those in its source, and return what remains to be done.

    Raises:
        InputError: If the rows in the output do not match those in the source.
    """
    if not source.is_file():
        raise InputError(f"--input {source} is not a file.")
    if output.exists() and (output.samefile(source) or not output.is_file()):
        raise InputError(f"--output {output} is the same file as --input, or not a regular file; choose another one.")
    rows: Iterator[ScoringRow] = (
        read_conversations(row, place_of(source, number)) for number, row in read_rows(source)
    )
    done = failed = size = 0
    sample: list[tuple[ScoringRow, list[float]]] = []
    with open(output if output.exists() else os.devnull, "rb") as lines:
        for line in lines:
            row = next(rows, None)
            start = as_line(row.row).encode(errors="backslashreplace")[:-1] if row else b"\n"
            if row and not line.endswith(b"\n") and (line.startswith(start) or start.startswith(line)):
                rows = chain([row], rows)  # the process was killed while writing this line
                break
            written = _parse(line) if row and line.startswith(start) else {}
            names = RESULTS[row.kind] if row and row.kind else ("error",)
            if row is None or not ("error" in written or written.keys() >= set(names)):
                raise InputError(f"{output}:{done + 1} is not a scored row from {source}; choose a different --output.")
            done, failed, size = done + 1, failed + ("error" in written), size + len(line)
            if "error" not in written and len(sample) < SAMPLE:
                sample.append((row, written["scores"] if row.kind == "answers" else [written[name] for name in names]))
    return PartialOutput(output, done, failed, size, sample, rows)


def score_file(source: Path, partial: PartialOutput, score_rows: Scorer, exact: bool, rank: bool = False) -> int:
    """Append each row to the output with its scores or an "error", and return the number of rows with an error.

    Args:
        source: File that contains the rows.
        partial: The existing output for `source`, as returned by `open_partial_output`.
        score_rows: Yields each row with its scores or an error, in order.
        exact: Whether the model runs in fp32.
        rank: Whether to add `order`, the indices of the answers from best to worst, and `best`, the first of them.

    Raises:
        InputError: If the scores in the output come from a different model.
    """
    output, done, failed, size, _, rows = partial
    _check_same_model(partial, score_rows, exact)
    print(f"Resuming {output} after {done:,} rows" if done else f"Writing scores to {output}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    often = 0.1 if sys.stderr.isatty() else 5  # seconds; a log file keeps every update of the bar
    progress = tqdm(desc="Scoring", initial=done, total=_count_rows(source), unit="row", mininterval=often)
    with progress, open(output, "a", encoding="utf-8", errors="backslashreplace") as lines:
        lines.truncate(size)
        for row, scores in score_rows(rows):
            lines.write(as_line(_with_scores(row, scores, rank)) + "\n")
            lines.flush()
            done, failed = done + 1, failed + isinstance(scores, str)
            progress.update()
    print(f"{done:,} rows -> {output}" + (f'; {failed:,} of them have an "error" and no score' if failed else ""))
    return failed


def as_line(row: dict[str, Any]) -> str:
    """Serialize a row as one line of JSON, without the line break."""
    return json.dumps(row, ensure_ascii=False, default=str)


def _parse(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        return json.loads(line)
    return {}


def _check_same_model(partial: PartialOutput, score_rows: Scorer, exact: bool) -> None:
    """Score a sample again, and raise InputError if its scores differ by more than rounding can explain.

    Rounding changes scores by less than 5e-4 in fp32, and by less than 0.3 standard deviations in other dtypes.
    """
    earlier = [score for _, scores in partial.sample for score in scores]
    tolerance = 5e-4 if exact else max(0.1, 0.3 * statistics.pstdev(earlier or [0.0]))
    again = score_rows([row for row, _ in partial.sample])
    for (_, scores), (_, then) in zip(again, partial.sample, strict=True):
        if isinstance(scores, str) or any(abs(a - b) > tolerance for a, b in zip(scores, then, strict=True)):
            found = f"{partial.file} contains scores from a different model: {then}, now {scores}"
            raise InputError(f"{found}; choose a different --output.")


def _count_rows(source: Path) -> int | None:
    """Return the number of rows in a .jsonl file, or None for other files, whose rows take longer to count."""
    if source.suffix != ".jsonl":
        return None
    with open(source, "rb") as lines:
        return sum(not line.isspace() for line in lines)


def _with_scores(row: ScoringRow, scores: Scores, rank: bool) -> dict[str, Any]:
    if isinstance(scores, str):
        return row.row | {"error": scores}
    names = RESULTS[row.kind]
    results: dict[str, Any] = {"scores": scores} if row.kind == "answers" else dict(zip(names, scores, strict=True))
    if rank:
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        results |= {"order": order, "best": order[0]}
    return row.row | results
