"""Recipes and troubleshooting tell the truth: figures are the script's, flags exist, messages are ones that exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run

from docs.memory_estimate import RECIPES, Run, table_row

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
LAUNCHES = [line for line in LINES if "train.py" in line or "train.sh" in line]


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
def test_flags_of_launch_lines_are_known(line: str, monkeypatch) -> None:
    from reward_model.training.arguments import parse_arguments

    command = re.sub(r"^#.*\n|^export .*\n", "", line, flags=re.M)
    words = [word for part in shlex.split(command) for word in part.split()]  # also what `sh -c '…'` has
    words = words[next(i for i, word in enumerate(words) if word.endswith(("train.py", "train.sh"))) + 1 :]
    if "--model_name_or_path" not in words:
        words += ["--model_name_or_path", "owner/name", "--dataset_name", "pairs.jsonl"]
    _, training, model = parse_arguments([*words, "--bf16", "False"], ROOT / "train_args.json")
    assert training.learning_rate == (1e-4 if model.use_peft else 1e-5) or "--learning_rate" in words


def test_launch_lines_are_the_recipes_that_were_computed() -> None:
    assert len(LAUNCHES) == len(RECIPES) + 1  # and Slurm
    for name, line in zip(RECIPES, LAUNCHES, strict=False):
        recipe = RECIPES[name]
        defaults = {"per_device_train_batch_size": "8", "gradient_accumulation_steps": "1", "max_length": "2048"}
        given = defaults | dict(re.findall(r"--(\w+) (\d+)\b", line))
        assert int(given["per_device_train_batch_size"]) == recipe.pairs, name
        assert int(given["gradient_accumulation_steps"]) == recipe.accumulation, name
        assert int(given["max_length"]) == recipe.max_length and int(given.get("lora_r", 0)) == recipe.lora, name
        assert recipe.zero3 == ("train.sh" in line), name


def test_messages_exist_where_they_are_said_to_come_from() -> None:
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
