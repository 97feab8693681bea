"""train.py and train.sh as users start them: command line, JSON file, debugger, DeepSpeed on two ranks, resuming."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SHARED_DATA, check_figures, demo_pairs, jsonl, run, train

import train as train_script
from reward_model.model.reference_scores import FILE, drift
from reward_model.scoring.local import load_reward_model, score

pytestmark = pytest.mark.slow  # each trains a model, some of them on two ranks

PAIRS = demo_pairs()[:24]
QUICK = ["--eval_size", "4", "--logging_steps", "1", "--learning_rate", "1e-3", "--report_to", "none"]


def losses(output_dir: Path) -> list[float]:
    log_history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in log_history if "loss" in log]


def scores(model: Path) -> torch.Tensor:
    return torch.tensor(score(*load_reward_model(str(model)), [[p["chosen"], p["rejected"]] for p in PAIRS]))


def arguments(base_model: Path, pairs: Path, output_dir: Path, *more: str) -> list[str]:
    paths = {"--model_name_or_path": base_model, "--dataset_name": pairs, "--output_dir": output_dir}
    return [word for name, path in paths.items() for word in (name, str(path))] + [*QUICK, *more]


def test_zero3_on_two_ranks_equals_one_process(base_model: Path, data: Path, tmp_path: Path) -> None:
    one, two, lora_one, lora = (tmp_path / name for name in ("one", "two ranks", "one lora", "two ranks lora"))
    steps = ["--max_steps", "4", "--gradient_accumulation_steps", "1", "--save_strategy", "no", "--eval_strategy", "no"]
    schedule = ["--lr_scheduler_type", "cosine", "--warmup_steps", "0.03", "--per_device_train_batch_size", "4"]
    train_script.main(arguments(base_model, data, one, *steps, *schedule))
    environment = {"MODEL": str(base_model), "DATASET": str(data), "NPROC_PER_NODE": "2"}
    halves = [*QUICK, *steps, "--per_device_train_batch_size", "2"]
    result = run("sh", ROOT / "train.sh", *halves, cwd=tmp_path, OUTPUT_DIR=str(two), **environment)
    assert "token positions saved" in result.stdout and "batches are padded" not in result.stdout
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert torch.allclose(scores(two), scores(one), atol=1e-3), "the saved weights are incomplete"
    check_figures(two)

    adapter = ["--use_peft", "--lora_r", "8"]
    train_script.main(arguments(base_model, data, lora_one, *steps, *schedule, *adapter))
    run("sh", ROOT / "train.sh", *halves, *adapter, cwd=tmp_path, OUTPUT_DIR=str(lora), **environment)
    assert losses(lora) == pytest.approx(losses(lora_one), abs=1e-4)
    assert torch.allclose(scores(lora), scores(lora_one), atol=1e-3), "the trained head or adapter was not saved"
    assert (lora / "adapter" / "adapter_model.safetensors").exists()
    for directory in (one, two, lora_one, lora):
        assert (directory / FILE).exists() and drift(*load_reward_model(str(directory)), directory) < 1e-4


def test_arguments_are_read_from_a_json_file(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    command_line = arguments(base_model, few_pairs, tmp_path / "json run", "--max_steps", "2", "--save_strategy", "no")
    given = dict(zip([word.removeprefix("--") for word in command_line[::2]], command_line[1::2], strict=True))
    (tmp_path / "train_args.json").write_text(json.dumps(given | {"max_steps": 2, "gradient_checkpointing": True}))
    train("train_args.json", cwd=tmp_path)
    assert len(losses(tmp_path / "json run")) == 2
    metrics = json.loads((tmp_path / "json run" / "eval_results.json").read_text())
    assert {"eval_accuracy", "eval_loss"} <= metrics.keys()

    # Without arguments, train.py reads the train_args.json next to it. A copy of the checkout leaves save/ unchanged.
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "train.py", checkout)
    (checkout / "reward_model").symlink_to(ROOT / "reward_model")
    shutil.copy(few_pairs, checkout / "pairs.jsonl")
    relative = given | {"dataset_name": "pairs.jsonl", "output_dir": "save/debug", "max_steps": 1}
    (checkout / "train_args.json").write_text(json.dumps(relative))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, checkout / "train.py", cwd=elsewhere)
    assert len(losses(checkout / "save" / "debug")) == 1 and not any(elsewhere.iterdir())


def test_resumed_run_equals_an_uninterrupted_one(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size", "4", "--max_steps", "4"]
    full, resumed = tmp_path / "full", tmp_path / "resumed"
    train_script.main(arguments(base_model, few_pairs, full, *saving))
    shutil.copytree(full / "checkpoint-2", resumed / "checkpoint-2")
    train_script.main([*arguments(base_model, few_pairs, resumed, *saving), "--resume_from_checkpoint", "True"])
    assert losses(resumed) == pytest.approx(losses(full), abs=1e-6)
    assert torch.allclose(scores(resumed), scores(full), atol=1e-5)


def test_long_pairs_are_dropped_and_reported_before_the_split(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    long = json.loads(json.dumps(PAIRS[:12]))
    for pair in long:
        pair["chosen"][-1]["content"] *= 40
    pairs = jsonl(tmp_path / "pairs.jsonl", [*long, *PAIRS[12:]])
    command_line = arguments(base_model, pairs, tmp_path / "out", "--max_steps", "1", "--save_strategy", "no")
    trainer = train_script.main([*command_line, "--max_length", "600"])
    assert "dropped 12 of 24 pairs" in capsys.readouterr().out
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (8, 4), (
        "--eval_size 4 holds out 4 of the remaining pairs"
    )


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="../shared/data does not exist")
@pytest.mark.parametrize("name", ["dpo_en_demo", "dpo_zh_demo"])
def test_real_multi_turn_data_can_be_trained_on(name: str, base_model: Path, tmp_path: Path) -> None:
    command_line = arguments(
        base_model, SHARED_DATA / f"{name}.json", tmp_path / "out", "--max_steps", "2", "--save_strategy", "no"
    )
    trainer = train_script.main([*command_line, "--max_length", "2048"])
    assert len(losses(tmp_path / "out")) == 2 and np.isfinite(losses(tmp_path / "out")).all()
    assert len(trainer.train_dataset) > 150
