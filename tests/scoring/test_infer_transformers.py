"""infer_transformers.py on files: no file of the user and no score is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, WITH_TOOLS, conversation, jsonl, run, tiny_config

import evaluate
import infer_transformers
from reward_model import InputError
from reward_model.model.reference_scores import FILE


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_tokenizer) -> list[Path]:
    """Two tiny reward models with random weights, and one whose scores are NaN."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folders = [tmp_path_factory.mktemp("rewards") / f"model {number}" for number in range(3)]
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        config = tiny_config("qwen2", num_labels=1, initializer_range=0.1)
        model = AutoModelForSequenceClassification.from_config(config)
        if number == 2:
            model.score.weight.data.fill_(torch.nan)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    return folders


def command(model: Path, source: Path, output: Path) -> list[str]:
    return [sys.executable, "infer_transformers.py", *map(str, (model, "--input", source, "--output", output))]


@pytest.mark.slow
def test_bad_rows_are_written_with_an_error_and_the_others_are_scored(models, tmp_path: Path) -> None:
    good = [{"messages": conversation("Hi?", f"Hello {number}.")} for number in range(4)]
    rows = [
        good[0],
        {"messages": []},
        {"messages": conversation("word " * 3000, "Yes.")},
        good[1] | {"chosen": [], "score": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, good[2]["messages"][1]]},
        {"messages": [*good[0]["messages"], good[0]["messages"][1]]},
        good[3],
    ]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    shown = run(*command(models[0], source, output), check=False)
    assert shown.returncode == 1 and '3 of them have an "error" and no score' in shown.stdout
    written = [json.loads(line) for line in output.read_text().splitlines()]
    errors = [
        "",
        "no messages, no prompt",
        "tokens exceeds the model's context of 2048",
        "",
        "",
        "'assistant' after 'assistant'",
        "",
    ]
    for row, words in zip(written, errors, strict=True):
        assert words in row["error"] if words else isinstance(row["score"], float), row
    with pytest.raises(SystemExit, match="0"):
        infer_transformers.main(
            command(models[0], jsonl(tmp_path / "good.jsonl", good), tmp_path / "good out.jsonl")[2:]
        )
    alone = [json.loads(line)["score"] for line in (tmp_path / "good out.jsonl").read_text().splitlines()]
    assert [written[number]["score"] for number in (0, 3, 4, 6)] == pytest.approx(alone, abs=1e-5)

    with pytest.raises(SystemExit, match="1"):
        infer_transformers.main(command(models[2], source, tmp_path / "nan.jsonl")[2:])
    assert (tmp_path / "nan.jsonl").read_text().count("the scores are [nan]") == 4


def test_arguments_as_text_are_objects_and_what_a_template_raises_is_the_error_of_a_row(
    tiny_reward_model: Path, make_tokenizer, tmp_path: Path
) -> None:
    """A template that iterates over arguments raises a TypeError if they are not an object."""
    folder = shutil.copytree(tiny_reward_model, tmp_path / "model")
    make_tokenizer(WITH_TOOLS).save_pretrained(folder)

    def row(arguments: object) -> dict:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        question, answer = conversation("Rain?", "No.")
        result = {"role": "tool", "content": "Dry."}
        return {"messages": [question, {"role": "assistant", "content": "", "tool_calls": [call]}, result, answer]}

    rows = [row({"town": "Zürich"}), row('{"town": "Zürich"}'), row("town: Zürich"), row("[1]"), row({}), row("")]
    with pytest.raises(SystemExit, match="1"):
        infer_transformers.main(command(folder, jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")[2:])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[0]["score"] == pytest.approx(written[1]["score"], abs=1e-6)
    assert written[4]["score"] == pytest.approx(written[5]["score"], abs=1e-6)
    assert abs(written[0]["score"] - written[4]["score"]) > 1e-3
    assert all("template" in one["error"] for one in written[2:4])
    conversations = [one["messages"] for one in rows[:2]]
    first, second = infer_transformers.infer_transformers(str(folder), conversations)
    assert first == pytest.approx(second, abs=1e-6) and first == pytest.approx(written[0]["score"], abs=1e-5)


def test_no_file_of_the_user_is_lost(models, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"messages": conversation("Hi?", f"Hello {n}.")} for n in range(6)])
    begun = tmp_path / "begun.jsonl"
    with pytest.raises(SystemExit):
        infer_transformers.main(command(models[1], source, begun)[2:])
    (tmp_path / "one line.json").write_text('{"no": "line break"}')
    (tmp_path / "text.txt").write_text("two\nlines")
    refused = {
        begun: "contains scores from a different model",
        tmp_path / "one line.json": "is not a scored row from",
        tmp_path / "text.txt": "is not a scored row from",
        source: "is the same file as --input",
        Path("/dev/full"): "not a regular file",
    }
    for output, message in refused.items():
        before = output.read_bytes() if output.is_file() else b""
        with pytest.raises(InputError, match=message):
            infer_transformers.main(command(models[0], source, output)[2:])
        assert not output.is_file() or output.read_bytes() == before


def test_drift_from_the_reference_scores_is_reported(models, tmp_path: Path, capsys) -> None:
    """In bfloat16, scores may differ from the reference scores by the rounding noise."""
    folder = shutil.copytree(models[0], tmp_path / "model")
    evaluate.reference(evaluate.parse_arguments(["reference", str(folder)]))
    source = jsonl(tmp_path / "in.jsonl", [{"messages": conversation("Hi?", "Hello.")}])
    for number, shift in enumerate((0, 1)):
        reference = json.loads((folder / FILE).read_text())
        for score in ("score", "rounded_score"):
            reference["conversations"][3][score] += shift
        (folder / FILE).write_text(json.dumps(reference))
        with pytest.raises(SystemExit, match="0"):
            infer_transformers.main([*command(folder, source, tmp_path / f"{number}.jsonl")[2:], "--dtype", "bfloat16"])
        assert ("warning: scores drift by up to" in capsys.readouterr().err) == bool(shift)


@pytest.mark.slow
def test_a_stop_keeps_what_was_scored(models, tmp_path: Path) -> None:
    rows = [{"messages": conversation("Hi? " * 100, f"Hello {number}.")} for number in range(150)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command(models[0], source, output), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    kept = output.read_bytes()
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1] == "Stopped. Scored rows are kept; run the same command to resume."
    assert kept.count(b"\n") < 150
    with pytest.raises(SystemExit, match="0"):
        infer_transformers.main(command(models[0], source, output)[2:])
    assert output.read_bytes().startswith(kept) and output.read_bytes().count(b"\n") == 150
