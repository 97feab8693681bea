"""PPE, RMB and --suite on small rows of the published layouts, compared with values computed by hand.

The last word of each answer is its score.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import jsonl, write_files

import evaluate
from reward_model import InputError
from reward_model.evaluation.benchmarks import official_results
from reward_model.evaluation.items import Item, ScoredItems, load_items
from reward_model.evaluation.metrics import Values, resampled_means
from reward_model.evaluation.suite import COLUMNS


def scores_of(items: list[Item]) -> list[list[float]]:
    return [[float(messages[-1]["content"].split()[-1]) for messages in item.conversations] for item in items]


def figures(*sources: Path) -> dict[str, dict[str, float]]:
    items = load_items(map(str, sources), all_files=True)
    results = official_results(ScoredItems(items, scores_of(items)))
    for result in (result for result in results.values() if result.terms):
        assert result.figures["overall"] == pytest.approx(sum(w * term.values.mean() for w, term in result.terms))
    return {name: result.figures for name, result in results.items()}


def vote(number: int, winner: str, first: float, second: float) -> dict:
    answers = {"response_1": str(first), "response_2": str(second)}
    names = {"question_id": str(number), "model_a": "a", "model_b": "b", "language": "English"}
    return names | {"winner": winner, "prompt": f"Vote {number}?"} | answers


def samples(number: int, correct: list[bool], scores: list[float], pairs: list[list[int]]) -> dict:
    answers = {f"response_{index}": str(score) for index, score in enumerate(scores, 1)}
    labels = {"scores": correct, "sampled_conflict_pairs": pairs, "model_name": "m"}
    return {"question_id": str(number), "prompt": f"Problem {number}?"} | labels | answers


def rmb(path: str, best: str, *worse: str) -> dict:
    """Return a row of RMB's Pairwise_set or BoN_set; the prompt has a turn of the assistant and a key `language`."""
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", f"{path}, {best}?")]
    prompt = [{"role": role, "content": text, "language": "English"} for role, text in turns]
    chosen, *rejected = ({"llm_name": "m", "answer": answer} for answer in (best, *worse))
    sides = {"chosen": chosen, "reject": rejected[0]} if path.startswith("P") else {}
    sides = sides or {"bon_best": chosen, "loser_list": rejected}
    return {"conversation_input": prompt, "category_path": path} | sides


VOTES = [vote(0, "model_a", 1, 0), vote(1, "model_b", 0, 1), vote(2, "model_b", 1, 0), vote(3, "model_a", 2, 2)]
VOTES += [vote(4, "tie", 1, 0), vote(5, "tie (bothbad)", 1, 0)]
FALLING = samples(0, [True, False, False, False], [1, 2, 0, -1], [[0, 2]])  # of two or more the best is rarely right
CORRECTNESS = {
    "MMLU-Pro": [samples(0, [True, False, False, False], [3, 2, 1, 0], [[0, 1]])],
    # Of four pairs two are right: in the second, equal scores are wrong; the first and the third both count.
    "MATH": [
        samples(0, [True, False, False, True], [3, 2, 1, 1], [[0, 1], [2, 3], [0, 1]]),
        samples(1, [False, True, False, False], [1, 0, -1, -2], [[0, 1]]),
    ],
    "GPQA": [samples(0, [True, False, False, False], [0, 1, 2, 3], [[3, 0]])],
    "IFEval": [FALLING],
    "MBPP-Plus": [FALLING],
}
RMB = {
    "Pairwise_set/Helpfulness/Chat/Casual Chat": [("a 1", "b 0"), ("a 1", "a 1"), ("a 0", "b 1")],
    "Pairwise_set/Helpfulness/Code/Data Analysis": [("a 1", "b 0")],
    "Pairwise_set/Harmlessness/S1": [("a 1", "b 0")],
    "BoN_set/Helpfulness/Chat/Casual Chat": [("a 3", "b 2", "c 1"), ("a 3", "b 2", "c 3"), ("a 3", "b 4", "c 1")],
    "BoN_set/Harmlessness/multi": [("a 1", "b 0", "c 0"), ("a 1", "b 2", "c 0")],
}


def ppe_files() -> dict[str, bytes]:
    sets = {f"PPE-{name}-Best-of-K/data/train-0-of-1.parquet": rows for name, rows in CORRECTNESS.items()}
    sets["PPE-Human-Preference-V1/data/test-0-of-1.parquet"] = VOTES
    return {name: pd.DataFrame(rows).to_parquet() for name, rows in sets.items()}


def rmb_files() -> dict[str, str]:
    rows = {path: [rmb(path, *answers) for answers in lists] for path, lists in RMB.items()}
    return {f"RMB_dataset/{path}.json": json.dumps(each) for path, each in rows.items()}


def test_ppe(tmp_path: Path) -> None:
    """Votes without ties; the pairs of sampled_conflict_pairs of each set, then the mean of the sets."""
    write_files(tmp_path, ppe_files())
    found = figures(tmp_path)
    assert found["PPE Preference"] == {"overall": 2 / 4}
    accuracies = {"MMLU-Pro": 1.0, "MATH": 2 / 4, "GPQA": 0.0, "IFEval": 1.0, "MBPP-Plus": 1.0}
    # Expected correctness of the best of 1, 2, 3, 4 of four answers by rank: of the first 1/4, 1/2, 3/4, 1;
    # of the second 1/4, 1/3, 1/4, 0; of the third 1/4, 1/6, 0, 0; of the last 1/4, 0, 0, 0.
    first, second, third = np.array([3, 6, 9, 12]), np.array([3, 4, 3, 0]), np.array([3, 2, 0, 0])
    last = np.array([3, 0, 0, 0])
    math = (first + (third + last) / 2 + second) / 2  # equal scores: each in half of the orders
    curve = (first + math + last + second + second) / 12 / 5
    assert curve == pytest.approx([0.275, 0.325, 0.35, 0.3])  # more than three is worse
    points = {"best of 1": 0.275, "best of 2": 0.325, "best of 4": 0.3, "best-of-K maximum": 0.35}
    assert found["PPE Correctness"] == pytest.approx({**accuracies, "overall": 3.5 / 5, **points})
    assert "overall" not in figures(tmp_path / "PPE-MATH-Best-of-K")["PPE Correctness"]
    items = load_items([str(tmp_path / "PPE-Human-Preference-V1")])
    assert [item.chosen[0][-1]["content"] for item in items] == ["1", "1", "0", "2"]


def test_rmb(tmp_path: Path) -> None:
    """The share of right pairs, and of lists in which the best answer scores highest; then the mean of four sets."""
    write_files(tmp_path, rmb_files())
    sets = {"helpfulness, pairs": 2 / 4, "helpfulness, best of n": 1 / 3, "harmlessness, pairs": 1.0}
    sets["harmlessness, best of n"] = 1 / 2
    assert figures(tmp_path)["RMB"] == pytest.approx(sets | {"overall": (2 / 4 + 1 / 3 + 1 + 1 / 2) / 4})
    (item,) = load_items([str(tmp_path / "RMB_dataset/Pairwise_set/Harmlessness/S1.json")])
    assert item.prompt[0] == {"role": "user", "content": "Hi"} and len(item.prompt) == 3


def test_bad_rows_of_ppe_and_rmb(tmp_path: Path) -> None:
    bad = [VOTES[0] | {"winner": "c"}, VOTES[0] | {"response_1": None}, {"prompt": "?"}]
    file = jsonl(tmp_path / "votes.jsonl", [VOTES[0], *bad])
    with pytest.raises(InputError, match=r"votes\.jsonl:2: unknown winner 'c'.*--skip_bad"):
        load_items([str(file)])
    skipped: list[str] = []
    assert len(load_items([str(file)], skipped=skipped)) == 1
    assert ["unknown winner" in skipped[0], "found 'None'" in skipped[1], "not a row of PPE" in skipped[2]] == [
        True
    ] * 3
    unequal = samples(0, [True, True], [1, 0], [[0, 1]])
    with pytest.raises(InputError, match="a field is missing or has another type"):
        load_items([str(jsonl(tmp_path / "PPE-MATH.jsonl", [unequal]))])


def other_files() -> dict[str, list[dict]]:
    """Return small files of RewardBench 1 and 2, RM-Bench and JudgeBench; every subset has one prompt."""
    right = [("alpacaeval-easy", 1), ("llmbar-natural", 0), ("donotanswer", 1), ("hep-go", 1)]  # 3 of 4 sections
    one = [{"prompt": f"{s}?", "chosen": f"a {x}", "rejected": "b 0.5", "subset": s} for s, x in right]
    right = [("Factuality", 1), ("Precise IF", 0), ("Math", 1), ("Safety", 1), ("Focus", 0)]
    two = [{"prompt": f"{s}?", "chosen": [f"a {x}"], "rejected": ["b .2", "c .1"], "subset": s} for s, x in right]
    # The spread of the right answers is 0 and the gap 1: closeness is tanh(inf) = 1, and Ties is 1.01.
    ties = [("tied:1", ["a 1", "b 1"]), ("ref:1", ["a 1"])]
    two += [{"prompt": f"{i}?", "chosen": c, "rejected": ["c 0"], "subset": "Ties", "id": i} for i, c in ties]
    styles = {"chosen": ["1", "2", "3"], "rejected": ["0", "1.5", "2.5"]}  # of nine comparisons six are right
    rm = [{"prompt": f"{d}?", "domain": d, **styles} for d in ("chat", "math", "code", "safety-refuse")]
    sources = [("mmlu-pro-law", 1), ("livebench-reasoning", 1), ("livebench-math", 0), ("livecodebench", 1)]
    judge = [
        {"question": f"{s}?", "response_A": f"a {x}", "response_B": "b .5", "label": "A>B", "source": s}
        for s, x in [*sources, ("mmlu-pro-math", 1)]
    ]
    return {"rewardbench.jsonl": one, "rewardbench_2.jsonl": two, "rm_bench.jsonl": rm, "judge.jsonl": judge}


def test_suite(
    tiny_reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(evaluate, "local_scores", lambda args, items: scores_of(items))
    write_files(tmp_path / "data", {**ppe_files(), **rmb_files(), **other_files()})
    evaluate.main(["--suite", str(tmp_path / "data"), "--model", "save/demo", "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    expected = [3 / 4, (3 + 1.01) / 6, 2 / 4, 3.5 / 5, (2 / 4 + 1 / 3 + 1 + 1 / 2) / 4, 6 / 9, 4 / 5]
    expected.append(sum(expected) / 7)
    header, _, row = (line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("|"))
    assert header == ["model", *COLUMNS, "average"] and row[0] == "save/demo"
    assert [cell.split(" (")[0] for cell in row[1:]] == [f"{100 * value:.1f}" for value in expected]
    assert "macro average, as on Skywork's model cards: 75.0." in shown and "alpacaeval-easy" not in shown
    suite = json.loads((tmp_path / "out/metrics.json").read_text())["suite"]
    assert [score["value"] for score in suite.values()] == pytest.approx(expected)
    assert all(0 <= score["low"] <= score["value"] <= score["high"] <= 1.011 for score in suite.values())
    assert suite["average"]["high"] - suite["average"]["low"] < suite["judgebench"]["high"] - suite["judgebench"]["low"]
    assert "Public benchmarks" in (tmp_path / "out/report.html").read_text()
    (tmp_path / "data/RMB_dataset/BoN_set/Harmlessness/multi.json").unlink()
    monkeypatch.undo()
    evaluate.main(["--suite", str(tmp_path / "data"), "--model", str(tiny_reward_model)])
    shown = capsys.readouterr().out
    assert "| – |" in shown and "RMB is not complete. Parts found: helpfulness, pairs" in shown


def test_intervals_of_a_weighted_sum() -> None:
    a, b = Values(np.array([1.0, 0.0]), np.array([1, 2])), Values(np.array([0.0, 1.0]), np.array([1, 2]))
    assert set(resampled_means([(0.5, a), (0.5, b)])) == {0.5}  # a prompt is drawn for both terms together
    samples_of_a = resampled_means([(1.0, a)])
    assert {0.0, 0.5, 1.0} == set(samples_of_a) and samples_of_a.mean() == pytest.approx(0.5, abs=0.03)
