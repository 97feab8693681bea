"""From sources of preference data to checked pairs: row by row in several processes, then the pairs among each other.

First every row is converted and checked; good pairs go to one file per source, and what the later checks and the report
need of each goes to an array of FACTS (about 100 bytes a pair, so memory stays bounded). Then the pairs are compared
with each other, mixed and split, and written in one pass.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from reward_model import InputError, RowError
from reward_model.comparison import GOOD, REASONS, compare, held_out
from reward_model.facts import FACTS, Work, pair_facts
from reward_model.formats import convert, recognise
from reward_model.record import check_pair, doubt
from reward_model.rows import data_files, hub_rows, parse_line, place, raw_rows

CHUNK = 500  # rows
BYTES_WORTH_PROCESSES = 8_000_000
LOOKED_AT = 100  # rows, to recognise a format
PLACES = 5  # of bad rows of each reason, kept for the summary
SAMPLES = 10
BAR = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}


@dataclass(frozen=True)
class Source:
    """A file, a folder or a hub id, and how it is read: `cap` pairs at most, in the mix by `weight`."""

    name: str
    format: str = "auto"
    weight: float | None = None
    cap: int | None = None

    @property
    def label(self) -> str:
        """The source of pairs that name none: the file's or folder's name, or the hub id."""
        return Path(self.name).name.split(".")[0] if data_files(self.name) else self.name


class Bad(NamedTuple):
    """A row or pair that is not good: where, why, and what stood there."""

    place: str
    reason: str
    message: str
    row: Any


@dataclass
class Converted:
    """What became of a chunk of rows: lines of JSON with one of `facts` and `sources` each, bad rows, and doubts."""

    lines: list[bytes] = field(default_factory=list)
    facts: list[tuple] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    doubts: list[Bad] = field(default_factory=list)
    rows: int = 0


def convert_chunk(chunk: list[tuple[int, Any]], file: str, name: str, format_: str, work: Work) -> Converted:
    """Convert and check rows; `name` is the source label of pairs that have none."""
    done = Converted(rows=len(chunk))
    for number, row in chunk:
        where = place(file, number)
        try:
            if isinstance(row, RowError):
                raise row
            parsed = parse_line(row) if isinstance(row, bytes) else row
            pairs = convert(parsed, format_, work.options)
        except RowError as error:
            done.bad.append(Bad(where, error.reason, str(error), _shown(row)))
            continue
        for unchecked in pairs:
            try:
                pair = check_pair(unchecked)
                pair.setdefault("source", name)
                facts = pair_facts(pair, work)
                if (found := doubt(pair)) and found.reason in work.drop:
                    raise found
            except RowError as error:
                done.bad.append(Bad(where, error.reason, str(error), _shown(unchecked)))
                continue
            if found:
                done.doubts.append(Bad(where, found.reason, str(found), None))
            done.lines.append(json.dumps(pair, ensure_ascii=False).encode() + b"\n")
            done.facts.append((0, 0, number, 0, *facts))
            done.sources.append(pair["source"])
    return done


def _shown(row: Any) -> Any:
    if isinstance(row, bytes):
        return row.decode(errors="backslashreplace").rstrip("\n")
    return None if isinstance(row, RowError) else row


def converted(source: Source, work: Work, num_proc: int) -> Iterator[tuple[str, Converted]]:
    """(file or hub id, what became of a chunk of its rows), in the order of the rows, with a progress bar."""
    label = source.label
    for file in data_files(source.name) or [None]:
        name, size = (str(file), file.stat().st_size) if file else (source.name, None)
        with open(file, "rb") if file else nullcontext() as content, tqdm(total=size, desc=label, **BAR) as bar:
            rows = raw_rows(content, file) if file else hub_rows(name)
            first = list(islice(rows, LOOKED_AT))
            format_ = source.format if source.format != "auto" else recognise(_parsed(first), name)
            tasks = ((chunk, name, label, format_, work) for chunk in _chunks(chain(first, rows)))
            processes = 1 if size is not None and size < BYTES_WORTH_PROCESSES else num_proc
            read = 0
            for done in _in_order(convert_chunk, tasks, processes):
                read += done.rows
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"{read:,} rows, {read / seconds:,.0f} rows/s", refresh=False)
                bar.update(content.tell() - bar.n if content else 0)
                yield name, done


def _parsed(rows: list[tuple[int, Any]]) -> Iterator[Any]:
    for _, row in rows:
        with suppress(RowError):  # it is reported when its chunk is converted
            yield parse_line(row) if isinstance(row, bytes) else row


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _in_order(function: Callable[..., Any], tasks: Iterable[tuple], num_proc: int) -> Iterator[Any]:
    """Results in the order of the tasks, a few chunks ahead: `Executor.map` would read the whole source at once."""
    if num_proc < 2:
        yield from (function(*task) for task in tasks)
        return
    with ProcessPoolExecutor(num_proc) as executor:
        waiting: deque[Future] = deque()
        for task in tasks:
            waiting.append(executor.submit(function, *task))
            if len(waiting) > 3 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Rejected:
    """The file of bad rows (open for writing), and how many there were of each reason, with the first places."""

    def __init__(self, file: TextIO, ties: str, strict: bool) -> None:
        self.file, self.ties, self.strict = file, ties, strict
        self.counts: dict[str, dict[str, Any]] = {}

    def add(self, bad: Bad) -> None:
        """Count a bad row and write it down; raises InputError if such a row is to stop the run."""
        is_tie = bad.reason == "tie"
        if self.ties == "stop" if is_tie else self.strict:
            cure = "choose another --ties" if is_tie else "leave out --strict to set such rows aside"
            raise InputError(f"{bad.place}: {bad.message} Nothing was written; {cure}.")
        self._count(bad, kept=False)
        if not (is_tie and self.ties == "drop"):
            self.file.write(json.dumps(bad._asdict(), default=str) + "\n")

    def doubt(self, bad: Bad) -> None:
        """Count a row that looks wrong but is kept."""
        self._count(bad, kept=True)

    def _count(self, bad: Bad, kept: bool) -> None:
        seen = self.counts.setdefault(bad.reason, {"count": 0, "kept": kept, "first": []})
        seen["count"] += 1
        if len(seen["first"]) < PLACES:
            seen["first"].append(f"{bad.place}: {bad.message}")


@dataclass
class Prepared:
    """What the report tells of: facts of the kept pairs (training and held out), and what was read and rejected."""

    facts: np.ndarray
    in_eval: np.ndarray
    sources: list[str]
    rows: int
    rejected: dict[str, dict[str, Any]]
    not_taken: int
    samples: list[dict[str, Any]]
    unit: str


def prepare(
    sources: list[Source],
    output: Path,
    work: Work,
    *,
    eval_size: float = 0,
    ties: str = "drop",
    strict: bool = False,
    seed: int = 0,
    num_proc: int = 1,
) -> Prepared:
    """Write `output` (pairs.jsonl), pairs.rejected.jsonl and, with `eval_size`, pairs.eval.jsonl; all or none of them.

    Pairs stand in the order read; several sources are interleaved at random, each in its own order.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with TemporaryDirectory(dir=output.parent, prefix=".preparing-") as folder:
        made = {name: Path(folder, name) for name in ("pairs", "rejected", *(["eval"] if eval_size else []))}
        with open(made["rejected"], "w", encoding="utf-8") as file:
            rejected = Rejected(file, ties, strict)
            facts, files, labels, rows = _convert_all(sources, Path(folder), rejected, work, num_proc)
            reasons, doubts, others = compare(facts, work.drop)
            taken = _mixed(facts, reasons == GOOD, sources, random)
            if not len(taken):
                raise InputError(f"No pair is left of {rows:,} rows. {_reasons(rejected, reasons)}")
            in_eval = np.zeros(len(facts), dtype=bool)
            if eval_size:
                in_eval[taken] = held_out(facts["prompt_hash"][taken], eval_size, seed)
            about = (facts, reasons, doubts, others, files)
            parts = [_good_lines(Path(folder, str(part)), part, about, rejected) for part in range(len(sources))]
            picked = set(random.choice(taken, min(SAMPLES, len(taken)), replace=False).tolist())
            samples = _write(made, parts, facts["part"], taken, in_eval, picked)
        for name, path in output_files(output).items():
            if name in made:
                os.replace(made[name], path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run, and no longer true
    good = int((reasons == GOOD).sum())
    unit = "tokens" if work.tokenizer else "characters"
    return Prepared(facts[taken], in_eval[taken], labels, rows, rejected.counts, good - len(taken), samples, unit)


def output_files(output: Path) -> dict[str, Path]:
    """Where all is written: pairs.jsonl, and beside it .eval.jsonl, .rejected.jsonl, .report.json and .report.html."""
    names = {"eval": ".eval.jsonl", "rejected": ".rejected.jsonl", "report": ".report.json", "page": ".report.html"}
    return {"pairs": output} | {name: output.with_suffix(suffix) for name, suffix in names.items()}


def _convert_all(
    sources: list[Source], folder: Path, rejected: Rejected, work: Work, num_proc: int
) -> tuple[np.ndarray, list[str], list[str], int]:
    """Good pairs of each source into a file of its number; returns FACTS, names of files and of sources, rows read."""
    arrays, files, labels, rows = [np.zeros(0, FACTS)], {}, {}, 0
    for part, source in enumerate(sources):
        with open(folder / str(part), "wb") as lines:
            for file, done in converted(source, work, num_proc):
                rows += done.rows
                lines.writelines(done.lines)
                facts = np.array(done.facts, dtype=FACTS)
                facts["part"] = part
                facts["file"] = files.setdefault(file, len(files))
                facts["source"] = [labels.setdefault(label, len(labels)) for label in done.sources]
                arrays.append(facts)
                for bad in done.bad:
                    rejected.add(bad)
                for bad in done.doubts:
                    rejected.doubt(bad)
    return np.concatenate(arrays), list(files), list(labels), rows


def _mixed(facts: np.ndarray, good: np.ndarray, sources: list[Source], random: np.random.Generator) -> np.ndarray:
    """Indices of the pairs that are taken, in the order of writing: caps, then weights, then interleaved."""
    taken = [np.flatnonzero(good & (facts["part"] == part)) for part in range(len(sources))]
    sizes = [min(len(pairs), source.cap or len(pairs)) for pairs, source in zip(taken, sources, strict=True)]
    if any(source.weight for source in sources):
        weights = [source.weight or 1.0 for source in sources]
        scale = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        sizes = [int(scale * weight + 1e-9) for weight in weights]
    taken = [np.sort(random.choice(pairs, size, replace=False)) for pairs, size in zip(taken, sizes, strict=True)]
    if len(sources) == 1:
        return taken[0]
    turns = random.permutation(np.repeat(np.arange(len(sources)), sizes))
    mixed = np.empty(len(turns), dtype=int)
    for part, pairs in enumerate(taken):
        mixed[turns == part] = pairs
    return mixed


ABOUT = {
    "duplicate": "the same pair stands at {} already.",
    "both orders": "the same two answers stand the other way round at {}; which is right is for you to say.",
    "contradiction": "its preference is part of a circle among the answers to one prompt (A over B over C over A).",
    "cut off": "an answer ends within a word at a length at which many others do, as if cut off there.",
}


def _good_lines(path: Path, part: int, about: tuple, rejected: Rejected) -> Iterator[tuple[int, bytes]]:
    """(index, line) of every good pair of a source; the others are added to the rejected rows on the way."""
    facts, reasons, doubts, others, files = about
    with open(path, "rb") as lines:
        for index, line in zip(np.flatnonzero(facts["part"] == part).tolist(), lines, strict=True):
            if reason := REASONS[reasons[index] or doubts[index]]:
                at, other = (place(files[facts["file"][i]], int(facts["row"][i])) for i in (index, others[index]))
                note, row = ABOUT[reason].format(other), None if reasons[index] == GOOD else json.loads(line)
                (rejected.doubt if row is None else rejected.add)(Bad(at, reason, note, row))
            if reasons[index] == GOOD:
                yield index, line


def _write(
    made: dict[str, Path],
    parts: list[Iterator[tuple[int, bytes]]],
    part_of: np.ndarray,
    taken: np.ndarray,
    in_eval: np.ndarray,
    picked: set[int],
) -> list[dict[str, Any]]:
    """Write the pairs `taken`, in this order; returns those in `picked`."""
    samples = []
    with open(made["pairs"], "wb") as pairs, open(made.get("eval", os.devnull), "wb") as held:
        for index in tqdm(taken.tolist(), desc="writing", unit=" pairs", unit_scale=True):
            line = next(line for at, line in parts[part_of[index]] if at == index)
            (held if in_eval[index] else pairs).write(line)
            if index in picked:
                samples.append(json.loads(line))
    for part in parts:  # rejected pairs may stand behind the last one taken
        deque(part, maxlen=0)
    return samples


def _reasons(rejected: Rejected, reasons: np.ndarray) -> str:
    found = {reason: seen["count"] for reason, seen in rejected.counts.items()}
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    found |= {reason: count for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}
    first = [text for seen in rejected.counts.values() for text in seen["first"][:1]]
    return "; ".join(f"{reason}: {count:,}" for reason, count in found.items()) + "".join(
        f"\n  {text}" for text in first
    )
