"""Read rows from PPE and RMB, which label the better answers in their own fields.

Every row that these benchmarks score is accepted, including rows with empty answers and pairs of identical answers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_model import RowError
from reward_model.data.fields import Row
from reward_model.data.pair import Messages, check_encodable
from reward_model.data.preferences import MODELS

PPE_PREFERENCE = "PPE Preference"
# The sets in PPE Correctness. Their rows have the same fields, so a set is recognized by its file or directory name.
PPE_CORRECTNESS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")


@dataclass(frozen=True)
class LabeledRow:
    """A prompt with better and worse answers; `comparisons` holds the index pairs to compare."""

    subset: str
    protocol: str
    prompt: Any
    chosen: list[Any]
    rejected: list[Any]
    comparisons: list[tuple[int, int]] = field(default_factory=list)

    def conversations(self, answers: list[Any]) -> list[Messages]:
        """Return one conversation per answer, the prompt and that answer; raise RowError if a message is not text."""
        turns = self.prompt if isinstance(self.prompt, list) else [{"role": "user", "content": self.prompt}]
        context = [{"role": turn["role"], "content": _text(turn["content"])} for turn in turns]
        return [[*context, {"role": "assistant", "content": _text(answer)}] for answer in answers]


def find_layout(row: Any) -> Callable[[Row, str], LabeledRow] | None:
    """Return the function that reads rows like this one, given (row, source), or None if it is not from PPE or RMB."""
    keys = row.keys() if isinstance(row, dict) else set()
    return next((read for needed, read in LAYOUTS if needed <= keys), None)


def ppe_preference(row: Row, source: str) -> LabeledRow:
    """Read a vote from PPE-Human-Preference-V1; raise RowError for a tie, which PPE excludes."""
    first, second, tie = MODELS
    if row["winner"] in tie:
        raise RowError("tie", f"a tie ({row['winner']!r}).")
    if row["winner"] not in (*first, *second):
        raise RowError("verdict", f"unknown winner {row['winner']!r}; expected {', '.join([*first, *second, *tie])}.")
    chosen, rejected = row["response_1"], row["response_2"]
    if row["winner"] in second:
        chosen, rejected = rejected, chosen
    return LabeledRow(PPE_PREFERENCE, "pairs", row["prompt"], [chosen], [rejected])


def ppe_correctness(row: Row, source: str) -> LabeledRow:
    """Read the answers to a PPE-*-Best-of-K prompt: correct ones are chosen, `sampled_conflict_pairs` are compared."""
    sides: dict[bool, list[int]] = {True: [], False: []}
    for index, score in enumerate(row["scores"]):
        sides[bool(score)].append(index)
    right, wrong = sides[True], sides[False]
    pairs = [(a, b) if row["scores"][a] else (b, a) for a, b in row["sampled_conflict_pairs"]]
    if not pairs:
        raise RowError("tie", "no pair has one correct and one wrong answer.")
    comparisons = [(right.index(better), wrong.index(worse)) for better, worse in pairs]
    chosen, rejected = ([row[f"response_{index + 1}"] for index in side] for side in (right, wrong))
    return LabeledRow(_set_name(source), "best-of-k", row["prompt"], chosen, rejected, comparisons)


def rmb_pair(row: Row, source: str) -> LabeledRow:
    """Read a pair from RMB's Pairwise_set."""
    chosen, rejected = row["chosen"]["answer"], row["reject"]["answer"]
    return LabeledRow(row["category_path"], "pairs", row["conversation_input"], [chosen], [rejected])


def rmb_best_of_n(row: Row, source: str) -> LabeledRow:
    """Read a list from RMB's BoN_set: the best answer and those that must score lower."""
    rejected = [loser["answer"] for loser in row["loser_list"]]
    chosen = [row["bon_best"]["answer"]]
    return LabeledRow(row["category_path"], "beats-all", row["conversation_input"], chosen, rejected)


LAYOUTS: list[tuple[set[str], Callable[[Row, str], LabeledRow]]] = [
    ({"prompt", "response_1", "response_2", "winner", "model_a", "model_b"}, ppe_preference),
    ({"prompt", "response_1", "scores", "sampled_conflict_pairs"}, ppe_correctness),
    ({"conversation_input", "category_path", "chosen", "reject"}, rmb_pair),
    ({"conversation_input", "category_path", "bon_best", "loser_list"}, rmb_best_of_n),
]


def _set_name(source: str) -> str:
    """Return the last set name in a path: "PPE MATH" for .../PPE-MATH-Best-of-K/data/train.parquet."""
    for part in reversed(Path(source).parts):
        for name in PPE_CORRECTNESS:
            if _letters(name) in _letters(part):
                return f"PPE {name}"
    return f"PPE {Path(source).name.split('.')[0]}"


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RowError("not text", f"expected text, found {str(value)[:60]!r}.")
    check_encodable(value, "a message")
    return value
