"""Rows of preference data as they lie in files or on a hub, each with its place, read as a stream."""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from reward_model import InputError, RowError
from reward_model.data.arrow import arrow_file_rows, dataset_rows
from reward_model.data.json_file import FIELDS, json_rows, table_rows
from reward_model.data.pair import from_json

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".arrow")
TEST_NAMES = ("test", "eval", "valid", "dev")
# What prepare_data.py writes beside the pairs is not data itself.
NOT_DATA = (".rejected.", ".report.")
# What `datasets` writes beside the data: descriptions, and results of map() in a directory of save_to_disk.
DATASETS_OWN = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|(cache-|tmp).*\.arrow")
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
        files = [file for file in files if not DATASETS_OWN.fullmatch(file.name)]
        files = [file for file in files if not _is_config(file)] or files
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

    Raises InputError for a file that is another thing than its name says, and where the rest of it cannot be read.
    """
    _check_beginning(content, file)
    if file.name.endswith(".jsonl.gz"):
        yield from _lines(gzip.GzipFile(fileobj=content), file)
    elif file.suffix == ".jsonl" or (file.suffix == ".json" and _has_lines(content)):
        yield from _lines(content, file)
    elif file.suffix in (".parquet", ".arrow"):
        yield from enumerate(arrow_file_rows(content, file), 1)
    elif file.suffix == ".csv":
        yield from _csv_rows(content, file)
    else:
        yield from enumerate(json_rows(content, file), 1)


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
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        return RowError("not parseable", f"not valid JSON ({error}).")


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
        raise InputError(f"{name}: no such folder here, and the hub gives no {kind} of this name: {words}") from error


def hub_rows(name: str) -> Iterator[NumberedRow]:
    """Rows of the hub's data set `owner/name[:split]` (split train unless named), streamed."""
    from datasets import load_dataset

    name, _, split = name.partition(":")
    check_hub(name, "dataset")
    try:
        yield from enumerate(dataset_rows(load_dataset(name, split=split or "train", streaming=True)), 1)
    except Exception as error:  # whatever the hub's client raises: its own words say it best
        raise InputError(f"{name}: neither a file or folder here nor a data set the hub gave: {error}") from error


def _is_config(file: Path) -> bool:
    """Return whether a .json file is one object that is neither a row nor holds any: a config beside the data."""
    if file.suffix != ".json" or file.stat().st_size > 2**20:
        return False
    try:
        (found,) = table_rows(json.loads(file.read_bytes()))
    except ValueError:  # not one JSON value, or several rows
        return False
    if not isinstance(found, dict) or FIELDS & found.keys():
        return False
    lists = [value for value in found.values() if isinstance(value, list)]
    return not any(isinstance(part, dict) for value in lists for part in value)


def _has_lines(content: BinaryIO) -> bool:
    """Return whether a .json file has an object a line: the first line ends as an object does, and there is another."""
    first, second = content.readline().strip(), content.readline()
    content.seek(0)
    return first.endswith(b"}") and first.removeprefix(codecs.BOM_UTF8)[:1] != b"[" and bool(second.strip())


def _check_beginning(content: BinaryIO, file: Path) -> None:
    sample = content.read(2**16)
    content.seek(0)
    begin = sample[:64]
    own = {".gz": b"\x1f\x8b", ".parquet": b"PAR1", ".arrow": b"\xff\xff\xff\xff"}.get(file.suffix)
    if not begin or (own and begin.startswith(own)):
        return
    for found, what in BEGINNINGS.items():
        if begin.lower().startswith(found.lower()):
            raise InputError(f"{file}: this is {what}.")
    if own or b"\0" in begin:
        what = f"no {file.suffix} file: it begins with" if own else "no text: there are NUL bytes in"
        raise InputError(f"{file}: this is {what} {begin[:12]!r}; copy or download it again.")
    other = [letter for letter in sample.decode(errors="surrogateescape") if letter > "\x7f"]
    undecoded = sum("\udc80" <= letter <= "\udcff" for letter in other)
    if undecoded > max(10, len(other) / 2):  # a few bad bytes are matters of their rows
        cure = "iconv -f GB18030 -t UTF-8 (Chinese), iconv -f CP1252 -t UTF-8 (Western languages)"
        raise InputError(f"{file}: this is not UTF-8; convert it, for example: {cure}.")


def _lines(content: BinaryIO | gzip.GzipFile, file: Path) -> Iterator[NumberedRow]:
    number = 0
    try:
        for number, line in enumerate(content, 1):
            if not line.isspace():
                yield number, line
    except (EOFError, OSError, zlib.error) as error:  # of gzip
        place = place_of(file, number + 1)
        raise InputError(f"{place}: the file breaks off here ({error}). Copy or download it again.") from error


def _csv_rows(content: BinaryIO, file: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(sys.maxsize)
    header = content.readline().decode(errors="replace")
    content.seek(0)
    # Bytes that are no UTF-8 become lone surrogates, which the check of the text finds.
    lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(lines, strict=True, delimiter=max(",;\t", key=header.count))
    try:
        for number in count(1):
            line = reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                place, text = f"line {max(line, 1) + 1}", "a quote that opens there is never closed. Close it;"
                if "end of data" in str(error):
                    raise InputError(f"{place_of(file, number)}: {place}: {text} the rest is unread.") from error
                yield number, RowError("not parseable", f"{place}: {error}.")
                continue
            if None in row or None in row.values():
                header = ", ".join(filter(None, row))
                yield number, RowError("not parseable", f"not as many fields as the header has ({header}).")
            else:
                # Lists lie in a CSV file as JSON text.
                yield number, {key: from_json(cell, list) if cell[:1] == "[" else cell for key, cell in row.items()}
    finally:
        lines.detach()  # or `content` would be closed with it
