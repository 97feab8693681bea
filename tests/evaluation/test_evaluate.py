"""evaluate.py and infer_transformers.py: the same score in every batch and engine, and correct figures."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PAIRS, ROOT, conversation, jsonl, run

from infer_transformers import infer_transformers
from reward_model import InputError
from reward_model.evaluation.items import load_items
from reward_model.model.tokenization import render, token_ids
from reward_model.scoring.local import load_reward_model, score

EVAL = ROOT / "data/demo/eval.jsonl"
SHARED = [ROOT.parent / f"shared/data/dpo_{language}_demo.json" for language in ("en", "zh")]


@pytest.fixture(scope="module")
def loaded(runs):
    return load_reward_model(str(runs["usual template"].model))


def pairs_of(*files: Path) -> list[list[list[dict]]]:
    return [item.conversations for item in load_items(map(str, files))]


def test_scores_depend_only_on_the_conversation(loaded) -> None:
    model, tokenizer = loaded
    groups = pairs_of(EVAL)[:40]
    alone = [[score(model, tokenizer, [[messages]])[0][0] for messages in group] for group in groups]
    order = random.Random(0).sample(range(len(groups)), len(groups))
    for budget in (1, 300, 100_000):
        shuffled = score(model, tokenizer, [groups[index] for index in order], tokens_per_batch=budget)
        for index, scores in zip(order, shuffled, strict=True):
            assert scores == pytest.approx(alone[index], abs=1e-5)
    padded = [tokenizer.apply_chat_template(group[0], tokenize=False) for group in groups[:8]]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(padded, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            values = model(**batch).logits.flatten().tolist()
        assert values == pytest.approx([scores[0] for scores in alone[:8]], abs=1e-5)


def test_all_pairs_agree_with_the_server(runs, loaded, tmp_path: Path) -> None:
    """Compare the demo's evaluation pairs and the pairs of ../shared/data that fit the context of the server."""
    files = [EVAL, *(file for file in SHARED if file.exists())]
    _, tokenizer = loaded
    lengths = [
        [len(ids) for ids in token_ids([render(m, tokenizer) for m in pair], tokenizer)] for pair in pairs_of(*files)
    ]
    short = [pair for pair, both in zip(pairs_of(*files), lengths, strict=True) if max(both) < 1000]
    assert len(short) >= 80
    data = jsonl(tmp_path / "short.jsonl", [{"chosen": chosen, "rejected": rejected} for chosen, rejected in short])
    one = runs["usual template"]
    shown = run(sys.executable, "evaluate.py", "parity", one.model, "--url", one.url, data).stdout
    assert "rank correlation 1.000000" in shown and f"{2 * len(short)} conversations" in shown
    assert float(re.search(r"largest difference (\S+)", shown).group(1)) < 1e-4


def test_model_and_server_give_the_same_figures(runs, base_model, tmp_path: Path) -> None:
    one = runs["usual template"]
    data = jsonl(tmp_path / "some pairs.jsonl", PAIRS)
    here, there = tmp_path / "here", tmp_path / "there"
    shown = run(sys.executable, "evaluate.py", "--model", one.model, data, "--output", here, "--base_model", base_model)
    run(sys.executable, "evaluate.py", "--url", one.url, data, "--output", there)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (here, there)]
    assert metrics[0]["all"]["accuracy"] == metrics[1]["all"]["accuracy"]
    assert metrics[0]["all"]["log_loss"] == pytest.approx(metrics[1]["all"]["log_loss"], abs=1e-5)
    assert metrics[0]["before"]["log_loss"] != pytest.approx(metrics[0]["all"]["log_loss"], abs=1e-3)
    assert metrics[0]["subsets"].keys() == {pair["source"] for pair in PAIRS}
    (line,) = (line.split() for line in shown.stdout.splitlines() if line.startswith("all "))
    assert line[1:3] == [str(len(PAIRS)), f"{metrics[0]['all']['accuracy']:.3f}"]
    html = (here / "report.html").read_text()
    assert html.count("<svg") == 5 and html.count("<details>") == len(PAIRS) and "<option>" in html
    compared = run(sys.executable, "evaluate.py", "compare", here, there).stdout
    assert "The runs disagree on 0 items." in compared


def test_parity_names_the_broken_rule(runs, tmp_path: Path) -> None:
    """Compare the server with copies of its model that have another template."""
    one = runs["usual template"]
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS[:3])
    template = (one.model / "chat_template.jinja").read_text()
    changed = {
        # template of the copy -> part of the error
        template + "{{ '<|endoftext|>' }}": "the server leaves out '<|endoftext|>'",
        "{{ 'You are a judge.' }}" + template: "the server leaves out 'You are a judge.'",
        template.replace(
            "<|im_start|>", "<|im_end|>"
        ): "the server renders with a different chat template: at character 6",
    }
    for number, (text, message) in enumerate(changed.items()):
        folder = tmp_path / str(number)
        shutil.copytree(one.model, folder)
        (folder / "chat_template.jinja").write_text(text)
        failed = run(sys.executable, "evaluate.py", "parity", folder, "--url", one.url, data, check=False)
        assert failed.returncode == 1 and f"the scores differ: {message}" in failed.stderr, failed.stderr[-2000:]


def test_infer_transformers_scores_a_file_and_resumes(runs, loaded, tmp_path: Path) -> None:
    one = runs["usual template"]
    rows = [PAIRS[0], {"messages": PAIRS[1]["chosen"]}, {"prompt": "2 + 2?", "responses": ["4", "5", "Four, I think."]}]
    rows += [
        PAIRS[2]["rejected"],
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out" / "scores.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "infer_transformers.py", one.model, "--input", source, "--output", output]
    run(*command)
    complete = output.read_bytes()
    written = [json.loads(line) for line in complete.decode().splitlines()]
    assert [sorted(row) for row in written] == [
        sorted([*PAIRS[0], "chosen_score", "rejected_score"]),
        ["messages", "score"],
        ["prompt", "responses", "scores"],
        ["messages", "score"],
        ["conversations", "score"],
    ]
    answers = [conversation("2 + 2?", answer) for answer in rows[2]["responses"]]
    assert written[2]["scores"] == pytest.approx(infer_transformers(str(one.model), answers), abs=1e-5)
    assert written[0]["chosen_score"] == pytest.approx(one.in_training[0], abs=1e-4)

    output.write_bytes(complete[: len(complete) // 2])  # a run that was killed
    assert "Resuming " in run(*command).stdout
    again = [json.loads(line) for line in output.read_text().splitlines()]
    for row, other in zip(again, written, strict=True):
        assert np.allclose(
            *([value for key, value in r.items() if key.endswith("score")] for r in (row, other)), atol=1e-5
        )
    with pytest.raises(InputError, match="exceeds the model's context of 2048: .<.im_start.>user"):
        score(*loaded, [[conversation("word " * 9000, "Yes.")]])


def test_infer_transformers_rejects_other_models(runs, base_model, tmp_path: Path) -> None:
    two = tmp_path / "two labels"
    shutil.copytree(runs["usual template"].model, two)
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(
        json.dumps(config | {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    )
    for folder, message in {
        runs["LoRA, merged"].model / "adapter": "merge_lora.py",
        base_model: "has no reward head",
        two: "2 labels",
    }.items():
        failed = run(sys.executable, "infer_transformers.py", folder, "Hi?", "Hello.", check=False)
        assert failed.returncode == 1 and message in failed.stderr and "Traceback" not in failed.stderr, failed.stderr[
            -2000:
        ]


@pytest.mark.slow
def test_training_logs_the_accuracy_of_benchmark_files(base_model, few_pairs, tmp_path: Path) -> None:
    import train as train_script

    trainer = train_script.main(
        [
            "--model_name_or_path",
            str(base_model),
            "--dataset_name",
            str(few_pairs),
            "--output_dir",
            str(tmp_path / "out"),
        ]
        + ["--benchmark_files", str(EVAL), "--max_steps", "1", "--eval_steps", "1", "--eval_strategy", "steps"]
        + ["--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no", "--eval_size", "4"]
    )
    logged = {key for log in trainer.state.log_history for key in log}
    assert {"eval_held_out_accuracy", "eval_eval_politeness_accuracy", "eval_eval_safety_accuracy"} <= logged
    assert "eval_held_out_accuracy" in json.loads((tmp_path / "out" / "eval_results.json").read_text())
