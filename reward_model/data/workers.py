"""Convert and validate the rows of a source in several processes."""

import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from tqdm import tqdm

from reward_model import RowError
from reward_model.data.convert import convert_rows, detect_format
from reward_model.data.findings import Finding
from reward_model.data.formats import DEFAULT_OPTIONS, Options
from reward_model.data.pair import Messages, Pair, find_warning, shared_messages
from reward_model.data.readers import NumberedRow, data_files, hub_rows, read_raw_rows
from reward_model.data.statistics import pair_facts

CHUNK = 500  # rows
LEAST_BYTES = 8_000_000  # smaller files are converted in the main process
BAR = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}


@dataclass(frozen=True)
class Source:
    """A file, directory or Hub id, with its format, its weight in the mix, and the maximum number of pairs to take."""

    name: str
    format: str = "auto"
    weight: float | None = None
    cap: int | None = None

    @property
    def label(self) -> str:
        """The default `source` for pairs that do not specify one: the name of the file or directory, or the Hub id."""
        return Path(self.name).name.split(".")[0] if data_files(self.name) else self.name


class ConversionConfig(NamedTuple):
    """Everything that a process needs to convert and validate rows.

    Attributes:
        options: How to convert rows to pairs.
        drop: Warnings that cause a pair to be set aside.
        token_lengths: A `model.token_lengths.TokenLengths`, which measures lengths in tokens.
        control_tokens: Matches the tokenizer's control tokens.
        check_prompt: The `check` method of a `quality.ExcludedPrompts`.
    """

    options: Options = DEFAULT_OPTIONS
    drop: tuple[str, ...] = ()
    token_lengths: Callable[[Pair], tuple[int, int, int]] | None = None
    control_tokens: re.Pattern[str] | None = None
    check_prompt: Callable[[Messages], None] | None = None


@dataclass
class ConvertedChunk:
    """Converted rows: lines of JSON, the FACTS and source of each, bad rows, and warnings about kept pairs."""

    rows: int
    lines: list[bytes] = field(default_factory=list)
    facts: list[tuple] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    bad_rows: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


# Rows, their file or Hub id, the default `source` for their pairs, and their format.
Task = tuple[list[NumberedRow], str, str, str]


def convert_chunk(task: Task, config: ConversionConfig) -> ConvertedChunk:
    """Convert and validate one chunk of rows."""
    rows, file, label, format_ = task
    chunk = ConvertedChunk(len(rows))
    for converted in convert_rows(rows, file, config.options, format_):
        for pair in converted.pairs:
            try:
                if isinstance(pair, RowError):
                    raise pair
                pair.setdefault("source", label)
                if config.check_prompt:
                    config.check_prompt(shared_messages(pair))
                facts = pair_facts(pair, config.token_lengths)
                warning = find_warning(pair, config.control_tokens)
                if warning and warning.reason in config.drop:
                    raise warning
                line = orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE)
            except (RowError, orjson.JSONEncodeError) as error:
                reason = error.reason if isinstance(error, RowError) else "not text"
                chunk.bad_rows.append(Finding(converted.place, reason, str(error), _printable_row(converted.row)))
                continue
            if warning:
                chunk.warnings.append(Finding(converted.place, warning.reason, str(warning), None))
            chunk.lines.append(line)
            chunk.facts.append((0, 0, converted.number, 0, *facts))
            chunk.sources.append(pair["source"])
    return chunk


def _printable_row(row: Any) -> Any:
    if isinstance(row, bytes):
        return row.decode(errors="backslashreplace").rstrip("\n")
    return None if isinstance(row, RowError) else row


def convert_source(source: Source, config: ConversionConfig, num_proc: int) -> Iterator[tuple[str, ConvertedChunk]]:
    """Convert a source in chunks and yield (file or Hub id, converted chunk) in row order, with a progress bar."""
    label = source.label
    files: list[Path | None] = [*data_files(source.name)]
    for file in files or [None]:
        name, size = (str(file), file.stat().st_size) if file else (source.name, None)
        with open(file, "rb") if file else nullcontext() as content, tqdm(total=size, desc=label, **BAR) as bar:
            rows = read_raw_rows(content, file) if file and content else hub_rows(name)
            format_, rows = detect_format(rows, name, source.format, config.options)
            tasks = ((chunk, name, label, format_) for chunk in _chunks(rows))
            processes = 1 if size is not None and size < LEAST_BYTES else num_proc
            for chunk in _convert_in_order(tasks, processes, config):
                bar.update(content.tell() - bar.n if content else 0)
                yield name, chunk


def _chunks(rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


# Set once in each worker, because a config with many excluded prompts is too large to send with every chunk.
_worker_config = ConversionConfig()


def _start_worker(config: ConversionConfig) -> None:
    global _worker_config
    _worker_config = config
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process handles it


def _convert_in_worker(task: Task) -> ConvertedChunk:
    return convert_chunk(task, _worker_config)


def _convert_in_order(tasks: Iterable[Task], num_proc: int, config: ConversionConfig) -> Iterator[ConvertedChunk]:
    """Convert chunks a few ahead and yield them in order; `Executor.map` would read the entire source at once."""
    if num_proc < 2:
        yield from (convert_chunk(task, config) for task in tasks)
        return
    waiting: deque[Future[ConvertedChunk]] = deque()
    with ProcessPoolExecutor(num_proc, initializer=_start_worker, initargs=(config,)) as executor:
        for task in tasks:
            waiting.append(executor.submit(_convert_in_worker, task))
            if len(waiting) > 3 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
