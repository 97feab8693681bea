"""Bad inputs of evaluate.py: a clear error, a nonzero exit status, no traceback, and inputs that do not change."""

import json
from pathlib import Path

import pytest
from helpers import PAIRS, contents, jsonl, write_files

import evaluate

PAIR = {side: PAIRS[0][side] for side in ("chosen", "rejected")}
LIST = {"prompt": "2 + 2?", "chosen": ["4"], "rejected": ["5", "6", "7"]}
# name -> (files of the current directory: rows, text or bytes), arguments, part of the error
ODD: dict[str, tuple[dict[str, object], str, str]] = {
    "no data": ({}, "--model M nowhere.jsonl", "nowhere.jsonl: file not found"),
    "empty file": ({"d.jsonl": ""}, "--model M d.jsonl", "d.jsonl: empty"),
    "an empty directory": ({"d/x.txt": "x"}, "--model M d", "no data files in this directory"),
    "bytes": ({"d.jsonl": b"\xff\xfe\x00"}, "--model M d.jsonl", "d.jsonl"),
    "no pair": ({"d.jsonl": [{"text": "hello"}]}, "--model M d.jsonl", "d.jsonl"),
    "a bad row": ({"d.jsonl": [PAIR, {"chosen": [], "rejected": []}]}, "--model M d.jsonl", "d.jsonl:2: "),
    "only bad rows": ({"d.jsonl": [{"chosen": [], "rejected": []}] * 2}, "--model M --skip_bad d.jsonl", "d.jsonl"),
    "both sides equal": ({"d.jsonl": [PAIR | {"rejected": PAIR["chosen"]}]}, "--model M d.jsonl", "are identical"),
    "user's turn last": ({"d.jsonl": [{s: PAIR[s][:1] for s in PAIR}]}, "--model M d.jsonl", "d.jsonl:1: "),
    "NaN as a margin": ({"d.jsonl": '{"chosen": NaN, "rejected": NaN}\n'}, "--model M d.jsonl", "d.jsonl"),
    "ties of pairs": ({"d.jsonl": [PAIR]}, "--model M --protocol ties d.jsonl", "a pair, but --protocol ties"),
    "best of pairs": ({"d.jsonl": [PAIR]}, "--model M --protocol best d.jsonl", "a pair, but --protocol best"),
    "rm-bench of one and three": ({"d.jsonl": [LIST]}, "--model M --protocol rm-bench d.jsonl", "RM-Bench has 3"),
    "neither": ({"d.jsonl": [PAIR]}, "d.jsonl", "pass either --model DIRECTORY or --url URL"),
    "both": (
        {"d.jsonl": [PAIR]},
        "--model M --url http://127.0.0.1:9 d.jsonl",
        "pass either --model DIRECTORY or --url URL",
    ),
    "base without model": ({}, "--url http://127.0.0.1:9 --base_model M d.jsonl", "--base_model requires --model"),
    "concurrency of words": ({}, "--url http://127.0.0.1:9 --concurrency x d.jsonl", "invalid int value: 'x'"),
    "no model": ({"d.jsonl": [PAIR]}, "--model nowhere d.jsonl", "nowhere is not a directory"),
    "a file as model": ({"d.jsonl": [PAIR]}, "--model d.jsonl d.jsonl", "d.jsonl is not a directory"),
    "model without config": ({"d.jsonl": [PAIR], "m/x": "x"}, "--model m d.jsonl", "m has no config.json"),
    "output holds other files": (
        {"d.jsonl": [PAIR], "o/mine.txt": "x"},
        "--model M d.jsonl --output o",
        "o contains mine",
    ),
    "output is a file": ({"d.jsonl": [PAIR], "o": "x"}, "--model M d.jsonl --output o", "exists: 'o'"),
    "output in a file": ({"d.jsonl": [PAIR], "o": "x"}, "--model M d.jsonl --output o/p", "directory: 'o/p'"),
    "output is the model": ({"d.jsonl": [PAIR]}, "--model M d.jsonl --output M", "which evaluate.py did not write"),
    "compare nothing": ({}, "compare a b", "a: no scores.jsonl"),
    "compare empty directories": ({"a/x": "", "b/x": ""}, "compare a b", "a: no scores.jsonl"),
    "compare garbage": ({"a/scores.jsonl": b"\x00\xff", "b/x": ""}, "compare a b", "not written by this version"),
    "compare other rows": ({"a/scores.jsonl": [PAIR], "b/x": ""}, "compare a b", "not written by this version"),
    "compare lists": ({"a/scores.jsonl": "[1]\n", "b/x": ""}, "compare a b", "not written by this version"),
    "compare into a file": ({"r.json": "mine"}, "compare a b --output r.json", "r.json already exists"),
    "parity without url": ({}, "parity M d.jsonl", "--url"),
    "parity without a model": (
        {"d.jsonl": [PAIR]},
        "parity nowhere --url http://127.0.0.1:9 d.jsonl",
        "is not a directory",
    ),
    "no server": ({"d.jsonl": [PAIR]}, "--url http://127.0.0.1:9 d.jsonl", "Cannot reach a server at http:"),
    "an unknown argument": ({}, "--model M d.jsonl --colour red", "unrecognized arguments: --colour red"),
}


def exit_of(argv: list[str], capsys) -> tuple[object, str]:
    """Return the exit status and the output of evaluate.py."""
    try:
        evaluate.main(argv)
    except SystemExit as stop:
        message = stop.code if isinstance(stop.code, str) else ""
        return (1 if message else stop.code), message + "".join(capsys.readouterr())
    return 0, "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ODD)
def test_odd_input(name: str, tiny_reward_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    files, arguments, expected = ODD[name]
    write_files(tmp_path, files)
    (tmp_path / "M").symlink_to(tiny_reward_model)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    status, output = exit_of(arguments.split(), capsys)
    assert status not in (0, None) and expected in output and "Traceback" not in output, (status, output)
    assert contents(tmp_path) == before


def test_an_earlier_evaluation_is_overwritten(tiny_reward_model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", PAIRS[:2])
    for _ in range(2):
        evaluate.main(["--model", str(tiny_reward_model), str(data), "--output", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/metrics.json").read_text())["all"]["items"] == 2
