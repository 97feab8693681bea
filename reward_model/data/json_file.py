"""Rows of .json files: an array, objects one after the other, or one object that is a table."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from reward_model import InputError
from reward_model.data.fields import PROMPTS

FIELDS = {"chosen", "rejected", *PROMPTS}
WRAPPERS = ("data", "rows", "examples", "instances", "records")  # keys of an object under which its rows stand
SEPARATORS = re.compile(r"[\s,]*")


def json_rows(content: BinaryIO, file: Path) -> Iterator[Any]:
    """Yield the rows of a .json file; its text is held in memory, its rows are not.

    Raises InputError at the first row that cannot be parsed: where the next one begins is unknown.
    """
    # Bytes that are not UTF-8 become lone surrogates, which the check of the text finds.
    text = content.read().decode("utf-8-sig", errors="surrogateescape").strip()
    values = _values(text, file)
    begin = list(islice(values, 2))
    is_table = len(begin) == 1 and text[0] == "{"
    yield from table_rows(begin[0]) if is_table else chain(begin, values)


def _values(text: str, file: Path) -> Iterator[Any]:
    """Yield the values of an array, or those that follow each other; NaN is read as Python writes it."""
    decoder, number = json.JSONDecoder(), 1
    is_array = text.startswith("[")
    at = int(is_array)
    try:
        while (at := SEPARATORS.match(text, at).end()) < len(text) - is_array:  # type: ignore[union-attr]
            value, at = decoder.raw_decode(text, at)
            yield value
            number += 1
        if is_array and not text.endswith("]"):
            raise json.JSONDecodeError("the array is never closed", text, at)
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, getattr(error, "pos", at)) + 1
        found = f"line {line}: {getattr(error, 'msg', error)}"
        cure = "It and the rows after it are unread. Repair the file or write it again."
        raise InputError(f"{file}: row {number} is not valid JSON ({found}). {cure}") from error


def table_rows(table: Any) -> list[Any]:
    """Return the rows of one JSON value: of a wrapper ({"data": [...]}), of any orientation of pandas, or itself."""
    values = list(table.values()) if isinstance(table, dict) else []
    lists = [name for name in table if isinstance(table[name], list)] if values else []
    if {"columns", "data"} <= set(lists):  # orient="split"
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    if len(lists) == 1 and lists[0] in WRAPPERS:
        return table[lists[0]]
    if values and all(isinstance(value, dict) and value for value in values):
        keys = values[0].keys()
        if not FIELDS & table.keys() and (FIELDS & keys or all(map(str.isdecimal, table))):  # orient="index"
            return values
        if all(key.isdecimal() and all(key in value for value in values) for key in keys):  # orient="columns"
            return [{name: table[name][key] for name in table} for key in keys]
    are_columns = len(lists) == len(values) > 1 and len({len(value) for value in values}) == 1
    if are_columns and not any(isinstance(part, dict) for value in values for part in value):  # Dataset.to_dict()
        return [dict(zip(table, row, strict=True)) for row in zip(*values, strict=True)]
    return [table]
