"""The one record: {"chosen": [message, …], "rejected": [message, …]}, a message being {"role": …, "content": "text"}.

Optional: "margin" (float), "source", "subset", "id" (strings), "tools". Checks raise RowError, which knows no place.
"""

import json
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from xxhash import xxh3_64_intdigest

from reward_model import RowError

SIDES = ("chosen", "rejected")
LABELS = ("source", "subset", "id")
Messages = list[dict[str, Any]]
Pair = dict[str, Any]

# The role that may follow each role; a conversation begins as after None.
NEXT = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
CONTROL = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
CONTROL_CHARACTER = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]")
# UTF-8 that was read as Latin-1 or Windows-1252 ("Ã©" for é, "â€™" for an apostrophe), as pairs of such characters.
MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â€[\u0080-\u00bf\u0153\u0161\u017e\u02dc\u2018-\u203a\u20ac\u2122]|ï¿½")


def check_pair(row: Any) -> dict[str, Any]:
    """The record in a row, its conversations without empty keys; raises RowError with what is wrong and the cure."""
    if not isinstance(row, dict):
        raise RowError("not a row", f"an object with chosen and rejected is needed, found {type(row).__name__}.")
    for side in SIDES:
        if row.get(side) is None:
            raise RowError(
                "missing field", f"no {side!r} (keys: {', '.join(map(str, row))}); a pair needs chosen and rejected."
            )
    pair: Pair = {side: check_conversation(row[side], side) for side in SIDES}
    chosen, rejected = pair["chosen"], pair["rejected"]
    # From the end, where they nearly always differ.
    both = zip(reversed(chosen), reversed(rejected), strict=False)
    same = len(chosen) == len(rejected) and all(_trimmed(a) == _trimmed(b) for a, b in both)
    if same:
        raise RowError("identical answers", "chosen and rejected are equal; such a pair teaches nothing, remove it.")
    margin = row.get("margin")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= sys.float_info.max:
            raise RowError("margin", f"margin is {repr(margin)[:40]}; it must be a number, or left out.")
        pair["margin"] = margin
    if row.get("tools"):
        pair["tools"] = row["tools"]
    return pair | {label: str(row[label]) for label in LABELS if row.get(label) is not None}


def check_conversation(messages: Any, name: str) -> Messages:
    """Return the messages of a conversation without empty keys and with objects for the arguments of calls.

    `name` (chosen, rejected) is for the RowError.
    """
    if not isinstance(messages, list) or not messages:
        found = "empty" if isinstance(messages, list) else f"a {type(messages).__name__}"
        reason = "empty" if isinstance(messages, list) else "not messages"
        raise RowError(reason, f'{name} is {found}; it must be a list of messages {{"role": …, "content": …}}.')
    last, checked = None, []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise RowError(
                "not messages", f'{name}, message {number} is not {{"role": …, "content": …}}: {str(message)[:60]!r}.'
            )
        if None in message.values() or "tool_calls" in message or "function_call" in message:
            message = _with_calls(message)
        checked.append(message)
        role, content = message["role"], message.get("content")
        if not isinstance(role, str) or role not in NEXT:
            known = ", ".join(filter(None, NEXT))
            raise RowError("unknown role", f"{name}, message {number} has the role {role!r}; known are {known}.")
        if role not in NEXT[last]:
            raise RowError(
                "roles out of order",
                f"{name}, message {number} is the {role}'s, after {f'the {last}' if last else 'nothing'}; turns must "
                "alternate, beginning with the user's (a system message may stand before it).",
            )
        if isinstance(content, str):
            check_encodable(content, f"{name}, message {number}")
        elif content is not None or not message.get("tool_calls"):
            raise RowError(
                "not text", f"{name}, message {number} has a content that is no text: {str(content)[:60]!r}."
            )
        if role == "user" and not (content or "").strip():
            raise RowError("empty", f"{name}, message {number}, the user's, is empty; remove the pair or fill it in.")
        last = role
    if last != "assistant":
        raise RowError(
            "roles out of order",
            f"{name} ends with a {last!r} message; the reward is that of an answer, so the last message must be the "
            "assistant's.",
        )
    if not (checked[-1].get("content") or "").strip() and not checked[-1].get("tool_calls"):
        raise RowError("empty", f"{name} ends with an empty answer; remove the pair or fill it in.")
    return checked


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without empty keys, its calls as `tool_calls` with objects for arguments.

    JSON text of an object, as OpenAI writes arguments, is parsed, and none are {}, both as vLLM does before it renders.
    Other text (a call that a model got wrong) stays. `function_call` is OpenAI's earlier layout of one call.
    """
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(call := from_json(message.get("function_call"), dict), dict):
        del message["function_call"]
        message.setdefault("tool_calls", [{"type": "function", "function": call}])
    if isinstance(calls := from_json(message.get("tool_calls"), list), list):
        message["tool_calls"] = [_with_arguments(call) for call in calls]
    return message


def _with_arguments(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return call | {"function": _with_arguments(call["function"])}
    return call | {"arguments": from_json(call.get("arguments") or {}, dict)} if "name" in call else call


def from_json(value: Any, kind: Any) -> Any:
    """Return the value of this type that is in a JSON text; any other value as it is."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, kind) else value


def check_encodable(text: str, name: str) -> None:
    """Raises RowError for half a character (a lone surrogate): no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start + 1}"
        raise RowError("not decodable", f"{name} has half a character ({found}); read the source again.") from error


def doubt(pair: dict[str, Any], control_tokens: re.Pattern[str] | None = None) -> RowError | None:
    """What looks wrong with a checked pair: nothing in common, control characters, a decoding that went wrong earlier,
    or texts that a tokenizer takes for its control tokens."""
    if pair["chosen"][0] != pair["rejected"][0]:
        return RowError("different prompts", "chosen and rejected begin with different messages: answers to what?")
    for side in SIDES:
        for number, message in enumerate(pair[side], 1):
            text, name = message.get("content") or "", f"{side}, message {number}"
            if control_tokens and (token := control_tokens.search(text)):
                return RowError("control tokens", f"{name} has {token.group()!r}, a token of the chat template.")
            if found := _doubt_of_text(text, name):
                return found
    return None


def _doubt_of_text(text: str, name: str) -> RowError | None:
    # For ASCII, deleting and comparing lengths is many times faster than a regular expression.
    data = text.encode()
    suspect = len(data) != len(text) or len(data.translate(None, CONTROL)) != len(data)
    if suspect and (found := CONTROL_CHARACTER.search(text)):
        which = f"U+{ord(found.group()):04X} at character {found.start() + 1}"
        return RowError("control characters", f"{name} has a control character ({which}).")
    if len(data) == len(text):
        return None
    if "\ufffd" in text or "\ufffe" in text or "\uffff" in text:
        return RowError("broken encoding", f"{name} has characters that an earlier reader could not decode (U+FFFD).")
    if ("Ã" in text or "Â" in text or "â€" in text or "ï¿" in text) and (found := MOJIBAKE.search(text)):
        return RowError("broken encoding", f"{name} has {found.group()!r}: UTF-8 read as another encoding.")
    return None


def shared_messages(pair: dict[str, Any]) -> Messages:
    """What both sides begin with, the prompt: at least the first message of chosen."""
    same = takewhile(lambda both: both[0] == both[1], zip(pair["chosen"], pair["rejected"], strict=False))
    return [message for message, _ in same] or pair["chosen"][:1]


def _trimmed(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return message | {"content": content.strip()} if isinstance(content, str) else message


def message_text(message: dict[str, Any]) -> str:
    """Return all of a message but its role as text: its content, followed by any other keys (calls, reasoning)."""
    if message.keys() == {"role", "content"}:
        return message["content"]
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return (message.get("content") or "") + json.dumps(rest, sort_keys=True, ensure_ascii=False, default=str)


def excerpt(message: dict[str, Any], length: int) -> str:
    """Return the begin of a message's text on one line."""
    return " ".join(message_text(message).split())[:length]


def prompt_key(prompt: Messages) -> int:
    """64 bits that are equal for equal prompts (what the sides of a pair share), whatever order their keys stand in."""
    return xxh3_64_intdigest(json.dumps(prompt, sort_keys=True, default=str).encode())


def common_prefix_length(conversations: Sequence[Sequence[int] | str]) -> int:
    """Tokens (or characters) that all begin with, less one where a conversation would be left without a branch."""
    first, shortest = conversations[0], min(map(len, conversations))
    length = 0
    step = 1 << max(shortest, 1).bit_length()
    while step:  # binary search: comparing slices of lists is fast, comparing items in Python is not
        if length + step < shortest and all(
            other[: length + step] == first[: length + step] for other in conversations
        ):
            length += step
        step >>= 1
    return length
