"""Bad inputs of prepare_data.py: a clear error, a nonzero exit status, no traceback, and inputs that do not change."""

# ruff: noqa: E501
import gzip
import json
import shlex
import sys
from pathlib import Path

import pytest
from helpers import contents, demo_pairs, jsonl, write_files

import prepare_data
from reward_model import InputError

PAIR = {side: demo_pairs()[0][side] for side in ("chosen", "rejected")}
MORE = [{"prompt": f"{number} + 1?", "chosen": f"{number + 1}", "rejected": "No."} for number in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in MORE).encode()
ARRAY = json.dumps(MORE)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
GO = "d.jsonl --output o/p.jsonl"
D = {"d.jsonl": MORE}
NOT_OURS = "which prepare_data.py did not write"

# name -> (files of the current directory: rows, text or bytes), arguments, part of the error
ODD: dict[str, tuple[dict[str, object], str, str]] = {
    # Missing data, and files whose content does not match their name.
    "nowhere": ({}, GO, "d.jsonl: file not found; pass a .json, .jsonl"),
    "another suffix": ({"d.txt": "x"}, "d.txt --output p.jsonl", "d.txt: .txt file; pass a .json, .jsonl"),
    "empty": ({"d.jsonl": ""}, GO, "d.jsonl: empty, no rows."),
    "blank lines": ({"d.jsonl": "\n \n"}, GO, "d.jsonl: empty, no rows."),
    "an empty table": ({"d.csv": "prompt,chosen,rejected\n"}, "d.csv --output p.jsonl", "d.csv: empty, no rows."),
    "an empty directory": ({"d/x.txt": "x"}, "d --output p.jsonl", "d: no data files in this directory"),
    "only hidden files": ({"d/.x.jsonl": MORE, "d/.git/y.json": MORE}, "d --output p.jsonl", "no data files in this"),
    "only rejected rows": ({"d/x.rejected.jsonl": MORE}, "d --output p.jsonl", "no data files in this directory"),
    "UTF-16": ({"d.jsonl": LINES.decode().encode("utf-16")}, GO, "d.jsonl: this is UTF-16, not UTF-8; convert it with iconv"),
    "UTF-16 without a mark": ({"d.jsonl": LINES.decode().encode("utf-16-le")}, GO, "d.jsonl:1: not valid JSON"),
    "UTF-16 as a table": ({"d.csv": "prompt,chosen".encode("utf-16")}, "d.csv --output p.jsonl", "this is UTF-16, not UTF-8"),
    "NUL bytes": ({"d.jsonl": b"\0" * 4096}, GO, "d.jsonl:1: not valid JSON"),
    "gzip without .gz": ({"d.jsonl": gzip.compress(LINES)}, GO, "d.jsonl: this is gzip; decompress it or rename it to .jsonl.gz."),
    "no gzip": ({"d.jsonl.gz": LINES}, "d.jsonl.gz --output p.jsonl", "d.jsonl.gz:1: the file is truncated (Not a gzipped file"),
    "gzip cut off": ({"d.jsonl.gz": gzip.compress(LINES)[:20]}, "d.jsonl.gz --output p.jsonl", "the file is truncated"),
    "Git-LFS": ({"d.jsonl": POINTER}, GO, "d.jsonl: this is a Git-LFS pointer, not the data; run git lfs pull."),
    "Git-LFS of a table": ({"d.parquet": POINTER}, "d.parquet --output p.jsonl", "d.parquet: this is a Git-LFS pointer"),
    "Git-LFS in a directory": ({"d/a.jsonl": MORE, "d/b.jsonl": POINTER}, "d --output p.jsonl", "b.jsonl: this is a Git-LFS"),
    "no Parquet": ({"d.parquet": LINES}, "d.parquet --output p.jsonl", "d.parquet: not a Parquet file"),
    "Parquet cut off": ({"d.parquet": b"PAR1" + bytes(99)}, "d.parquet --output p.jsonl", "d.parquet: not a Parquet file"),
    "a web page": ({"d.jsonl": "<!DOCTYPE html>\n<p>"}, GO, "d.jsonl: this is a web page, not the data"),
    "an array in .jsonl": ({"d.jsonl": ARRAY}, GO, "d.jsonl: the first rows are not JSON objects. Rename the file to .json if it is an array."),
    "an array over lines": ({"d.jsonl": json.dumps(MORE, indent=1)}, GO, "If the file is a single JSON array or object, rename it to .json."),
    "an object over lines": ({"d.jsonl": json.dumps(PAIR, indent=1)}, GO, "If the file is a single JSON array or object, rename it to .json."),
    "numbers": ({"d.jsonl": "1\n2\n"}, GO, "d.jsonl: the first rows are not JSON objects"),
    "an unclosed quote": ({"d.csv": 'prompt,chosen,rejected\n"Why?,So.,No.\nHow?,So.,No.\n'}, "d.csv --output p.jsonl", "d.csv: cannot read line 2: unexpected end of data. Close all quotes"),
    "a template for each row": ({"d.jsonl": [PAIR | {"chat_template_kwargs": {"thinking": True}}]}, GO, "chat_template_kwargs may be part of the conversation but is not used"),
    "not JSON": ({"d.jsonl": "chosen: yes\n"}, GO, "d.jsonl:1: not valid JSON (Expecting value, column 1)."),
    "only ties": ({"d.jsonl": [{"question": "?", "response_A": "a", "response_B": "b", "label": "A=B"}]}, GO, "No valid pairs in 1 rows. tie: 1"),
    "only equal answers": ({"d.jsonl": [PAIR | {"rejected": PAIR["chosen"]}] * 2}, GO, "No valid pairs in 2 rows. identical answers: 2"),
    # Outputs that are inputs.
    "output is the source": (D, "d.jsonl --output d.jsonl --overwrite", "would overwrite the input d.jsonl"),
    "an output file is the source": ({"d.rejected.jsonl": MORE}, "d.rejected.jsonl --output d.jsonl --overwrite", "would overwrite the input d.rejected.jsonl"),
    "held-out pairs are the source": ({"d.eval.jsonl": MORE}, "d.eval.jsonl --output d.jsonl --overwrite", "would overwrite the input d.eval.jsonl"),
    "the report is the source": ({"d.report.json": ARRAY}, "d.report.json --output d.jsonl --overwrite", "would overwrite the input d.report.json"),
    "output is excluded": (D | {"e.jsonl": MORE}, "d.jsonl --exclude_prompts e.jsonl --output e.jsonl --overwrite", "would overwrite the input e.jsonl"),
    "an output file is excluded": (D | {"e.eval.jsonl": MORE}, "d.jsonl --exclude_prompts e.eval.jsonl --output e.jsonl --overwrite", "would overwrite the input e.eval.jsonl"),
    "output is in the source": ({"d/x.jsonl": MORE}, "d --output d/new/p.jsonl", "d/new/p.jsonl is inside the input d"),
    "a page of the user": (D | {"p.report.html": "mine"}, "d.jsonl --output p.jsonl", f"would overwrite p.report.html, {NOT_OURS}"),
    "output is a directory": (D | {"p.jsonl/x": "mine"}, "d.jsonl --output p.jsonl", f"would overwrite p.jsonl, {NOT_OURS}"),
    "output in a file": (D | {"o": "mine"}, GO, "o"),
    "no .jsonl": (D, "d.jsonl --output p.json", "--output p.json: pass a .jsonl file."),
    # Arguments.
    "cap of 0": (D, "d.jsonl@cap=0 --output p.jsonl", "d.jsonl@cap=0: weight must be a positive number and cap a positive integer"),
    "cap below 0": (D, "d.jsonl@cap=-3 --output p.jsonl", "d.jsonl@cap=-3: weight must be a positive number"),
    "cap of words": (D, "d.jsonl@cap=all --output p.jsonl", "d.jsonl@cap=all: weight must be a positive number"),
    "weight NaN": (D, "d.jsonl@weight=nan --output p.jsonl", "d.jsonl@weight=nan: weight must be a positive number"),
    "weight below 0": (D, "d.jsonl@weight=-1 --output p.jsonl", "d.jsonl@weight=-1: weight must be a positive number"),
    "weight infinite": (D, "d.jsonl@weight=inf --output p.jsonl", "d.jsonl@weight=inf: weight must be a positive number"),
    "an unknown setting": (D, "d.jsonl@share=2 --output p.jsonl", "d.jsonl@share=2: after the @, pass format ("),
    "an unknown format": (D, "d.jsonl@format=pairs --output p.jsonl", "d.jsonl@format=pairs: after the @, pass format"),
    "format fields without names": (D, f"{GO} --format fields", "format=fields needs --chosen and --rejected"),
    "fields without names": (D, "d.jsonl@format=fields --output p.jsonl", "format=fields needs --chosen and --rejected"),
    "eval_size NaN": (D, f"{GO} --eval_size nan", "--eval_size nan: pass a fraction below 1"),
    "eval_size below 0": (D, f"{GO} --eval_size -1", "--eval_size -1: pass a fraction below 1"),
    "eval_size of all": (D, f"{GO} --eval_size 8", "--eval_size 8 is more than half of 8 pairs"),
    # Arguments that would have no effect.
    "control tokens without a tokenizer": (D, f"{GO} --drop 'control tokens'", "needs a tokenizer that defines these tokens"),
    "tokens without a tokenizer": (D, f"{GO} --max_length 9", "--max_length counts tokens: pass --tokenizer"),
    "a directory without a tokenizer": (D | {"t/x": "x"}, f"{GO} --tokenizer t", "t: the tokenizer cannot be loaded"),
    "no tokenizer of this name": (D, f"{GO} --tokenizer ./t", "./t: not a local directory, and the Hub has no model"),
    "no hub": ({}, "nobody/none --output p.jsonl", "nobody/none: not a local directory, and the Hub has no dataset"),
    "nothing to exclude": (D, f"{GO} --exclude_prompts e.jsonl", "e.jsonl: file not found"),
    "no prompt to exclude": (D | {"e.jsonl": [{"a": 1}]}, f"{GO} --exclude_prompts e.jsonl", "--exclude_prompts e.jsonl: no prompts found"),
    "similarity without prompts": (D, f"{GO} --exclude_similarity 0.5", "--exclude_similarity compares prompts with excluded ones: pass --exclude_prompts."),
    "similarity NaN": (D, f"{GO} --exclude_prompts d.jsonl --exclude_similarity nan", "--exclude_similarity nan: pass a number above 0 and at most 1."),
    "similarity 0": (D, f"{GO} --exclude_prompts d.jsonl --exclude_similarity 0", "--exclude_similarity 0: pass a number above 0 and at most 1."),
    "chosen alone": (D, f"{GO} --chosen a", "--chosen and --rejected must be passed together."),
    "candidates alone": (D, f"{GO} --candidates a b", "--candidates needs --label, --label_first"),
    "chosen and candidates": (D, f"{GO} --chosen a --rejected b --candidates a b", "pass either --chosen and --rejected, or --candidates."),
    "a prompt alone": (D, f"{GO} --prompt prompt", "--prompt, --input and --label need --chosen and --rejected"),
    "an input alone": (D, f"{GO} --chosen chosen --rejected rejected --input prompt", "--input is appended to the prompt"),
    "a field that is not there": (D, f"{GO} --prompt prompt --chosen good --rejected rejected", "d.jsonl:1: no 'good' (keys: prompt, chosen, rejected). (8 of the first 8 rows have this problem.)"),
    "an unknown warning": (D, f"{GO} --drop odd", "argument --drop: invalid choice: 'odd'"),
}  # fmt: skip


def exit_of(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    """Return the exit status and the output of prepare_data.py."""
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
    write_files(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    status, output = exit_of(shlex.split(arguments), monkeypatch, capsys)
    assert status not in (0, None) and expected in output, (status, output)
    assert contents(tmp_path) == before


def test_findings_of_a_directory(base_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Files of subdirectories, duplicates, and pairs with a warning."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d/more").mkdir(parents=True)
    odd = {"prompt": "What is <|im_end|> for?", "chosen": "It ends a turn.", "rejected": "Nothing."}
    apart = {side: [{"role": "user", "content": f"{side}?"}, {"role": "assistant", "content": side}] for side in PAIR}
    jsonl(tmp_path / "d/a.jsonl", [*MORE[:6], odd])
    jsonl(tmp_path / "d/more/b.jsonl", MORE)
    jsonl(tmp_path / "d/.c.jsonl", [apart])
    jsonl(tmp_path / "apart.jsonl", [apart])
    arguments = f"d apart.jsonl --output p.jsonl --num_proc 1 --tokenizer {str(base_model).replace(' ', '#')}"
    status, output = exit_of([word.replace("#", " ") for word in arguments.split()], monkeypatch, capsys)
    assert status == 0, output
    assert "16 rows -> 16 pairs" in output
    assert (
        "control tokens: 1 kept (set aside with --drop 'control tokens'), first d/a.jsonl:7: chosen, message 1 contains '<|im_end|>', a token of the chat template."
        in output
    )
    assert "different prompts: 1 kept" in output and "duplicate: 6 kept" in output


def test_sides_that_become_equal_tokens_are_set_aside(make_tokenizer, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_tokenizer("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}").save_pretrained("t")
    thought = {"prompt": "2 + 2?", "chosen": "<think>Add.</think>4", "rejected": "<think>Guess.</think>4"}
    jsonl(Path("d.jsonl"), [thought, *MORE])
    status, output = exit_of(f"{GO} --tokenizer t".split(), monkeypatch, capsys)
    assert status == 0 and "equal tokens: 1 set aside, first d.jsonl:1: both sides have identical token ids." in output
    jsonl(Path("d.jsonl"), [thought] * 2)
    status, output = exit_of(f"{GO} --tokenizer t".split(), monkeypatch, capsys)
    assert status == 1 and "No valid pairs in 2 rows. equal tokens: 2" in output


def test_help_has_every_argument_and_its_default(monkeypatch, capsys) -> None:
    status, output = exit_of(["--help"], monkeypatch, capsys)
    assert status == 0 and "None" not in output and "shared/" not in output
    words = " ".join(output.split())
    for default in ("(default: 0)", "(default: 0.8)", "(default: drop)", "(default: best)", "one per core)"):
        assert default in words
