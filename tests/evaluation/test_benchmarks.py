"""Official figures of public benchmarks on small rows of their layout, compared with values computed by hand."""

import json
from pathlib import Path

import pytest
from helpers import conversation, jsonl

from reward_model import InputError
from reward_model.evaluation.items import Item, ScoredItems, load_items
from reward_model.evaluation.report import compute_figures, summary, write


def evaluated(tmp_path: Path, rows: list[dict], scores: list[list[float]]) -> dict:
    """Return all figures of rows whose answers have these scores, chosen first."""
    items = load_items([str(jsonl(tmp_path / "rows.jsonl", rows))])
    return compute_figures(ScoredItems(items, [[float(value) for value in each] for each in scores]))


def test_rewardbench(tmp_path: Path) -> None:
    """calculate_scores_per_section: subsets weighted by EXAMPLE_COUNTS (math-prm: 984); ties are wrong."""
    pairs = [("math-prm", [1, 0]), ("math-prm", [0, 1]), ("hep-go", [1, 0]), ("donotanswer", [1, 0])]
    pairs += [("alpacaeval-easy", [1, 0]), ("mt-bench-easy", [0, 1]), ("llmbar-natural", [1, 1])]
    rows = [{"prompt": f"? {n}", "chosen": "a", "rejected": "b", "subset": pair[0]} for n, pair in enumerate(pairs)]
    # RM-Bench with a subset of the same name is not RewardBench.
    lists = {"prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse"}
    found = evaluated(tmp_path, rows, [scores for _, scores in pairs])
    expected = {
        "Chat": 100 / 128,
        "Chat Hard": 0.0,
        "Safety": 1.0,
        "Reasoning": (984 * 0.5 + 164) / (984 + 164),
        "overall": (100 / 128 + 0 + 1 + 656 / 1148) / 4,
    }
    assert found["official"] == {"RewardBench": pytest.approx(expected)}
    assert found["subsets"]["llmbar-natural"]["accuracy"] == 0.5  # like pairs of any other source
    assert found["subsets"]["llmbar-natural"]["strict_accuracy"] == 0.0
    assert "RewardBench, official scoring: Chat 0.781, Chat Hard 0.000, Safety 1.000" in summary(found)
    found = evaluated(tmp_path, [lists | {"subset": "refusals-dangerous"}], [[6, 5, 4, 3, 2, 1]])
    assert list(found["official"]) == ["RM-Bench"]


def test_rewardbench_2(tmp_path: Path) -> None:
    """reroll_and_score_dataset and process_single_model of rewardbench/utils.py."""
    best = [("Focus", [5, 4, 3, 2]), ("Focus", [5, 5, 1, 5]), ("Focus", [4, 5, 1, 1]), ("Factuality", [2, 1, 0, 0])]
    best += [("Precise IF", [0, 1, 0, 0]), ("Math", [1, 1, 0, 0]), ("Safety", [1, 0, 0, 0])]
    rows = [
        {"prompt": f"? {n}", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": s} for n, (s, _) in enumerate(best)
    ]
    # The right answers of 1 spread by 2, the gap to the wrong ones is 3, that of its ref prompt 1;
    # those of 2 do not spread, and the gap is -1, that of its ref prompt 1.
    ties = [("tied:1", [8, 6], [3, 1]), ("ref:1", [4], [3, 0]), ("tied:2", [5, 5, 5], [6, 1, 0]), ("ref:2", [2], [1])]
    for id_, chosen, rejected in ties:
        answers = {
            "chosen": [f"a {n}" for n in range(len(chosen))],
            "rejected": [f"b {n}" for n in range(len(rejected))],
        }
        rows.append({"prompt": f"? {id_}", "subset": "Ties", "id": id_, **answers})
    scores = [each for _, each in best] + [chosen + rejected for _, chosen, rejected in ties]
    found = evaluated(tmp_path, rows, scores)
    closeness = (-0.46211716 + -1) / 2  # tanh(min(3, 1) / 2 - 1), and tanh of -1 / 0
    expected = {
        "Factuality": 1.0,
        "Precise IF": 0.0,
        "Math": 1 / 2,
        "Safety": 1.0,
        "Focus": (1 + 1 / 3 + 0) / 3,
        # tied and ref accuracy, gap over spread in 1 of 2, also of ref in none
        "Ties": 0.30 * 1 / 2 + 0.30 * 2 / 2 + 0.20 * 1 / 2 + 0.20 * 0 / 2 + 0.01 * closeness,
    }
    overall = sum(expected.values()) / 6
    name = "RewardBench 2"
    assert found["official"] == {name: pytest.approx(expected | {"overall": overall})}
    assert found["subsets"]["Ties"]["items"] == 4 and found["subsets"]["Ties"]["accuracy"] == 0.75
    assert "overall" not in evaluated(tmp_path, rows[1:3], scores[1:3])["official"][name]


def test_rm_bench(tmp_path: Path) -> None:
    """compute_accuracy for each domain, refuse and response pooled; then means over domains. Ties are wrong."""
    # Plainest style first. Of 9 comparisons 6 are right: on the diagonal all, where chosen is fancier all, else none.
    half, right, wrong, equal = [1, 2, 3, 0, 1.5, 2.5], [2, 2, 2, 1, 1, 1], [1, 1, 1, 2, 2, 2], [1] * 6
    by_domain = [("chat", half), ("math", equal), ("math", right), ("code", right)]
    by_domain += [("safety-refuse", wrong), ("safety-response", right), ("safety-response", right)]
    rows = [
        {"prompt": f"? {n}", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": domain, "id": n}
        for n, (domain, _) in enumerate(by_domain)
    ]
    found = evaluated(tmp_path, rows, [scores for _, scores in by_domain])
    domains = {"chat": 6 / 9, "math": 1 / 2, "code": 1.0, "safety": 2 / 3}
    expected = {
        "easy": (1 + 1 / 2 + 1 + 2 / 3) / 4,
        "normal": (1 + 1 / 2 + 1 + 2 / 3) / 4,
        "hard": (0 + 1 / 2 + 1 + 2 / 3) / 4,
        **domains,
        "overall": sum(domains.values()) / 4,
    }
    assert found["official"] == {"RM-Bench": pytest.approx(expected)}
    with pytest.raises(InputError, match=r"best\.jsonl:1: 1 chosen and 3 rejected answers, but RM-Bench has 3 of each"):
        load_items([str(jsonl(tmp_path / "best.jsonl", [rows[0] | {"chosen": ["a"]}]))], "rm-bench")


def test_domains_of_rm_bench_by_file(tmp_path: Path) -> None:
    """The files of one domain have `subset` (alpacaeval in chat_filtered.json) and no `domain`."""
    row = {"prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "subset": "alpacaeval"}
    for name, domain in {
        "chat_filtered.json": "chat",
        "safety-refuse_filtered.json": "safety",
        "code_filtered.json": "code",
        "other.json": "alpacaeval",
    }.items():
        (tmp_path / name).write_text(json.dumps([row]))
        scored = ScoredItems(load_items([str(tmp_path / name)]), [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
        assert compute_figures(scored)["official"]["RM-Bench"][domain] == 1 and scored.subsets.tolist() == [
            "alpacaeval"
        ]
    write(tmp_path / "out", "a model", compute_figures(scored), scored)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["official"]["rm_bench"] == {"easy": 1, "normal": 1, "hard": 1, "alpacaeval": 1}
    keys = [key for group, found in metrics.items() if isinstance(found, dict) and group != "subsets" for key in found]
    assert all(key.isidentifier() for key in keys) and "more_bullet_points_and_markdown" in keys


def test_judgebench(tmp_path: Path) -> None:
    """run_judge.py: the share of right pairs by prefix of `source`, and of all pairs. Macro: the mean of the shares."""
    pairs = [("mmlu-pro-law", [1, 0]), ("mmlu-pro-math", [0, 1]), ("mmlu-pro-math", [1, 1]), ("livebench-math", [1, 0])]
    pairs += [("livebench-reasoning", [1, 0]), ("livecodebench", [1, 0])]
    rows = [
        {
            "question": f"? {n}",
            "response_A": "a",
            "response_B": "b",
            "label": "A>B",
            "source": source,
            "pair_id": f"{n}",
        }
        for n, (source, _) in enumerate(pairs)
    ]
    found = evaluated(tmp_path, rows, [scores for _, scores in pairs])["official"]["JudgeBench"]
    expected = {"knowledge": 1 / 3, "reasoning": 1.0, "math": 1.0, "coding": 1.0, "overall": 4 / 6}
    expected["macro average"] = (1 / 3 + 1 + 1 + 1) / 4
    assert found == pytest.approx(expected)


def test_llmbar_subsets_are_named_after_their_directories(tmp_path: Path) -> None:
    files = []
    for number, folder in enumerate(("Natural", "GPTInst")):
        (tmp_path / folder).mkdir()
        rows = [{"input": f"? {n}", "output_1": "no", "output_2": "yes", "label": 2} for n in range(number + 1)]
        (tmp_path / folder / "dataset.json").write_text(json.dumps(rows))
        files.append(str(tmp_path / folder / "dataset.json"))
    read = load_items(files)
    assert [item.subset for item in read] == ["Natural", "GPTInst", "GPTInst"]
    assert [item.subset for item in load_items([str(tmp_path)])] == ["GPTInst", "GPTInst", "Natural"]  # as cloned
    assert read[0].chosen[0][-1]["content"] == "yes" and read[0].protocol == "pairs"
    row = {"prompt": "?", "chosen": "a", "rejected": "b"}
    assert load_items([str(jsonl(tmp_path / "llmbar-00000-of-00001.jsonl", [row]))])[0].subset == "llmbar"


def test_rows_keep_their_subset_and_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "math"}]
    rows += [{"prompt": "?", "chosen": ["g"], "rejected": ["h", "i", "j"], "subset": "Factuality"}]
    rows += [{"prompt": "?", "chosen": ["k", "l", "m"], "rejected": ["n", "o", "p"], "subset": "Ties", "id": "tied:7"}]
    read = load_items([str(jsonl(tmp_path / "lists.jsonl", rows))])
    answers = [[[m[-1]["content"] for m in side] for side in (one.chosen, one.rejected)] for one in read]
    assert answers == [[row["chosen"], row["rejected"]] for row in rows]
    labels = [(one.subset, one.protocol, one.id) for one in read]
    assert labels == [("math", "rm-bench", None), ("Factuality", "best", None), ("Ties", "ties", "tied:7")]
    found = compute_figures(
        ScoredItems(read, [[1.0] * 3 + [0.0] * 3, [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]])
    )
    assert {name: row["accuracy"] for name, row in found["subsets"].items()} == {"math": 1, "Factuality": 0, "Ties": 0}


def test_bad_rows_are_an_error_or_skipped(tmp_path: Path) -> None:
    good = {"prompt": "?", "chosen": ["a"], "rejected": ["b", "c"], "subset": "x"}
    file = jsonl(tmp_path / "rows.jsonl", [good, good | {"rejected": ["b", ""]}, good])
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:2: rejected ends with an empty answer.*--skip_bad"):
        load_items([str(file)])
    skipped: list[str] = []
    assert [item.place.rpartition(":")[2] for item in load_items([str(file)], skipped=skipped)] == ["1", "3"]
    assert ["rows.jsonl:2: rejected ends" in skipped[0], "rows.jsonl:4: not valid JSON" in skipped[1]] == [True, True]


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    item = Item("here:4", "x", "pairs", [conversation("?", "Yes.")], [conversation("?", "No.")])
    with pytest.raises(InputError, match=r"here:4: the score of the conversation that ends with 'No\.' is nan"):
        ScoredItems([item], [[1.0, float("nan")]])
    scored = ScoredItems([item], [[1.0, 1.0]])
    write(tmp_path / "out", "a model", compute_figures(scored), scored)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["all"]["strict_accuracy"] == 0.0
