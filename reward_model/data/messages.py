"""Prompts, answers and turns of any layout as messages ({"role": …, "content": …}), and two answers as a pair."""

import json
import re
from collections.abc import Iterable
from typing import Any

from reward_model import RowError
from reward_model.data.fields import Row, labels_of
from reward_model.data.pair import SIDES, Messages, Pair

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
TURN = re.compile(r"\s*(Human|Assistant):")
TURNS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")


def prompt_messages(prompt: Any) -> Messages:
    """Messages of a prompt: text is the user's turn, or a Human/Assistant transcript; lists are messages already."""
    if isinstance(prompt, list):
        return [chat_message(turn) for turn in prompt]
    if isinstance(prompt, str) and TURN.match(prompt):
        turns = transcript_messages(prompt)
        open_turn = turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return turns[:-1] if open_turn else turns
    return [{"role": "user", "content": prompt}]


def answer_messages(answer: Any) -> Messages:
    """Messages of an answer: text or one message is the assistant's turn."""
    if isinstance(answer, list):
        return [chat_message(turn) for turn in answer]
    return [chat_message(answer) if isinstance(answer, dict) else {"role": "assistant", "content": answer}]


def system_messages(text: Any) -> Messages:
    """The system message of a text; none of an empty one."""
    return [{"role": "system", "content": text}] if text else []


def chat_message(turn: Any) -> Any:
    """A turn with from/value as a message with role/content; anything else as it is, for the check to judge."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role, value = turn["from"], turn.get("value")
    if role != "function_call":
        return {"role": SHAREGPT_ROLES.get(role, role), "content": value}
    try:
        calls = json.loads(str(value))
        calls = calls if isinstance(calls, list) else [calls]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (TypeError, ValueError, KeyError):
        raise RowError(
            "not text", f"a function_call is no JSON with name and arguments: {str(value)[:60]!r}."
        ) from None
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function} for function in functions]}


def transcript_messages(transcript: Any) -> Messages:
    """Messages of a text whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:"; the system's stands before."""
    if not isinstance(transcript, str) or not (parts := TURNS.split(transcript))[1:]:
        raise RowError("not messages", f"no Human:/Assistant: turns in {str(transcript)[:60]!r}.")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    roles = {"Human": "user", "Assistant": "assistant"}
    return system_messages(parts[0].strip()) + [{"role": roles[who], "content": said.strip()} for who, said in turns]


def pair_of(prompt: Messages, both: Iterable[Any], row: Row) -> Pair:
    """An unchecked pair of two answers to one prompt, chosen first, with what its row says of it."""
    sides = zip(SIDES, both, strict=True)
    return {side: prompt + answer_messages(answer) for side, answer in sides} | labels_of(row)


def judged_pair(prompt: Messages, both: list[Any], label: Any, labels: Iterable[Iterable[str]], row: Row) -> Pair:
    """The pair of two candidates by a verdict; `labels` are those for the first, for the second, for a tie.

    Raises RowError("tie", …) for a tie, and for a verdict that is none of them.
    """
    label = str(label).strip().lower()
    first, second, tie = ([str(value).lower() for value in values] for values in labels)
    if label in tie:
        raise RowError("tie", f"a tie ({label!r}).")
    if label not in (*first, *second):
        raise RowError("verdict", f"the verdict is {label!r}; known are {', '.join([*first, *second, *tie])}.")
    return pair_of(prompt, both if label in first else both[::-1], row)
