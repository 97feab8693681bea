"""Rows of every layout that training reads are scored, and as the conversations that training would see."""

# ruff: noqa: E501

import json
import sys
from pathlib import Path

import pytest
from data.test_layouts import ASK, BAD, GOOD, NO, PAIR, PROMPTED, READ, USER, YES
from helpers import conversation, jsonl, run
from test_client import Local

import client
import infer_transformers
from reward_model.data.conversations import read_conversations
from reward_model.data.pair import SIDES

QUESTION = conversation(ASK, YES)
# Layout, row, kind, and its conversations where it has no preference or several answers.
OTHERS = [
    ("messages", {"messages": QUESTION}, "conversation", [QUESTION]),
    ("a list", QUESTION, "conversation", [QUESTION]),
    ("ShareGPT", {"conversations": [{"from": "human", "value": ASK}, {"from": "chatgpt", "value": YES}]}, "conversation", [QUESTION]),
    ("role and text", {"messages": [{"role": "user", "text": ASK}, {"role": "assistant", "text": YES}]}, "conversation", [QUESTION]),
    ("a transcript", {"text": f"{PROMPTED} {YES}"}, "conversation", [QUESTION]),
    ("JSON text", {"messages": json.dumps(QUESTION), "text": "rendered"}, "conversation", [QUESTION]),
    ("empty columns", {"messages": QUESTION, "chosen": [], "rejected": None, "prompt": ""}, "conversation", [QUESTION]),
    ("prompt and response", {"prompt": ASK, "response": YES}, "conversation", [QUESTION]),
    ("prompt and completion", {"prompt": USER, "completion": GOOD}, "conversation", [QUESTION]),
    ("Alpaca", {"instruction": ASK, "input": "", "output": YES}, "conversation", [QUESTION]),
    ("open messages and an answer", {"messages": USER, "answer": YES}, "conversation", [QUESTION]),
    ("responses", {"prompt": ASK, "responses": [YES, NO]}, "answers", [QUESTION, USER + BAD]),
    ("responses to a transcript", {"prompt": PROMPTED, "responses": [YES]}, "answers", [QUESTION]),
    ("complete responses", {"responses": [QUESTION, USER + BAD]}, "answers", [QUESTION, USER + BAD]),
    ("lists of chosen and rejected", {"prompt": ASK, "chosen": [YES], "rejected": [NO, "c"]}, "answers", [QUESTION, USER + BAD, conversation(ASK, "c")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "expected"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_rows_without_a_preference(row: dict, kind: str, expected: list) -> None:
    found = read_conversations(row, "rows.jsonl:1")
    assert (found.error, found.kind, found.conversations) == ("", kind, expected)


@pytest.mark.parametrize(("row", "pair"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_pairs_give_the_conversations_of_training(row: dict, pair: dict) -> None:
    found = read_conversations(row, "rows.jsonl:1")
    assert not found.error and found.tools == pair.get("tools")
    if found.kind == "pair":
        assert found.conversations == [pair[side] for side in SIDES]
    else:  # answers with a score or rank each: in the order of the row
        assert len(found.conversations) == 2 and all(pair[side] in found.conversations for side in SIDES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a text", "rows.jsonl:1: expected an object, found str"),
        ({"a": 1}, "rows.jsonl:1: no messages, no prompt with a response or responses, and no preference pair (keys: a)"),
        ({"response": YES}, "no messages, no prompt"),
        ({"messages": str(QUESTION)}, "messages is not JSON but the Python repr of messages"),
        ({"question": ASK, "context": "All.", "responses": [YES]}, "context may be part of the conversation but is not used; add it to the prompt or remove it."),
        (PAIR | {"tools": "f("}, "tools is not JSON"),
    ],
)  # fmt: skip
def test_rows_without_conversations_have_an_error(row: dict, message: str) -> None:
    assert message in read_conversations(row, "rows.jsonl:1").error


def test_both_scripts_score_every_layout(tiny_reward_model: Path, tmp_path: Path) -> None:
    rows = [row for _, row, *_ in [*READ, *OTHERS]]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SystemExit, match="0"):
        infer_transformers.main([str(tiny_reward_model), "--input", str(source), "--output", str(tmp_path / "a.jsonl")])
    with Local() as server:
        command = [sys.executable, "client.py", "--base_url", server.url, "--concurrency", "1"]
        run(*command, "--input", source, "--output", tmp_path / "b.jsonl")
        sent = [json.loads(messages) for messages in server.received]
    written = [(tmp_path / name).read_text().splitlines() for name in ("a.jsonl", "b.jsonl")]
    local, served = ([json.loads(line) for line in lines] for lines in written)
    assert [row.keys() for row in local] == [row.keys() for row in served] and len(local) == len(rows)
    expected = [messages for row in rows for messages in read_conversations(row, "").conversations]
    assert sent == [[client.to_wire(message) for message in messages] for messages in expected]
