"""Errors during training name their pairs, run.json records the run, and a dry run estimates its cost."""

import hashlib
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import CHATML, ROOT, demo_pairs, jsonl, run
from huggingface_hub import HfApi
from safetensors.torch import load_file

import train as train_script
from reward_model import InputError
from reward_model.training.callbacks import TrainingMonitor
from reward_model.training.checkpointing import report_disk_full
from reward_model.training.throughput import Throughput, peak_flops

QUICK = "--eval_size 0 --logging_steps 1 --learning_rate 1e-3 --report_to none --max_steps 2 --save_strategy no"


def start(model: Path, pairs: Path, output_dir: Path, more: str = "") -> object:
    paths = ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
    return train_script.main([*paths, *QUICK.split(), *more.split()])


@pytest.fixture
def with_margins(tmp_path: Path) -> Path:
    rows = [pair | {"margin": 0.5} for pair in demo_pairs()[:8]]
    return jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.mark.parametrize("more", ["", "--shared_prefix False", "--max_tokens_per_micro_batch 200"])
def test_loss_that_is_not_finite_stops_the_run_and_names_its_pairs(
    more: str, base_model, with_margins, tmp_path
) -> None:
    rows = [json.loads(line) for line in with_margins.read_text().splitlines()]
    jsonl(with_margins, [*rows[:-1], rows[-1] | {"margin": 3.5e38}])  # infinite in 32 bits
    with pytest.raises(
        InputError,
        match=r"Step 1: the loss is inf and the gradient norm is .* The pairs of this step are .*pairs\.jsonl:\d",
    ):
        start(base_model, with_margins, tmp_path / "out", f"--per_device_train_batch_size 8 {more}")
    saved = json.loads((tmp_path / "out" / "bad_batch_0.json").read_text())
    assert {place for row in saved for place in row["places"]} == {f"{with_margins}:{line}" for line in range(1, 9)}
    assert rows[0]["chosen"][0]["content"] in "".join(text for row in saved for text in row["text"])


def test_out_of_memory_error_names_the_batch(make_tokenizer) -> None:
    monitor = TrainingMonitor(make_tokenizer())
    monitor.batches = [
        {"input_ids": torch.zeros(1, 900, dtype=torch.long), "places": ["pairs.jsonl:7", "pairs.jsonl:9"]}
    ]
    message = r"900 token positions in 2 pairs \(the first is pairs\.jsonl:7\).*micro_batch 450"
    with pytest.raises(InputError, match=message), monitor.explain_out_of_memory():
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="size"), monitor.explain_out_of_memory():
        torch.ones(2) @ torch.ones(3)


def test_drifting_rewards_are_warned_about_once(make_tokenizer, capsys: pytest.CaptureFixture) -> None:
    monitor = TrainingMonitor(make_tokenizer())
    args = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=1)
    for step in range(1, 40):
        log = {"loss": 1 / step, "accuracy": 0.5, "mean_reward": 9.0 * step}
        monitor.on_log(args, SimpleNamespace(global_step=step, is_world_process_zero=True), None, logs=log)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Warning: The mean reward has drifted from 9 to 45")


@pytest.mark.parametrize(
    ("earlier", "logs"),
    [
        # The end of 20 epochs of 24 pairs with four layers of SmolLM2 at 2e-4.
        ([{"loss": 0.7, "accuracy": 0.5}], [{"loss": 3e-6 * (n % 5), "accuracy": 1.0} for n in range(1, 40)]),
        # A resumed run that already ranks all training pairs correctly.
        ([{"loss": 0.7, "accuracy": 0.5, "step": 1}], [{"loss": 0.1 / n, "accuracy": 1.0} for n in range(1, 40)]),
        # A model whose untrained scores are far from 0.
        ([], [{"loss": 0.7 / n, "accuracy": 0.5, "mean_reward": 80 + n % 7} for n in range(1, 40)]),
    ],
)
def test_normal_runs_give_no_warning(earlier: list, logs: list, make_tokenizer, capsys: pytest.CaptureFixture) -> None:
    monitor, model = TrainingMonitor(make_tokenizer()), torch.nn.Linear(1, 1)
    model.path_counts = None
    args = SimpleNamespace(train_batch_size=64, gradient_accumulation_steps=1, world_size=1)
    monitor.on_train_begin(args, SimpleNamespace(log_history=[{"eval_loss": 0.7}, *earlier]), None, model)
    for step, log in enumerate(logs, 10):
        monitor.on_log(args, SimpleNamespace(global_step=step, is_world_process_zero=True), None, logs=log)
    assert not capsys.readouterr().out


def test_resuming_with_other_arguments_or_data_is_refused(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    for name in "ab":
        start(base_model, few_pairs, tmp_path / name, "--save_strategy steps --save_steps 1")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["arguments"]["learning_rate"] == 1e-3 and record["versions"]["torch"] and "commit" in record
    assert re.fullmatch("[0-9a-f]{64}", record["arguments"]["data"][few_pairs.name])
    both = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0]), "two runs with the same arguments differ"

    resumed = "--save_strategy steps --save_steps 1 --resume_from_checkpoint"
    different = r"different arguments: learning_rate was 0\.001 and is now 0\.002; max_steps was 2 and is now 3"
    with pytest.raises(InputError, match=different):
        start(base_model, few_pairs, tmp_path / "a", f"{resumed} auto --learning_rate 2e-3 --max_steps 3")
    jsonl(few_pairs, demo_pairs()[:23])
    with pytest.raises(InputError, match=r"started with different arguments: data was .*some pairs\.jsonl"):
        start(base_model, few_pairs, tmp_path / "a", f"{resumed} True")


def test_an_error_before_the_output_directory_exists_keeps_its_cause(tmp_path: Path) -> None:
    """A dry run has no output directory when memory runs out."""
    with pytest.raises(RuntimeError, match="out of memory"), report_disk_full(tmp_path / "not written"):
        raise RuntimeError("out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--use_peft --lora_r 4"])
def test_model_card(more: str, base_model: Path, few_pairs: Path, tmp_path: Path, monkeypatch) -> None:
    """Its code prints the reference score, its flags are those of infer_vllm.sh, its figures are those of the run."""
    uploads = []

    def upload(self: HfApi, **arguments: object) -> SimpleNamespace:
        uploads.append(arguments | {"files": {file.name for file in (tmp_path / "out").iterdir()}})
        return SimpleNamespace(commit_url="https://huggingface.co/me/rm/commit/1")

    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: SimpleNamespace(repo_id="me/rm"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    more += " --eval_size 4 --push_to_hub True --hub_token secret --save_strategy steps --save_steps 1"
    start(base_model, few_pairs, tmp_path / "out", more)
    (sent,) = uploads
    assert sent["repo_id"] == "me/rm" and "training_args.bin" in sent["ignore_patterns"]
    assert {"README.md", "model.safetensors", "reference_scores.json", "run.json"} <= sent["files"]
    assert "adapter_config.json" not in sent["files"], "vLLM would take the model for an adapter"

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["pipeline_tag"] == "text-classification" and "license" in metadata
    code = card.split("```python\n")[1].split("```")[0].replace('"me/rm"', repr(str(tmp_path / "out")))
    shown = float(run(sys.executable, "-c", code).stdout)
    expected = json.loads((tmp_path / "out" / "reference_scores.json").read_text())["conversations"][0]["score"]
    assert shown == pytest.approx(expected, abs=1e-4) and f"# {expected:.4f} in float32" in card
    served = (ROOT / "infer_vllm.sh").read_text(encoding="utf-8")
    command = next(line for line in card.splitlines() if line.startswith("vllm serve me/rm"))
    for flags in re.findall(r"--(?:runner|tokenizer-mode|chat-template-content-format) \w+", command):
        assert flags in served
    assert '"pooling_type": "LAST", "use_activation": false' in command and "--dtype float32" in command
    figures = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert f"| held-out pairs | {figures['eval_accuracy']:.4f} | {figures['eval_loss']:.4f} |" in card
    assert "| tool definitions | not rendered |\n| tool calls | not rendered |" in card, "ChatML has contents only"
    digest = hashlib.sha256(few_pairs.read_bytes()).hexdigest()
    assert digest in card and f"{few_pairs.parent}" not in card


def test_output_directory_can_be_overwritten_and_the_date_is_pinned(
    base_model: Path, few_pairs: Path, tmp_path: Path
) -> None:
    dated = tmp_path / "dated.jinja"
    dated.write_text("{% set day = strftime_now('%d %b %Y') %}<|im_start|>system\n{{ day }}<|im_end|>\n" + CHATML)
    more = f"--max_steps 1 --chat_template_path {dated}"
    with pytest.raises(InputError, match="prints today's date"):
        start(base_model, few_pairs, tmp_path / "out", more)
    for overwrite in (False, True):
        pinned = f"{more} --template_date 2024-07-26 --overwrite_output_dir {overwrite}"
        start(base_model, few_pairs, tmp_path / "out", pinned)
    stored = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert 'set day = "26 Jul 2024"' in stored and "strftime_now" not in stored
    with pytest.raises(InputError, match="--overwrite_output_dir True to start over"):
        start(base_model, few_pairs, tmp_path / "out")


def test_resuming_without_optimizer_state_is_reported(
    base_model: Path, few_pairs: Path, tmp_path: Path, capsys
) -> None:
    start(base_model, few_pairs, tmp_path / "out", "--save_strategy steps --save_steps 1 --save_only_model True")
    checkpoint = tmp_path / "out" / "checkpoint-1"
    start(
        base_model,
        few_pairs,
        tmp_path / "out",
        f"--max_steps 2 --resume_from_checkpoint {checkpoint}".replace(" pairs", ""),
    )
    assert "checkpoint-1 has no optimizer state; the optimizer is reinitialized." in capsys.readouterr().out


@pytest.mark.parametrize("more", ["", "--use_peft --lora_r 4"])
def test_dry_run_reports_memory_and_time_and_saves_nothing(more: str, base_model, few_pairs, tmp_path, capsys) -> None:
    trainer = start(
        base_model, few_pairs, tmp_path / "out", f"--dry_run True --max_steps 1000 --save_strategy steps {more}"
    )
    assert trainer.state.global_step == 2
    report = r"Dry run: the longest step takes \d+\.\d\d s and \d+\.\d GB of main memory .* run time: \S+ minutes"
    assert re.search(report, capsys.readouterr().out)
    assert not list((tmp_path / "out").glob("**/*.safetensors")) and not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("more", ["", "--use_peft --lora_r 4"])
def test_mfu_is_logged_for_known_gpus(more: str, base_model, few_pairs, tmp_path, monkeypatch) -> None:
    """Patch torch's report of the GPU, and treat the run as one in bf16."""
    trainer = start(base_model, few_pairs, tmp_path / "out", more)
    assert not any("mfu" in log for log in trainer.state.log_history)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    trainer.throughput = throughput = Throughput(trainer.model, trainer.accelerator, half=True)
    counts = throughput.before
    throughput.since, throughput.before = time.perf_counter() - 10, [0, 0, 0, 0]
    logs = throughput.log()
    assert logs["mfu_as_if_padded"] / logs["mfu"] == pytest.approx(counts[3] / counts[2])
    body = [p for name, p in trainer.model.named_parameters() if "embed_tokens" not in name]
    trained = sum(p.numel() for p in body if p.requires_grad)
    flops = (4 * sum(p.numel() for p in body) + 2 * trained) * counts[2]
    assert logs["mfu"] == pytest.approx(flops / 10 / 756e12, rel=0.05)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peak_flops_of_gpus(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
