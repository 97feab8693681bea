"""The same rows in every type of file give the same pairs; a file that cannot be read completely is an error."""

# ruff: noqa: E501
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from helpers import jsonl, pair, write_files

from reward_model import InputError
from reward_model.data.dataset import load_pairs
from reward_model.data.formats import Options
from reward_model.data.prepare import prepare
from reward_model.data.readers import data_files, read_rows
from reward_model.data.tables import dataset_rows
from reward_model.data.workers import ConversionConfig, Source

ROWS = [{"prompt": f"{number}加1？", "chosen": f"{number + 1}。", "rejected": '"No;\t"'} for number in range(3)]
PAIRS = [pair([f"u: {row['prompt']}"], row["chosen"], row["rejected"]) for row in ROWS]
TALKS = [{side: made[side] for side in ("chosen", "rejected")} for made in PAIRS]
TABLE, TALK_TABLE = pd.DataFrame(ROWS), pd.DataFrame(TALKS)
SCORED = [row | {"score": float("nan") if number else float("inf")} for number, row in enumerate(ROWS)]


def text(value: object, **how: object) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


# Name -> content of a file with ROWS or TALKS.
FILES: dict[str, str] = {
    "array.json": text(ROWS),
    "indented.json": text(TALKS, indent=2),
    "nan.json": text(SCORED),
    "nan.jsonl": "\n".join(map(text, SCORED)),
    "lines.json": "\n".join(map(text, TALKS)),
    "objects.json": "\n".join(text(row, indent=1) for row in TALKS),
    "mark.json": "\ufeff" + text(TALKS),
    "data.json": text({"data": ROWS}),
    "described.json": text({"version": "1.0", "info": {"license": "x"}, "data": TALKS}, indent=1),
    "ids.json": text({f"q{number}": row for number, row in enumerate(ROWS)}),
    **{f"{orient}.json": TABLE.to_json(orient=orient) for orient in ("records", "split", "index", "columns", "table")},
    **{f"talk_{orient}.json": TALK_TABLE.to_json(orient=orient) for orient in ("split", "index", "columns")},
    "to_dict.json": text(Dataset.from_list(ROWS).to_dict()),
    "talk_to_dict.json": text(Dataset.from_list(TALKS).to_dict()),
    "comma.csv": TABLE.to_csv(index=False),
    "semicolon.csv": TABLE.to_csv(index=False, sep=";"),
    "tab.csv": TABLE.to_csv(index=False, sep="\t"),
    "json_text.csv": pd.DataFrame({side: [text(row[side]) for row in TALKS] for side in TALKS[0]}).to_csv(index=False),
    "json_text.jsonl": "\n".join(text({side: text(row[side]) for side in row}) for row in TALKS),
    "json_text_and_prompt.jsonl": "\n".join(
        text({"prompt": ask["prompt"]} | {side: text(row[side]) for side in row})
        for ask, row in zip(ROWS, TALKS, strict=True)
    ),
}


def loaded(source: Path | str) -> list[dict]:
    pairs = load_pairs(str(source))[0]
    return [{side: json.loads(row[side]) for side in ("chosen", "rejected")} for row in pairs]


@pytest.mark.parametrize("name", FILES)
def test_file_gives_all_pairs(name: str, tmp_path: Path) -> None:
    write_files(tmp_path, {name: FILES[name]})
    assert loaded(tmp_path / name) == TALKS


def test_directories_with_files_of_datasets_and_configs(tmp_path: Path) -> None:
    Dataset.from_list(TALKS).save_to_disk(tmp_path / "one")
    (tmp_path / "one/cache-1f.arrow").write_bytes(b"of map()")
    DatasetDict(train=Dataset.from_list(TALKS), test=Dataset.from_list(TALKS[:1])).save_to_disk(tmp_path / "two")
    write_files(tmp_path / "hub", {"README.md": "# x", "dataset_infos.json": '{"default": {"features": {}}}'})
    write_files(tmp_path / "hub", {"recipe.json": '{"lr": 1e-5, "targets": ["q_proj"]}', "row.json": text(TALKS[2])})
    Dataset.from_list(TALKS[:2]).to_parquet(tmp_path / "hub/data.parquet")
    assert [loaded(tmp_path / name) for name in ("one", "two", "hub")] == [TALKS] * 3
    test_pairs = load_pairs(str(tmp_path / "two"))[1]
    assert test_pairs is not None and len(test_pairs) == 1


def called(number: int, arguments: object, **more: object) -> dict:
    """Return a row with a call of tool `number`, whose arguments no other tool has."""
    tool = {"name": f"tool_{number}", "parameters": {"properties": {f"key_{number}": {"enum": [None, "a"]}}}}
    call = {"type": "function", "function": {"name": f"tool_{number}", "arguments": arguments}}
    prompt = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    chosen, rejected = (
        prompt + [{"role": "tool", "content": "ok"}, {"role": "assistant", "content": end}] for end in ("Yes.", "No.")
    )
    return {"chosen": chosen, "rejected": rejected, "tools": [{"type": "function", "function": tool}]} | more


def test_tool_calls_are_the_same_from_every_type_of_file(tmp_path: Path) -> None:
    """Remove the nulls that Arrow adds to arguments and tools of other rows; parse text arguments."""

    def columns(source: Path) -> list[list]:
        pairs = load_pairs(str(source))[0]
        return [pairs[name][:] for name in ("chosen", "rejected", "tools", "prompt")]

    rows = [called(number, {f"key_{number}": number} if number else {}) for number in range(3)]
    mixed = [called(number, {"key": value, "none": None}) for number, value in enumerate(["a", 1, None])]
    expected = columns(jsonl(tmp_path / "rows.jsonl", rows))
    texts = [called(number, text({f"key_{number}": number}) if number else "") for number in range(3)]
    assert columns(jsonl(tmp_path / "texts.jsonl", texts)) == expected
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(texts).to_parquet(tmp_path / "texts.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in ("rows.parquet", "texts.parquet", "saved"):
        assert columns(tmp_path / source) == expected, source
    # Columns of JSON text (arrow.json) keep the nulls that their rows have.
    Dataset.from_list(mixed, on_mixed_types="use_json").to_parquet(tmp_path / "mixed.parquet")
    assert columns(tmp_path / "mixed.parquet") == columns(jsonl(tmp_path / "mixed.jsonl", mixed))
    for name, streaming in (("rows", False), ("mixed", True)):  # as from the Hub
        files = str(tmp_path / f"{name}.parquet")
        hub = load_dataset("parquet", data_files=files, split="train", streaming=streaming, cache_dir=tmp_path / "c")
        assert [*dataset_rows(hub)] == [row for _, row in read_rows(Path(files))]


WRONG_CALL = {"name": "f", "arguments": '{"city": '}
# Keys of a message, and its tool calls after validation.
CALLS = [
    ({"tool_calls": [{"function": {"name": "f", "arguments": '{"a": [1, null]}'}}]}, [{"function": {"name": "f", "arguments": {"a": [1, None]}}}]),
    ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": None}}}]}, [{"function": {"name": "f", "arguments": {"a": None}}}]),
    ({"tool_calls": [{"function": WRONG_CALL}]}, [{"function": WRONG_CALL}]),
    ({"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, [{"function": {"name": "f", "arguments": {}}}]),
    ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, [{"name": "f", "arguments": "[1]"}]),
    ({"tool_calls": '[{"name": "f", "arguments": "{}"}]'}, [{"name": "f", "arguments": {}}]),
    ({"function_call": {"name": "f", "arguments": '{"a": 1}'}}, [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "calls"), CALLS)
def test_tool_calls_of_a_message(keys: dict, calls: list, tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "No."}
    rows = [{"chosen": [question, {"role": "assistant", "content": None} | keys], "rejected": [question, answer]}]
    found = loaded(jsonl(tmp_path / "rows.jsonl", rows))
    assert found[0]["chosen"][1] == {"role": "assistant", "tool_calls": calls}
    assert keys.keys() < rows[0]["chosen"][1].keys(), "the row must not change"


def test_pairs_that_differ_only_in_calls_or_reasoning_are_different(tmp_path: Path) -> None:
    def answer(**keys: object) -> list[dict]:
        return [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "I look it up."} | keys]

    def call(town: str) -> list[dict]:
        return [{"function": {"name": "weather", "arguments": {"town": town}}}]

    sides = [answer(tool_calls=call(town)) for town in ("Oslo", "Rome", "Bern")]
    sides += [answer(reasoning_content=why) for why in ("It may rain.", "Why not?", "Guess.")] + [answer()]
    rows = [{"chosen": a, "rejected": b} for number, a in enumerate(sides) for b in sides[number + 1 :]]
    source = jsonl(tmp_path / "rows.jsonl", [*rows, rows[0]])
    made = prepare([Source(str(source))], tmp_path / "pairs.jsonl", ConversionConfig(Options(), ("duplicate",)))
    assert len(made.facts) == len(rows) == 21
    assert {reason: seen["count"] for reason, seen in made.findings.items()} == {"duplicate": 1}


# Name -> a file that cannot be read completely, and the error.
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut.json": (text(ROWS)[:-9], "cut.json: not valid JSON (Unterminated string starting at: line 1 column "),
    "open.json": (text(ROWS)[:-1], "open.json: not valid JSON (Expecting ',' delimiter: line 1 column "),
    "typo.json": (text(ROWS, indent=1).replace('"chosen":', '"chosen"', 2).replace('"chosen"', '"chosen":', 1), "typo.json: not valid JSON (Expecting ':' delimiter: line 9 column 12 "),
    "quote.csv": ('prompt,chosen,rejected\nWhy?,So.,No.\n"How?,So.,No.\nWhen?,Now.,No.\n', "quote.csv: cannot read line 3: unexpected end of data. Close all quotes"),
    "gbk.csv": (TABLE.to_csv(index=False).encode("gbk"), "gbk.csv: row 1: line 2: not UTF-8; convert the file, for example with iconv -f GB18030 -t UTF-8"),
    "gbk_header.csv": (TABLE.rename(columns={"prompt": "提示", "chosen": "更好的回答"}).to_csv(index=False).encode("gbk"), "gbk_header.csv: row 1: line 2: not UTF-8; convert the file"),
    "gbk.jsonl": ("\n".join(map(text, ROWS)).encode("gbk"), "gbk.jsonl:1: not UTF-8 at byte 13; convert the file, for example with iconv"),
    "gbk.json": (text(ROWS).encode("gbk"), "gbk.json: not UTF-8 at byte 14; convert the file"),
    "repr.csv": (TALK_TABLE.to_csv(index=False), "repr.csv: chosen is not JSON but the Python repr of messages ([{'role':…)"),
    "repr_and_prompt.csv": (TALK_TABLE.assign(prompt="?").to_csv(index=False), "repr_and_prompt.csv: chosen is not JSON but the Python repr of messages ([{'role':…)"),
    "numpy.jsonl": (text({"prompt": "?", "chosen": "[{'role': 'user'}\n {'role': 'assistant'}]", "rejected": "x"}), 'text.replace("}\\n {", "}, {")'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_completely_is_an_error(name: str, tmp_path: Path) -> None:
    content, expected = BROKEN[name]
    write_files(tmp_path, {name: content})
    with pytest.raises(InputError) as in_training:
        load_pairs(str(tmp_path / name))
    with pytest.raises(InputError) as prepared:
        prepare([Source(str(tmp_path / name))], tmp_path / "pairs.jsonl", ConversionConfig(Options()))
    assert expected in str(prepared.value) and expected in str(in_training.value)
    assert data_files(str(tmp_path)) == [tmp_path / name], "nothing was written"


def test_margin_in_a_csv_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"rows.csv": TABLE.assign(margin=[1.5, 2, -0.25]).to_csv(index=False)})
    assert load_pairs(str(tmp_path / "rows.csv"))[0]["margin"][:] == [1.5, 2.0, -0.25]
    write_files(tmp_path, {"json_answers.csv": 'prompt,chosen,rejected\n?,"{""a"": 1}","{""a"": 2}"\n'})
    assert loaded(tmp_path / "json_answers.csv")[0]["chosen"][-1]["content"] == '{"a": 1}'
