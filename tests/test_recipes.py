"""Recipes train, their figures are those of the script, and troubleshooting quotes messages that exist."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, demo_pairs, jsonl, run

import train
from docs.memory_estimate import RECIPES, Run, table_row
from reward_model.training.arguments import parse_arguments

# Messages of docs/troubleshooting.md that libraries print, and where.
OF_LIBRARIES = {
    "CUDA out of memory": "vllm/v1/worker/gpu_model_runner.py",
    "Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * gradient_acc_step * "
    "world_size": "deepspeed/runtime/config.py",
    "Cannot handle batch sizes > 1 if no padding token is defined.": "transformers/modeling_layers.py",
    "newly initialized because missing from the checkpoint": "transformers/utils/loading_report.py",
    "The model does not support Pooling API": "vllm/entrypoints/pooling/pooling/api_router.py",
    "does not exist.": "vllm/entrypoints/serve/engine/serving.py",
    "This model's maximum context length is": "vllm/renderers/params.py",
    "No available memory for the cache blocks": "vllm/v1/core/kv_cache_utils.py",
    "Free memory on device": "vllm/v1/worker/gpu_worker.py",
}
LINES = [
    re.sub(r"\\\n", " ", code)
    for code in re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.M | re.S)
]
FILES = [file.name for file in sorted((ROOT / "recipes").glob("*.yaml"))]
CHECKED = ("learning_rate", "lr_scheduler_type", "warmup_steps", "seed", "loss_type", "gradient_accumulation_steps")
SLOW = ("helpsteer3-70b.yaml", "qwen2.5-72b-lora.yaml", "qwen3-0.6b.yaml", "qwen3.5-9b.yaml")
SMALL_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
LAUNCHES = [line for line in LINES if re.search(r"train\.(py|sh)", line) and "recipes/" not in line]


@pytest.mark.parametrize("page", ["docs/recipes.md", "docs/zh/recipes.md"])
def test_table_is_what_the_script_computes(page: str) -> None:
    rows = [table_row(name) for name in RECIPES]
    assert [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if " GB | " in line] == rows
    shown = run(sys.executable, "-m", "docs.memory_estimate").stdout.splitlines()
    assert shown == rows


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_parameters_are_counted_as_the_models_have_them(kind: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=96, vocab_size=500, head_dim=8, num_labels=1)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    estimate = Run(3, 64, 8, 2, 96, 500, 8, lora=4 if kind == "LoRA" else 0)
    assert estimate.parameters == model.num_parameters()
    if kind == "LoRA":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    assert estimate.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_memory_falls_and_rises_as_it_must() -> None:
    def together(**changes: object) -> float:
        return sum(Run(**changes).memory().values())

    assert together(gpus=8, zero3=True) < together(gpus=4, zero3=True) < together()
    assert together(lora=16) < together()
    assert together(pairs=2) < together(pairs=4) < together(pairs=4, checkpointing=False)
    for name, recipe in RECIPES.items():
        assert sum(recipe.memory().values()) < 0.9 * int(re.findall(r"(\d+) GB", name)[0]), name


@pytest.mark.parametrize("line", LAUNCHES, ids=range(len(LAUNCHES)))
def test_flags_of_launch_lines_are_known(line: str) -> None:
    command = re.sub(r"^#.*\n|^export .*\n", "", line, flags=re.M)
    words = [word for part in shlex.split(command) for word in part.split()]  # also what `sh -c '…'` has
    words = words[next(i for i, word in enumerate(words) if word.endswith(("train.py", "train.sh"))) + 1 :]
    if "--model_name_or_path" not in words:
        words += ["--model_name_or_path", "owner/name", "--dataset_name", "pairs.jsonl"]
    _, training, model = parse_arguments([*words, "--bf16", "False"], ROOT / "train_args.json")
    assert training.learning_rate == (1e-4 if model.use_peft else 1e-5) or "--learning_rate" in words


def test_launch_lines_are_the_rows_of_the_table() -> None:
    headings = re.findall(r"^### (.*)", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.M)
    assert headings == [name for name in RECIPES if name != "Qwen3-0.6B, full, 1 x 24 GB"]  # recipes/qwen3-0.6b.yaml
    for name, line in zip(headings, LAUNCHES, strict=False):
        recipe = RECIPES[name]
        defaults = {"per_device_train_batch_size": "8", "gradient_accumulation_steps": "1", "max_length": "2048"}
        given = defaults | dict(re.findall(r"--(\w+) (\d+)\b", line))
        assert int(given["per_device_train_batch_size"]) == recipe.pairs, name
        assert int(given["gradient_accumulation_steps"]) == recipe.accumulation, name
        assert int(given["max_length"]) == recipe.max_length and int(given.get("lora_r", 0)) == recipe.lora, name
        assert recipe.zero3 == ("train.sh" in line), name


@pytest.mark.parametrize("name", FILES)
def test_header_of_a_recipe_has_the_computed_figures(name: str) -> None:
    """Its command prints its figures, and has the arguments of the recipe."""
    header, given = header_of(name), yaml.safe_load((ROOT / "recipes" / name).read_text(encoding="utf-8"))
    assert re.findall(r"^# (\w+):", header, re.M) == ["Source", "Data", "Hardware", "Computed", "Expected"]
    command = " ".join(re.search(r"python -m docs\.memory_estimate((?:.*\n#    +(?=--))*.*)", header)[1].split("#"))
    words = command.split()
    kinds = {field.name: field.type for field in fields(Run)}
    shape = {key[2:]: kinds[key[2:]](value) for key, value in zip(words[::2], words[1::2], strict=True)}
    run_ = Run(**shape)
    memory, hours = re.search(r"^# +(\d+) GB per GPU; ([\d.]+) hours", header, re.M).groups()
    assert (f"{sum(run_.memory().values()):.0f}", f"{run_.hours():.1f}") == (memory, hours)
    names = {"pairs": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps"}
    names |= {"max_length": "max_length", "max_tokens": "max_tokens_per_micro_batch", "lora": "lora_r"}
    assert {key: given.get(value, getattr(Run, key)) for key, value in names.items()} == {
        key: getattr(run_, key) for key in names
    }
    assert run_.zero3 == (f"CONFIG=recipes/{name} sh train.sh" in header)
    assert run_.zero3 or f"train.py recipes/{name}" in header


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FILES])
def test_a_recipe_trains(name: str, tiny_model, tiny_reward_model, tmp_path: Path) -> None:
    """With a tiny model of the same architecture, tiny data and two steps; every other value is that of the file."""
    pairs = jsonl(tmp_path / "pairs.jsonl", [pair | {"margin": 1 + n % 3} for n, pair in enumerate(demo_pairs()[:64])])
    given = yaml.safe_load((ROOT / "recipes" / name).read_text(encoding="utf-8"))
    base = {"Qwen/Qwen3.5": "qwen3_5_text", "Qwen/Qwen3-": "qwen3", "Qwen/Qwen2": "qwen2"}
    kind = next((kind for start, kind in base.items() if given["model_name_or_path"].startswith(start)), "llama")
    changes = SMALL_LINEAR_ATTENTION if kind == "qwen3_5_text" else {}
    model = tiny_reward_model if "Reward" in given["model_name_or_path"] else tiny_model(kind, **changes)
    tiny = {"model_name_or_path": model, "dataset_name": pairs, "output_dir": tmp_path / "out", "max_steps": 2}
    words = [word for argument, value in tiny.items() for word in (f"--{argument}", str(value))]
    trainer = train.main([str(ROOT / "recipes" / name), *words])
    assert trainer.state.global_step == 2 and trainer.data_collator.shared_prefix
    assert all(getattr(trainer.args, key) == value for key, value in given.items() if key in CHECKED)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_train_sh_keeps_the_values_of_a_recipe(tmp_path: Path) -> None:
    """CONFIG overrides its defaults; MODEL and arguments override CONFIG. A script in place of Python prints them."""
    checkout = tmp_path / "a checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "train.sh", checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exec "{sys.executable}" "$@"\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    config = checkout / "my config.json"
    for recipe in (ROOT / "recipes" / "helpsteer3-70b.yaml", config):
        given = yaml.safe_load((ROOT / "recipes" / "helpsteer3-70b.yaml").read_text(encoding="utf-8"))
        config.write_text(json.dumps(given))  # on one line
        command = ["sh", checkout / "train.sh", "--seed", "3"]
        words = run(*command, CONFIG=str(recipe), MODEL="models/my model").stdout.splitlines()
        script = words.index(str(checkout / "train.py"))
        assert words[script + 1] == str(recipe) and words[-2:] == ["--seed", "3"]
        flags = dict(zip(words[script + 2 :: 2], words[script + 3 :: 2], strict=True))
        assert flags.keys() & {f"--{key}" for key in given} == {"--model_name_or_path"}
        assert flags["--model_name_or_path"] == "models/my model"
        assert flags["--deepspeed"] == str(checkout / "ds_config_zero3.json")
        assert flags["--resume_from_checkpoint"] == "auto"


def header_of(name: str) -> str:
    text = (ROOT / "recipes" / name).read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))


def test_quoted_messages_exist() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    seen = [re.findall(r"`([^`]+)`", line.split(" | ")[1]) for line in page.splitlines() if re.match(r"\| \d", line)]
    assert len(seen) == 20
    # What a reader would search for: sentences, not names of figures or weights.
    messages = [message for row in seen for message in row if " " in message]
    files = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    ours = plain("".join((ROOT / file).read_text(encoding="utf-8") for file in files if not file.startswith("tests/")))
    for message in messages:
        source = ours
        if message in OF_LIBRARIES:
            package, _, rest = OF_LIBRARIES[message].partition("/")
            folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
            source = plain((folder / rest).read_text(encoding="utf-8"))
        for fragment in filter(None, (part.strip() for part in message.split("…"))):
            assert fragment in source, f"{fragment!r} is printed nowhere"
    assert set(OF_LIBRARIES) <= set(messages)


def plain(source: str) -> str:
    """Source text with adjacent string literals joined, and what is filled in taken out."""
    return re.sub(r"\{[^{}]*\}", "", re.sub(r"\"\s*\n\s*f?\"", "", source))
