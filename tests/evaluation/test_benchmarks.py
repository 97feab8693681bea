"""The protocols of public benchmarks."""

from pathlib import Path

import pytest
from conftest import conversation, jsonl

from reward_model import InputError
from reward_model.evaluation.items import Item, Scored, load_items
from reward_model.evaluation.report import figures


def item(subset: str, protocol: str, chosen: int, rejected: int) -> Item:
    both = [[conversation(subset, f"{word} {n}") for n in range(k)] for word, k in (("a", chosen), ("b", rejected))]
    return Item("here:1", subset, protocol, *both)


def test_protocols_of_public_benchmarks() -> None:
    items = [item("hep-go", "pairs", 1, 1), item("Focus", "best", 1, 3), item("Focus", "best", 1, 3)]
    items += [item("Ties", "ties", 2, 2), item("chat", "rm-bench", 3, 3)]
    # RM-Bench: chosen 1, 2, 3 for its three styles, rejected 0, 1.5, 2.5: of 9 comparisons 6 are right; on the diagonal
    # all three, where chosen is fancier all three, where rejected is fancier none.
    scores = [[1, 1], [5, 4, 3, 2], [5, 4, 6, 2], [8, 6, 3, 1], [1, 2, 3, 0, 1.5, 2.5]]
    scored = Scored(items, [[float(value) for value in row] for row in scores])
    assert scored.right.tolist() == [0.5, 1, 0, 1, pytest.approx(6 / 9)]
    found = figures(scored)
    accuracy = {name: row["accuracy"] for name, row in found["subsets"].items()}
    assert accuracy == {"hep-go": 0.5, "Focus": 0.5, "Ties": 1.0, "chat": pytest.approx(6 / 9)}
    assert found["official"]["RewardBench sections"] == {"Reasoning": 0.5}
    assert found["official"]["RM-Bench"] == {"easy": 1.0, "normal": 1.0, "hard": 0.0}
    assert list(found["official"]["Ties"].values()) == [1.0]  # 6 - 3 > 8 - 6


def test_rows_keep_their_subset_and_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "math"}]
    rows += [{"prompt": "?", "chosen": ["g"], "rejected": ["h", "i", "j"], "subset": "Factuality"}]
    rows += [{"prompt": "?", "chosen": ["k", "l"], "rejected": ["m", "n"], "subset": "Ties"}]
    read = load_items([str(jsonl(tmp_path / "lists.jsonl", rows))])
    answers = [[[m[-1]["content"] for m in side] for side in (one.chosen, one.rejected)] for one in read]
    assert answers == [[row["chosen"], row["rejected"]] for row in rows]
    assert [(one.subset, one.protocol) for one in read] == [
        ("math", "rm-bench"),
        ("Factuality", "best"),
        ("Ties", "ties"),
    ]
    llmbar = {"input": "?", "output_1": "no", "output_2": "yes", "label": 2}
    (read_pair,) = load_items([str(jsonl(tmp_path / "llmbar.jsonl", [llmbar]))])
    assert read_pair.chosen[0][-1]["content"] == "yes" and read_pair.protocol == "pairs"
    assert read_pair.subset == "llmbar"
    with pytest.raises(InputError, match=r"lists\.jsonl:2: RM-Bench has 3 chosen and 3 rejected answers, not 1 and 3"):
        load_items([str(tmp_path / "lists.jsonl")], "rm-bench")
