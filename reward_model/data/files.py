"""Rows of preference data as they lie in files or on a hub, each with its place, read as a stream."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import orjson

from reward_model import InputError, RowError

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
TEST_NAMES = ("test", "eval", "valid", "dev")
# What prepare_data.py writes beside the pairs is not data itself.
NOT_DATA = (".rejected.", ".report.")

# Line or row number, and the row; one that could not be read is a RowError in its place.
NumberedRow = tuple[int, Any | RowError]


def data_files(source: str) -> list[Path]:
    """The data files of a path, sorted by name; [] where nothing lies there (then it may be a hub id)."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
        files = [file for file in files if not any(part in file.name for part in NOT_DATA)]
        if not files:
            raise InputError(f"{source}: no data file in this folder; put {', '.join(SUFFIXES)} files there.")
        return files
    if path.is_file() and path.name.endswith(SUFFIXES):
        return [path]
    if path.exists() or path.name.endswith(SUFFIXES):
        found = f"{path.suffix or 'this kind of'} file" if path.exists() else "no such file"
        raise InputError(f"{source}: {found}; give a {', '.join(SUFFIXES)} file, a folder of them, or a hub id.")
    return []


def train_and_test_files(source: str) -> tuple[list[Path], list[Path]]:
    """The data files of a path; in a folder, those named test…, eval…, valid…, dev… or ….eval.… are the test files."""
    files = data_files(source)
    if not Path(source).is_dir():
        return files, []
    tests = [file for file in files if file.name.lower().startswith(TEST_NAMES) or ".eval." in file.name.lower()]
    return [file for file in files if file not in tests], tests


def place_of(source: str | Path, number: int) -> str:
    """Where a row stands: file:line for files of lines, else the number of the row, from 1."""
    by_line = str(source).endswith((".jsonl", ".jsonl.gz"))
    return f"{source}:{number}" if by_line else f"{source}: row {number}"


def raw_rows(content: BinaryIO, file: Path) -> Iterator[NumberedRow]:
    """(line or row number, row) of an open file; lines of JSON come as bytes, for `parsed`, the rest as objects."""
    if file.name.endswith(".jsonl.gz"):
        yield from _lines(gzip.GzipFile(fileobj=content))
    elif file.suffix == ".jsonl":
        yield from _lines(content)
    elif file.suffix == ".parquet":
        yield from enumerate(_parquet_rows(content, file), 1)
    elif file.suffix == ".csv":
        yield from _csv_rows(content)
    else:
        yield from _json_rows(content, file)


def parsed(row: Any) -> Any:
    """The value in a line of JSON (bytes), or a RowError where it is none or not UTF-8; any other row as it is."""
    if not isinstance(row, bytes):
        return row
    try:
        return orjson.loads(row)
    except orjson.JSONDecodeError:
        pass  # the standard library takes more (NaN, a byte order mark) and says where it stops
    try:
        return json.loads(row.rstrip(b"\r\n").decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError("not decodable", f"not UTF-8 at byte {error.start}; convert the file first.")
    except json.JSONDecodeError as error:
        return RowError("not parseable", f"not valid JSON ({error.msg}, column {error.colno}).")
    except ValueError as error:  # thousands of digits
        return RowError("not parseable", f"not valid JSON ({error}).")
    except RecursionError:
        return RowError("not parseable", "JSON nested too deeply.")


def read_rows(file: Path) -> Iterator[NumberedRow]:
    """(line or row number, row) of a file, parsed; a row that cannot be read is a RowError."""
    with open(file, "rb") as content:
        for number, row in raw_rows(content, file):
            yield number, parsed(row)


def hub_rows(name: str) -> Iterator[NumberedRow]:
    """Rows of the hub's data set `owner/name[:split]` (split train unless named), streamed."""
    from datasets import load_dataset

    name, _, split = name.partition(":")
    try:
        yield from enumerate(load_dataset(name, split=split or "train", streaming=True), 1)
    except Exception as error:  # whatever the hub's client raises: its own words say it best
        raise InputError(f"{name}: neither a file or folder here nor a data set the hub gave: {error}") from error


def _lines(content: BinaryIO | gzip.GzipFile) -> Iterator[NumberedRow]:
    number = 0
    try:
        for number, line in enumerate(content, 1):
            if not line.isspace():
                yield number, line
    except (EOFError, OSError, zlib.error) as error:  # of gzip
        yield number + 1, RowError("not parseable", f"the file breaks off here: {error}.")


def _parquet_rows(content: BinaryIO, file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(content).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file: {error}") from None


def _csv_rows(content: BinaryIO) -> Iterator[NumberedRow]:
    csv.field_size_limit(sys.maxsize)
    # Bytes that are no UTF-8 become lone surrogates, which the check of the text finds.
    lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        for number, row in enumerate(csv.DictReader(lines), 1):
            if None in row or None in row.values():
                header = ", ".join(filter(None, row))
                yield number, RowError("not parseable", f"not as many fields as the header has ({header}).")
            else:
                # Lists of messages lie in a CSV file as JSON text.
                yield number, {key: _json_cell(cell) if cell[:1] in ("[", "{") else cell for key, cell in row.items()}
    finally:
        lines.detach()  # or `content` would be closed with it


def _json_cell(cell: str) -> Any:
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def _json_rows(content: BinaryIO, file: Path) -> Iterator[NumberedRow]:
    """Rows of a .json file: one array, streamed, or one object a line."""
    bom = content.read(3) == b"\xef\xbb\xbf"
    content.seek(3 if bom else 0)
    start = content.read(64)
    content.seek(3 if bom else 0)
    if start.lstrip()[:1] != b"[":
        yield from _lines(content)
        return
    number = 0
    try:
        for number, row in enumerate(ijson.items(content, "item", use_float=True), 1):
            yield number, row
    except (ijson.JSONError, UnicodeDecodeError) as error:
        yield number + 1, RowError("not parseable", f"not valid JSON ({_json_fault(file, error)}); the rest is unread.")


def _json_fault(file: Path, error: Exception) -> str:
    """Where an array stops being JSON: ijson knows no lines, so a file of ordinary size is parsed once more."""
    if file.stat().st_size < 2**28:
        try:
            json.loads(file.read_bytes().decode("utf-8-sig"))
        except json.JSONDecodeError as fault:
            return f"line {fault.lineno}: {fault.msg}"
        except UnicodeDecodeError as fault:
            return f"byte {fault.start} is not UTF-8"
    return " ".join(str(error).split())
