"""train.py and train.sh as users start them: command line, JSON, debugger, DeepSpeed on two ranks, resume."""

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
    environment = {"MODEL": str(base_model), "DATASET": str(data), "NPROC_PER_NODE": "2", "MASTER_PORT": "29511"}
    halves = [*QUICK, *steps, "--per_device_train_batch_size", "2"]
    shown = run("sh", ROOT / "train.sh", *halves, cwd=tmp_path, OUTPUT_DIR=str(two), **environment)
    assert "token positions saved" in shown.stdout and "batches are padded" not in shown.stdout
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert torch.allclose(scores(two), scores(one), atol=1e-3), "not the whole weights were saved"
    check_figures(two)

    adapter = ["--use_peft", "--lora_r", "8"]
    train_script.main(arguments(base_model, data, lora_one, *steps, *schedule, *adapter))
    run("sh", ROOT / "train.sh", *halves, *adapter, cwd=tmp_path, OUTPUT_DIR=str(lora), **environment)
    assert losses(lora) == pytest.approx(losses(lora_one), abs=1e-4)
    assert torch.allclose(scores(lora), scores(lora_one), atol=1e-3), "the trained head or adapter was not saved"
    assert (lora / "adapter" / "adapter_model.safetensors").exists()
    for folder in (one, two, lora_one, lora):
        assert (folder / FILE).exists() and drift(*load_reward_model(str(folder)), folder) < 1e-4


def test_json_file_and_debugger(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    words = arguments(base_model, few_pairs, tmp_path / "json run", "--max_steps", "2", "--save_strategy", "no")
    given = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    (tmp_path / "train_args.json").write_text(json.dumps(given | {"max_steps": 2, "gradient_checkpointing": True}))
    train("train_args.json", cwd=tmp_path)
    assert len(losses(tmp_path / "json run")) == 2
    metrics = json.loads((tmp_path / "json run" / "eval_results.json").read_text())
    assert {"eval_accuracy", "eval_loss"} <= metrics.keys()

    # A checkout elsewhere, so that this one's save/ is left alone: no argument reads train_args.json beside train.py.
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


def test_resumed_run_ends_like_one_without_a_stop(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size", "4", "--max_steps", "4"]
    whole, stopped = (arguments(base_model, few_pairs, tmp_path / name, *saving) for name in ("whole", "stopped"))
    train_script.main(whole)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    train_script.main([*stopped, "--resume_from_checkpoint", "True"])
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    assert torch.allclose(scores(tmp_path / "stopped"), scores(tmp_path / "whole"), atol=1e-5)


def test_long_pairs_are_dropped_and_told_before_the_split(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    long = json.loads(json.dumps(PAIRS[:12]))
    for pair in long:
        pair["chosen"][-1]["content"] *= 40
    pairs = jsonl(tmp_path / "pairs.jsonl", [*long, *PAIRS[12:]])
    words = arguments(base_model, pairs, tmp_path / "out", "--max_steps", "1", "--save_strategy", "no")
    trainer = train_script.main([*words, "--max_length", "600"])
    assert "dropped 12 of 24 pairs" in capsys.readouterr().out
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (8, 4), "--eval_size 4 counts what is left"


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["dpo_en_demo", "dpo_zh_demo"])
def test_trains_on_real_multi_turn_data(name: str, base_model: Path, tmp_path: Path) -> None:
    words = arguments(
        base_model, SHARED_DATA / f"{name}.json", tmp_path / "out", "--max_steps", "2", "--save_strategy", "no"
    )
    trainer = train_script.main([*words, "--max_length", "2048"])
    assert len(losses(tmp_path / "out")) == 2 and np.isfinite(losses(tmp_path / "out")).all()
    assert len(trainer.train_dataset) > 150
