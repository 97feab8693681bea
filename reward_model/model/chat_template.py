"""Render conversations with the chat template, and write options into it so that all engines render the same text."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from reward_model import InputError

RESERVED = {"messages", "tools", "add_generation_prompt"}
MARKER = "{# special tokens in texts are split #}"
# Prepended to a template by --split_special_tokens; its lines render to nothing.
SPLIT = (Path(__file__).parent / "split_special_tokens.jinja").read_text(encoding="utf-8")


def render(messages: list[dict[str, Any]], tokenizer: Any, tools: Any = None, **more: Any) -> str:
    """Return the text of a conversation, without a generation prompt.

    Args:
        messages: The conversation.
        tokenizer: The tokenizer with the chat template.
        tools: Tool definitions from the row.
        more: Additional template variables.

    Raises:
        InputError: The template rejects the conversation, or raises any other exception while rendering it.
    """
    options = {"tokenize": False, "add_generation_prompt": False, **more}
    try:
        served = [as_served(message, str(tokenizer.chat_template)) for message in messages]
        return tokenizer.apply_chat_template(served, tools=tools, **options)
    except Exception as error:
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise InputError(f"the chat template rejects the conversation: {kind}{error}") from error


def as_served(message: dict[str, Any], template: str) -> dict[str, Any]:
    """Return the message as vLLM 0.32 passes it to a chat template. Training and serving must render the same text."""
    if message.keys() == {"role", "content"} and message["role"] not in ("tool", "developer"):
        return message
    served = {"content": ""} | {key: value for key, value in message.items() if key != "tool_calls" or value}
    if (reasoning := message.get("reasoning_content", message.get("reasoning"))) is not None:
        served |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if "tool_calls" in served:  # client.py sends empty ids for missing ones
        served["tool_calls"] = [{"id": ""} | call for call in served["tool_calls"]]
    if served["role"] == "tool":
        served = {"tool_call_id": ""} | served
    if served["role"] == "developer" and not re.search("[\"']developer[\"']", template):
        served["role"] = "system"
    return served


def single_template(template: str | dict[str, str] | None, source: str) -> str:
    """Return a tokenizer's template; if it has several named ones (Command-R, Hermes), combine them into one.

    The combined template chooses as Transformers does: `tool_use` if there are tools, otherwise `default`.

    Raises:
        InputError: If the tokenizer has no template, or has several but no default.
    """
    if not template:
        raise InputError(
            f"The tokenizer of {source} has no chat template. Pass the one that its users will render with: "
            "--chat_template_path template.jinja, or the directory or Hub id of a tokenizer that has one."
        )
    if isinstance(template, str):
        return template
    named = template
    if "default" not in named:
        raise InputError(
            f"{source} has the chat templates {', '.join(sorted(named))} but no default. Save one of them to a file "
            "and pass it: --chat_template_path template.jinja"
        )
    if "tool_use" not in named:
        return named["default"]
    # Jinja drops a template's final line break, but here the break would end up in the middle, so remove it.
    with_tools, default = (named[name].removesuffix("\n") for name in ("tool_use", "default"))
    return f"{{% if tools %}}{with_tools}{{% else %}}{default}{{% endif %}}"


def pin_date(template: str, day: str) -> str:
    """Return the template with today's date replaced by `day`, such as 2024-07-26.

    Raises:
        InputError: `day` is not a date.
    """
    try:
        date = datetime.fromisoformat(day)
    except ValueError as error:
        raise InputError(f"--template_date {day} is not a date such as 2024-07-26.") from error
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    return call.sub(lambda found: json.dumps(date.strftime(found[2]), ensure_ascii=False), template)


def pin_arguments(template: str, arguments: str) -> str:
    """Return the template with fixed values for some of its variables; callers can no longer set them.

    Args:
        template: The chat template.
        arguments: A JSON object with the value of each variable.

    Raises:
        InputError: `arguments` is not an object, or the template does not use one of the variables.
    """
    try:
        values = json.loads(arguments)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(
            f"--chat_template_kwargs {arguments} is not a JSON object such as '{{\"enable_thinking\": false}}'."
        )
    for name in values:
        if name in RESERVED:
            raise InputError(f"--chat_template_kwargs: {name} is set by the code that renders a conversation.")
        is_set = re.match(rf"(\{{% set .* %\}}\n)*\{{% set {re.escape(name)} = ", template)  # in an earlier run
        if is_set or not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(f"--chat_template_kwargs: the chat template has no variable {name} to set.")
    # Jinja drops the line break after a block.
    return "".join(f"{{% set {name} = {value!r} %}}\n" for name, value in values.items()) + template


def split_special_tokens(tokenizer: Any) -> None:
    """Change the tokenizer's chat template so that special tokens in texts are read as ordinary text.

    The template itself inserts a space into them, so training, Transformers and vLLM agree.

    Raises:
        InputError: The tokenizer still finds special tokens in the texts.
    """
    tokens = special_tokens(tokenizer)
    if MARKER not in tokenizer.chat_template:
        tokenizer.chat_template = SPLIT.replace("TOKENS", repr(tokens)) + tokenizer.chat_template
    counts = []
    for text in ("words", "".join(tokens)):
        messages = [{"role": role, "content": text} for role in ("user", "assistant")]
        ids = tokenizer(render(messages, tokenizer), add_special_tokens=False)["input_ids"]
        known = [tokenizer.added_tokens_decoder[one] for one in ids if one in tokenizer.added_tokens_decoder]
        counts.append(sum(token.special for token in known))
    if counts[0] != counts[1]:
        raise InputError("--split_special_tokens does not work with this tokenizer. Remove the argument.")


def special_tokens(tokenizer: Any) -> list[str]:
    """Return the strings that the tokenizer reads as a single special token, longest first."""
    return sorted((str(token) for token in tokenizer.added_tokens_decoder.values() if token.special), key=len)[::-1]
