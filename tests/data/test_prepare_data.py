"""prepare_data.py sets bad rows aside with the right reason and place, and keeps the others."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, conversation, demo_pairs, jsonl, run

import prepare_data
from reward_model import InputError
from reward_model.data.formats import Options
from reward_model.data.pair import WARNINGS
from reward_model.data.prepare import PreparedData, prepare
from reward_model.data.quality import ExcludedPrompts
from reward_model.data.workers import ConversionConfig, Source

MESSAGES = {"chosen": conversation("Why?", "Because."), "rejected": conversation("Why?", "No idea.")}


def good(format_: str, number: int) -> dict:
    """Return a good row of a format, different for each number."""
    ask, yes, no = f"What is {number}?", "A number.", "A colour."
    human = f"\n\nHuman: {ask}\n\nAssistant: "
    return {
        "messages": {"chosen": conversation(ask, yes), "rejected": conversation(ask, no)},
        "text": {"prompt": ask, "chosen": yes, "rejected": no},
        "transcript": {"chosen": human + yes, "rejected": human + no},
        "sharegpt": {
            "conversations": [{"from": "human", "value": ask}],
            "chosen": {"from": "gpt", "value": yes},
            "rejected": {"from": "gpt", "value": no},
        },
        "alpaca": {"instruction": ask, "input": "", "output": [yes, no]},
        "verdict": {"question": ask, "response_A": no, "response_B": yes, "label": "B>A"},
        "scored": {"prompt": ask, "completions": [{"response": yes, "score": 5}, {"response": no, "score": 1}]},
        "lists": {"prompt": ask, "chosen": [yes], "rejected": [no]},
    }[format_]


def turns(*roles: str) -> list[dict]:
    return [{"role": role, "content": f"{number} {role}"} for number, role in enumerate(roles)]


NAN = {**MESSAGES, "margin": float("nan")}
# Format of the good rows around it, malformed line (text, bytes or a row), reason, part of the message.
MALFORMED = [
    ("messages", '{"chosen": [}', "not parseable", "not valid JSON"),
    ("messages", '{"chosen": []', "not parseable", "column 14"),
    ("messages", "chosen,rejected", "not parseable", "not valid JSON"),
    ("messages", "[" * 100_000, "not parseable", "maximum recursion depth"),
    ("messages", b'{"chosen": "\xff\xfe"}', "not decodable", "not UTF-8 at byte 12"),
    ("messages", [1, 2], "not a row", "found list"),
    ("messages", "just text", "not a row", "found str"),
    ("messages", None, "not a row", "found NoneType"),
    ("messages", {}, "missing field", "no 'chosen'"),
    ("messages", {"chosen": MESSAGES["chosen"]}, "missing field", "no 'rejected' (keys: chosen)"),
    ("messages", MESSAGES | {"rejected": None}, "missing field", "no 'rejected'"),
    ("messages", MESSAGES | {"chosen": []}, "empty", "chosen is empty"),
    ("messages", MESSAGES | {"chosen": "Because."}, "not messages", "chosen is a str"),
    ("messages", MESSAGES | {"chosen": 7, "system": "Be kind."}, "not messages", "chosen is a int"),
    ("messages", MESSAGES | {"chosen": 7}, "not messages", "chosen is a int"),
    ("messages", MESSAGES | {"rejected": ["No idea."]}, "not messages", "rejected, message 1 is not"),
    ("messages", MESSAGES | {"chosen": [{"content": "Why?"}]}, "not messages", "chosen, message 1 is not"),
    ("messages", MESSAGES | {"chosen": turns("narrator", "assistant")}, "unknown role", "the role 'narrator'"),
    ("messages", MESSAGES | {"chosen": [{"role": ["user"], "content": "a"}]}, "unknown role", "['user']"),
    ("messages", MESSAGES | {"chosen": turns("user")}, "roles out of order", "ends with the role 'user'"),
    ("messages", MESSAGES | {"chosen": turns("assistant")}, "roles out of order", "at the start"),
    (
        "messages",
        MESSAGES | {"chosen": turns("user", "user", "assistant")},
        "roles out of order",
        "message 2 has the role 'user' after 'user'",
    ),
    (
        "messages",
        MESSAGES | {"chosen": turns("user", "assistant", "assistant")},
        "roles out of order",
        "message 3 has the role 'assistant' after 'assistant'",
    ),
    ("messages", MESSAGES | {"chosen": turns("user", "system", "assistant")}, "roles out of order", "message 2"),
    ("messages", MESSAGES | {"chosen": turns("user", "tool", "assistant")}, "roles out of order", "message 2"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "")}, "empty", "chosen ends with an empty answer"),
    ("messages", MESSAGES | {"rejected": conversation("Why?", " \n")}, "empty", "rejected ends with an empty"),
    ("messages", MESSAGES | {"chosen": conversation("  ", "Because.")}, "empty", "message 1 (user) is empty"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", 4)}, "not text", "content that is not text: '4'"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", None)}, "not text", "not text: 'None'"),
    ("messages", MESSAGES | {"rejected": MESSAGES["chosen"]}, "identical answers", "are identical"),
    ("messages", MESSAGES | {"rejected": conversation("Why?", " Because.\n")}, "identical answers", "are identical"),
    ("messages", MESSAGES | {"margin": "big"}, "margin", "margin is 'big'"),
    ("messages", MESSAGES | {"margin": True}, "margin", "margin is True"),
    ("messages", NAN, "margin", "margin is nan"),
    ("messages", MESSAGES | {"tools": "{"}, "not parseable", "tools is not JSON"),
    (
        "messages",
        MESSAGES | {"chosen": conversation("Why?", "Be\x00cause.")},
        "control characters",
        "U+0000 at character 3",
    ),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "né\x85\x9b.")}, "control characters", "U+009B"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "Be\ud83d.")}, "not decodable", "U+D83D at character 3"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "caf\ufffd")}, "broken encoding", "U+FFFD"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "cafÃ©")}, "broken encoding", "'Ã©'"),
    ("messages", MESSAGES | {"chosen": conversation("Why?", "itâ€™s")}, "broken encoding", "decoded as another"),
    ("text", {"prompt": "Why?", "chosen": "Because."}, "missing field", "no 'rejected'"),
    ("text", {"prompt": "", "chosen": "a", "rejected": "b"}, "empty", "message 1 (user) is empty"),
    ("text", {"prompt": 5, "chosen": "a", "rejected": "b"}, "not text", "message 1 has content that is not text"),
    ("text", {"prompt": "Why?", "chosen": {"a": 1}, "rejected": "b"}, "not messages", "message 2 is not"),
    (
        "transcript",
        {"chosen": "Hello.", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "not messages",
        "no Human:/Assistant:",
    ),
    ("transcript", {"chosen": 1, "rejected": "b"}, "not messages", "turns in '1'"),
    ("sharegpt", good("sharegpt", 9) | {"chosen": {"from": "bot", "value": "a"}}, "unknown role", "the role 'bot'"),
    (
        "sharegpt",
        good("sharegpt", 9) | {"chosen": {"from": "function_call", "value": "a"}},
        "not text",
        "not JSON with name",
    ),
    ("sharegpt", good("sharegpt", 9) | {"conversations": None}, "missing field", "none of conversations, messages"),
    ("alpaca", {"instruction": "Why?", "output": ["a"]}, "missing field", "a list of two answers"),
    ("alpaca", good("alpaca", 9) | {"history": [1]}, "another layout", "does not have the format alpaca"),
    ("verdict", good("verdict", 9) | {"label": "C>A"}, "verdict", "unknown label 'c>a'; expected one of"),
    ("verdict", good("verdict", 9) | {"response_A": None}, "missing field", "no 'response_A'"),
    (
        "scored",
        {"prompt": "Why?", "completions": [{"response": "a", "score": 1}]},
        "missing field",
        "at least two answers",
    ),
    ("scored", {"prompt": "Why?", "responses": ["a", "b"], "scores": [1]}, "missing field", "2 answers but 1 scores"),
    ("scored", {"prompt": "Why?", "responses": ["a", "b"], "scores": [1, "N/A"]}, "score", "'N/A' is not a number"),
    (
        "scored",
        {"prompt": "Why?", "responses": ["a", "b"], "scores": [1, float("nan")]},
        "score",
        "'nan' is not a number",
    ),
    ("scored", {"prompt": "Why?", "responses": ["a", "b"], "scores": [1, 10**400]}, "score", "is not a number"),
    ("scored", {"prompt": "Why?", "responses": ["a", "b"], "scores": [2, 2]}, "tie", "no two answers differ"),
    ("lists", {"prompt": "Why?", "chosen": ["a"], "rejected": []}, "empty", "at least one answer"),
]


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def prepared(source: Path, output: Path, **settings: object) -> PreparedData:
    return prepare(
        [Source(str(source))], output, ConversionConfig(Options(), drop=WARNINGS), ties="keep-both-out", **settings
    )


def check_rejected(output: Path, reason: str, message: str, place: str) -> None:
    (bad,) = read(output.with_suffix(".rejected.jsonl"))
    assert bad["reason"] == reason and message in bad["message"], bad
    assert bad["place"] == place
    assert len(read(output)) == 2


@pytest.mark.parametrize(("format_", "line", "reason", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_row_is_set_aside(format_: str, line: object, reason: str, message: str, tmp_path: Path) -> None:
    if not isinstance(line, bytes):
        is_row = not isinstance(line, str) or line == "just text"
        line = (json.dumps(line) if is_row else line).encode()
    before, after = (json.dumps(good(format_, number)).encode() for number in (1, 2))
    source = tmp_path / "source.jsonl"
    source.write_bytes(b"\n".join([before, b"", line, after]))
    prepared(source, tmp_path / "pairs.jsonl")
    check_rejected(tmp_path / "pairs.jsonl", reason, message, f"{source}:3")


def test_malformed_files(tmp_path: Path) -> None:
    rows = [good("text", number) for number in range(3)]
    array = tmp_path / "array.json"
    array.write_text(f'\ufeff[{json.dumps(rows[0])},\n{json.dumps(rows[1])},\n{{"prompt" 1}}]')
    with pytest.raises(InputError, match=r"array\.json: not valid JSON \(Expecting ':' delimiter: line 3 column"):
        prepared(array, tmp_path / "1.jsonl")

    table = tmp_path / "table.csv"
    table.write_bytes(b'prompt,chosen,rejected\r\nWhy?,"So, yes.",No.\r\nHow?,So.\r\nWhen?,Now.,Then.\r\n')
    prepared(table, tmp_path / "2.jsonl")
    check_rejected(tmp_path / "2.jsonl", "not parseable", "fields differs from the header", f"{table}: row 2")
    table.write_bytes(b"prompt,chosen,rejected\nWhy?,Yes.,No.\nHow?,caf\xe9,So.\nWhen?,Now.,Then.\n")
    prepared(table, tmp_path / "2.jsonl")
    check_rejected(tmp_path / "2.jsonl", "not decodable", "line 3: not UTF-8; convert the file", f"{table}: row 2")

    lines = "".join(json.dumps(row) + "\n" for row in rows[:2]).encode()
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(lines) + gzip.compress(lines)[:12])
    with pytest.raises(InputError, match=r"packed\.jsonl\.gz:3: the file is truncated"):
        prepared(packed, tmp_path / "3.jsonl")


def test_a_source_without_pairs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.parquet").write_text("no")
    ties = jsonl(tmp_path / "ties.jsonl", [good("verdict", 1) | {"label": "A=B"}])
    for source, message in {
        "odd.jsonl": r"unknown format \(keys: a, b\).*--prompt FIELD",
        "empty.jsonl": r"empty\.jsonl: empty, no rows",
        "bad.parquet": r"bad\.parquet: not a Parquet file",
        "none.jsonl": "file not found",
        "ties.jsonl": r"No valid pairs in 1 rows\. tie: 1",
    }.items():
        with pytest.raises(InputError, match=message):
            prepared(tmp_path / source, tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match=r"ties\.jsonl:1: a tie \('a=b'\)\. Nothing was written. Pass a different"):
        prepare([Source(str(ties))], tmp_path / "pairs.jsonl", ConversionConfig(), ties="stop")
    with pytest.raises(InputError, match=r"odd\.jsonl:2: no 'chosen'.*Omit --strict"):
        odd = jsonl(tmp_path / "odd.jsonl", [MESSAGES, {"a": 1}])
        prepared(odd, tmp_path / "pairs.jsonl", strict=True)
    assert not list(tmp_path.glob("pairs*"))


def test_pairs_that_contradict_each_other(tmp_path: Path) -> None:
    def text(chosen: str, rejected: str, prompt: str = "Which?") -> dict:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    rows = [text("x", "y", "One?"), text("x", "y", "One?"), text("y", "x", "Two?"), text("x", "y", "Two?")]
    rows += [text("a", "b"), text("b", "c"), text("c", "a"), text("a", "z"), text("w", "c")]
    # Another cycle, and a preference that leads from one to the other.
    rows += [text("d", "e"), text("e", "f"), text("f", "d"), text("a", "d")]
    source = jsonl(tmp_path / "source.jsonl", rows)
    made = prepared(source, tmp_path / "pairs.jsonl")
    found = {
        reason: [place.split(": ")[0].rsplit(":")[-1] for place in seen["first"]]
        for reason, seen in made.findings.items()
    }
    assert found == {"duplicate": ["2"], "both orders": ["3", "4"], "contradiction": ["5", "6", "7", "10", "11"]}
    assert made.findings["contradiction"]["count"] == 6  # the report has the first five
    assert f"the same pair is also at {source}:1." in made.findings["duplicate"]["first"][0]
    assert [pair["chosen"][-1]["content"] for pair in read(tmp_path / "pairs.jsonl")] == ["x", "a", "w", "a"]


def test_pairs_with_a_warning_are_counted_and_kept_unless_dropped(tmp_path: Path) -> None:
    odd = MESSAGES | {"chosen": conversation("Why?", "caf\ufffd")}
    source = jsonl(tmp_path / "source.jsonl", [MESSAGES, MESSAGES, odd])
    made = prepare([Source(str(source))], tmp_path / "pairs.jsonl", ConversionConfig())
    found = {reason: (seen["count"], seen["kept"]) for reason, seen in made.findings.items()}
    assert found == {"duplicate": (1, True), "broken encoding": (1, True)} and len(made.facts) == 3
    made = prepared(source, tmp_path / "pairs.jsonl")
    assert not any(seen["kept"] for seen in made.findings.values()) and len(made.facts) == 1


def test_held_out_prompts_are_removed(tmp_path: Path) -> None:
    question = "Explain in simple words how a heat pump can warm a house although it is cold outside."
    prompts = [question, question.upper() + "  ", question.replace("simple", "plain"), "Explain how a fridge works."]
    rows = [{"prompt": prompt, "chosen": "So.", "rejected": "No."} for prompt in prompts]
    held = jsonl(tmp_path / "held.jsonl", [{"prompt": question}])
    source = jsonl(tmp_path / "source.jsonl", rows)

    def found(similarity: float) -> PreparedData:
        config = ConversionConfig(check_prompt=ExcludedPrompts([str(held)], similarity).check)
        return prepare([Source(str(source))], tmp_path / "pairs.jsonl", config)

    findings = found(0.7).findings
    counts = {reason: finding["count"] for reason, finding in findings.items()}
    assert counts == {"contaminated": 2, "nearly contaminated": 1}
    assert f"the prompt duplicates the one at {held}:1, which is excluded" in findings["contaminated"]["first"][0]
    assert found(1).findings.keys() == {"contaminated"}


def test_sources_are_mixed_and_split(tmp_path: Path) -> None:
    sources = {}
    for name, count in {"big": 300, "small": 40}.items():
        rows = [{"prompt": f"{name} {i // 2}?", "chosen": f"yes {i}", "rejected": "no", "id": i} for i in range(count)]
        sources[name] = str(jsonl(tmp_path / f"{name}.jsonl", rows))
    output = tmp_path / "out" / "pairs.jsonl"

    def written(**settings: int) -> list[dict]:
        mix = [Source(sources["big"], weight=3.0, cap=200), Source(sources["small"], weight=1.0)]
        prepare(mix, output, ConversionConfig(), eval_size=0.25, **settings)
        return read(output) + read(output.with_suffix(".eval.jsonl"))

    pairs = written(seed=1)
    counts = {name: sum(pair["source"] == name for pair in pairs) for name in sources}
    assert counts == {"big": 120, "small": 40}
    train, held = read(output), read(output.with_suffix(".eval.jsonl"))
    assert 35 <= len(held) <= 45
    assert not {p["chosen"][0]["content"] for p in train} & {p["chosen"][0]["content"] for p in held}
    for name in sources:  # each source in the order read, interleaved
        ids = [int(pair["id"]) for pair in train if pair["source"] == name]
        assert ids == sorted(ids)
    assert train[:50] != sorted(train[:50], key=lambda pair: pair["source"])
    assert written(seed=1) == pairs and written(seed=2) != pairs


def test_several_processes_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_model.data.workers.LEAST_BYTES", 0)
    monkeypatch.setattr("reward_model.data.workers.CHUNK", 7)
    rows = [*demo_pairs()[:100], {"a": 1}, *demo_pairs()[100:]]
    source = jsonl(tmp_path / "source.jsonl", rows)
    one, two = (prepared(source, tmp_path / f"{n}.jsonl", num_proc=n).findings for n in (1, 3))
    assert one == two and (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


def test_unreadable_rows_reach_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_model.data.workers.LEAST_BYTES", 0)
    table = tmp_path / "table.csv"
    table.write_text("prompt,chosen,rejected\nWhy?,So.,No.\nHow?,So.\nWhen?,Now.,Then.\n")
    prepared(table, tmp_path / "pairs.jsonl", num_proc=2)
    check_rejected(tmp_path / "pairs.jsonl", "not parseable", "fields differs from the header", f"{table}: row 2")


def test_files_of_the_user_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "source directory"
    folder.mkdir()
    source = jsonl(folder / "source.jsonl", [good("text", number) for number in range(9)])
    benchmark = jsonl(tmp_path / "benchmark.eval.jsonl", [good("text", 1)])
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    mine = jsonl(tmp_path / "mine.rejected.jsonl", [good("text", 3)])
    before = {file: file.read_bytes() for file in (source, benchmark, mine)}

    def command(output: Path, *more: object, sources: Path = source) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, (sources, "--output", output, *more))])
        try:
            prepare_data.main()
            result = "written"
        except InputError as error:
            result = str(error)
        assert {file: file.read_bytes() for file in before} == before
        return result

    assert f"would overwrite the input {source}" in command(source)
    for link in ("link.jsonl", "hard.jsonl"):
        assert "would overwrite the input" in command(tmp_path / link, "--overwrite")
    excluded = ("--exclude_prompts", benchmark, "--overwrite")
    assert f"would overwrite the input {benchmark}" in command(tmp_path / "benchmark.jsonl", *excluded)
    for inside in (
        folder / "pairs.jsonl",
        folder / "new" / "pairs.jsonl",
        tmp_path / "source directory/../x/../pairs.jsonl",
    ):
        result = command(inside, sources=folder)
        expected = f"is inside the input {folder}" if inside.resolve().is_relative_to(folder) else "written"
        assert expected in result
    assert not (folder / "new").exists() and not list(folder.glob("pairs*"))

    output, held = (
        tmp_path / "pairs.jsonl",
        tmp_path / "pairs.eval.jsonl",
    )  # written just now: its own output may be replaced
    assert command(output, "--eval_size", "2") == "written" and command(output) == "written"
    assert not held.exists()
    theirs = jsonl(held, [good("text", 5)]).read_bytes()  # the report does not name it
    assert f"would overwrite {held}, which prepare_data.py did not write" in command(output)
    assert held.read_bytes() == theirs
    assert command(output, "--overwrite") == "written"
    assert f"would overwrite {mine}, which prepare_data.py did not write" in command(tmp_path / "mine.jsonl")
    (tmp_path / "pairs.report.json").write_text("[]")
    assert "Pass a different name or --overwrite" in command(output)


@pytest.mark.slow
def test_command_prints_a_summary_and_writes_the_report(base_model: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "some source.jsonl", [*demo_pairs(), {"chosen": []}])
    output = tmp_path / "some pairs.jsonl"
    command = [sys.executable, ROOT / "prepare_data.py", source, "--output", output]
    shown = run(*command, "--tokenizer", base_model, "--max_length", "120").stdout
    assert "missing field: 1 set aside" in shown and "too long: " in shown
    assert "accuracy of trivial judges: " in shown and "at batch size 8" in shown
    figures = json.loads(output.with_suffix(".report.json").read_text())
    assert figures["unit"] == "tokens" and figures["lengths"]["chosen"]["max"] <= 120
    assert figures["rows"] == len(demo_pairs()) + 1
    html = output.with_suffix(".report.html").read_text()
    assert html.count("<svg") == 2 and "http" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    )
    assert html.count("<details>") == 10

    failed = run(*command, "--chosen", "good", check=False)
    assert failed.returncode == 2 and "--chosen and --rejected must be passed together" in failed.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_run_leaves_nothing_under_the_final_name(how: signal.Signals, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    line = json.dumps(MESSAGES).replace("Why?", "Why %d?")
    source.write_text("".join(line.replace("%d", str(number)) + "\n" for number in range(200_000)))
    command = [sys.executable, str(ROOT / "prepare_data.py"), str(source), "--output", str(tmp_path / "pairs.jsonl")]
    process = subprocess.Popen([*command, "--num_proc", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any(file.stat().st_size for file in tmp_path.glob(".preparing-*/0")):
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, how)  # all of its processes, like Ctrl-C
    result = process.communicate()[1]
    assert "Traceback" not in result
    assert result.endswith("\nStopped; nothing was written.\n") == (how == signal.SIGINT)
    assert not list(tmp_path.glob("pairs*"))
