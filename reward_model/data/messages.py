"""Prompts, answers and turns of any layout as messages ({"role": …, "content": …}), and two answers as a pair."""

import json
import re
from collections.abc import Iterable
from typing import Any

from reward_model import RowError
from reward_model.data.fields import Row, labels_of
from reward_model.data.pair import SIDES, Messages, Pair, from_json

CHAT_ROLES = ("assistant", "user", "system")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "prompter": "user"}
OTHER_ROLES |= {"observation": "tool", "function": "tool"}
# Not every text that begins with "Human:" is one: somebody must answer.
TRANSCRIPT = re.compile(r"\n\n\s*Human:|\s*Human:.*?\n\n\s*Assistant:", re.S)
TURNS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
NEMO_TURNS = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # of HelpSteer2, the first turn without
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
# Behind a prompt that ends so, a space before the answer belongs to neither.
BEFORE_ANSWER = ("Assistant:", "TL;DR:")
# How the repr of a list of messages begins, by Python or numpy.
REPR = re.compile(r"\s*\[\s*\{\s*'(role|content|from)':")


def messages_in(value: Any, name: str) -> Any:
    """Return the messages (or the message) that are in a JSON text; any other value of a field as it is.

    Raises RowError for the repr of messages, which is not JSON.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    if REPR.match(value):
        found = f"{name} is not JSON but the Python repr of messages ({value[:9]}…), as DataFrame.to_csv writes them"
        cure = f'df["{name}"] = df["{name}"].map(lambda text: ast.literal_eval(text.replace("}}\\n {{", "}}, {{")))'
        save = 'df.to_json("FILE.jsonl", orient="records", lines=True)'
        raise RowError("repr of messages", f"{found}. Convert each such column with {cure} and write {save}.")
    found = from_json(value, list | dict)
    first = found[0] if isinstance(found, list) and found else found
    return found if isinstance(first, dict) and {"role", "from"} & first.keys() else value


def prompt_messages(prompt: Any) -> Messages:
    """Messages of a prompt: text is the user's turn, or a Human/Assistant transcript; lists are messages already."""
    if isinstance(prompt, list):
        return [chat_message(turn) for turn in prompt]
    if isinstance(prompt, str) and ("<extra_id_1>" in prompt or TRANSCRIPT.match(prompt)):
        turns = transcript_messages(prompt)
        open_turn = turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return turns[:-1] if open_turn else turns
    return [{"role": "user", "content": prompt}]


def answer_messages(answer: Any) -> Messages:
    """Messages of an answer: text or one message is the assistant's turn."""
    if isinstance(answer, list):
        return [chat_message(turn) for turn in answer]
    return [chat_message(answer) if isinstance(answer, dict) else {"role": "assistant", "content": answer}]


def earlier_messages(history: Any) -> Messages:
    """Messages of a `history`: [question, answer] pairs, or messages already; none of a text (SHP's prompt)."""
    messages: Messages = []
    for turn in history if isinstance(history, list) else []:
        if isinstance(turn, dict):
            messages.append(chat_message(turn))
        else:
            question, answer = turn
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def system_messages(text: Any) -> Messages:
    """The system message of a text; none of an empty one."""
    return [{"role": "system", "content": text}] if text else []


def chat_message(turn: Any) -> Any:
    """A turn with from/value, role/text or typed parts of text as a message with role/content, the content being text;
    anything else as it is, for the check to judge."""
    if not isinstance(turn, dict) or (type(turn.get("content")) is str and turn.get("role") in CHAT_ROLES):
        return turn
    if "from" in turn or ("text" in turn and "content" not in turn):
        turn = {"role": turn.get("from", turn.get("role")), "content": turn.get("value", turn.get("text"))}
    role, said = turn.get("role"), turn.get("content")
    if role == "function_call":
        return _tool_calls(said)
    if isinstance(said, list) and said and all(isinstance(part, dict) and part.get("type") == "text" for part in said):
        texts = [part.get("text", part.get("value")) for part in said]  # LLaMA-Factory v1 has value
        if all(isinstance(text, str) for text in texts):
            turn = turn | {"content": "\n".join(texts)}  # joined as vLLM joins them
    return turn | {"role": OTHER_ROLES[role]} if isinstance(role, str) and role in OTHER_ROLES else turn


def _tool_calls(value: Any) -> dict[str, Any]:
    try:
        calls = json.loads(str(value))
        calls = calls if isinstance(calls, list) else [calls]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (TypeError, ValueError, KeyError) as error:
        raise RowError(
            "not text", f"a function_call is no JSON with name and arguments: {str(value)[:60]!r}."
        ) from error
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function} for function in functions]}


def transcript_messages(transcript: Any) -> Messages:
    """Messages of a text whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:"; the system's stands before."""
    if isinstance(transcript, str) and len(nemo := NEMO_TURNS.split(transcript)) > 1:
        parts = ["", "User", *nemo] if nemo[0] else nemo
    elif not isinstance(transcript, str) or not (parts := TURNS.split(transcript))[1:]:
        raise RowError("not messages", f"no Human:/Assistant: turns in {str(transcript)[:60]!r}.")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return system_messages(parts[0].strip()) + [{"role": ROLES[who], "content": said.strip()} for who, said in turns]


def pair_of(prompt: Any, both: Iterable[Any], row: Row) -> Pair:
    """An unchecked pair of two answers to a prompt (None: they are whole conversations), chosen first, with the earlier
    turns and the labels that its row has."""
    if isinstance(prompt, str) and prompt.rstrip().endswith(BEFORE_ANSWER):
        both = [answer.removeprefix(" ") if isinstance(answer, str) else answer for answer in both]
    before = [] if prompt is None else earlier_messages(row.get("history")) + prompt_messages(prompt)
    return {side: before + answer_messages(answer) for side, answer in zip(SIDES, both, strict=True)} | labels_of(row)
