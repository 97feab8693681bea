"""The fields of a row: by path, by the first of several names, as a number."""

import math
from collections.abc import Iterable
from typing import Any

from reward_model import RowError
from reward_model.data.pair import SIDES, from_json

Row = dict[str, Any]

PROMPTS = ("prompt", "question", "instruction", "query", "input", "context")
LABEL_FIELDS = {
    "source": ("source",),
    "subset": ("subset", "domain", "category"),
    "id": ("id", "pair_id", "prompt_id", "question_id"),
}
ALL_LABELS = frozenset(name for names in LABEL_FIELDS.values() for name in names)


def path_value(row: Row, path: str) -> Any:
    """The value at a dotted path ("a.b.0"), which may be None; raises RowError where there is no such path."""
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
    """The value at a dotted path; raises RowError where there is none."""
    value = path_value(row, path)
    if value is None:
        raise RowError("missing field", f"no {path!r} (keys: {', '.join(map(str, row))}).")
    return value


def first_field(row: Row, names: Iterable[str]) -> Any:
    """The value of the first of several names that the row has; an empty one only where no other is there."""
    for nothing in ((None, ""), (None,)):
        for name in names:
            if row.get(name) not in nothing:
                return row[name]
    raise RowError("missing field", f"none of {', '.join(names)} (keys: {', '.join(map(str, row))}).")


def prompt_of(row: Row) -> Any:
    """The prompt, under any of PROMPTS; behind an `instruction` stands its `input` (Alpaca)."""
    prompt = first_field(row, PROMPTS)
    if isinstance(prompt, str) and prompt is row.get("instruction") and row.get("input"):
        return f"{prompt}\n{row['input']}"
    return prompt


def both_are(row: Row, kind: type) -> bool:
    """Whether chosen and rejected are there and of this type."""
    return all(isinstance(row.get(side), kind) for side in SIDES)


def number(value: Any) -> float:
    """A score as a float; raises RowError for anything else (UltraFeedback has "N/A")."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowError("score", f"the score {str(value)[:40]!r} is no number.")
    return score


def tools_of(row: Row) -> Any:
    """The tools that the assistant had (objects, or JSON text of them), or None."""
    tools = from_json(row.get("tools"), list | dict)
    if isinstance(tools, str) and tools.strip():
        raise RowError("not parseable", f"tools is not JSON: {tools[:60]!r}.")
    return None if isinstance(tools, str) else tools or None


def labels_of(row: Row) -> dict[str, Any]:
    """What a row says of a pair besides its text: source, subset, id, margin and tools, where it has them."""
    margin = None if row.get("margin") == "" else from_json(row.get("margin"), int | float)  # text in a CSV file
    labels = {} if margin is None else {"margin": margin}
    if tools := tools_of(row):
        labels["tools"] = tools
    for label, names in [] if ALL_LABELS.isdisjoint(row) else LABEL_FIELDS.items():
        known = [row[name] for name in names if isinstance(row.get(name), str | int)]
        if known:
            labels[label] = known[0]
    return labels
