"""Convert prompts, answers and turns in any layout to messages, and a prompt with two answers to a pair."""

import json
import re
from collections.abc import Iterable
from typing import Any

from reward_model import RowError
from reward_model.data.fields import Row, labels_of
from reward_model.data.pair import SIDES, Messages, Pair, from_json

CHAT_ROLES = ("assistant", "user", "system")
ROLE_ALIASES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "prompter": "user"}
ROLE_ALIASES |= {"observation": "tool", "function": "tool"}
# A text that starts with "Human:" is a transcript only if an "Assistant:" turn follows.
TRANSCRIPT = re.compile(r"\n\n\s*Human:|\s*Human:.*?\n\n\s*Assistant:", re.S)
TURNS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
NEMO_TURNS = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # HelpSteer2; the first turn has no marker
SPEAKER_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
# If a prompt ends like this, the space before the answer belongs to neither of them.
PROMPT_ENDINGS = ("Assistant:", "TL;DR:")
# The start of a list of messages as Python or NumPy prints it.
REPR = re.compile(r"\s*\[\s*\{\s*'(role|content|from)':")


def messages_in(value: Any, name: str) -> Any:
    """Parse messages, or a single message, stored as JSON text; return anything else unchanged.

    Args:
        value: The value of a field.
        name: The name of the field, for the error message.

    Raises:
        RowError: If the text is the Python repr of messages, which is not JSON.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    if REPR.match(value):
        found = f"{name} is not JSON but the Python repr of messages ({value[:9]}…), as DataFrame.to_csv writes them"
        fix = f'df["{name}"] = df["{name}"].map(lambda text: ast.literal_eval(text.replace("}}\\n {{", "}}, {{")))'
        save = 'df.to_json("FILE.jsonl", orient="records", lines=True)'
        raise RowError("repr of messages", f"{found}. Convert each such column with {fix} and save with {save}.")
    found = from_json(value, list | dict)
    first = found[0] if isinstance(found, list) and found else found
    return found if isinstance(first, dict) and {"role", "from"} & first.keys() else value


def prompt_messages(prompt: Any) -> Messages:
    """Convert a prompt to messages: a list of turns, a Human/Assistant transcript, or the text of a user turn."""
    if isinstance(prompt, list):
        return [chat_message(turn) for turn in prompt]
    if isinstance(prompt, str) and ("<extra_id_1>" in prompt or TRANSCRIPT.match(prompt)):
        turns = transcript_messages(prompt)
        ends_open = turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return turns[:-1] if ends_open else turns
    return [{"role": "user", "content": prompt}]


def answer_messages(answer: Any) -> Messages:
    """Convert an answer to messages: a list of turns, a single turn, or the text of an assistant turn."""
    if isinstance(answer, list):
        return [chat_message(turn) for turn in answer]
    return [chat_message(answer) if isinstance(answer, dict) else {"role": "assistant", "content": answer}]


def history_messages(history: Any) -> Messages:
    """Convert a `history` field, [question, answer] pairs or messages, to messages; return [] for text (SHP)."""
    messages: Messages = []
    for turn in history if isinstance(history, list) else []:
        if isinstance(turn, dict):
            messages.append(chat_message(turn))
        else:
            question, answer = turn
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def system_messages(text: Any) -> Messages:
    """Return a list with the text as a system message, or an empty list if the text is empty."""
    return [{"role": "system", "content": text}] if text else []


def chat_message(turn: Any) -> Any:
    """Convert a turn to a message with a role and text content.

    Accepts from/value and role/text turns, and content as a list of text parts. Anything else is returned unchanged, so
    that `check_conversation` reports it.
    """
    if not isinstance(turn, dict) or (type(turn.get("content")) is str and turn.get("role") in CHAT_ROLES):
        return turn
    if "from" in turn or ("text" in turn and "content" not in turn):
        turn = {"role": turn.get("from", turn.get("role")), "content": turn.get("value", turn.get("text"))}
    role, content = turn.get("role"), turn.get("content")
    if role == "function_call":
        return _tool_call_message(content)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text", part.get("value")) for part in content]  # LLaMA-Factory v1 uses "value"
        if texts and all(isinstance(text, str) for text in texts):
            turn = turn | {"content": "\n".join(texts)}  # joined in the same way as in vLLM
    return turn | {"role": ROLE_ALIASES[role]} if isinstance(role, str) and role in ROLE_ALIASES else turn


def _tool_call_message(value: Any) -> dict[str, Any]:
    try:
        calls = json.loads(str(value))
        calls = calls if isinstance(calls, list) else [calls]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (TypeError, ValueError, KeyError) as error:
        found = f"a function_call turn is not JSON with name and arguments: {str(value)[:60]!r}."
        raise RowError("not text", found) from error
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function} for function in functions]}


def transcript_messages(transcript: Any) -> Messages:
    r"""Convert text with "\n\nHuman:" and "\n\nAssistant:" turns, and an optional system message first, to messages."""
    if isinstance(transcript, str) and len(nemo := NEMO_TURNS.split(transcript)) > 1:
        parts = ["", "User", *nemo] if nemo[0] else nemo
    else:
        parts = TURNS.split(transcript) if isinstance(transcript, str) else []
    if len(parts) < 2:
        raise RowError("not messages", f"no Human:/Assistant: turns in {str(transcript)[:60]!r}.")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    messages = [{"role": SPEAKER_ROLES[speaker], "content": text.strip()} for speaker, text in turns]
    return system_messages(parts[0].strip()) + messages


def first_role(messages: list[Any]) -> Any:
    """Return the first message's role, or None if there is no message or role; the messages need not be validated."""
    return messages[0].get("role") if messages and isinstance(messages[0], dict) else None


def context_messages(prompt: Any, row: Row) -> Messages:
    """Return a row's history and a prompt (text or messages) as messages, or [] if the prompt is None."""
    return [] if prompt is None else history_messages(row.get("history")) + prompt_messages(prompt)


def complete_conversation(turns: Any, prompt: Any, row: Row) -> Any:
    """Convert turns to messages, adding the prompt if the assistant speaks first; return anything else unchanged."""
    if not isinstance(turns, list | dict):
        return turns
    messages = answer_messages(turns)
    return context_messages(prompt, row) + messages if first_role(messages) == "assistant" else messages


def pair_of(prompt: Any, answers: Iterable[Any], row: Row) -> Pair:
    """Build an unvalidated pair from a prompt and two answers, with the history and labels of their row.

    Args:
        prompt: Text or messages; None if the answers are complete conversations.
        answers: The chosen and the rejected answer, each as text, a turn or a list of turns.
        row: The source row.
    """
    if isinstance(prompt, str) and prompt.rstrip().endswith(PROMPT_ENDINGS):
        answers = [answer.removeprefix(" ") if isinstance(answer, str) else answer for answer in answers]
    context = context_messages(prompt, row)
    pair = {side: context + answer_messages(answer) for side, answer in zip(SIDES, answers, strict=True)}
    return pair | labels_of(row)
