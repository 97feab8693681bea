"""Two runs on the same items: is one better, or is it chance?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from reward_model import InputError
from reward_model.evaluation.metrics import interval

COLUMNS = ["key", "prompt_key", "right", "place", "subset", "prompt", "chosen", "rejected"]  # of Scored.records


def load_run(folder: Path) -> pd.DataFrame:
    """The items of a run, from its --output folder; raises InputError where it has none."""
    file, again = folder / "scores.jsonl", f"make it with evaluate.py … --output {folder}"
    if not file.is_file():
        raise InputError(f"{folder}: no scores.jsonl; {again}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([dict(json.loads(line)) for line in lines])[COLUMNS]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is not what this version of evaluate.py writes; {again}") from error


def paired_differences(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(difference of B and A for each subset and "all", items on which they disagree), of the items that both have.

    Raises InputError where they have none.
    """
    both = a.merge(b[["key", "right"]].drop_duplicates("key"), on="key", suffixes=("_a", "_b"))
    if both.empty:
        raise InputError("the two runs have no item in common; evaluate both on the same data.")
    groups = [*both.groupby("subset", sort=False), ("all", both)]
    rows = [
        paired_difference(group["right_a"].to_numpy(), group["right_b"].to_numpy(), group["prompt_key"].to_numpy())
        for _, group in groups
    ]
    disagree = both[both["right_a"] != both["right_b"]].drop(columns=["key", "prompt_key"])
    return pd.DataFrame(rows, index=[name for name, _ in groups]), disagree


def paired_difference(right_a: np.ndarray, right_b: np.ndarray, prompts: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Accuracy of two runs on the same items, their difference with its 95 % interval, and McNemar's test."""
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
    """Exact p-value (McNemar 1947, binomial) that A and B are right equally often; items where one ties count not."""
    only_a = int(((right_a == 1) & (right_b == 0)).sum())
    only_b = int(((right_a == 0) & (right_b == 1)).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
