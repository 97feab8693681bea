"""Write run.json (arguments, versions, data) to the output directory, and check a resumed run against it."""

import json
import subprocess
from dataclasses import fields
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reward_model import InputError
from reward_model.data.readers import data_files
from reward_model.model.checkpoint import weights_fingerprint

FILE = "run.json"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "deepspeed", "tokenizers", "numpy")
# A resumed run must use the same values for these arguments; otherwise its schedule, data or model would differ.
SAME = (
    "model_name_or_path model_revision dataset_name data pairs_per_step learning_rate lr_scheduler_type warmup_steps "
    "max_steps num_train_epochs seed data_seed max_length eval_size optim weight_decay max_grad_norm template_date "
    "chat_template_kwargs split_special_tokens loss_type label_smoothing_factor center_rewards_coefficient "
    "group_by_prompt use_peft lora_r lora_alpha lora_target_modules"
).split()


def make_record(*arguments: Any) -> dict[str, Any]:
    """Return the arguments, package versions, hashes of the data files, and the commit of this repository.

    Args:
        arguments: The dataclasses of train.py; the second one is TrainingArguments.
    """
    given = {field.name: getattr(part, field.name) for part in arguments for field in fields(part)}
    del given["hub_token"]
    given["pairs_per_step"] = (
        arguments[1].train_batch_size * given["gradient_accumulation_steps"] * arguments[1].world_size
    )
    given["data"] = {}
    for name in (given["dataset_name"], *given["benchmark_files"]):
        for file in data_files(name):
            with open(file, "rb") as content:
                given["data"][file.name] = file_digest(content, "sha256").hexdigest()
    return {
        "weights": weights_fingerprint(given["model_name_or_path"]),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
        "arguments": json.loads(json.dumps(given, default=str)),
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_record(record: dict[str, Any], output_dir: Path) -> None:
    """Write run.json atomically."""
    output_dir.mkdir(parents=True, exist_ok=True)
    new = output_dir / f"{FILE}.new"
    new.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(output_dir / FILE)


def check_same_run(record: dict[str, Any], output_dir: Path, named: bool) -> list[str]:
    """Compare a resumed run with the run.json in its output directory, and return warnings.

    Args:
        record: The record that `make_record` returned for this run.
        output_dir: Directory of run.json; if the file does not exist, nothing is compared.
        named: Whether the user passed the path of the checkpoint, in which case differences are only warnings.

    Raises:
        InputError: The run was started with different arguments.
    """
    if not (output_dir / FILE).is_file():
        return []
    before = json.loads((output_dir / FILE).read_text(encoding="utf-8"))
    was, now = before["arguments"], record["arguments"]
    different = [
        f"{name} was {was[name]!r} and is now {now.get(name)!r}"
        for name in SAME
        if name in was and was[name] != now.get(name)
    ]
    if different and not named:
        raise InputError(
            f"The run in {output_dir} was started with different arguments: {'; '.join(different)}. Pass the same "
            "arguments, choose a different --output_dir, or pass the checkpoint: --resume_from_checkpoint PATH"
        )
    different += [
        f"{name} {old} is now {record['versions'].get(name)}"
        for name, old in before["versions"].items()
        if record["versions"].get(name) != old
    ]
    return [f"This run was started with different settings: {'; '.join(different)}."] if different else []
