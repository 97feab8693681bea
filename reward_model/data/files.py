"""Rows of preference data as they lie in files or on a hub, each with its place, read as a stream."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import orjson

from reward_model import InputError, RowError

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
TEST_NAMES = ("test", "eval", "valid", "dev")
# What prepare_data.py writes beside the pairs is not data itself.
NOT_DATA = (".rejected.", ".report.")
# How a file begins that is not what its name says, and what to do about it.
BEGINNINGS = {
    b"version https://git-lfs": "a Git-LFS pointer, not the data; get them with git lfs pull",
    b"\xff\xfe": "UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "gzip; unpack it, or call it .jsonl.gz",
    b"PAR1": "Parquet; call it .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"<!doctype": "a web page, not the data; download the file itself",
    b"<html": "a web page, not the data; download the file itself",
}

# Line or row number, and the row; one that could not be read is a RowError in its place.
NumberedRow = tuple[int, Any | RowError]


def data_files(source: str) -> list[Path]:
    """The data files of a path, in a folder and all below it, sorted by name, without hidden ones; [] where nothing
    lies there (then it may be a hub id)."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and file.is_file()]
        files = [file for file in files if not any(part in file.name for part in NOT_DATA)]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
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
    """The data files of a path; in a folder, those named test…, eval…, valid…, dev… or ….eval.…, or in a folder of such
    a name, are the test files."""
    files = data_files(source)
    if not Path(source).is_dir():
        return files, []
    names = {file: [part.lower() for part in file.relative_to(source).parts] for file in files}
    tests = [file for file in files if any(part.startswith(TEST_NAMES) or ".eval." in part for part in names[file])]
    return [file for file in files if file not in tests], tests


def place_of(source: str | Path, number: int) -> str:
    """Where a row stands: file:line for files of lines, else the number of the row, from 1."""
    by_line = str(source).endswith((".jsonl", ".jsonl.gz"))
    return f"{source}:{number}" if by_line else f"{source}: row {number}"


def raw_rows(content: BinaryIO, file: Path) -> Iterator[NumberedRow]:
    """(line or row number, row) of an open file; lines of JSON come as bytes, for `parsed`, the rest as objects.

    Raises InputError for a file that is another thing than its name says.
    """
    _check_beginning(content, file)
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


def check_hub(name: str, kind: str) -> None:
    """Refuse at once a hub id that is neither in the cache nor to be had; the libraries would try for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}").exists()
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        if Path(name).exists() or (cached if kind == "dataset" else try_to_load_from_cache(name, "config.json")):
            return
        ask(name, timeout=5)
    except Exception as error:  # whatever the hub's client raises: its own words say it best
        words = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: no such folder here, and the hub gives no {kind} of this name: {words}") from None


def hub_rows(name: str) -> Iterator[NumberedRow]:
    """Rows of the hub's data set `owner/name[:split]` (split train unless named), streamed."""
    from datasets import load_dataset

    name, _, split = name.partition(":")
    check_hub(name, "dataset")
    try:
        yield from enumerate(load_dataset(name, split=split or "train", streaming=True), 1)
    except Exception as error:  # whatever the hub's client raises: its own words say it best
        raise InputError(f"{name}: neither a file or folder here nor a data set the hub gave: {error}") from error


def _check_beginning(content: BinaryIO, file: Path) -> None:
    begin = content.read(64)
    content.seek(0)
    own = {".gz": b"\x1f\x8b", ".parquet": b"PAR1"}.get(file.suffix)
    if not begin or (own and begin.startswith(own)):
        return
    for found, what in BEGINNINGS.items():
        if begin.lower().startswith(found.lower()):
            raise InputError(f"{file}: this is {what}.")
    if own or b"\0" in begin:
        what = f"no {file.suffix} file: it begins with" if own else "no text: there are NUL bytes in"
        raise InputError(f"{file}: this is {what} {begin[:12]!r}; copy or download it again.")


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
    reader, line = csv.DictReader(lines, strict=True), 0
    try:
        for number in count(1):
            try:
                line, row = reader.line_num, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                text = "a quote that opens there is never closed" if "end of data" in str(error) else str(error)
                yield number, RowError("not parseable", f"line {max(line, 1) + 1}: {text}.")
                continue
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
