"""From rows of a source to checked pairs, one by one and in several processes."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from tqdm import tqdm

from reward_model import RowError
from reward_model.data.convert import readings, with_format
from reward_model.data.pair import doubt
from reward_model.data.readers import NumberedRow, data_files, hub_rows, raw_rows
from reward_model.data.statistics import Work, pair_facts

CHUNK = 500  # rows
BYTES_WORTH_PROCESSES = 8_000_000
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
    format: str = ""


Task = tuple[list[NumberedRow], str, str, str]  # rows, their file or hub id, the source of pairs that name none, format


def convert_chunk(task: Task, work: Work) -> Converted:
    """Convert and check some rows."""
    chunk, file, label, format_ = task
    done = Converted(rows=len(chunk), format=format_)
    for reading in readings(chunk, file, work.options, format_):
        for pair in reading.pairs:
            try:
                if isinstance(pair, RowError):
                    raise pair
                pair.setdefault("source", label)
                facts = pair_facts(pair, work)
                if (found := doubt(pair, work.control_tokens)) and found.reason in work.drop:
                    raise found
                line = orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE)
            except (RowError, orjson.JSONEncodeError) as error:
                reason = error.reason if isinstance(error, RowError) else "not text"
                done.bad.append(Bad(reading.place, reason, str(error), _shown(reading.row)))
                continue
            if found:
                done.doubts.append(Bad(reading.place, found.reason, str(found), None))
            done.lines.append(line)
            done.facts.append((0, 0, reading.number, 0, *facts))
            done.sources.append(pair["source"])
    return done


def _shown(row: Any) -> Any:
    if isinstance(row, bytes):
        return row.decode(errors="backslashreplace").rstrip("\n")
    return None if isinstance(row, RowError) else row


def converted(source: Source, work: Work, num_proc: int) -> Iterator[tuple[str, Converted]]:
    """(file or hub id, what became of a chunk of its rows), in the order of the rows, with a progress bar."""
    label = source.label
    files: list[Path | None] = [*data_files(source.name)]
    for file in files or [None]:
        name, size = (str(file), file.stat().st_size) if file else (source.name, None)
        with open(file, "rb") if file else nullcontext() as content, tqdm(total=size, desc=label, **BAR) as bar:
            rows = raw_rows(content, file) if file and content else hub_rows(name)
            format_, rows = with_format(rows, name, source.format, work.options)
            tasks = ((chunk, name, label, format_) for chunk in _chunks(rows))
            processes = 1 if size is not None and size < BYTES_WORTH_PROCESSES else num_proc
            rows_read = 0
            for done in _in_order(tasks, processes, work):
                rows_read += done.rows
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"{rows_read:,} rows, {rows_read / seconds:,.0f} rows/s", refresh=False)
                bar.update(content.tell() - bar.n if content else 0)
                yield name, done


def _chunks(rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


_WORK: list[Work] = []  # of this process: with many contaminating prompts it is too much to send with every chunk


def _begin(work: Work) -> None:
    _WORK[:] = [work]


def _convert(task: Task) -> Converted:
    return convert_chunk(task, _WORK[0])


def _in_order(tasks: Iterable[Task], num_proc: int, work: Work) -> Iterator[Converted]:
    """Chunks converted, in order, a few ahead: `Executor.map` would read the whole source at once."""
    if num_proc < 2:
        yield from (convert_chunk(task, work) for task in tasks)
        return
    # Ctrl-C reaches all processes, at any place. It is only noted, and heard by the first one between two chunks.
    stopped: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    waiting: deque[Future] = deque()

    def first() -> Converted:
        if stopped:
            raise KeyboardInterrupt
        return waiting.popleft().result()

    try:
        with ProcessPoolExecutor(num_proc, initializer=_begin, initargs=(work,)) as executor:
            for task in tasks:
                waiting.append(executor.submit(_convert, task))
                if len(waiting) > 3 * num_proc:
                    yield first()
            while waiting:
                yield first()
    finally:
        signal.signal(signal.SIGINT, before)
