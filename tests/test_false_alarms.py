"""Check real pairs that look odd: none of them is set aside or doubted, and no template is refused for them."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from helpers import pair

from reward_model.data.formats import NO_OPTIONS
from reward_model.data.pair import SIDES, check_pair, doubt
from reward_model.data.quality import find_conflicts
from reward_model.data.statistics import FACTS, Work, pair_facts
from reward_model.model.chat_template import pin_date, render
from reward_model.model.template_validation import check_rows, check_template

LINES = (Path(__file__).parent / "samples/hard_pairs.jsonl").read_text(encoding="utf-8").splitlines()
PAIRS = [json.loads(line) for line in LINES]
EMPTY_SYSTEM = {side: [{"role": "system", "content": ""}, *PAIRS[0][side]] for side in SIDES}
# Whether they render tools.
TEMPLATES = {"qwen2_5": True, "qwen3": True, "glm4moe": True, "llama3": False, "gemma": False, "phi3": False}
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]


def found(pairs: list[dict[str, Any]]) -> set[int]:
    """Return the reasons for which pairs are set aside or doubted beside each other."""
    rows = [(0, 0, number, 0, *pair_facts(one, Work(NO_OPTIONS))) for number, one in enumerate(pairs)]
    reasons, doubts, _ = find_conflicts(np.array(rows, dtype=FACTS), ())
    return {*reasons.tolist(), *doubts.tolist()} - {0}


def test_pairs_are_good_and_beyond_doubt() -> None:
    for row in [*PAIRS, EMPTY_SYSTEM]:
        assert check_pair(row)["chosen"] == row["chosen"] and doubt(row) is None
    assert not found([*PAIRS, EMPTY_SYSTEM])


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_good_and_render_all(name: str, make_tokenizer) -> None:
    template = Path(trl.__file__).parent / f"chat_templates/{name}.jinja"
    tokenizer = make_tokenizer(pin_date(template.read_text(), "2024-07-26"))
    tokenizer.bos_token = "<|endoftext|>"
    assert check_template(tokenizer) == []
    rows = [row for row in [*PAIRS, EMPTY_SYSTEM] if TEMPLATES[name] or not row.get("tools")]
    if name == "gemma":  # it rejects system messages
        rows = [row for row in rows if row["chosen"][0]["role"] != "system"]
    assert all(render(row[side], tokenizer, row.get("tools")) for row in rows for side in SIDES)
    assert check_rows(rows, tokenizer) == []


def test_lists_of_answers_do_not_look_cut_off() -> None:
    """Two answers that end within a word at the same length are six in the pairs of their lists."""
    one, other = (f"{text} {'word ' * 100}"[:239] + "d" for text in ("One", "Another"))
    lists = product([one, "A better one.", "The best."], [other, "A bad one.", "The worst."])
    assert not found([pair(["u: Which?"], *both) for both in lists])


def test_other_tools_make_another_pair() -> None:
    first = pair(["u: What is the time?"], "I look it up.", "I cannot know.", tools=TOOLS)
    reversed_ = {"chosen": first["rejected"], "rejected": first["chosen"]}
    assert found([first, reversed_ | {"tools": TOOLS}]), "both orders"
    assert not found([first, reversed_, first | {"tools": [TOOLS[0] | {"strict": True}]}])
