"""A row of each public dataset gives exactly this pair or exactly this error.

The rows are made up, with the fields that the datasets document, one row per line.
"""
# ruff: noqa: E501

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers import jsonl, pair, talk

import prepare_data
from reward_model import InputError, RowError
from reward_model.data.convert import convert_rows
from reward_model.data.fields import NAME_FIELDS
from reward_model.data.formats import DEFAULT_OPTIONS, Options
from reward_model.data.readers import read_rows

ASK, YES, NO = "Name a red fruit.", "A cherry.", "A banana."
USER, GOOD, BAD = talk(f"u: {ASK}"), talk(f"a: {YES}"), talk(f"a: {NO}")
PAIR = pair([f"u: {ASK}"], YES, NO)
BRIEF = pair(["s: Be brief.", f"u: {ASK}"], YES, NO)
LONGER = pair(["u: Hi.", "a: Hello!", f"u: {ASK}"], YES, NO)
SYSTEM, HISTORY = {"system": "Be brief."}, {"history": [["Hi.", "Hello!"]]}
SIDES = {"chosen": YES, "rejected": NO}
TALKS = {"chosen": USER + GOOD, "rejected": USER + BAD}
PROMPTED = f"\n\nHuman: {ASK}\n\nAssistant:"


def turn(role: str, text: str) -> dict:
    return {"from": role, "value": text}


def typed(*messages: dict) -> list[dict]:
    part = {"type": "text", "image": None, "mimeType": None}
    return [message | {"content": [part | {"text": message["content"]}]} for message in messages]


TYPED = {"chosen": typed(*USER, *GOOD), "rejected": typed(*USER, *BAD)}

# Layout (or dataset), row, pair.
READ: list[tuple[str, dict, dict]] = [
    ("the record", TALKS, PAIR),
    ("UltraFeedback-binarized", {"prompt": ASK, "prompt_id": "7", **TALKS, "messages": USER + GOOD, "score_chosen": 8.0}, PAIR | {"id": "7"}),
    ("Tulu 3 mixture", {"id": "t1", "prompt": ASK, **TALKS, "chosen_rating": 5}, PAIR | {"id": "t1"}),
    ("Skywork-Reward-Preference", {**TALKS, "source": "magpie"}, PAIR | {"source": "magpie"}),
    ("trl, prompt apart", {"prompt": USER, "chosen": GOOD, "rejected": BAD}, PAIR),
    ("typed parts of text", TYPED, PAIR),
    ("LLaMA-Factory v1", {side: [{"role": one["role"], "content": [{"type": "text", "value": one["content"]}]} for one in TALKS[side]] for side in TALKS}, PAIR),
    ("a system column and messages", {**TALKS, **SYSTEM}, BRIEF),
    ("Capybara-Preferences", {"conversation": [{"input": ASK, "output": YES}], **TALKS}, PAIR),
    ("processed-hh-rlhf", {"context": [{"role": "human", "text": ASK}], "chosen": {"role": "assistant", "text": YES}, "rejected": {"role": "assistant", "text": NO}}, PAIR),
    ("HH-RLHF", {side: f"{PROMPTED} {text}" for side, text in SIDES.items()}, PAIR),
    ("rm-static", {"prompt": PROMPTED, "response": f" {YES}", "chosen": f" {YES}", "rejected": f" {NO}"}, PAIR),
    ("prompt, chosen, rejected", {"prompt": ASK, **SIDES}, PAIR),
    ("truthy-dpo", {"id": "a", "source": "b", **SYSTEM, "prompt": ASK, **SIDES}, BRIEF | {"id": "a", "source": "b"}),
    ("Intel Orca", {**SYSTEM, "question": ASK, **SIDES}, BRIEF),
    ("distilabel-orca", {**SYSTEM, "input": ASK, **SIDES, "generations": [YES, NO], "rating": [9.0, 2.0]}, BRIEF),
    ("an empty system", {"system": "", "question": ASK, **SIDES}, PAIR),
    ("OpenRLHF", {"input": ASK, **SIDES}, PAIR),
    ("axolotl, bradley_terry", {"system_prompt": "Be brief.", "input": ASK, **SIDES}, BRIEF),
    ("axolotl, chat_template", {"messages": USER, "chosen": GOOD[0], "rejected": BAD[0]}, PAIR),
    ("text with a history", {"prompt": ASK, **HISTORY, **SIDES}, LONGER),
    ("argilla", {"instruction": ASK, "chosen_response": YES, "rejected_response": NO, "chosen_avg_rating": 4.5}, PAIR),
    ("HelpSteer2-DPO", {"prompt": ASK, "chosen_response": YES, "rejected_response": NO}, PAIR),
    ("stack-exchange-paired", {"qid": 1, "question": ASK, "date": "2010", "response_j": YES, "response_k": NO}, PAIR),
    ("Code-Preference-Pairs", {"input": ASK, "accepted": YES, "rejected": NO, "ID": 4}, PAIR),
    ("LLaMA-Factory, ShareGPT", {"conversations": [turn("human", ASK)], "chosen": turn("gpt", YES), "rejected": turn("gpt", NO)}, PAIR),
    ("ShareGPT with system and history", {**SYSTEM, **HISTORY, "conversations": [turn("human", ASK)], **SIDES}, pair(["s: Be brief.", "u: Hi.", "a: Hello!", f"u: {ASK}"], YES, NO)),
    ("UltraInteract", {"trajectory": [turn("user", ASK)], **SIDES, "parent_id": "x"}, PAIR),
    ("ms-swift, rejected_response", {"messages": USER + GOOD, "rejected_response": NO}, PAIR),
    ("ms-swift, rejected_messages", {"messages": USER + GOOD, "rejected_messages": USER + BAD}, PAIR),
    ("OpenPipe", {"messages": USER + GOOD, "rejected_message": BAD[0], "split": "TRAIN"}, PAIR),
    ("OpenAI and Azure preferences", {"input": {"messages": USER, "tools": [], "parallel_tool_calls": True}, "preferred_output": GOOD, "non_preferred_output": BAD}, PAIR),
    ("OpenAI preferences with tools", {"input": {"messages": USER, "tools": [{"name": "f"}]}, "preferred_output": GOOD, "non_preferred_output": BAD}, PAIR | {"tools": [{"name": "f"}]}),
    ("OpenAI preferences, the prompt as a list", {"input": USER, "preferred_output": GOOD, "non_preferred_output": BAD}, PAIR),
    ("OpenAI functions", {"prompt": ASK, "chosen": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, {"role": "function", "name": "f", "content": "1"}, *GOOD], "rejected": BAD}, {"chosen": [*USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, {"role": "tool", "name": "f", "content": "1"}, *GOOD], "rejected": USER + BAD}),
    ("messages as JSON text", {side: json.dumps(talk) for side, talk in TALKS.items()}, PAIR),
    ("answers as JSON text of a message", {"prompt": json.dumps(USER), "chosen": json.dumps(GOOD[0]), "rejected": json.dumps(BAD)}, PAIR),
    ("ms-swift, JSON text", {"messages": json.dumps(USER + GOOD), "rejected_response": NO}, PAIR),
    ("answers that are JSON themselves", {"prompt": ASK, "chosen": '{"fruit": "cherry"}', "rejected": '["banana"]'}, pair([f"u: {ASK}"], '{"fruit": "cherry"}', '["banana"]')),
    ("LLaMA-Factory, Alpaca", {"instruction": "Name a fruit.", "input": "Red.", "output": [YES, NO], **SYSTEM}, pair(["s: Be brief.", "u: Name a fruit.\nRed."], YES, NO)),
    ("Alpaca with history", {"instruction": ASK, "input": "", **SIDES, **HISTORY}, LONGER),
    ("Chatbot Arena", {"question_id": "q", "conversation_a": TALKS["rejected"], "conversation_b": TALKS["chosen"], "winner": "model_b", "turn": 1}, PAIR | {"id": "q"}),
    ("Chatbot Arena 140k", {"conversation_a": TYPED["chosen"], "conversation_b": TYPED["rejected"], "winner": "model_a"}, PAIR),
    ("Chatbot Arena, Kaggle", {"prompt": json.dumps(["Hi.", ASK]), "response_a": json.dumps(["Hello!", NO]), "response_b": json.dumps(["Hello!", YES]), "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, LONGER),
    ("Chatbot Arena, Kaggle, a list as question", {"prompt": '["[\\"a\\", 1]"]', "response_a": [YES], "response_b": [NO], "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, pair(['u: ["a", 1]'], YES, NO)),
    ("MT-Bench, first turn", {"conversation_a": TALKS["chosen"] + talk("u: Why?", "a: So."), "conversation_b": TALKS["rejected"] + talk("u: Why?", "a: No."), "winner": "model_a", "turn": 1}, PAIR),
    ("PKU-SafeRLHF", {"prompt": ASK, "response_0": NO, "response_1": YES, "better_response_id": 1, "safer_response_id": 0}, PAIR),
    ("JudgeBench", {"pair_id": "j", "source": "math", "question": ASK, "response_A": NO, "response_B": YES, "label": "B>A"}, PAIR | {"id": "j", "source": "math"}),
    ("LLMBar", {"input": ASK, "output_1": NO, "output_2": YES, "label": 2}, PAIR),
    ("AlpacaFarm", {"instruction": "Name a fruit.", "input": "Red.", "output_1": YES, "output_2": NO, "preference": 1.0}, pair(["u: Name a fruit.\nRed."], YES, NO)),
    ("AlpacaEval", {"instruction": ASK, "output_1": NO, "output_2": YES, "generator_1": "a", "generator_2": "b", "preference": 1.9712}, PAIR),
    ("HelpSteer3", {"domain": "general", "context": USER, "response1": YES, "response2": NO, "overall_preference": -2}, PAIR | {"subset": "general"}),
    ("HelpSteer2 preference", {"prompt": ASK, "response_1": NO, "response_2": YES, "preference_strength": 3}, PAIR),
    ("HelpSteer2 preference, more turns", {"prompt": f"Hi.\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\n{ASK}", "response_1": NO, "response_2": YES, "preference_strength": 1}, LONGER),
    ("SHP", {"history": ASK, "human_ref_A": NO, "human_ref_B": YES, "labels": 0, "score_A": 3, "score_B": 9}, PAIR),
    ("WebGPT comparisons", {"question": {"dataset": "eli5", "id": "z", "full_text": ASK}, "answer_0": NO, "answer_1": YES, "score_0": -0.5, "score_1": 0.5}, PAIR),
    ("summarize-from-feedback", {"info": {"subreddit": "tea", "title": "Cold", "post": "My tea is cold."}, "summaries": [{"text": " Bad."}, {"text": " Cold tea."}], "choice": 1}, pair(["u: SUBREDDIT: r/tea\n\nTITLE: Cold\n\nPOST: My tea is cold.\n\nTL;DR:"], "Cold tea.", "Bad.")),
    ("UltraFeedback", {"instruction": ASK, "completions": [{"response": NO, "overall_score": 2}, {"response": YES, "overall_score": 9}]}, PAIR),
    ("NeMo-RL", {"context": USER, "completions": [{"rank": 1, "completion": BAD}, {"rank": 0, "completion": GOOD}]}, PAIR),
    ("Nectar", {"prompt": f"{PROMPTED} ", "answers": [{"answer": NO, "rank": 7}, {"answer": YES, "rank": 1}], "turns": 1}, PAIR),
    ("stack-exchange-preferences", {"question": ASK, "answers": [{"text": YES, "pm_score": 3}, {"text": NO, "pm_score": 0}]}, PAIR),
    ("RewardBench 2", {"id": "r", "prompt": ASK, "chosen": [YES], "rejected": [NO]}, PAIR | {"id": "r"}),
    ("RM-Bench", {"prompt": ASK, "chosen": [YES], "rejected": [NO], "domain": "chat", **SYSTEM}, BRIEF | {"subset": "chat"}),
    ("a prompt that looks like a transcript", {"prompt": "Human: is that a word?", **SIDES}, pair(["u: Human: is that a word?"], YES, NO)),
    ("a question about assistants", {"prompt": "Assistant: what is it?", **SIDES}, pair(["u: Assistant: what is it?"], YES, NO)),
]  # fmt: skip


def pairs_in(rows: list[dict], options: Options = DEFAULT_OPTIONS) -> list:
    return [pair for reading in convert_rows(enumerate(rows, 1), "rows.jsonl", options) for pair in reading.pairs]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_layout_gives_the_pair(row: dict, expected: dict) -> None:
    assert pairs_in([row]) == [expected]


def test_a_later_row_with_an_unused_field_is_an_error() -> None:
    *pairs, lost = pairs_in([*[TALKS] * 100, TALKS | {"context": "Say it in French."}])
    assert pairs == [PAIR] * 100 and isinstance(lost, RowError) and lost.reason == "unused field"


def test_ties_and_margins_of_numbers() -> None:
    rows = [{"prompt": "?", "response1": "a", "response2": "b", "overall_preference": value} for value in (0, -1, 3)]
    tie, first, second = pairs_in(rows, Options(margin_from_gap=True))
    assert isinstance(tie, RowError) and str(tie) == "a tie (overall_preference)."
    assert (first["margin"], second["margin"], second["chosen"][-1]["content"]) == (1, 3, "b")


UNUSED = "rows.jsonl:1: {0} may be part of the conversation but is not used; map it (--prompt, --input, --chosen, --rejected) or ignore it (--ignore {0})."
UNKNOWN = "rows.jsonl: unknown format (keys: {}). "
UNCLEAR = "rows.jsonl:1: the label '0' is ambiguous; pass --label with --label_first, --label_second and --label_tie. "
NAME = NAME_FIELDS
COMMAND = (
    "If these are the right fields, run: .venv/bin/python prepare_data.py rows.jsonl --output save/rows/pairs.jsonl {}"
)


def both_ways(row: dict, first: str, second: str, label: str, *values: object) -> list[dict]:
    """Return a row for each label: the first is better (its answer is YES), the second, and a tie."""
    answers = [(YES, NO), (NO, YES), (YES, "Both.")]
    return [
        row | {first: one, second: other, label: value} for (one, other), value in zip(answers, values, strict=False)
    ]


def unknown(rows: list[dict], advice: str) -> str:
    return UNKNOWN.format(", ".join(rows[0])) + advice


# Layout, rows, error, and the pair if the arguments in the error work as printed.
STEP = {"prompt": ASK, "initial_reason_steps": "First, ", **SIDES, "full_chosen": f"First, {YES}"}
NESTED = [
    {"data": {"prompt": ASK, "response_1": {"text": one}, "response_2": {"text": other}, "preference": better}}
    for one, other, better in [(YES, NO, 1), (NO, YES, 2)]
]
REFUSED: list[tuple[str, list[dict], str, dict | None]] = [
    ("Step-DPO", [STEP], UNUSED.format("initial_reason_steps"), PAIR),
    ("a context and a question", [{"question": ASK, "context": "All.", **SIDES}], UNUSED.format("context"), PAIR),
    ("an instruction and messages", [{"instruction": "Be nice.", **TALKS}], UNUSED.format("instruction"), PAIR),
    ("a second system message", [{**SYSTEM, "prompt": talk("s: Sing.", f"u: {ASK}"), **SIDES}], UNUSED.format("system"), pair(["s: Sing.", f"u: {ASK}"], YES, NO)),
    ("a transcript with a history", [{side: f"{PROMPTED} {SIDES[side]}" for side in SIDES} | HISTORY], UNUSED.format("history"), PAIR),
    ("a label that is 0 or 1", both_ways({"input": ASK}, "output_1", "output_2", "label", 0, 1), UNCLEAR + NAME, None),
    ("Auto-J", rows := both_ways({"prompt": ASK}, "response 1", "response 2", "label", 0, 1, 2), unknown(rows, NAME), None),
    ("KTO", rows := [{"prompt": ASK, "completion": YES, "label": True}], unknown(rows, NAME), None),
    ("fine-tuning", rows := [{"messages": USER + GOOD}], unknown(rows, NAME), None),
    ("HelpSteer", rows := [{"prompt": ASK, "response": YES, "helpfulness": 4}], unknown(rows, NAME), None),
    ("OASST, messages", rows := [{"message_id": "2", "parent_id": "1", "text": YES, "role": "assistant", "rank": 0}], unknown(rows, NAME), None),
    ("OASST, trees", rows := [{"message_tree_id": "1", "prompt": {"text": ASK, "role": "prompter", "replies": [{"text": text, "role": "assistant", "rank": rank, "replies": []} for rank, text in enumerate((YES, NO))]}}], unknown(rows, NAME), None),
    ("rows in a list of another name", rows := [{"results": [{"ask": ASK, "chosen": YES, "rejected": NO * n} for n in (1, 2)]}], unknown(rows, NAME), None),
    ("rows with candidates and labels in a list", rows := [{"results": [{"ask": ASK, "answer_1": YES, "answer_2": NO, "winner": "1"}] * 2}], unknown(rows, NAME), None),
    ("rows by their ids", rows := [{f"q{n}": {"ask": ASK, "good": YES * n, "bad": NO} for n in (1, 2)}], unknown(rows, NAME), None),
    ("splits of one file", rows := [{"train": [TALKS] * 2, "test": [TALKS]}], unknown(rows, NAME), None),
    ("answers without a prompt", rows := [SIDES], unknown(rows, NAME), None),
    ("neither", rows := [{"a": 1, "b": 2}], unknown(rows, NAME), None),
    ("CodeUltraFeedback", [{"instruction": ASK, "responses": [{"model": "m", "response": YES}, {"model": "n", "response": NO}]}], "rows.jsonl:1: none of overall_score, score, rating, reward, helpfulness, fine-grained_score, pm_score (keys: model, response). (1 of the first 1 rows have this problem.) " + NAME, None),
    ("messages without a user's", [{"task_text": ASK, "chosen": GOOD, "rejected": BAD}], "rows.jsonl:1: chosen, message 1 has the role 'assistant' at the start; user and assistant must alternate, with the user first (or a system message before it). (1 of the first 1 rows have this problem.) " + COMMAND.format("--chosen chosen --rejected rejected --prompt task_text"), PAIR),
    ("CValues", rows := [{"prompt": ASK, "pos_resp": YES, "neg_resp": NO, "type": "rule"}], unknown(rows, COMMAND.format("--chosen pos_resp --rejected neg_resp --prompt prompt")), PAIR),
    ("better and worse", rows := [{"id": 1, "query_id": "q7", "query_text": ASK, "better_model": "m", "betterAnswer": YES, "worseAnswer": NO}], unknown(rows, COMMAND.format("--chosen betterAnswer --rejected worseAnswer --prompt query_text")), PAIR | {"id": "1"}),
    ("y_w and y_l", rows := [{"user": ASK, "y_w": YES, "y_l": NO, **SYSTEM}], unknown(rows, COMMAND.format("--chosen y_w --rejected y_l --prompt user")), BRIEF),
    ("a, b and a tie", rows := both_ways({"question": ASK}, "answer_a", "answer_b", "preferred", "a", "b", "tie"), unknown(rows, NAME), None),
    ("models and an input", rows := both_ways({"instruction": "Name one.", "input": "Red."}, "model1_output", "model2_output", "winner", "model1", "model2"), unknown(rows, NAME), None),
    ("nested", NESTED, unknown(NESTED, NAME), None),
    ("complete conversations", rows := [{"winning talk": TALKS["chosen"], "losing talk": TALKS["rejected"]}], unknown(rows, COMMAND.format("--chosen 'winning talk' --rejected 'losing talk'")), PAIR),
    ("answers of several rows in a list", rows := [{"prompt": ASK, "good": [YES, "An apple."], "bad": [NO, "A pear."]}], unknown(rows, NAME), None),
]  # fmt: skip

# Rows, the arguments that name their fields, and the pair of each row that is not a tie.
NAMED: list[tuple[list[dict], str, dict]] = [
    (both_ways({"question": ASK}, "answer_a", "answer_b", "preferred", "a", "b", "tie"), "--prompt question --candidates answer_a answer_b --label preferred --label_first a --label_second b --label_tie tie", PAIR),
    (both_ways({"instruction": "Name one.", "input": "Red."}, "model1_output", "model2_output", "winner", "model1", "model2"), "--prompt instruction --input input --candidates model1_output model2_output --label winner --label_first model1 --label_second model2", pair(["u: Name one.\n\nRed."], YES, NO)),
    (both_ways({"prompt": ASK}, "answer_0", "answer_1", "label", 0, 1), "--prompt prompt --candidates answer_0 answer_1 --label label --label_first 0 --label_second 1", PAIR),
    (NESTED, "--prompt data.prompt --candidates data.response_1.text data.response_2.text --label data.preference --label_first 1 --label_second 2", PAIR),
]  # fmt: skip


def prepared(arguments: list[str], expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run prepare_data.py on rows.jsonl and check that every pair is the expected one."""
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "rows.jsonl", "--output", "save/rows/pairs.jsonl", *arguments])
    prepare_data.main()
    read_back = [row for _, row in read_rows(Path("save/rows/pairs.jsonl"))]
    assert {json.dumps(row | {"source": None}) for row in read_back} == {json.dumps(expected | {"source": None})}


@pytest.mark.parametrize(("rows", "arguments", "expected"), NAMED)
def test_named_fields(rows: list[dict], arguments: str, expected: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "rows.jsonl", rows)
    prepared(arguments.split(), expected, monkeypatch)


@pytest.mark.parametrize(("rows", "message", "expected"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_layout_is_an_error_with_arguments_that_work(
    rows: list[dict], message: str, expected: dict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "rows.jsonl", "--output", "pairs.jsonl"])
    with pytest.raises(InputError) as error:
        prepare_data.main()
    assert str(error.value) == message
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    if expected:
        arguments = re.search(r"--ignore \w+|(?<=pairs\.jsonl )--.*", message)
        assert arguments
        prepared(shlex.split(arguments[0]), expected, monkeypatch)
