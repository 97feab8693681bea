"""Write the README.md of a trained model, which is its model card on the Hub, and upload the model."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from jinja2 import StrictUndefined, Template

from reward_model.model.reference_scores import CALLING, FUNCTION, REASONING
from reward_model.training.arguments import TrainingArguments

TEMPLATE = Template(
    Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
# Checkpoints, logs, and the pickled arguments, which contain --hub_token.
NOT_UPLOADED = ["checkpoint-*", "runs/*", "_*", "bad_batch_*", "training_args.bin"]


def write_model_card(
    directory: Path,
    record: dict[str, Any],
    metrics: dict[str, float],
    eval_metrics: dict[str, float],
    name: str | None = None,
) -> None:
    """Write the README.md of a trained model.

    Args:
        directory: The output directory of train.py, with the model's config and reference scores.
        record: The run record that `make_record` returned.
        metrics: Training metrics.
        eval_metrics: Metrics from the last evaluation; empty if there was none.
        name: Hub id of the model; defaults to the directory.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    reference = json.loads((directory / "reference_scores.json").read_text(encoding="utf-8"))
    run, conversations = record["arguments"], reference["conversations"]
    called = [one["text"] for one in conversations if CALLING in one["messages"]]
    card = TEMPLATE.render(
        name=name or directory.as_posix(),
        metadata=yaml.safe_dump(card_metadata(run), sort_keys=False, allow_unicode=True),
        run=run,
        base_model=_public_name(run["model_name_or_path"]),
        dataset=_public_name(run["dataset_name"]),
        trained=metrics,
        evaluated=metrics_by_subset(eval_metrics),
        versions=", ".join(f"{package} {version}" for package, version in record["versions"].items() if version),
        dtype=config.get("dtype") or "float32",
        example=conversations[0],
        on_hub=name is not None,
        renders_tools=any(FUNCTION["description"] in one["text"] for one in conversations),
        # The question mentions the town, too, so it must occur twice; some templates escape it in the call.
        renders_calls=any(text.count("Zürich") > 1 or r"Z\u00fcrich" in text for text in called),
        renders_reasoning=any(REASONING in one["text"] for one in conversations),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def card_metadata(run: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that the Hub reads. A local base model or dataset is omitted, because it has no Hub id."""
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "license": "unknown",
        "tags": ["reward-model", "bradley-terry"],
    }
    if not Path(run["model_name_or_path"]).exists():
        metadata["base_model"] = run["model_name_or_path"]
    if not run["data"]:
        metadata["datasets"] = [run["dataset_name"].partition(":")[0]]
    return metadata


def metrics_by_subset(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the accuracy, loss and margin for each evaluated set: `held-out pairs` or the subset of a benchmark."""
    subsets = {}
    for key in metrics:
        if key.startswith("eval_") and key.endswith("accuracy"):
            prefix = key.removesuffix("accuracy")
            subset = prefix.removeprefix("eval_").removesuffix("_")
            figures = {figure: metrics[prefix + figure] for figure in ("accuracy", "loss", "margin")}
            subsets["held-out pairs" if subset in ("", "held_out") else subset] = figures
    return subsets


def upload_model(directory: Path, repository: str, args: TrainingArguments) -> None:
    """Upload a complete model to the Hub. Trainer would upload it before the reference scores and card are written."""
    commit = HfApi(token=args.hub_token).upload_folder(
        repo_id=repository,
        folder_path=directory,
        commit_message="End of training",
        revision=args.hub_revision,
        ignore_patterns=NOT_UPLOADED,
    )
    print(f"Uploaded the model: {commit.commit_url}")


def _public_name(name: str) -> str:
    """Return a Hub id, or the last component of a local path: the rest does not help readers of the card."""
    return Path(name).resolve().name if Path(name).exists() else name
