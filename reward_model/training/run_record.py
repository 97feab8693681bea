"""run.json beside a run's model: what it was started with; and whether a later start goes on with the same."""

import json
import subprocess
from dataclasses import fields
from hashlib import file_digest
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reward_model import InputError
from reward_model.data.readers import data_files
from reward_model.model.checkpoint import weights_mark

FILE = "run.json"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "deepspeed", "tokenizers", "numpy")
# Where a run may not differ from the one that it goes on with: another schedule, other data, another model.
SAME = (
    "model_name_or_path model_revision dataset_name data pairs_per_step learning_rate lr_scheduler_type warmup_steps "
    "max_steps num_train_epochs seed data_seed max_length eval_size optim weight_decay max_grad_norm template_date "
    "chat_template_kwargs split_special_tokens label_smoothing_factor center_rewards_coefficient group_by_prompt "
    "use_peft lora_r lora_alpha lora_target_modules"
).split()


def record(*arguments: Any) -> dict[str, Any]:
    """Arguments, versions of packages, hashes of the data files, and this project's commit."""
    given = {field.name: getattr(part, field.name) for part in arguments for field in fields(part)}
    del given["hub_token"]
    given["pairs_per_step"] = (
        arguments[1].train_batch_size * given["gradient_accumulation_steps"] * arguments[1].world_size
    )
    files = [file for name in (given["dataset_name"], *given["benchmark_files"]) for file in data_files(name)]
    given["data"] = {}
    for file in files:
        with open(file, "rb") as content:
            given["data"][file.name] = file_digest(content, "sha256").hexdigest()
    commit = subprocess.run(
        "git describe --always --dirty --abbrev=40",
        shell=True,  # which does not raise where git is missing
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    return {
        "weights": weights_mark(given["model_name_or_path"]),
        "commit": commit.stdout.strip() or None,
        "versions": versions,
        "arguments": json.loads(json.dumps(given, default=str)),
    }


def write_record(made: dict[str, Any], output_dir: Path) -> None:
    """Write run.json, in one step."""
    output_dir.mkdir(parents=True, exist_ok=True)
    new = output_dir / f"{FILE}.new"
    new.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(output_dir / FILE)


def compare(now: dict[str, Any], output_dir: Path, named: bool, tell: bool) -> None:
    """Refuse to go on with another run than run.json says; where the checkpoint was `named` by its path, only tell."""
    if not (output_dir / FILE).is_file():
        return
    before = json.loads((output_dir / FILE).read_text(encoding="utf-8"))
    lines = [
        f"{name} was {before['arguments'][name]!r}, is {now['arguments'].get(name)!r}"
        for name in SAME
        if name in before["arguments"] and before["arguments"][name] != now["arguments"].get(name)
    ]
    if lines and not named:
        raise InputError(
            f"{output_dir} holds a run that was started otherwise: {'; '.join(lines)}. Give it the same arguments, "
            "take another --output_dir, or name the checkpoint: --resume_from_checkpoint FOLDER"
        )
    changed = [
        f"{name} {was} to {now['versions'][name]}"
        for name, was in before["versions"].items()
        if now["versions"].get(name) != was
    ]
    if tell and lines + changed:
        print(f"Not as the run began: {'; '.join(lines + changed)}.")
