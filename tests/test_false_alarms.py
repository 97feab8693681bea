"""Unusual real pairs are accepted without a warning, and no template is rejected because of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from helpers import pair

from reward_model.data.pair import SIDES, check_pair, find_warning
from reward_model.data.quality import find_conflicts
from reward_model.data.statistics import facts_array
from reward_model.model.chat_template import pin_date, render
from reward_model.model.template_validation import check_rows, check_template

LINES = (Path(__file__).parent / "samples/hard_pairs.jsonl").read_text(encoding="utf-8").splitlines()
PAIRS = [json.loads(line) for line in LINES]
EMPTY_SYSTEM = {side: [{"role": "system", "content": ""}, *PAIRS[0][side]] for side in SIDES}
# Whether each template renders tools.
TEMPLATES = {"qwen2_5": True, "qwen3": True, "glm4moe": True, "llama3": False, "gemma": False, "phi3": False}
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]


def conflicts(pairs: list[dict[str, Any]]) -> set[int]:
    """Return the conflicts and warnings that comparing the pairs gives."""
    found = find_conflicts(facts_array(pairs), ())
    return {*found.reasons.tolist(), *found.warnings.tolist()} - {0}


def test_unusual_pairs_are_valid_without_warnings() -> None:
    for row in [*PAIRS, EMPTY_SYSTEM]:
        assert check_pair(row)["chosen"] == row["chosen"] and find_warning(row) is None
    assert not conflicts([*PAIRS, EMPTY_SYSTEM])


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_all_pairs(name: str, make_tokenizer) -> None:
    template = Path(trl.__file__).parent / f"chat_templates/{name}.jinja"
    tokenizer = make_tokenizer(pin_date(template.read_text(), "2024-07-26"))
    tokenizer.bos_token = "<|endoftext|>"
    assert check_template(tokenizer) == []
    rows = [row for row in [*PAIRS, EMPTY_SYSTEM] if TEMPLATES[name] or not row.get("tools")]
    if name == "gemma":  # it rejects system messages
        rows = [row for row in rows if row["chosen"][0]["role"] != "system"]
    assert all(render(row[side], tokenizer, row.get("tools")) for row in rows for side in SIDES)
    assert check_rows(rows, tokenizer) == []


def test_pairs_with_different_tools_do_not_conflict() -> None:
    first = pair(["u: What is the time?"], "I look it up.", "I cannot know.", tools=TOOLS)
    reversed_ = {"chosen": first["rejected"], "rejected": first["chosen"]}
    assert conflicts([first, reversed_ | {"tools": TOOLS}]), "both orders"
    assert not conflicts([first, reversed_, first | {"tools": [TOOLS[0] | {"strict": True}]}])
