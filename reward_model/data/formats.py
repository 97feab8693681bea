"""Which layout rows have, by their content, and the pairs in them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from reward_model import InputError, RowError
from reward_model.data import layouts
from reward_model.data.layouts import ANSWER_LISTS, TURN, VERDICTS, Options, Row
from reward_model.data.pair import SIDES


@dataclass(frozen=True)
class Format:
    """`matches` says whether a row looks like the format, `pairs` converts it."""

    description: str
    matches: Callable[[Row], bool]
    pairs: Callable[[Row, Options], list[Row]]


def _both(row: Row, kind: type) -> bool:
    return all(isinstance(row.get(side), kind) for side in SIDES)


def _items(row: Row, kind: type) -> bool:
    return _both(row, list) and all(isinstance(item, kind) for side in SIDES for item in row[side])


FORMATS = {
    "sharegpt": Format(
        "conversations (from/value) + chosen, rejected turns",
        lambda row: (
            isinstance(row.get("conversations", row.get("messages")), list)
            and isinstance(row.get("chosen"), dict | str)
        ),
        layouts.sharegpt,
    ),
    "alpaca": Format(
        "instruction, input + output: [better, worse]",
        lambda row: "instruction" in row and (isinstance(row.get("output"), list) or _both(row, str)),
        layouts.alpaca,
    ),
    "transcript": Format(
        "chosen, rejected with Human:/Assistant: turns",
        lambda row: _both(row, str) and all(TURN.match(row[side]) for side in SIDES),
        layouts.transcript,
    ),
    "lists": Format(
        "prompt + lists of chosen and rejected answers",
        lambda row: _items(row, str) and bool(row["chosen"]),
        layouts.lists,
    ),
    "text": Format("prompt + chosen, rejected as text", lambda row: "prompt" in row and _both(row, str), layouts.text),
    "verdict": Format(
        "two candidates and a verdict",
        lambda row: any({first, label} <= {key.lower() for key in row} for first, _, label, *_ in VERDICTS),
        layouts.verdict,
    ),
    "scored": Format(
        "prompt + answers with a score or rank each",
        lambda row: any(isinstance(row.get(name), list) for name in ANSWER_LISTS),
        layouts.scored,
    ),
    "messages": Format(
        "chosen, rejected as messages (the one record)",
        lambda row: "chosen" in row or "rejected" in row,
        layouts.messages,
    ),
    "fields": Format(
        "named by --prompt, --chosen, --rejected or --candidates, --label", lambda row: False, layouts.fields
    ),
}


def recognise(rows: Iterable[Any], source: str) -> str:
    """The name of the format of the first row that has one; raises InputError where none has."""
    keys = None
    for row in rows:
        if isinstance(row, dict):
            for name, format_ in FORMATS.items():
                if format_.matches(row):
                    return name
            keys = keys or ", ".join(map(str, row))
    found = f"keys: {keys}" if keys else "no JSON object in them"
    known = "; ".join(f"{name}: {format_.description}" for name, format_ in FORMATS.items())
    raise InputError(
        f"{source}: the first rows have no known layout ({found}). Name the format (--format) or the fields "
        f"(--prompt FIELD --chosen FIELD --rejected FIELD, with prepare_data.py). Known: {known}."
    )


def convert(row: Any, name: str, options: Options) -> list[Row]:
    """Unchecked pairs of a row in a format; raises RowError."""
    if not isinstance(row, dict):
        raise RowError("not a row", f"an object with chosen and rejected is needed, found {type(row).__name__}.")
    try:
        pairs = FORMATS[name].pairs(row, options)
    except RowError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a field of a kind that the layout never has
        description = FORMATS[name].description
        raise RowError("another layout", f"not laid out as {name} ({description}): {error}.") from None
    if options.system:
        for pair in pairs:
            for side in SIDES:
                if not (pair[side] and isinstance(pair[side][0], dict) and pair[side][0].get("role") == "system"):
                    pair[side] = [{"role": "system", "content": options.system}, *pair[side]]
    return pairs
