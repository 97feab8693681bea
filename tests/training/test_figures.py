"""Logged figures count each held-out pair once, on one process and two ranks, and match the saved model."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HELD_OUT, ROOT, TWO_RANKS, check_figures, conversation, demo_pairs, jsonl, margins, run

import train as train_script
from reward_model.model.checkpoint import check_reward_model
from reward_model.training.arguments import parse_arguments

SETTINGS = "--max_steps 3 --learning_rate 1e-3 --per_device_eval_batch_size 4 --report_to none --save_strategy no"


def arguments(model: Path, data: Path, output_dir: Path, more: str = "") -> list[str]:
    paths = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", output_dir]
    return [*map(str, paths), *SETTINGS.split(), *more.split()]


def test_figures_count_each_held_out_pair_once(base_model: Path, data: Path, tmp_path: Path) -> None:
    train_script.main(arguments(base_model, data, tmp_path / "one", "--per_device_train_batch_size 4"))
    check_figures(tmp_path / "one")

    more = f"--benchmark_files {data / 'eval.jsonl'} --load_best_model_at_end True --save_strategy steps"
    more += " --metric_for_best_model eval_held_out_accuracy --save_steps 1 --eval_steps 1"
    trainer = train_script.main(arguments(base_model, data, tmp_path / "best", more))
    check_figures(tmp_path / "best", "eval_held_out")
    each = [log["eval_held_out_accuracy"] for log in trainer.state.log_history if "eval_held_out_accuracy" in log]
    assert trainer.state.best_metric == pytest.approx(max(each), abs=1e-9)
    logged = json.loads((tmp_path / "best" / "eval_results.json").read_text())
    subsets = {pair["source"] for pair in HELD_OUT}
    counts = [sum(pair["source"] == subset for pair in HELD_OUT) for subset in sorted(subsets)]
    accuracies = [logged[f"eval_eval_{subset.replace(' ', '_')}_accuracy"] for subset in sorted(subsets)]
    assert np.average(accuracies, weights=counts) == pytest.approx(logged["eval_held_out_accuracy"], abs=1e-9)


@pytest.mark.slow
def test_ddp_on_two_ranks_trains_the_model_of_one_process(base_model: Path, data: Path, tmp_path: Path) -> None:
    train_script.main(arguments(base_model, data, tmp_path / "one", "--per_device_train_batch_size 4"))
    half_batch = arguments(base_model, data, tmp_path / "two", "--per_device_train_batch_size 2")
    run(sys.executable, *TWO_RANKS, ROOT / "train.py", *half_batch)
    assert margins(tmp_path / "two") == pytest.approx(margins(tmp_path / "one"), abs=1e-3)
    check_figures(tmp_path / "two")


@pytest.mark.slow
def test_resuming_after_the_last_step_only_saves(base_model: Path, data: Path, tmp_path: Path) -> None:
    more = "--per_device_train_batch_size 4 --save_strategy steps --save_steps 1 --logging_steps 1"
    uninterrupted = train_script.main(arguments(base_model, data, tmp_path / "uninterrupted", more))
    for last in (2, 3):
        output_dir = tmp_path / f"killed after {last}"
        shutil.copytree(tmp_path / "uninterrupted" / f"checkpoint-{last}", output_dir / f"checkpoint-{last}")
        trainer = train_script.main(arguments(base_model, data, output_dir, f"{more} --resume_from_checkpoint True"))
        assert trainer.state.global_step == 3
        assert margins(output_dir) == pytest.approx(margins(tmp_path / "uninterrupted"), abs=1e-5)
        check_figures(output_dir)
        histories = [run_.state.log_history for run_ in (uninterrupted, trainer)]
        tokens = [[log["num_tokens"] for log in history if "num_tokens" in log] for history in histories]
        assert tokens[0] == tokens[1], "the token count restarted"


def test_trainable_weights_are_fp32_under_lora(base_model: Path, data: Path, tmp_path: Path) -> None:
    more = "--use_peft --lora_r 4 --use_cpu True --bf16 True --max_steps 1 --eval_strategy no"
    trainer = train_script.main(arguments(base_model, data, tmp_path / "out", more))
    dtypes = {True: set(), False: set()}
    for parameter in trainer.model.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


def test_lora_dropout_is_on_and_the_dropout_of_the_model_is_off(tiny_model, data: Path, tmp_path: Path) -> None:
    directory = tiny_model()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    more = "--use_peft --lora_r 4 --lora_dropout 0.25 --max_steps 1 --eval_strategy no"
    trainer = train_script.main(arguments(directory, data, tmp_path / "out", more))
    rates = {name: module.p for name, module in trainer.model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates and all(rate == (0.25 if "lora_dropout" in name else 0) for name, rate in rates.items())
    attention = trainer.model.base_model.model.model.layers[0].self_attn
    assert attention.attention_dropout == 0 and trainer.data_collator.shared_prefix


def test_label_smoothing_changes_the_training_loss(base_model: Path, data: Path, tmp_path: Path) -> None:
    more = "--max_steps 1 --per_device_train_batch_size 24 --learning_rate 0 --logging_steps 1 --eval_strategy no"
    found = {}
    for smoothing in (0.0, 0.3):
        output_dir = tmp_path / str(smoothing)
        trainer = train_script.main(
            arguments(base_model, data, output_dir, f"{more} --label_smoothing_factor {smoothing}")
        )
        log = next(log for log in trainer.state.log_history if "loss" in log)
        found[smoothing] = (log["loss"], log["margin"])
    (plain, margin), (smoothed, _) = found.values()
    assert smoothed == pytest.approx(plain + 0.3 * margin, abs=1e-4)


def test_one_process_uses_one_of_several_gpus(
    base_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    trainer = train_script.main(arguments(base_model, data, tmp_path / "out", "--max_steps 1 --eval_strategy no"))
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == trainer.args.per_device_train_batch_size
    assert "Training on one of 4 GPUs. To use all of them, run sh train.sh" in capsys.readouterr().out


def test_pad_token_is_replaced_if_the_data_contains_it(base_model: Path, data: Path, tmp_path: Path) -> None:
    pairs = demo_pairs()[:24]
    pairs[3] = {side: conversation("What is <|endoftext|>?", f"I was {side}.") for side in ("chosen", "rejected")}
    jsonl(data / "train.jsonl", pairs)
    trainer = train_script.main(arguments(base_model, data, tmp_path / "out", "--max_steps 1"))
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token == "<|pad|>"
    assert check_reward_model(str(tmp_path / "out"))["pad_token_id"] == tokenizer.convert_tokens_to_ids("<|pad|>")
    check_figures(tmp_path / "out")


def test_eval_size_0_holds_out_nothing(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    trainer = train_script.main(arguments(base_model, few_pairs, tmp_path / "out", "--eval_size 0 --max_steps 1"))
    assert len(trainer.train_dataset) == 24 and trainer.eval_dataset is None
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_default_learning_rate_depends_on_mode_and_size(base_model: Path, tmp_path: Path) -> None:
    def learning_rate(*more: str) -> float:
        return parse_arguments(["--output_dir", str(tmp_path), *more], ROOT / "train_args.json")[1].learning_rate

    local = ["--model_name_or_path", str(base_model)]
    assert learning_rate(*local) == 3e-5
    assert learning_rate("--model_name_or_path", "Qwen/Qwen2.5-7B-Instruct") == 1e-5
    assert learning_rate(*local, "--use_peft") == 1e-4
    assert learning_rate(*local, "--use_peft", "--learning_rate", "2e-6") == 2e-6


def test_command_line_overrides_the_argument_file(base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"output_dir": "out", "max_steps": 3, "benchmark_files": ["a", "b"]}))
    (tmp_path / "a.yaml").write_text("output_dir: out\nmax_steps: 3\nlearning_rate: 3e-4\nbf16: false\n")
    data_args, training_args, _ = parse_arguments([str(tmp_path / "a.json"), "--max_steps", "2"], ROOT / "none")
    assert (training_args.max_steps, data_args.benchmark_files) == (2, ["a", "b"])
    _, training_args, _ = parse_arguments(
        [str(tmp_path / "a.yaml"), "--resume_from_checkpoint", "False"], ROOT / "none"
    )
    assert (training_args.max_steps, training_args.learning_rate, training_args.bf16) == (3, 3e-4, False)


def test_server_gets_the_dtype_of_the_weights(tiny_reward_model: Path, tmp_path: Path) -> None:
    """Replace nvidia-smi, and the Python that would start vLLM, by scripts."""
    model, checkout = shutil.copytree(tiny_reward_model, tmp_path / "a model"), tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / "reward_model").symlink_to(ROOT / "reward_model")
    shutil.copy(ROOT / "infer_vllm.sh", checkout)
    python = f'case "$*" in *cli.main*|*api_server*) echo "$@";; *) exec "{sys.executable}" "$@";; esac'
    scripts = {checkout / ".venv/bin/python": python, tmp_path / "nvidia-smi": "echo GPU 0"}
    for path, script in scripts.items():
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    for dtype in ("float32", "bfloat16"):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        output = run("sh", checkout / "infer_vllm.sh", model, CHECK="0", PATH=f"{tmp_path}:/usr/bin:/bin").stdout
        assert f"--dtype {dtype}" in output
