"""What a row says that its pair does not: no part of a conversation is left out in silence."""

from collections.abc import Iterator
from typing import Any

from reward_model import RowError
from reward_model.data.fields import Row
from reward_model.data.messages import prompt_messages
from reward_model.data.pair import SIDES, Pair, from_json

# Fields that are likely to be part of a conversation.
PARTS = frozenset(
    "system system_prompt system_message history context input instruction question query prompt messages conversation "
    "conversations dialog dialogue trajectory previous_turns passage document documents initial_reason_steps".split()
)
OF_A_TEMPLATE = "chat_template_kwargs"  # of one row, which trl honours; here a model has one template for all
# Keys of an object under which its text stands; the rest of it is about the text.
TEXTS = ("content", "value", "text", "full_text", "input", "output")


def check_all_used(row: Row, pair: Pair) -> None:
    """Raises RowError for fields of PARTS whose text stands nowhere in the pair, as a message or as whole lines of
    one."""
    names = PARTS.intersection(row)
    if not (names or row.get(OF_A_TEMPLATE)) or not all(isinstance(pair[side], list) for side in SIDES):
        return
    said = [message.get("content") for side in SIDES for message in pair[side] if isinstance(message, dict)]
    wholes = [*said, *(pair[side] for side in SIDES)]
    left = [name for name in names if row[name] not in wholes]  # most are a message or a side, and that is seen fast
    texts = [text for text in said if isinstance(text, str)] if left else []
    unused = sorted(name for name in left if not _is_used(row[name], texts))
    if row.get(OF_A_TEMPLATE):
        unused.append(OF_A_TEMPLATE)
    if unused:
        cure = f"map it (--prompt, --input, --chosen, --rejected) or leave it out (--ignore {' '.join(unused)})"
        if OF_A_TEMPLATE in unused:
            cure += "; train.py --chat_template_kwargs sets it for all rows"
        found = f"{', '.join(unused)} may be part of the conversation and is not used"
        raise RowError("unused field", f"{found}; {cure}.")


def _is_used(value: Any, said: list[str]) -> bool:
    if isinstance(value, str) and _is_said(value, said):
        return True
    if isinstance(value, str) and value.startswith('["'):  # a list in a CSV file or a text column
        value = from_json(value, list)
    return all(_is_said(text, said) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, those of a transcript turn by turn."""
    if isinstance(value, str):
        yield from (message["content"] for message in prompt_messages(value))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict) and value.get("from") != "function_call":
        for part in [value[name] for name in TEXTS if name in value] or value.values():
            yield from _texts(part)


def _is_said(text: str, said: list[str]) -> bool:
    if text in said or not text.strip():
        return True
    return any(f"\n{lines}\n" in f"\n{content}\n" for lines in (text, text.strip()) for content in said)
