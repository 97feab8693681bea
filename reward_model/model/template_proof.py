"""A chat template is proven before it is trusted: it renders all that was said, in the same way every time and day."""

import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from reward_model import InputError
from reward_model.model.template import MARK, render, special_tokens

SECONDS = 5  # that a template may take for one conversation
ANOTHER_DAY = datetime(2001, 2, 3, 4, 5, 6)
REASONING = re.compile(r"<think>.*?</think>", re.S)
CLOSING = re.compile(r"([<\[(][^<>\[\]()\s]+[>\])]\s*){1,2}")  # closing tokens that the tokenizer calls no special
CURE = "Give another template: --chat_template_path template.jinja"


def prove_template(tokenizer: Any, pairs: Sequence[dict[str, Any]] = (), stripped_reasoning: bool = False) -> list[str]:
    """Render two conversations of our own and the sides of `pairs` (`chosen`, `rejected`, `tools`).

    Returns what should be told; raises InputError where the score of a conversation would not be the score of what was
    said in it. A pair that the template refuses is passed over: tokenizing names its place.
    """
    if not tokenizer.chat_template:
        raise InputError(f"The tokenizer has no chat template. {CURE}")
    for probe in _probes():
        try:
            _prove_pair(probe, tokenizer, False)
        except TemplateSyntaxError as error:
            raise InputError(
                f"The chat template is broken at its line {error.lineno}: {error.message}. {CURE}"
            ) from None
        except TemplateError as error:
            if probe["chosen"][0]["role"] != "system":
                raise InputError(f"The chat template renders no question and answer: {error}. {CURE}") from None
    stripped = special = 0
    tokens = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "$^")
    for pair in pairs:
        try:
            stripped += _prove_pair(pair, tokenizer, stripped_reasoning)
        except TemplateError:
            continue
        if MARK not in tokenizer.chat_template:
            special += any(tokens.search(_text(message)) for side in ("chosen", "rejected") for message in pair[side])
    told = []
    if stripped:
        told.append(
            f"{stripped} of {len(pairs)} sampled pairs have <think>…</think> that the chat template leaves out."
        )
    if special:
        told.append(
            f"{special} of {len(pairs)} sampled pairs have special tokens of the tokenizer in their texts: the model "
            "takes them for its own. If they are not meant: --split_special_tokens True"
        )
    return told


def _probes() -> Iterator[dict[str, Any]]:
    """Conversations with texts that no template writes itself, each longer than a template may cut."""

    def message(role: str, word: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(f"{word}{number}" for number in range(500))}

    asked, answer = message("user", "question"), {"chosen": message("assistant", "best")}
    answer["rejected"] = message("assistant", "worse")
    first, system = message("assistant", "reply"), message("system", "rule")
    again = message("user", "another")
    for history in ([asked], [system, asked], [asked, first, again]):
        yield {side: [*history, last] for side, last in answer.items()}


def _prove_pair(pair: dict[str, Any], tokenizer: Any, stripped_reasoning: bool) -> bool:
    """Whether reasoning is left out of a side; raises InputError for what else is wrong."""
    tools, rendered, stripped = pair.get("tools"), {}, False
    for side in ("chosen", "rejected"):
        messages = pair[side]
        text = rendered[side] = _in_time(messages, tokenizer, tools)
        if any(_in_time(messages, tokenizer, tools) != text for _ in range(4)):
            raise InputError(f"The chat template renders the same conversation differently each time. {CURE}")
        if _in_time(messages, tokenizer, tools, strftime_now=ANOTHER_DAY.strftime) != text:
            raise InputError(
                "The chat template prints today's date, so a score would be another one tomorrow. Train with "
                "--template_date 2024-07-26, or write a date in the place of strftime_now(…) in chat_template.jinja."
            )
        squeezed = _squeeze(text)
        for message in messages:
            content = _text(message)
            as_json = _squeeze(json.dumps(content, ensure_ascii=False)[1:-1])  # tool results may be put so
            if _squeeze(content) in squeezed or as_json in squeezed:
                continue
            if (shorter := REASONING.sub("", content)) == content or _squeeze(shorter) not in squeezed:
                raise InputError(
                    f"The chat template leaves out the text of a {message['role']!r} message, or a part of it: "
                    f"{content[:60]!r} … {CURE}"
                )
            stripped = True
        _prove_end(_text(messages[-1]), text, tokenizer)
    if stripped and not stripped_reasoning:
        raise InputError(
            "The chat template leaves <think>…</think> out of answers, so it is not scored. If that is meant: "
            "--allow_stripped_reasoning True"
        )
    if rendered["chosen"] == rendered["rejected"] and not stripped:
        raise InputError(f"The chat template renders both sides of a pair alike. {CURE}")
    return stripped


def _prove_end(answer: str, text: str, tokenizer: Any) -> None:
    """After the answer comes at most a closing token, and not what an answer begins with."""
    last_word = "".join(REASONING.sub("", answer).split()[-1:])
    rest = text[text.rfind(last_word) + len(last_word) :].strip() if last_word and last_word in text else ""
    begin = text[: text.rfind(answer.strip())].split()[-1:] if answer.strip() in text else []
    opened_again = rest and begin and rest.endswith(begin[0])
    for token in special_tokens(tokenizer):
        rest = rest.replace(token, "").strip()
    if opened_again or (rest and not CLOSING.fullmatch(rest)):
        raise InputError(
            f"The chat template does not end with the answer and a closing token, but with {text[-40:]!r}: the score "
            f"is read there. A generation prompt has no place in it. {CURE}"
        )


def _in_time(messages: list[dict[str, Any]], tokenizer: Any, tools: Any, **more: Any) -> str:
    try:
        with _given_up_after(SECONDS):
            return render(messages, tokenizer, tools, **more)
    except (InputError, TemplateError):
        raise
    except Exception as error:  # a template is code: anything can go wrong in it
        raise InputError(f"The chat template fails: {type(error).__name__}: {error}. {CURE}") from None


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """InputError in the middle of a template that does not end; only a main thread can be called back."""

    def stop(number: int, frame: Any) -> None:
        raise InputError(f"The chat template took more than {seconds:g} s for one conversation. {CURE}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _text(message: dict[str, Any]) -> str:
    """What a message says; of typed parts, those of text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _squeeze(text: str) -> str:
    """Without white space, which templates trim and reasoning parsers set anew."""
    return "".join(text.split())
