"""Stream rows of preference data, with their line or row numbers, from files, directories and the Hub."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from reward_model import InputError, RowError
from reward_model.data.tables import CONVERT_ENCODING, arrow_rows, csv_rows, dataset_rows, is_config, json_rows

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".arrow")
TEST_NAMES = ("test", "eval", "valid", "dev")
# Not data: files that prepare_data.py writes next to the pairs, and metadata and caches that `datasets` writes.
OUR_FILES = (".rejected.", ".report.")
DATASETS_FILES = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|(cache-|tmp).*\.arrow")
# The first bytes of files whose content does not match their name; what such a file is, and how to fix it.
GZIP = b"\x1f\x8b"
SIGNATURES = {
    b"version https://git-lfs": "a Git-LFS pointer, not the data; run git lfs pull",
    b"\xff\xfe": "UTF-16, not UTF-8; convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8; convert it with iconv -f UTF-16 -t UTF-8",
    GZIP: "gzip; decompress it or rename it to .jsonl.gz",
    b"<!doctype": "a web page, not the data; download the file itself",
}

# Line or row number (from 1) and the row; a row that cannot be read is replaced by a RowError.
NumberedRow = tuple[int, Any | RowError]


def data_files(source: str) -> list[Path]:
    """Return the data files at a path, sorted; [] if the path does not exist (it may be a Hub id).

    A directory is searched recursively; hidden files and files that are not data, such as configs, are skipped.
    """
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        files = [file for file in files if not any(part in file.name for part in OUR_FILES)]
        files = [file for file in files if not DATASETS_FILES.fullmatch(file.name)]
        files = [file for file in files if not is_config(file)] or files
        if not files:
            raise InputError(f"{source}: no data files in this directory; add {', '.join(SUFFIXES)} files.")
        return files
    if path.is_file() and path.name.endswith(SUFFIXES):
        return [path]
    if path.exists() or path.name.endswith(SUFFIXES):
        found = f"{path.suffix or 'this type of'} file" if path.exists() else "file not found"
        raise InputError(f"{source}: {found}; pass a {', '.join(SUFFIXES)} file, a directory of them, or a Hub id.")
    return []


def train_and_test_files(source: str) -> tuple[list[Path], list[Path]]:
    """Return the training files and test files at a path.

    In a directory, the test files are those whose name or parent directory starts with test, eval, valid or dev, or
    contains ".eval.".
    """
    files = data_files(source)
    if not Path(source).is_dir():
        return files, []
    parts = {file: [part.lower() for part in file.relative_to(source).parts] for file in files}
    tests = [file for file in files if any(part.startswith(TEST_NAMES) or ".eval." in part for part in parts[file])]
    return [file for file in files if file not in tests], tests


def place_of(source: str | Path, number: int) -> str:
    """Describe the location of a row for messages: file:line in line-based files, otherwise the file and row number."""
    by_line = str(source).endswith((".jsonl", ".jsonl.gz"))
    return f"{source}:{number}" if by_line else f"{source}: row {number}"


def read_raw_rows(content: BinaryIO, file: Path) -> Iterator[NumberedRow]:
    """Yield (line or row number, row) from an open file; lines of JSON are left as bytes for `parse_row`.

    Raises:
        InputError: If the content does not match the file name, or the rest of the file cannot be read.
    """
    _check_signature(content, file)
    if file.name.endswith(".jsonl.gz"):
        yield from _lines(gzip.GzipFile(fileobj=content), file)
    elif file.suffix == ".jsonl" or (file.suffix == ".json" and _has_lines(content)):
        yield from _lines(content, file)
    else:
        read = {".parquet": arrow_rows, ".arrow": arrow_rows, ".csv": csv_rows}.get(file.suffix, json_rows)
        yield from enumerate(read(content, file), 1)


def parse_row(row: Any) -> Any:
    """Parse a row that is a line of JSON (bytes), or return a RowError if it is invalid; return a parsed row as is."""
    if not isinstance(row, bytes):
        return row
    try:
        return orjson.loads(row)
    except orjson.JSONDecodeError:
        pass  # the standard library is more lenient (NaN, a byte order mark) and reports the position
    try:
        return json.loads(row.rstrip(b"\r\n").decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError("not decodable", f"not UTF-8 at byte {error.start}; {CONVERT_ENCODING}.")
    except json.JSONDecodeError as error:
        return RowError("not parseable", f"not valid JSON ({error.msg}, column {error.colno}).")
    except (ValueError, RecursionError) as error:  # thousands of digits or nested brackets
        return RowError("not parseable", f"not valid JSON ({error}).")


def read_rows(file: Path) -> Iterator[NumberedRow]:
    """Yield (line or row number, parsed row) for each row in a file."""
    with open(file, "rb") as content:
        for number, row in read_raw_rows(content, file):
            yield number, parse_row(row)


def check_hub(name: str, kind: str) -> None:
    """Raise InputError if a Hub id is neither cached nor available, instead of letting libraries retry for a minute.

    Args:
        name: A path or a Hub id; an existing path is accepted.
        kind: "model" or "dataset".
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    if Path(name).exists():
        return
    try:
        if kind == "dataset" and Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").exists():
            return
        if kind == "model" and try_to_load_from_cache(name, "config.json"):
            return
        request = HfApi().model_info if kind == "model" else HfApi().dataset_info
        request(name, timeout=5)
    except Exception as error:  # the Hub client raises errors of many types, with clear messages
        message = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: not a local directory, and the Hub has no {kind} with this name: {message}"
        ) from error


def hub_rows(name: str) -> Iterator[NumberedRow]:
    """Stream the rows of the Hub dataset `owner/name[:split]`; the split defaults to train."""
    from datasets import load_dataset

    name, _, split = name.partition(":")
    check_hub(name, "dataset")
    try:
        yield from enumerate(dataset_rows(load_dataset(name, split=split or "train", streaming=True)), 1)
    except Exception as error:  # the Hub client raises errors of many types, with clear messages
        raise InputError(f"{name}: cannot load the dataset from the Hub: {error}") from error


def _has_lines(content: BinaryIO) -> bool:
    """Return whether a .json file has one object per line: its first line ends with } and another line follows."""
    first, second = content.readline().strip(), content.readline()
    content.seek(0)
    return first.endswith(b"}") and first.removeprefix(codecs.BOM_UTF8)[:1] != b"[" and bool(second.strip())


def _check_signature(content: BinaryIO, file: Path) -> None:
    start = content.read(64).lower()
    content.seek(0)
    for signature, found in SIGNATURES.items():
        if start.startswith(signature) and not (signature == GZIP and file.suffix == ".gz"):
            raise InputError(f"{file}: this is {found}.")


def _lines(content: BinaryIO | gzip.GzipFile, file: Path) -> Iterator[NumberedRow]:
    number = 0
    try:
        for number, line in enumerate(content, 1):
            if not line.isspace():
                yield number, line
    except (EOFError, OSError, zlib.error) as error:  # from gzip
        place = place_of(file, number + 1)
        raise InputError(f"{place}: the file is truncated ({error}). Download it again.") from error
