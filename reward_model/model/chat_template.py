"""The chat template: rendering with it, and what is written into it, so that all who render it do so alike."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta

from reward_model import InputError

OF_EVERY_CALL = {"messages", "tools", "add_generation_prompt"}
MARK = "{# special tokens in texts are split #}"
# Prepended to a template by --split_special_tokens; lines of blocks leave no trace in what is rendered.
SPLIT = (Path(__file__).parent / "split_special_tokens.jinja").read_text(encoding="utf-8")


def render(messages: list[dict[str, Any]], tokenizer: Any, tools: Any = None, **more: Any) -> str:
    """Return the text of a conversation by the tokenizer's template, with no generation prompt.

    Raises InputError for a conversation that the template rejects or fails on: a template is code, and anything can go
    wrong in it.
    """
    options = {"tokenize": False, "add_generation_prompt": False, **more}
    try:
        served = [as_served(message, str(tokenizer.chat_template)) for message in messages]
        return tokenizer.apply_chat_template(served, tools=tools, **options)
    except Exception as error:
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise InputError(f"the chat template rejects it: {kind}{error}") from error


def as_served(message: dict[str, Any], template: str) -> dict[str, Any]:
    """Return the message as vLLM 0.32 gives it to a chat template, so that training and the server render the same."""
    if message.keys() == {"role", "content"} and message["role"] not in ("tool", "developer"):
        return message
    served = {"content": ""} | {key: value for key, value in message.items() if key != "tool_calls" or value}
    if (reasoning := message.get("reasoning_content", message.get("reasoning"))) is not None:
        served |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if "tool_calls" in served:  # client.py sends empty ids where there are none
        served["tool_calls"] = [{"id": ""} | call for call in served["tool_calls"]]
    if served["role"] == "tool":
        served = {"tool_call_id": ""} | served
    if served["role"] == "developer" and not re.search("[\"']developer[\"']", template):
        served["role"] = "system"
    return served


def single_template(template: str | dict[str, str] | None, source: str) -> str:
    """Return the template of a tokenizer, with named templates (Command-R, Hermes) combined into one.

    The combined template chooses as Transformers does: `tool_use` where there are tools, otherwise `default`.

    Raises:
        InputError: There is no template, or there are several and none is the default.
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
            f"{source} has the chat templates {', '.join(sorted(named))} and no default. Save one of them to a file "
            "and pass it: --chat_template_path template.jinja"
        )
    if "tool_use" not in named:
        return named["default"]
    # Jinja drops the last line break of a template, which would stand in the middle here.
    with_tools, default = (named[name].removesuffix("\n") for name in ("tool_use", "default"))
    return f"{{% if tools %}}{with_tools}{{% else %}}{default}{{% endif %}}"


def pin_date(template: str, day: str) -> str:
    """The template with the date `day` (2024-07-26) where it would print today's."""
    try:
        date = datetime.fromisoformat(day)
    except ValueError:
        raise InputError(f"--template_date {day}: give a day as 2024-07-26.") from None
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    return call.sub(lambda found: json.dumps(date.strftime(found[2]), ensure_ascii=False), template)


def pin_arguments(template: str, arguments: str) -> str:
    """The template with values for its variables (a JSON object), which no caller can set otherwise any more."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        values = json.loads(arguments)
        asked = meta.find_undeclared_variables(_compile_jinja_template(template).environment.parse(template))
    except TemplateSyntaxError:
        return template  # told where it is proven
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(
            f"--chat_template_kwargs {arguments}: give a JSON object such as '{{\"enable_thinking\": false}}'."
        )
    variables = sorted(name for name in asked if name not in OF_EVERY_CALL and not name.endswith("_token"))
    if unknown := ", ".join(sorted(values.keys() - {*variables})):
        found = f"only {', '.join(variables)}" if variables else "nor any other that could be set"
        raise InputError(f"--chat_template_kwargs: the chat template has no variable {unknown}, {found}.")
    # The line break behind a block is dropped in rendering.
    return "".join(f"{{% set {name} = {value!r} %}}\n" for name, value in values.items()) + template


def split_special_tokens(tokenizer: Any) -> None:
    """Let the tokenizer's chat template set a space into special tokens that stand in texts, so that they are read as
    words that somebody wrote. As it is done by the template, training, Transformers and a server do it alike."""
    tokens = special_tokens(tokenizer)
    if MARK not in tokenizer.chat_template:
        tokenizer.chat_template = SPLIT.replace("TOKENS", repr(tokens)) + tokenizer.chat_template
    found = []
    for text in ("words", "".join(tokens)):
        messages = [{"role": role, "content": text} for role in ("user", "assistant")]
        ids = tokenizer(render(messages, tokenizer), add_special_tokens=False)["input_ids"]
        found.append(
            sum(tokenizer.added_tokens_decoder[one].special for one in ids if one in tokenizer.added_tokens_decoder)
        )
    if found[0] != found[1]:
        raise InputError("--split_special_tokens: this tokenizer finds special tokens even in parts; leave it out.")


def special_tokens(tokenizer: Any) -> list[str]:
    """Texts that the tokenizer takes for one token with a meaning of its own, the longest first."""
    return sorted((str(token) for token in tokenizer.added_tokens_decoder.values() if token.special), key=len)[::-1]
