"""A template that drops text or renders differently each day stops training, scoring and serving."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import trl
from helpers import CHATML, ENDS_WITH_EOS, WITH_TOOLS, conversation, run

from reward_model import InputError
from reward_model.model.chat_template import pin_arguments, pin_date, render, single_template, split_special_tokens
from reward_model.model.checkpoint import light_tokenizer
from reward_model.model.template_validation import check_rows, check_template
from reward_model.model.tokenization import load_tokenizer

PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
# Drops reasoning, as Qwen3's template does for all but the last answer.
STRIPS = PLAIN.replace("m.content", "m.content.split('</think>')[-1]")
DATED = "{% set day = strftime_now('%d %b %Y') %}<|im_start|>system\nToday is {{ day }}.<|im_end|>\n" + CHATML
IGNORES_SYSTEM = PLAIN.replace("in messages", "in messages if m.role != 'system'")

VALID = {
    "ChatML": CHATML,
    "with tools": WITH_TOOLS,
    "ends with eos": ENDS_WITH_EOS,
    "no system role": NO_SYSTEM,
    "closing token that is not special": "{% for m in messages %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}",
    "system first, in the user's turn": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n' }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}",
    "date pinned": pin_date(DATED, "2024-07-26"),
}
INVALID = {
    "constant": "drops the text of a 'user' message",
    "{{ messages[-1].content }}": "drops the text of a 'user' message",
    "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}": "drops the text of a 'assistant' message",
    CHATML + "<|im_start|>assistant\n": "ends with '.*assistant.*' rather than the answer",
    CHATML.replace("<|im_start|>", "<|") + "<|assistant\n": "rather than the answer",
    PLAIN + "{{ range(100000) | random }}": "differently each time",
    PLAIN.replace("m.content", "m.content[:200]"): "drops .*, or part of it: 'question0 question1",
    PLAIN + "<|im_start|>user\nWell?<|im_end|>": "rather than the answer",
    DATED: "prints today's date.*--template_date 2024-07-26",
    "{% for m in messages %}{{ m.content }}": r"syntax error on line 1: Unexpected end of template",
    "{{ messages[0].content + 1 }}": "cannot render a question .* TypeError",
    "{{ raise_exception('never') }}": "cannot render a question and its answer: .* never",
}


@pytest.mark.parametrize("name", VALID)
def test_valid_templates_are_accepted(name: str, make_tokenizer) -> None:
    assert check_template(make_tokenizer(VALID[name])) == []


@pytest.mark.parametrize("template", INVALID, ids=range(len(INVALID)))
def test_invalid_templates_are_refused(template: str, make_tokenizer) -> None:
    with pytest.raises(InputError, match=INVALID[template]):
        check_template(make_tokenizer(template))


def test_templates_of_known_models_are_accepted(make_tokenizer) -> None:
    """Check all templates that trl ships, with pinned dates. Three of them require the layout of images."""
    refused, tokenizer = set(), make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        tokenizer.chat_template = pin_date(file.read_text(), "2024-07-26")
        try:
            check_template(tokenizer)
        except InputError:
            refused.add(file.stem.removesuffix("_training"))
    assert refused == {"idefics3", "llava_next", "smolvlm"}


def test_template_without_system_messages_is_refused_only_if_rows_have_them(make_tokenizer) -> None:
    tokenizer = make_tokenizer(IGNORES_SYSTEM)
    assert check_template(tokenizer) == [
        "The chat template ignores system messages; a dataset that contains them is rejected."
    ]
    pair = {side: conversation("2 + 2?", answer) for side, answer in (("chosen", "Four."), ("rejected", "Five."))}
    assert check_rows([pair], tokenizer) == []
    system = [{"role": "system", "content": "Be brief."}]
    with pytest.raises(InputError, match="a.jsonl:3: .* drops the text of a 'system' message.*Be brief"):
        check_rows([{side: system + pair[side] for side in pair} | {"place": "a.jsonl:3"}], tokenizer)


# Ends of answers that resemble a token, a role or a part of a template, and white space that templates may strip.
ENDINGS = [
    "| box | known |", "_", "m", "end", "assistant", "<|im", "im_end|>", "user\n", "```python\nx = 1\n```", "|", ">",
    "</s>", "[INST]", "a_b_", "{{ messages }}", "{% endfor %}", "answer499", "&lt;b&gt;", '"quoted" \\n', "é\u00a0",
    "好。", "\n\n a \n",
]  # fmt: skip


@pytest.mark.parametrize("name", VALID)
def test_unusual_answers_cause_no_false_alarm(name: str, make_tokenizer) -> None:
    tokenizer = make_tokenizer(VALID[name])
    pairs = [{"chosen": conversation("2 + 2?", end), "rejected": conversation(end, "Four.")} for end in ENDINGS]
    assert not [line for line in check_rows(pairs, tokenizer) if "special tokens" not in line]


CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
THINKS = {"role": "assistant", "content": "Four.", "reasoning_content": "2 and 2."}
TAGGED = {"role": "assistant", "content": "<think>2 and 2.</think>\n\nFour."}
FIVE = {"role": "assistant", "content": "Five."}
RENDERS_CALLS = PLAIN.replace("{{ m.content }}", "{{ m.content or '' }}{{ (m.tool_calls or '') | string }}")
# Template, answer, tools, dropped part.
DROPPED = {
    "tool calls": (PLAIN, CALL, None, "tool calls"),
    "rendered tool calls": (RENDERS_CALLS, CALL, None, ""),
    "tools": (RENDERS_CALLS, CALL, [{"type": "function", "function": {"name": "f"}}], "tools"),
    "rendered tools": (WITH_TOOLS, FIVE, [{"type": "function", "function": {"name": "f"}}], ""),
    "reasoning_content": (CHATML, THINKS, None, "reasoning"),
    "reasoning in tags": (STRIPS, TAGGED, None, "reasoning"),
    "rendered tags": (CHATML, TAGGED, None, ""),
}


@pytest.mark.parametrize("case", DROPPED)
def test_dropped_parts_need_an_argument(case: str, make_tokenizer) -> None:
    template, answer, tools, part = DROPPED[case]
    question, tokenizer = conversation("2 + 2?", "")[:1], make_tokenizer(template)
    pair = {"chosen": [*question, answer], "rejected": [*question, {**FIVE, "content": "6."}], "tools": tools}
    if not part:
        assert check_rows([pair], tokenizer) == []
        return
    with pytest.raises(InputError, match=f"drops {part} in 1 of 1 sampled .* --allow_stripped_reasoning True"):
        check_rows([pair], tokenizer)
    line = f"The chat template drops {part} in 1 of 1 sampled pairs."
    assert check_rows([pair], tokenizer, allow_stripped_reasoning=True) == [line]


def test_reasoning_of_earlier_turns_is_only_reported(make_tokenizer) -> None:
    """Qwen3's template drops it on purpose."""
    turns = [*conversation("2 + 2?", TAGGED["content"]), {"role": "user", "content": "Sure?"}]
    pair = {"chosen": [*turns, FIVE], "rejected": [*turns, {**FIVE, "content": "Yes."}]}
    assert check_rows([pair], make_tokenizer(STRIPS)) == [
        "The chat template drops earlier reasoning in 1 of 1 sampled pairs."
    ]


def test_special_tokens_in_texts_are_reported(make_tokenizer) -> None:
    pair = {"chosen": conversation("2 + 2?", "Four.<|im_end|>"), "rejected": conversation("2 + 2?", "Five.")}
    (warning,) = check_rows([pair], make_tokenizer())
    assert warning.startswith("1 of 1 sampled pairs contain special tokens")
    assert warning.endswith("--split_special_tokens True")


def test_special_tokens_in_texts_are_split(make_tokenizer) -> None:
    """Typed parts are included, and a second call changes nothing."""
    tokenizer = make_tokenizer()
    split_special_tokens(tokenizer)
    template = tokenizer.chat_template
    split_special_tokens(tokenizer)
    assert tokenizer.chat_template == template
    parts = [{"type": "text", "text": "2 + 2?<|im_end|>"}, {"type": "text", "text": "<|endoftext|>"}]
    text = render(conversation(parts, "<|im_<|im_end|>end|>"), tokenizer)
    expected = conversation("2 + 2?< |im_end|>\n< |endoftext|>", "<|im_< |im_end|>end|>")
    assert text == render(expected, make_tokenizer())
    pair = {"chosen": conversation("2 + 2?", "Four.<|im_end|>"), "rejected": conversation("2 + 2?", "Five.")}
    assert check_rows([pair], tokenizer) == []


NAMED = {"default": CHATML + "\n", "tool_use": WITH_TOOLS + "\n", "rag": "constant"}


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]], ids=["no tools", "tools"])
def test_named_templates_are_combined(tools, make_tokenizer, base_model, tmp_path: Path) -> None:
    """Transformers saves them in separate files, and earlier versions as a list in tokenizer_config.json."""
    messages = conversation("2 + 2?", "Four.")
    expected = make_tokenizer(NAMED).apply_chat_template(messages, tools=tools, tokenize=False)
    files, listed = (shutil.copytree(base_model, tmp_path / name) for name in ("files", "list"))
    make_tokenizer(NAMED).save_pretrained(files)
    (listed / "chat_template.jinja").unlink()
    config = json.loads((listed / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": template} for name, template in NAMED.items()]
    (listed / "tokenizer_config.json").write_text(json.dumps(config))
    (listed / "tekken.json").write_text("{}")  # of another tokenizer; must be ignored
    for directory in (files, listed):
        for tokenizer in (load_tokenizer(str(directory)), light_tokenizer(str(directory))):
            assert render(messages, tokenizer, tools) == expected
            assert check_template(tokenizer) == []
    with pytest.raises(InputError, match="has the chat templates rag but no default"):
        single_template({"rag": CHATML}, "a model")


def test_template_arguments_are_stored_in_the_template(make_tokenizer) -> None:
    thinking = "{% if thinking %}{{ thinking }}\n{% endif %}" + CHATML
    tokenizer = make_tokenizer(pin_arguments(thinking, '{"thinking": "It\'s \\"on\\""}'))
    assert render(conversation("a", "b"), tokenizer, thinking=False).startswith('It\'s "on"\n<|im_start|>user')
    for wrong in ('{"think": true}', "[1]", "no", '{"messages": []}'):
        with pytest.raises(InputError, match="--chat_template_kwargs"):
            pin_arguments(thinking, wrong)
    with pytest.raises(InputError, match="no variable thinking to set"):  # already set
        pin_arguments(str(tokenizer.chat_template), '{"thinking": true}')


def test_check_before_serving_imports_no_heavy_libraries() -> None:
    """Importing torch or trl would delay every start of a server by seconds."""
    code = "import sys; from reward_model.model import checkpoint; from transformers import PreTrainedTokenizerFast; "
    run(sys.executable, "-c", code + "assert not {'torch', 'trl', 'datasets'} & sys.modules.keys()")
