"""A template that would not show all that was said, in the same way every day, stops training, scoring and serving."""

import sys
from pathlib import Path

import pytest
import trl
from conftest import CHATML, ENDS_WITH_EOS, WITH_TOOLS, conversation, run

from reward_model import InputError
from reward_model.model import template_proof
from reward_model.model.template import pin_arguments, pin_date, render, split_special_tokens
from reward_model.model.template_proof import prove_template

EACH = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
# As Qwen3's: reasoning stays in the last answer only, set anew.
STRIPS = EACH.replace("m.content", "m.content.split('</think>')[-1]")
DATED = "{% set day = strftime_now('%d %b %Y') %}<|im_start|>system\nToday is {{ day }}.<|im_end|>\n" + CHATML
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML

GOOD = {
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
BAD = {
    "": "no chat template",
    "constant": "leaves out the text of a 'user' message",
    "{{ messages[-1].content }}": "leaves out the text of a 'user' message",
    "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}": "leaves out the text of a 'assistant' message",
    "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}": "text of a 'system' message",
    CHATML + "<|im_start|>assistant\n": "does not end with the answer .* but with '.*assistant'",
    CHATML.replace("<|im_start|>", "<|") + "<|assistant\n": "does not end with the answer",
    EACH + "{{ range(100000) | random }}": "differently each time",
    EACH.replace("m.content", "m.content[:200]"): "leaves out .* or a part of it: 'question0 question1",
    EACH + "<|im_start|>user\nWell?<|im_end|>": "does not end with the answer",
    DATED: "prints today's date.*--template_date 2024-07-26",
    "{% for m in messages %}{{ m.content }}": r"broken at its line 1: Unexpected end of template",
    "{{ messages[0].content + 1 }}": "fails: TypeError",
    "{{ raise_exception('never') }}": "renders no question and answer: never",
    LOOPS: "took more than 0.5 s",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_templates_pass(name: str, make_tokenizer) -> None:
    assert prove_template(make_tokenizer(GOOD[name])) == []


@pytest.mark.parametrize("template", BAD, ids=range(len(BAD)))
def test_bad_templates_are_refused(template: str, make_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_proof, "SECONDS", 0.5)
    with pytest.raises(InputError, match=BAD[template]):
        prove_template(make_tokenizer(template))


def test_templates_of_known_models_pass(make_tokenizer) -> None:
    """Those that trl ships, with their dates pinned; the three that are left take no text without an image's layout."""
    refused, tokenizer = set(), make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        tokenizer.chat_template = pin_date(file.read_text(), "2024-07-26")
        try:
            prove_template(tokenizer)
        except InputError:
            refused.add(file.stem.removesuffix("_training"))
    assert refused == {"idefics3", "llava_next", "smolvlm"}


def test_reasoning_that_is_left_out_is_allowed_by_an_argument_only(make_tokenizer) -> None:
    answers = (f"<think>{word} so</think>\n\n{word}." for word in ("Four", "Five"))
    pair = dict(zip(("chosen", "rejected"), (conversation("2 + 2?", answer) for answer in answers), strict=True))
    tokenizer = make_tokenizer(STRIPS)
    with pytest.raises(InputError, match="leaves <think>…</think> out .* --allow_stripped_reasoning True"):
        prove_template(tokenizer, [pair])
    assert prove_template(tokenizer, [pair], stripped_reasoning=True) == [
        "1 of 1 sampled pairs have <think>…</think> that the chat template leaves out."
    ]
    assert prove_template(make_tokenizer(), [pair]) == []


def test_special_tokens_in_texts_are_told(make_tokenizer) -> None:
    pair = {"chosen": conversation("2 + 2?", "Four.<|im_end|>"), "rejected": conversation("2 + 2?", "Five.")}
    (told,) = prove_template(make_tokenizer(), [pair])
    assert told.startswith("1 of 1 sampled pairs have special tokens")
    assert told.endswith("--split_special_tokens True")


def test_special_tokens_in_texts_are_split(make_tokenizer) -> None:
    """What was said by others in typed parts, too; a second time changes nothing."""
    tokenizer = make_tokenizer()
    split_special_tokens(tokenizer)
    template = tokenizer.chat_template
    split_special_tokens(tokenizer)
    assert tokenizer.chat_template == template
    parts = [{"type": "text", "text": "2 + 2?<|im_end|>"}, {"type": "text", "text": "<|endoftext|>"}]
    text = render(conversation(parts, "<|im_<|im_end|>end|>"), tokenizer)
    said = ("2 + 2?< |im_end|>\n< |endoftext|>", "<|im_< |im_end|>end|>")
    assert text == render(conversation(*said), make_tokenizer())
    pair = {"chosen": conversation("2 + 2?", "Four.<|im_end|>"), "rejected": conversation("2 + 2?", "Five.")}
    assert prove_template(tokenizer, [pair]) == []


def test_arguments_are_written_into_the_template(make_tokenizer) -> None:
    thinking = "{% if thinking %}{{ thinking }}\n{% endif %}" + CHATML
    tokenizer = make_tokenizer(pin_arguments(thinking, '{"thinking": "It\'s \\"on\\""}'))
    assert render(conversation("a", "b"), tokenizer, thinking=False).startswith('It\'s "on"\n<|im_start|>user')
    for wrong in ('{"think": true}', "[1]", "no", '{"messages": []}'):
        with pytest.raises(InputError, match="--chat_template_kwargs"):
            pin_arguments(thinking, wrong)
    with pytest.raises(InputError, match="no variable thinking, nor any other"):  # set already
        pin_arguments(str(tokenizer.chat_template), '{"thinking": true}')


def test_check_before_serving_is_light(tmp_path: Path) -> None:
    """Neither torch nor trl is imported, so that infer_vllm.sh answers in a second."""
    code = "import sys; from reward_model.model import checkpoint; from transformers import PreTrainedTokenizerFast; "
    run(sys.executable, "-c", code + "assert not {'torch', 'trl', 'datasets'} & sys.modules.keys()")
