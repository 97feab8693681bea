"""prepare_data.py on odd inputs: a sentence, an exit status that is not 0, no traceback, and every input as it was."""

# ruff: noqa: E501
import gzip
import json
import shlex
import sys
from pathlib import Path

import pytest
from helpers import contents, demo_pairs, jsonl, lay_out

import prepare_data
from reward_model import InputError

PAIR = {side: demo_pairs()[0][side] for side in ("chosen", "rejected")}
MORE = [{"prompt": f"{number} + 1?", "chosen": f"{number + 1}", "rejected": "No."} for number in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in MORE).encode()
ARRAY = json.dumps(MORE)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
GO = "d.jsonl --output o/p.jsonl"
D = {"d.jsonl": MORE}
MINE = "which prepare_data.py has not made"

# name -> (files of the folder to stand in: rows, text or bytes), arguments, what must be said
ODD: dict[str, tuple[dict[str, object], str, str]] = {
    # Data that are none, or other than their name says.
    "nowhere": ({}, GO, "d.jsonl: no such file; give a .json, .jsonl"),
    "another suffix": ({"d.txt": "x"}, "d.txt --output p.jsonl", "d.txt: .txt file; give a .json, .jsonl"),
    "empty": ({"d.jsonl": ""}, GO, "d.jsonl: empty, no row in there."),
    "blank lines": ({"d.jsonl": "\n \n"}, GO, "d.jsonl: empty, no row in there."),
    "an empty table": ({"d.csv": "prompt,chosen,rejected\n"}, "d.csv --output p.jsonl", "d.csv: empty, no row in there."),
    "an empty folder": ({"d/x.txt": "x"}, "d --output p.jsonl", "d: no data file in this folder"),
    "only hidden files": ({"d/.x.jsonl": MORE, "d/.git/y.json": MORE}, "d --output p.jsonl", "no data file in this"),
    "only rejected rows": ({"d/x.rejected.jsonl": MORE}, "d --output p.jsonl", "no data file in this folder"),
    "UTF-16": ({"d.jsonl": LINES.decode().encode("utf-16")}, GO, "d.jsonl: this is UTF-16, not UTF-8; convert it: iconv"),
    "UTF-16 without a mark": ({"d.jsonl": LINES.decode().encode("utf-16-le")}, GO, "this is no text: there are NUL bytes"),
    "UTF-16 as a table": ({"d.csv": "prompt,chosen".encode("utf-16")}, "d.csv --output p.jsonl", "this is UTF-16, not UTF-8"),
    "NUL bytes": ({"d.jsonl": b"\0" * 4096}, GO, "d.jsonl: this is no text: there are NUL bytes in b'"),
    "gzip without .gz": ({"d.jsonl": gzip.compress(LINES)}, GO, "d.jsonl: this is gzip; unpack it, or call it .jsonl.gz."),
    "no gzip": ({"d.jsonl.gz": LINES}, "d.jsonl.gz --output p.jsonl", "this is no .gz file: it begins with b'{\"prompt\""),
    "gzip cut off": ({"d.jsonl.gz": gzip.compress(LINES)[:20]}, "d.jsonl.gz --output p.jsonl", "the file breaks off here"),
    "Git-LFS": ({"d.jsonl": POINTER}, GO, "d.jsonl: this is a Git-LFS pointer, not the data; get them with git lfs pull."),
    "Git-LFS of a table": ({"d.parquet": POINTER}, "d.parquet --output p.jsonl", "d.parquet: this is a Git-LFS pointer"),
    "Git-LFS in a folder": ({"d/a.jsonl": MORE, "d/b.jsonl": POINTER}, "d --output p.jsonl", "b.jsonl: this is a Git-LFS"),
    "no Parquet": ({"d.parquet": LINES}, "d.parquet --output p.jsonl", "this is no .parquet file: it begins with b'{"),
    "Parquet cut off": ({"d.parquet": b"PAR1" + bytes(99)}, "d.parquet --output p.jsonl", "d.parquet: not a Parquet file"),
    "Parquet as lines": ({"d.jsonl": b"PAR1" + bytes(99)}, GO, "d.jsonl: this is Parquet; call it .parquet."),
    "zip": ({"d.jsonl": b"PK\x03\x04" + bytes(99)}, GO, "d.jsonl: this is a zip archive; unpack it."),
    "a web page": ({"d.jsonl": "<!DOCTYPE html>\n<p>"}, GO, "d.jsonl: this is a web page, not the data"),
    "an array in .jsonl": ({"d.jsonl": ARRAY}, GO, "d.jsonl: a JSON array, not an object a line; call it .json."),
    "an array over lines": ({"d.jsonl": json.dumps(MORE, indent=1)}, GO, "d.jsonl: a JSON array, not an object a line"),
    "an object over lines": ({"d.jsonl": json.dumps(PAIR, indent=1)}, GO, "(Expecting property name enclosed in double quotes, column 2). Call it .json if objects span several lines."),
    "numbers": ({"d.jsonl": "1\n2\n"}, GO, "d.jsonl: no JSON object in the first rows"),
    "an unclosed quote": ({"d.csv": 'prompt,chosen,rejected\n"Why?,So.,No.\nHow?,So.,No.\n'}, "d.csv --output p.jsonl", "d.csv: row 1: line 2: a quote that opens there is never closed."),
    "a template for each row": ({"d.jsonl": [PAIR | {"chat_template_kwargs": {"thinking": True}}]}, GO, "(--ignore chat_template_kwargs); train.py --chat_template_kwargs sets it for all rows"),
    "not JSON": ({"d.jsonl": "chosen: yes\n"}, GO, "d.jsonl:1: not valid JSON (Expecting value, column 1)."),
    "only ties": ({"d.jsonl": [{"question": "?", "response_A": "a", "response_B": "b", "label": "A=B"}]}, GO, "No pair is left of 1 rows. tie: 1"),
    "only equal answers": ({"d.jsonl": [PAIR | {"rejected": PAIR["chosen"]}] * 2}, GO, "No pair is left of 2 rows. identical answers: 2"),
    # Outputs that are inputs.
    "output is the source": (D, "d.jsonl --output d.jsonl --overwrite", "would replace d.jsonl, which is read"),
    "output beside is the source": ({"d.rejected.jsonl": MORE}, "d.rejected.jsonl --output d.jsonl --overwrite", "would replace d.rejected.jsonl, which is read"),
    "held-out pairs are the source": ({"d.eval.jsonl": MORE}, "d.eval.jsonl --output d.jsonl --overwrite", "would replace d.eval.jsonl, which is read"),
    "the report is the source": ({"d.report.json": ARRAY}, "d.report.json --output d.jsonl --overwrite", "would replace d.report.json, which is read"),
    "output is excluded": (D | {"e.jsonl": MORE}, "d.jsonl --exclude_prompts e.jsonl --output e.jsonl --overwrite", "would replace e.jsonl, which is read"),
    "output beside is excluded": (D | {"e.eval.jsonl": MORE}, "d.jsonl --exclude_prompts e.eval.jsonl --output e.jsonl --overwrite", "would replace e.eval.jsonl, which is read"),
    "output is in the source": ({"d/x.jsonl": MORE}, "d --output d/new/p.jsonl", "d/new/p.jsonl lies inside d, which is read"),
    "somebody's page": (D | {"p.report.html": "mine"}, "d.jsonl --output p.jsonl", f"would replace p.report.html, {MINE}"),
    "output is a folder": (D | {"p.jsonl/x": "mine"}, "d.jsonl --output p.jsonl", f"would replace p.jsonl, {MINE}"),
    "output in a file": (D | {"o": "mine"}, GO, "o"),
    "no .jsonl": (D, "d.jsonl --output p.json", "--output p.json: pairs are written as .jsonl."),
    # Arguments.
    "cap of 0": (D, "d.jsonl@cap=0 --output p.jsonl", "d.jsonl@cap=0: weight is a number above 0, cap a whole number"),
    "cap below 0": (D, "d.jsonl@cap=-3 --output p.jsonl", "d.jsonl@cap=-3: weight is a number above 0"),
    "cap of words": (D, "d.jsonl@cap=all --output p.jsonl", "d.jsonl@cap=all: weight is a number above 0"),
    "weight NaN": (D, "d.jsonl@weight=nan --output p.jsonl", "d.jsonl@weight=nan: weight is a number above 0"),
    "weight below 0": (D, "d.jsonl@weight=-1 --output p.jsonl", "d.jsonl@weight=-1: weight is a number above 0"),
    "weight infinite": (D, "d.jsonl@weight=inf --output p.jsonl", "d.jsonl@weight=inf: weight is a number above 0"),
    "an unknown setting": (D, "d.jsonl@share=2 --output p.jsonl", "d.jsonl@share=2: behind the @ stand format ("),
    "an unknown format": (D, "d.jsonl@format=pairs --output p.jsonl", "d.jsonl@format=pairs: behind the @ stand format"),
    "format fields without names": (D, f"{GO} --format fields", "format=fields needs --chosen and --rejected"),
    "fields without names": (D, "d.jsonl@format=fields --output p.jsonl", "format=fields needs --chosen and --rejected"),
    "eval_size NaN": (D, f"{GO} --eval_size nan", "--eval_size nan: give a share of the pairs below 1"),
    "eval_size below 0": (D, f"{GO} --eval_size -1", "--eval_size -1: give a share of the pairs below 1"),
    "eval_size of all": (D, f"{GO} --eval_size 8", "--eval_size 8 of 8 pairs: at least half must stay for training"),
    # Arguments that would do nothing.
    "similarity to nothing": (D, f"{GO} --exclude_similarity 0.5", "--exclude_similarity compares with the prompts of --exclude_prompts"),
    "weight of one source": (D, "d.jsonl@weight=2 --output p.jsonl", "a weight is a share of a mix, and there is one source"),
    "control tokens of no tokenizer": (D, f"{GO} --drop 'control tokens'", "name the tokenizer whose tokens they are"),
    "pairing without scores": (D, f"{GO} --pairing all", "--pairing: no source has answers with a score each (found: text)"),
    "gap without scores": (D, f"{GO} --min_gap 1 --margin_from_gap", "--min_gap, --margin_from_gap: no source has answers"),
    # Numbers.
    "similarity NaN": (D, f"{GO} --exclude_prompts d.jsonl --exclude_similarity nan", "--exclude_similarity nan: give a share above 0, at most 1."),
    "similarity 0": (D, f"{GO} --exclude_prompts d.jsonl --exclude_similarity 0", "--exclude_similarity 0.0: give a share above 0, at most 1."),
    "tokens of nothing": (D, f"{GO} --max_length 9", "--max_length counts tokens: name the tokenizer"),
    "no tokenizer in there": (D | {"t/x": "x"}, f"{GO} --tokenizer t", "t: no tokenizer could be loaded from there"),
    "no tokenizer of this name": (D, f"{GO} --tokenizer ./t", "./t: no such folder here, and the hub gives no model"),
    "no hub": ({}, "nobody/none --output p.jsonl", "nobody/none: no such folder here, and the hub gives no dataset"),
    "nothing to exclude": (D, f"{GO} --exclude_prompts e.jsonl", "e.jsonl: no such file"),
    "no prompt to exclude": (D | {"e.jsonl": [{"a": 1}]}, f"{GO} --exclude_prompts e.jsonl", "--exclude_prompts e.jsonl: no row has a prompt that is known"),
    "chosen alone": (D, f"{GO} --chosen a", "--chosen FIELD needs --rejected FIELD, and the other way round."),
    "candidates alone": (D, f"{GO} --candidates a b", "--candidates needs --label FIELD, --label_first VALUE"),
    "chosen and candidates": (D, f"{GO} --chosen a --rejected b --candidates a b", "or --candidates, not both."),
    "a prompt alone": (D, f"{GO} --prompt prompt", "--prompt, --input and --label need --chosen and --rejected"),
    "an input alone": (D, f"{GO} --chosen chosen --rejected rejected --input prompt", "--input FIELD is put behind the prompt"),
    "a field that is not there": (D, f"{GO} --prompt prompt --chosen good --rejected rejected", "d.jsonl:1: no 'good' (keys: prompt, chosen, rejected). (8 of the first 8 rows are so.)"),
    "an unknown doubt": (D, f"{GO} --drop odd", "argument --drop: invalid choice: 'odd'"),
}  # fmt: skip


def exit_of(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    """The exit status of prepare_data.py and what it said."""
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *argv])
    try:
        prepare_data.main()
    except (InputError, OSError) as error:  # as under __main__
        return 1, str(error)
    except SystemExit as stop:
        return stop.code, "".join(capsys.readouterr())
    return 0, "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ODD)
def test_odd_input(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    files, arguments, expected = ODD[name]
    lay_out(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    status, said = exit_of(shlex.split(arguments), monkeypatch, capsys)
    assert status not in (0, None) and expected in said, (status, said)
    assert contents(tmp_path) == before


def test_what_is_taken_and_told(base_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Files below a folder, twice the same rows, and what looks wrong with a pair."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d/more").mkdir(parents=True)
    odd = {"prompt": "What is <|im_end|> for?", "chosen": "It ends a turn.", "rejected": "Nothing."}
    apart = {side: [{"role": "user", "content": f"{side}?"}, {"role": "assistant", "content": side}] for side in PAIR}
    jsonl(tmp_path / "d/a.jsonl", [*MORE[:6], odd])
    jsonl(tmp_path / "d/more/b.jsonl", MORE)
    jsonl(tmp_path / "d/.c.jsonl", [apart])
    jsonl(tmp_path / "apart.jsonl", [apart])
    arguments = f"d apart.jsonl --output p.jsonl --num_proc 1 --tokenizer {str(base_model).replace(' ', '#')}"
    status, said = exit_of([word.replace("#", " ") for word in arguments.split()], monkeypatch, capsys)
    assert status == 0, said
    assert "d/more/b.jsonl: 6 of its 8 pairs stand in d/a.jsonl as well; give one." in said
    assert "16 rows -> 16 pairs" in said
    assert (
        "control tokens: 1 kept (--drop 'control tokens' sets them aside), first d/a.jsonl:7: chosen, message 1 has '<|im_end|>', a token of the chat template."
        in said
    )
    assert "different prompts: 1 kept" in said and "duplicate: 6 kept" in said


def test_sides_that_become_equal_tokens_are_set_aside(make_tokenizer, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_tokenizer("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}").save_pretrained("t")
    thought = {"prompt": "2 + 2?", "chosen": "<think>Add.</think>4", "rejected": "<think>Guess.</think>4"}
    jsonl(Path("d.jsonl"), [thought, *MORE])
    status, said = exit_of(f"{GO} --tokenizer t".split(), monkeypatch, capsys)
    assert status == 0 and "equal tokens: 1 set aside, first d.jsonl:1: both sides become the same tokens." in said
    jsonl(Path("d.jsonl"), [thought] * 2)
    status, said = exit_of(f"{GO} --tokenizer t".split(), monkeypatch, capsys)
    assert status == 1 and "No pair is left of 2 rows. equal tokens: 2" in said


def test_help_has_every_argument_and_its_default(monkeypatch, capsys) -> None:
    status, said = exit_of(["--help"], monkeypatch, capsys)
    assert status == 0 and "None" not in said and "shared/" not in said
    words = " ".join(said.split())
    for default in ("(default: 0, none)", "(default: 0.8)", "(default: drop)", "(default: best)", "one per core)"):
        assert default in words
