"""Check a chat template with conversations of our own, and then whether it shows all that a dataset's rows say."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any

from jinja2 import TemplateSyntaxError

from reward_model import InputError
from reward_model.model.chat_template import MARK, render, special_tokens

ANOTHER_DAY = datetime(2001, 2, 3, 4, 5, 6)
CURE = "Give another template: --chat_template_path template.jinja"
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": {}}}
# A token in brackets, a word, or a sign.
LEXEME = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|\S")
# Parts of a message besides its text, and what each is called.
PARTS = {"tool_calls": "tool calls", "reasoning_content": "reasoning", "reasoning": "reasoning"}


def prove_template(tokenizer: Any) -> list[str]:
    """Render conversations whose texts no template writes itself, and return warnings.

    Raises:
        InputError: The template fails on a question and its answer, leaves out a part of them, renders them differently
            from one call or day to the next, or appends more than closing tokens to the answer.
    """
    system, asked, reply, again, answer = (
        {"role": role, "content": " ".join(f"{word}{number}" for number in range(500))}
        for role, word in zip(
            ("system", "user", "assistant", "user", "assistant"),
            ("rule", "question", "reply", "another", "answer"),
            strict=True,
        )
    )
    text = ""
    for messages in ([asked, answer], [asked, reply, again, answer]):
        try:
            text = render(messages, tokenizer)
        except InputError as error:
            cause = error.__cause__
            if isinstance(cause, TemplateSyntaxError):
                raise InputError(
                    f"The chat template is broken at its line {cause.lineno}: {cause.message}. {CURE}"
                ) from error
            raise InputError(f"The chat template cannot render a question and its answer: {error}. {CURE}") from error
        if render(messages, tokenizer) != text:
            raise InputError(f"The chat template renders the same conversation differently each time. {CURE}")
        _prove_undated(messages, None, text, tokenizer)
        for message in messages:
            if not _shows(text, message["content"]):
                raise InputError(_left_out(message))
    _prove_end(*(text.partition(message["content"]) for message in (again, answer, reply)))
    told = []
    for tools in (None, [TOOL]):
        try:
            text = render([system, asked, answer], tokenizer, tools)
        except InputError:
            continue  # some take no system message or no tools; a row that has them is named when it is tokenized
        _prove_undated([system, asked, answer], tools, text, tokenizer)
        if tools is None and not _shows(text, system["content"]):
            told.append("The chat template ignores system messages; a dataset that has them is refused.")
    return told


def check_rows(pairs: Sequence[dict[str, Any]], tokenizer: Any, allow_stripped_reasoning: bool = False) -> list[str]:
    """Return what should be said about how the template renders `pairs` (`chosen`, `rejected`, `tools`, `place`).

    A pair that the template rejects is skipped: tokenizing names its place.

    Raises:
        InputError: The template leaves out text, tools, tool calls or the reasoning of an answer. All but the first is
            only reported with `allow_stripped_reasoning`.
    """
    left_out: Counter[str] = Counter()
    special = 0
    tokens = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "$^")
    for pair in pairs:
        try:
            left_out.update(
                {part for side in ("chosen", "rejected") for part in _left_out_parts(pair, side, tokenizer)}
            )
        except InputError as error:
            if error.__cause__ is None:
                raise
            continue
        if MARK not in tokenizer.chat_template:
            special += any(tokens.search(_text(message)) for side in ("chosen", "rejected") for message in pair[side])
    told = [
        f"The chat template leaves out {part} of {number} of {len(pairs)} sampled pairs."
        for part, number in left_out.items()
    ]
    refused = [line for line, part in zip(told, left_out, strict=True) if not part.startswith("earlier")]
    if refused and not allow_stripped_reasoning:
        raise InputError(
            f"{' '.join(refused)} Give a template that renders it (--chat_template_path template.jinja), or pass "
            "--allow_stripped_reasoning True if it is not meant to be scored."
        )
    if special:
        told.append(
            f"{special} of {len(pairs)} sampled pairs have special tokens of the tokenizer in their texts: the model "
            "takes them for its own. If they are not meant: --split_special_tokens True"
        )
    return told


def _left_out_parts(pair: dict[str, Any], side: str, tokenizer: Any) -> set[str]:
    """Return what the template leaves out of a side besides text; raise InputError, without a cause, for text."""
    messages, tools = pair[side], pair.get("tools")
    text = render(messages, tokenizer, tools)
    found = set()
    if tools and render(messages, tokenizer) == text:
        found.add("tools")
    for part, name in PARTS.items():
        for is_answer in (True, False):
            numbers = [number for number, one in enumerate(messages) if one.get(part)]
            numbers = [number for number in numbers if (number == len(messages) - 1) == is_answer]
            if numbers and _renders_without(part, numbers, messages, tools, tokenizer) == text:
                found.add(name if is_answer or name != "reasoning" else "earlier reasoning")
    for message in messages:
        content = _text(message)
        if _shows(text, content):
            continue
        if "</think>" not in content or not _shows(text, content.rpartition("</think>")[2]):
            raise InputError(f"{pair.get('place', side)}: {_left_out(message)}")
        found.add("reasoning" if message is messages[-1] else "earlier reasoning")
    return found


def _renders_without(part: str, numbers: list[int], messages: list[dict[str, Any]], tools: Any, tokenizer: Any) -> str:
    """Return the text of a conversation without a part of some messages; empty if the template needs it."""
    less = [
        {key: value for key, value in one.items() if number not in numbers or key != part}
        for number, one in enumerate(messages)
    ]
    try:
        return render(less, tokenizer, tools)
    except InputError:
        return ""


def _prove_undated(messages: list[dict[str, Any]], tools: Any, text: str, tokenizer: Any) -> None:
    if render(messages, tokenizer, tools, strftime_now=ANOTHER_DAY.strftime) != text:
        raise InputError(
            "The chat template prints today's date, so a score would be another one tomorrow. Train with "
            "--template_date 2024-07-26, or write a date in the place of strftime_now(…) in chat_template.jinja."
        )


def _prove_end(again: tuple[str, str, str], answer: tuple[str, str, str], reply: tuple[str, str, str]) -> None:
    """Each is (text before, content, text after) of a message. What follows the last answer must begin as what follows
    an earlier one, and then add at most closing tokens: no words, and not what opens an answer."""
    ending = LEXEME.findall(answer[2])
    opening = LEXEME.findall(answer[0][len(again[0]) + len(again[1]) :])
    following = LEXEME.findall(reply[2][: len(again[0]) - len(reply[0]) - len(reply[1])])
    alike = takewhile(lambda both: both[0] == both[1], zip(ending, following, strict=False))
    more = ending[len(list(alike)) :]
    if any(re.fullmatch(r"\w+", lexeme) for lexeme in more) or (more and opening[-len(more) :] == more):
        raise InputError(
            f"The chat template does not end with the answer and a closing token, but with {answer[2][-40:]!r}: the "
            f"score is read there. A generation prompt has no place in it. {CURE}"
        )


def _left_out(message: dict[str, Any]) -> str:
    return (
        f"The chat template leaves out the text of a {message['role']!r} message, or a part of it: "
        f"{_text(message)[:60]!r} … {CURE}"
    )


def _shows(text: str, content: str) -> bool:
    """Whether a rendered text has a content, as it is or as a JSON string, apart from white space, which templates trim
    and set anew."""
    squeezed = _squeeze(text)
    forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    return any(_squeeze(form) in squeezed for form in forms)


def _text(message: dict[str, Any]) -> str:
    """What a message says; of typed parts, those of text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _squeeze(text: str) -> str:
    return "".join(text.split())
