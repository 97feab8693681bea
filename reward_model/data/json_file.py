"""Rows of .json files: an array, objects one after the other, or one object that is a table."""

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from reward_model import InputError
from reward_model.data.fields import PROMPTS

FIELDS = {"chosen", "rejected", *PROMPTS}
WRAPPERS = ("data", "rows", "examples", "instances", "records")  # keys of an object under which its rows stand
NOT_SPACE = re.compile(r"\S")


def json_rows(content: BinaryIO, file: Path) -> list[Any]:
    """Return the rows of a .json file; raises InputError where it cannot be parsed."""
    # Bytes that are not UTF-8 become lone surrogates, which the check of the text finds.
    text = content.read().decode("utf-8-sig", errors="surrogateescape").strip()
    try:
        values = json.loads(text) if text.startswith("[") else _values(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}). Repair the file or write it again.") from error
    is_table = len(values) == 1 and text.startswith("{")
    return table_rows(values[0]) if is_table else values


def _values(text: str) -> list[Any]:
    """Return the values in a text that stand one after the other."""
    decoder, values = json.JSONDecoder(), []
    begin = NOT_SPACE.search(text)
    while begin:
        value, end = decoder.raw_decode(text, begin.start())
        values.append(value)
        begin = NOT_SPACE.search(text, end)
    return values


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
