"""Define and validate preference pairs: {"chosen": [message, …], "rejected": [message, …]}.

A message is {"role": …, "content": "text"}. Optional keys of a pair are "margin" (float), "source", "subset", "id"
(strings) and "tools". The checks raise RowError without the row's location, which only the caller knows.
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
# Pairs with a warning are counted, but kept unless --drop names the warning. Warnings come from `find_warning` and from
# comparing pairs (quality.py).
WARNINGS = ("duplicate", "different prompts", "control characters", "broken encoding", "control tokens")
Messages = list[dict[str, Any]]
Pair = dict[str, Any]

# The roles that may follow each role; None is the start of a conversation.
NEXT_ROLES = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
CONTROL_CHARACTER = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]")
# UTF-8 that was decoded as Latin-1 or Windows-1252: "Ã©" for é, "â€™" for an apostrophe.
MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â€[\u0080-\u00bf\u0153\u0161\u017e\u02dc\u2018-\u203a\u20ac\u2122]|ï¿½")


def check_pair(row: Any) -> Pair:
    """Validate a row and return it as a pair, with null keys removed from its messages.

    Raises:
        RowError: If the row is not a preference pair.
    """
    if not isinstance(row, dict):
        raise RowError("not a row", f"expected an object with chosen and rejected, found {type(row).__name__}.")
    for side in SIDES:
        if row.get(side) is None:
            raise RowError("missing field", f"no {side!r} (keys: {', '.join(map(str, row))}); a pair needs both sides.")
    pair: Pair = {side: check_conversation(row[side], side) for side in SIDES}
    chosen, rejected = pair["chosen"], pair["rejected"]
    from_the_end = zip(reversed(chosen), reversed(rejected), strict=False)  # the end is where the sides usually differ
    if len(chosen) == len(rejected) and all(_stripped(a) == _stripped(b) for a, b in from_the_end):
        raise RowError("identical answers", "chosen and rejected are identical; remove the pair.")
    margin = row.get("margin")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= sys.float_info.max:
            raise RowError("margin", f"margin is {repr(margin)[:40]}; set a finite number or remove the key.")
        pair["margin"] = margin
    if row.get("tools"):
        pair["tools"] = row["tools"]
    return pair | {label: str(row[label]) for label in LABELS if row.get(label) is not None}


def check_conversation(messages: Any, name: str) -> Messages:
    """Validate a conversation; return its messages without null keys and with tool-call arguments as objects.

    Args:
        messages: The value to check.
        name: The name of the conversation in error messages, such as "chosen".

    Raises:
        RowError: If the value is not a conversation that ends with the assistant's answer.
    """
    if not isinstance(messages, list) or not messages:
        reason, found = ("empty",) * 2 if messages == [] else ("not messages", f"a {type(messages).__name__}")
        raise RowError(reason, f"{name} is {found}; expected a list of messages.")
    last, checked = None, []
    for number, message in enumerate(messages, 1):
        place = f"{name}, message {number}"
        if not isinstance(message, dict) or "role" not in message:
            raise RowError("not messages", f'{place} is not {{"role": …, "content": …}}: {str(message)[:60]!r}.')
        if None in message.values() or "tool_calls" in message or "function_call" in message:
            message = _with_parsed_calls(message)
        checked.append(message)
        role, content = message["role"], message.get("content")
        if not isinstance(role, str) or role not in NEXT_ROLES:
            known = ", ".join(filter(None, NEXT_ROLES))
            raise RowError("unknown role", f"{place} has the role {role!r}; expected one of {known}.")
        if role not in NEXT_ROLES[last]:
            after = f"after {last!r}" if last else "at the start"
            expected = "user and assistant must alternate, with the user first (or a system message before it)"
            raise RowError("roles out of order", f"{place} has the role {role!r} {after}; {expected}.")
        if isinstance(content, str):
            check_encodable(content, place)
        elif content is not None or not message.get("tool_calls"):
            raise RowError("not text", f"{place} has content that is not text: {str(content)[:60]!r}.")
        if role == "user" and not (content or "").strip():
            raise RowError("empty", f"{place} (user) is empty; fill it in or remove the pair.")
        last = role
    if last != "assistant":
        raise RowError(
            "roles out of order", f"{name} ends with the role {last!r}; it must end with an assistant message."
        )
    if not (checked[-1].get("content") or "").strip() and not checked[-1].get("tool_calls"):
        raise RowError("empty", f"{name} ends with an empty answer; fill it in or remove the pair.")
    return checked


def _with_parsed_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without null keys, with its calls in `tool_calls` and their arguments as objects.

    As in vLLM before rendering, arguments that are the JSON text of an object (OpenAI's layout) are parsed, and missing
    arguments become {}. Other text, such as a malformed call written by a model, is kept. `function_call` is OpenAI's
    older layout for a single call.
    """
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(call := from_json(message.get("function_call"), dict), dict):
        del message["function_call"]
        message.setdefault("tool_calls", [{"type": "function", "function": call}])
    if isinstance(calls := from_json(message.get("tool_calls"), list), list):
        message["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return message


def _with_parsed_arguments(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return call | {"function": _with_parsed_arguments(call["function"])}
    return call | {"arguments": from_json(call.get("arguments") or {}, dict)} if "name" in call else call


def from_json(value: Any, kind: Any) -> Any:
    """Parse JSON text if it holds a value of type `kind`; return anything else unchanged."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, kind) else value


def check_encodable(text: str, name: str) -> None:
    """Raise RowError if text contains a lone surrogate (half of a UTF-16 pair), which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start + 1}"
        raise RowError("not decodable", f"{name} has a lone surrogate ({found}); export the source again.") from error


def find_warning(pair: Pair, control_tokens: re.Pattern[str] | None = None) -> RowError | None:
    """Return a warning about a valid pair, or None.

    Args:
        pair: A pair that `check_pair` returned.
        control_tokens: Matches the tokenizer's control tokens, which messages should not contain.
    """
    if pair["chosen"][0] != pair["rejected"][0]:
        return RowError("different prompts", "chosen and rejected start with different messages.")
    for side in SIDES:
        for number, message in enumerate(pair[side], 1):
            text, place = message.get("content") or "", f"{side}, message {number}"
            if control_tokens and (token := control_tokens.search(text)):
                return RowError("control tokens", f"{place} contains {token.group()!r}, a token of the chat template.")
            if found := _find_encoding_warning(text, place):
                return found
    return None


def _find_encoding_warning(text: str, place: str) -> RowError | None:
    # For ASCII, deleting bytes and comparing lengths is many times faster than a regular expression.
    data = text.encode()
    may_have_control = len(data) != len(text) or len(data.translate(None, CONTROL_BYTES)) != len(data)
    if may_have_control and (found := CONTROL_CHARACTER.search(text)):
        character = f"U+{ord(found.group()):04X} at character {found.start() + 1}"
        return RowError("control characters", f"{place} contains a control character ({character}).")
    if len(data) == len(text):
        return None
    if "\ufffd" in text or "\ufffe" in text or "\uffff" in text:
        return RowError("broken encoding", f"{place} contains U+FFFD: an earlier program could not decode the text.")
    if ("Ã" in text or "Â" in text or "â€" in text or "ï¿" in text) and (found := MOJIBAKE.search(text)):
        return RowError("broken encoding", f"{place} contains {found.group()!r}: UTF-8 decoded as another encoding.")
    return None


def shared_messages(pair: Pair) -> Messages:
    """Return the prompt: the messages that both sides start with, or the first message of chosen if there are none."""
    same = takewhile(lambda both: both[0] == both[1], zip(pair["chosen"], pair["rejected"], strict=False))
    return [message for message, _ in same] or pair["chosen"][:1]


def _stripped(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return message | {"content": content.strip()} if isinstance(content, str) else message


def message_text(message: dict[str, Any]) -> str:
    """Return a message without its role as text: the content, then any other keys (tool calls, reasoning)."""
    if message.keys() == {"role", "content"}:
        return message["content"]
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return (message.get("content") or "") + json.dumps(rest, sort_keys=True, ensure_ascii=False, default=str)


def excerpt(message: dict[str, Any], length: int) -> str:
    """Return the first `length` characters of a message's text, on one line."""
    return " ".join(message_text(message).split())[:length]


def prompt_key(prompt: Messages) -> int:
    """Return a 64-bit hash of a prompt, independent of the order of the keys in its messages."""
    return xxh3_64_intdigest(json.dumps(prompt, sort_keys=True, default=str).encode())


def common_prefix_length(conversations: Sequence[Sequence[int] | str]) -> int:
    """Return the length of the prefix shared by token lists (or texts), leaving at least one token for each branch."""
    first, shortest = conversations[0], min(map(len, conversations))
    length = 0
    step = 1 << max(shortest, 1).bit_length()
    while step:  # binary search: comparing slices of lists is fast, comparing items in Python is not
        longer = length + step
        if longer < shortest and all(other[:longer] == first[:longer] for other in conversations):
            length = longer
        step >>= 1
    return length
