"""Compare two evaluations of the same items and test whether the difference is significant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from reward_model import InputError
from reward_model.evaluation.metrics import interval

COLUMNS = ["key", "prompt_key", "right", "place", "subset", "prompt", "chosen", "rejected"]  # from ScoredItems.records


def load_run(directory: Path) -> pd.DataFrame:
    """Load the items that an evaluation wrote to its --output directory; raise InputError if they cannot be read."""
    file, fix = directory / "scores.jsonl", f"Run evaluate.py with --output {directory}."
    if not file.is_file():
        raise InputError(f"{directory}: no scores.jsonl found. {fix}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([dict(json.loads(line)) for line in lines])[COLUMNS]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: not written by this version of evaluate.py. {fix}") from error


def paired_differences(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the differences between two runs (B minus A), and the items on which the runs disagree.

    The table of differences has one row for each subset and a row "all".

    Raises:
        InputError: The runs have no items in common.
    """
    both = a.merge(b[["key", "right"]].drop_duplicates("key"), on="key", suffixes=("_a", "_b"))
    if both.empty:
        raise InputError("the runs have no items in common. Evaluate both models on the same data.")
    groups = [*both.groupby("subset", sort=False), ("all", both)]
    rows = [
        paired_difference(group["right_a"].to_numpy(), group["right_b"].to_numpy(), group["prompt_key"].to_numpy())
        for _, group in groups
    ]
    disagree = both[both["right_a"] != both["right_b"]].drop(columns=["key", "prompt_key"])
    return pd.DataFrame(rows, index=[name for name, _ in groups]), disagree


def paired_difference(right_a: np.ndarray, right_b: np.ndarray, prompts: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return both runs' accuracies on the same items, their difference with a 95% interval, and McNemar's p-value."""
    low, high = interval(right_b - right_a, prompts, seed)
    return {
        "items": len(right_a),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float((right_b - right_a).mean()),
        "low": low,
        "high": high,
        "p_value": mcnemar(right_a, right_b),
    }


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Return the exact p-value of McNemar's test (1947), with the null hypothesis that A and B are equally accurate.

    Only items that exactly one of them gets right count; tied items are ignored.
    """
    only_a = int(((right_a == 1) & (right_b == 0)).sum())
    only_b = int(((right_a == 0) & (right_b == 1)).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
