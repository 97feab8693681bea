"""Extract the conversations to score from a row in any layout, using the same conversion as in training."""

from typing import Any, NamedTuple

from reward_model import InputError, RowError
from reward_model.data.convert import convert_row, recognize
from reward_model.data.fields import Row, first_field
from reward_model.data.formats import CONVERSATIONS, DEFAULT_OPTIONS
from reward_model.data.messages import chat_message, messages_in
from reward_model.data.pair import SIDES, Messages, Pair, check_conversation
from reward_model.data.preferences import ANSWER_LISTS, ANSWERS

# The result fields for each kind of row.
RESULTS = {"conversation": ("score",), "answers": ("scores",), "pair": ("chosen_score", "rejected_score")}
RESULT_FIELDS = {"error", *(name for names in RESULTS.values() for name in names)}


class ScoringRow(NamedTuple):
    """A row with its conversations and the assistant's tools, or with an error."""

    row: Row
    kind: str = ""
    conversations: list[Messages] = []  # noqa: RUF012
    tools: Any = None
    error: str = ""


def read_conversations(row: Any, place: str) -> ScoringRow:
    """Extract the conversations in a row, or an error that starts with `place`; remove results of an earlier run."""
    row = {"messages": row} if isinstance(row, list) else row
    if not isinstance(row, dict):
        found = row if isinstance(row, Exception) else f"expected an object, found {type(row).__name__}."
        return ScoringRow({}, error=f"{place}: {found}")
    row = {name: value for name, value in row.items() if name not in RESULT_FIELDS}
    try:
        kind, named, tools = _convert({name: value for name, value in row.items() if value not in (None, "", [])})
        conversations = [check_conversation(messages, name) for name, messages in named]
    except RowError as error:
        reason = str(error)
        if error.reason == "unused field":
            reason = f"{reason.partition(';')[0]}; add it to the prompt or remove it."
        return ScoringRow(row, error=f"{place}: {reason}")
    return ScoringRow(row, kind, conversations, tools)


def _convert(row: Row) -> tuple[str, list[tuple[str, Any]], Any]:
    """Return the kind of a row, (name, unchecked conversation) for each of its conversations, and its tools."""
    format_ = _format(row)
    if format_ in (None, "scored"):
        kind, field = _answer_field(row)
        answers = row[field] if kind == "answers" else [row[field]]
        rest = {name: value for name, value in row.items() if name != field}
        pairs = [_pair_of_one(rest, answer) for answer in answers]
        names = [f"answer {number}" if kind == "answers" else field for number in range(1, len(pairs) + 1)]
        named = [(name, pair["chosen"]) for name, pair in zip(names, pairs, strict=True)]
    else:
        kind, pairs = "pair", convert_row(row, format_, DEFAULT_OPTIONS)
        named = [(side, pair[side]) for side in SIDES for pair in pairs]
        if len(pairs) > 1:  # every combination of chosen and rejected answers: score each answer once, chosen first
            kind = "answers"
            named = [one for number, one in enumerate(named) if one not in named[:number]]
    return kind, named, pairs[0].get("tools")


def _format(row: Row) -> str | None:
    """Return the format of a row if it is a preference pair, otherwise None."""
    try:
        return recognize([row], "")
    except InputError as error:
        if isinstance(error.__cause__, RowError):
            raise error.__cause__ from error
        return None


def _answer_field(row: Row) -> tuple[str, str]:
    """Return the kind of a row without a preference, and the name of the field with its answer(s) or conversation."""
    for name in ANSWER_LISTS:
        if isinstance(row.get(name), list):
            return "answers", name
    for name in ("messages", *CONVERSATIONS):
        turns = messages_in(row.get(name), name)
        last = chat_message(turns[-1]) if isinstance(turns, list) else None
        if isinstance(last, dict) and last.get("role") == "assistant":
            return "conversation", name
    for name in (*ANSWERS, "messages", *CONVERSATIONS):
        if name in row:
            return "conversation", name
    raise _no_conversation(row)


def _pair_of_one(row: Row, answer: Any) -> Pair:
    """Build a pair with the same answer on both sides, so that a single answer is converted like those in pairs."""
    if isinstance(answer, dict) and not {"role", "from"} & answer.keys():  # an answer with its model, score or rank
        answer = first_field(answer, ANSWERS)
    row = row | {"chosen": answer, "rejected": answer}
    format_ = _format(row)
    if format_ is None:
        raise _no_conversation(row)
    return convert_row(row, format_, DEFAULT_OPTIONS)[0]


def _no_conversation(row: Row) -> RowError:
    keys = ", ".join(map(str, row.keys() - set(SIDES)))
    found = f"no messages, no prompt with a response or responses, and no preference pair (keys: {keys})"
    return RowError("missing field", f"{found}. docs/data.md lists the layouts.")
