"""Access the fields of a source row: by dotted path, under any of several names, or as a number."""

import math
from collections.abc import Iterable
from typing import Any

from reward_model import RowError
from reward_model.data.pair import from_json

Row = dict[str, Any]

PROMPTS = ("prompt", "question", "instruction", "query", "input", "context")
LABEL_FIELDS = {
    "source": ("source",),
    "subset": ("subset", "domain", "category"),
    "id": ("id", "pair_id", "prompt_id", "question_id"),
}
NAME_FIELDS = (
    "Name its fields with prepare_data.py: --prompt FIELD --chosen FIELD --rejected FIELD, or --prompt FIELD "
    "--candidates FIELD FIELD --label FIELD --label_first VALUE --label_second VALUE. Rows with a single answer (KTO, "
    "ratings, fine-tuning) are not preference pairs. docs/data.md lists the supported formats."
)


def path_value(row: Row, path: str) -> Any:
    """Return the value at a dotted path ("a.b.0"), which may be None; raise RowError if the path does not exist."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise RowError("missing field", f"no {path!r} (keys: {', '.join(map(str, row))}).")
    return value


def field(row: Row, path: str) -> Any:
    """Return the value at a dotted path; raise RowError if it is missing or None."""
    value = path_value(row, path)
    if value is None:
        raise RowError("missing field", f"no {path!r} (keys: {', '.join(map(str, row))}).")
    return value


def first_field(row: Row, names: Iterable[str]) -> Any:
    """Return the first value found under any of several names; skip empty text unless all values are empty."""
    present = [row[name] for name in names if row.get(name) is not None]
    if not present:
        raise RowError("missing field", f"none of {', '.join(names)} (keys: {', '.join(map(str, row))}).")
    return next((value for value in present if value != ""), present[0])


def prompt_of(row: Row) -> Any:
    """Return a row's prompt, stored under any name in PROMPTS; append `input` to `instruction` (Alpaca)."""
    prompt = first_field(row, PROMPTS)
    if isinstance(prompt, str) and prompt is row.get("instruction") and row.get("input"):
        return f"{prompt}\n{row['input']}"
    return prompt


def number(value: Any) -> float:
    """Return a score as a float; raise RowError if it is not a finite number (UltraFeedback contains "N/A")."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowError("score", f"the score {str(value)[:40]!r} is not a number.")
    return score


def tools_of(row: Row) -> Any:
    """Return the tools in a row, parsed if they are JSON text, or None if there are none."""
    tools = from_json(row.get("tools"), list | dict)
    if isinstance(tools, str) and tools.strip():
        raise RowError("not parseable", f"tools is not JSON: {tools[:60]!r}.")
    return None if isinstance(tools, str) else tools or None


def labels_of(row: Row) -> dict[str, Any]:
    """Return what a pair contains besides its conversations: source, subset, id, margin and tools, if present."""
    margin = None if row.get("margin") == "" else from_json(row.get("margin"), int | float)  # text in CSV files
    labels = {} if margin is None else {"margin": margin}
    if tools := tools_of(row):
        labels["tools"] = tools
    for label, names in LABEL_FIELDS.items():
        values = [row[name] for name in names if isinstance(row.get(name), str | int)]
        if values:
            labels[label] = values[0]
    return labels
