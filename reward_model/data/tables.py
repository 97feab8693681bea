"""Read rows from files that hold a table (.json, .csv, .parquet, .arrow from save_to_disk) and from `datasets`."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from reward_model import InputError, RowError
from reward_model.data.fields import PROMPTS
from reward_model.data.pair import from_json

ROW_FIELDS = {"chosen", "rejected", *PROMPTS}
CONVERT_ENCODING = "convert the file, for example with iconv -f GB18030 -t UTF-8 (Chinese) or -f CP1252 (Western)"
WRAPPERS = ("data", "rows", "examples", "instances", "records")  # keys of an object that hold its rows
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NOT_SPACE = re.compile(r"\S")


def json_rows(content: BinaryIO, file: Path) -> list[Any]:
    """Return the rows in a .json file: an array, a sequence of objects, or an object that `table_rows` accepts."""
    try:
        values = _json_values(content.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; {CONVERT_ENCODING}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}). Correct the file or export it again.") from error
    value = values[0] if len(values) == 1 else values
    return value if isinstance(value, list) else table_rows(value)


def _json_values(text: str) -> list[Any]:
    """Parse a sequence of JSON values, which may span several lines and need no separators."""
    decoder, values = json.JSONDecoder(), []
    start = NOT_SPACE.search(text)
    while start:
        value, end = decoder.raw_decode(text, start.start())
        values.append(value)
        start = NOT_SPACE.search(text, end)
    return values


def table_rows(table: Any) -> list[Any]:
    """Return the rows in an object: {"data": [...]}, a table (pandas, Dataset.to_dict()), or the object itself."""
    values = list(table.values()) if isinstance(table, dict) else []
    lists = [name for name in table if isinstance(table[name], list)] if values else []
    if {"columns", "data"} <= set(lists):  # orient="split"
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    if len(lists) == 1 and lists[0] in WRAPPERS:
        return table[lists[0]]
    if values and all(isinstance(value, dict) and value for value in values):
        keys = values[0].keys()
        if not ROW_FIELDS & table.keys() and (ROW_FIELDS & keys or all(map(str.isdecimal, table))):  # orient="index"
            return values
        if all(key.isdecimal() and all(key in value for value in values) for key in keys):  # orient="columns"
            return [{name: table[name][key] for name in table} for key in keys]
    has_columns = len(lists) == len(values) > 1 and len(set(map(len, values))) == 1
    if has_columns and not any(isinstance(part, dict) for column in values for part in column):  # Dataset.to_dict()
        return [dict(zip(table, row, strict=True)) for row in zip(*values, strict=True)]
    return [table]


def is_config(file: Path) -> bool:
    """Return whether a .json file contains one object that is neither a row nor a table, such as config.json."""
    if file.suffix != ".json" or file.stat().st_size > 2**20:
        return False
    try:
        (value,) = table_rows(json.loads(file.read_bytes()))
    except ValueError:  # several rows, or not valid JSON
        return False
    if not isinstance(value, dict) or ROW_FIELDS & value.keys():
        return False
    lists = [part for part in value.values() if isinstance(part, list)]
    return not any(isinstance(part, dict) for values in lists for part in values)


def csv_rows(content: BinaryIO, file: Path) -> Iterator[Any]:
    """Yield the rows of a .csv file as dictionaries; a row that cannot be parsed is a RowError."""
    csv.field_size_limit(sys.maxsize)
    header = content.readline().decode(errors="replace")
    content.seek(0)
    # Bytes that are not UTF-8 become lone surrogates, so that only their row is set aside.
    lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(lines, strict=True, delimiter=max(",;\t", key=header.count))
    line = 2  # where the first row starts
    try:
        for row in reader:
            if None in row or None in row.values():
                yield RowError("not parseable", f"line {line}: the number of fields differs from the header.")
            elif LONE_SURROGATE.search("".join([*row, *row.values()])):
                yield RowError("not decodable", f"line {line}: not UTF-8; {CONVERT_ENCODING}.")
            else:
                # CSV files store lists as JSON text.
                yield {key: from_json(cell, list) if cell[:1] == "[" else cell for key, cell in row.items()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}: cannot read line {line}: {error}. Close all quotes.") from error
    lines.detach()  # otherwise the wrapper would close `content`


def arrow_rows(content: BinaryIO, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .parquet or .arrow file; raise InputError if it cannot be read."""
    import pyarrow.ipc
    import pyarrow.parquet

    is_parquet = file.suffix == ".parquet"
    try:
        read = pyarrow.parquet.ParquetFile if is_parquet else pyarrow.ipc.open_stream
        for batch in read(content).iter_batches(1024) if is_parquet else read(content):
            yield from _plain_rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "a Parquet file" if is_parquet else "an Arrow stream, as written by save_to_disk"
        raise InputError(f"{file}: not {kind}: {error}") from error


def dataset_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset from `datasets`, streamed or not."""
    for table in dataset.with_format("arrow").iter(1024):
        yield from _plain_rows(table)


def _plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        yield {field.name: _plain_value(row[field.name], field.type) for field in batch.schema}


def _plain_value(value: Any, kind: Any) -> Any:
    """Return an Arrow value without the nulls that its type adds, and with JSON text (type arrow.json) parsed.

    All structs in a column have the same keys: if one row has {"city": "Oslo"} and another {"unit": "C"}, the first is
    read as {"city": "Oslo", "unit": None}. Arrow cannot distinguish this null from one in the source, so both are
    removed; only JSON text preserves nulls.
    """
    if isinstance(value, dict):
        parts = [(part.name, part.type) for part in kind.fields if value[part.name] is not None]
        return {name: _plain_value(value[name], part_type) for name, part_type in parts}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain_value(part, kind.value_type) for part in value]
    is_json = isinstance(value, str) and getattr(kind, "extension_name", "") == "arrow.json"
    return json.loads(value) if is_json else value
