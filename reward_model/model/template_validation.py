"""Check a chat template on known conversations, and check that it renders every part of a dataset's rows."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any

from jinja2 import TemplateSyntaxError

from reward_model import InputError
from reward_model.data.pair import SIDES
from reward_model.model.chat_template import MARKER, render, special_tokens

ANOTHER_DAY = datetime(2001, 2, 3, 4, 5, 6)
FIX = "Pass a different template: --chat_template_path template.jinja"
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": {}}}
# A token in brackets, a word, or a punctuation mark.
LEXEME = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|\S")
# Parts of a message besides its text, and what error messages call them.
PARTS = {"tool_calls": "tool calls", "reasoning_content": "reasoning", "reasoning": "reasoning"}


def check_template(tokenizer: Any) -> list[str]:
    """Render conversations whose words no template contains, and return warnings.

    Raises:
        InputError: The template fails on a question and its answer, drops part of them, renders them differently from
            one call or day to the next, or appends more than closing tokens to the answer.
    """
    system, first, reply, second, answer = (
        {"role": role, "content": " ".join(f"{word}{number}" for number in range(500))}
        for role, word in (
            ("system", "rule"),
            ("user", "question"),
            ("assistant", "reply"),
            ("user", "another"),
            ("assistant", "answer"),
        )
    )
    text = ""
    for messages in ([first, answer], [first, reply, second, answer]):
        text = _render_probe(messages, tokenizer)
        if render(messages, tokenizer) != text:
            raise InputError(f"The chat template renders the same conversation differently each time. {FIX}")
        _check_undated(messages, None, text, tokenizer)
        for message in messages:
            if not _shows(text, message["content"]):
                raise InputError(_dropped_text(message))
    _check_end(*(text.partition(message["content"]) for message in (second, answer, reply)))
    warnings = []
    for tools in (None, [TOOL]):
        try:
            text = render([system, first, answer], tokenizer, tools)
        except InputError:
            continue  # rejects system messages or tools; tokenization reports the row that contains them
        _check_undated([system, first, answer], tools, text, tokenizer)
        if tools is None and not _shows(text, system["content"]):
            warnings.append("The chat template ignores system messages; a dataset that contains them is rejected.")
    return warnings


def _render_probe(messages: list[dict[str, Any]], tokenizer: Any) -> str:
    try:
        return render(messages, tokenizer)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, TemplateSyntaxError):
            raise InputError(
                f"The chat template has a syntax error on line {cause.lineno}: {cause.message}. {FIX}"
            ) from error
        raise InputError(f"The chat template cannot render a question and its answer: {error}. {FIX}") from error


def check_rows(pairs: Sequence[dict[str, Any]], tokenizer: Any, allow_stripped_reasoning: bool = False) -> list[str]:
    """Render sampled pairs and return warnings. Pairs that the template rejects are skipped: tokenization reports them.

    Args:
        pairs: Pairs with `chosen`, `rejected`, `tools` and `place`.
        tokenizer: The tokenizer with the chat template.
        allow_stripped_reasoning: Only warn about dropped tools, tool calls and reasoning.

    Raises:
        InputError: The template drops text, tools, tool calls, or reasoning in the answer.
    """
    dropped: Counter[str] = Counter()
    special = 0
    tokens = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "$^")
    for pair in pairs:
        try:
            dropped.update({part for side in SIDES for part in _dropped_parts(pair, side, tokenizer)})
        except InputError as error:
            if error.__cause__ is None:
                raise
            continue
        if MARKER not in tokenizer.chat_template:
            special += any(tokens.search(_text(message)) for side in SIDES for message in pair[side])
    warnings = {
        part: f"The chat template drops {part} in {number} of {len(pairs)} sampled pairs."
        for part, number in dropped.items()
    }
    serious = [line for part, line in warnings.items() if not part.startswith("earlier")]
    if serious and not allow_stripped_reasoning:
        raise InputError(
            f"{' '.join(serious)} Pass a template that renders them (--chat_template_path template.jinja), or "
            "--allow_stripped_reasoning True if they should not be scored."
        )
    lines = list(warnings.values())
    if special:
        lines.append(
            f"{special} of {len(pairs)} sampled pairs contain special tokens in their texts, which the model reads as "
            "control tokens. If they are ordinary text, pass --split_special_tokens True"
        )
    return lines


def _dropped_parts(pair: dict[str, Any], side: str, tokenizer: Any) -> set[str]:
    """Return the non-text parts that the template drops; raise InputError if it drops text."""
    messages, tools = pair[side], pair.get("tools")
    text = render(messages, tokenizer, tools)
    dropped = set()
    if tools and render(messages, tokenizer) == text:
        dropped.add("tools")
    for part, name in PARTS.items():
        for is_answer in (True, False):
            numbers = [number for number, one in enumerate(messages) if one.get(part)]
            numbers = [number for number in numbers if (number == len(messages) - 1) == is_answer]
            if numbers and _render_without(part, numbers, messages, tools, tokenizer) == text:
                dropped.add(name if is_answer or name != "reasoning" else "earlier reasoning")
    for message in messages:
        content = _text(message)
        if _shows(text, content):
            continue
        if "</think>" not in content or not _shows(text, content.rpartition("</think>")[2]):
            raise InputError(f"{pair.get('place', side)}: {_dropped_text(message)}")
        dropped.add("reasoning" if message is messages[-1] else "earlier reasoning")
    return dropped


def _render_without(part: str, numbers: list[int], messages: list[dict[str, Any]], tools: Any, tokenizer: Any) -> str:
    """Render a conversation with one field removed from some messages; return "" if the template requires it."""
    reduced = [
        {key: value for key, value in one.items() if number not in numbers or key != part}
        for number, one in enumerate(messages)
    ]
    try:
        return render(reduced, tokenizer, tools)
    except InputError:
        return ""


def _check_undated(messages: list[dict[str, Any]], tools: Any, text: str, tokenizer: Any) -> None:
    if render(messages, tokenizer, tools, strftime_now=ANOTHER_DAY.strftime) != text:
        raise InputError(
            "The chat template prints today's date, so scores would change from day to day. Pass "
            "--template_date 2024-07-26, or replace strftime_now(…) in chat_template.jinja with a fixed date."
        )


def _check_end(second: tuple[str, str, str], answer: tuple[str, str, str], reply: tuple[str, str, str]) -> None:
    """Raise InputError unless the template closes the last answer in the same way as an earlier one.

    Each argument is (text before, content, text after) for a message. The last answer may be followed by the same text
    as an earlier one and by closing tokens, but not by other words or by the tokens that open an answer.
    """
    ending = LEXEME.findall(answer[2])
    opening = LEXEME.findall(answer[0][len(second[0]) + len(second[1]) :])
    following = LEXEME.findall(reply[2][: len(second[0]) - len(reply[0]) - len(reply[1])])
    same = takewhile(lambda both: both[0] == both[1], zip(ending, following, strict=False))
    more = ending[len(list(same)) :]
    if any(re.fullmatch(r"\w+", lexeme) for lexeme in more) or (more and opening[-len(more) :] == more):
        raise InputError(
            f"The score is read at the last token, but the chat template ends with {answer[2][-40:]!r} rather than the "
            f"answer and a closing token. Remove the generation prompt from the template. {FIX}"
        )


def _dropped_text(message: dict[str, Any]) -> str:
    return (
        f"The chat template drops the text of a {message['role']!r} message, or part of it: {_text(message)[:60]!r} … "
        f"{FIX}"
    )


def _shows(text: str, content: str) -> bool:
    """Return whether a rendered text contains `content`, verbatim or as a JSON string, ignoring whitespace."""
    squeezed = _squeeze(text)
    forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    return any(_squeeze(form) in squeezed for form in forms)


def _text(message: dict[str, Any]) -> str:
    """Return the text of a message. If its content is a list of parts, join the text parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _squeeze(text: str) -> str:
    return "".join(text.split())
