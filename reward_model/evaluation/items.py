"""Labelled answers to prompts, their scores, and the figures that say how good the scores are.

An item is one prompt with answers that are better and answers that are worse: one of each in a pair, and several in the
public benchmarks. What counts as right goes by the item's protocol:

    pairs     chosen scores higher (RewardBench, LLMBar, JudgeBench, any pairs); a tie counts as half
    best      every chosen answer scores higher than every rejected one (RewardBench 2)
    ties      as best; told besides: whether that gap is wider than the spread among the chosen ones
    rm-bench  three chosen and three rejected answers in three styles, plainest first: the share of 9 comparisons;
              told besides: easy (chosen is the fancier one), normal (same style) and hard (rejected is the fancier one)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from reward_model import InputError, RowError
from reward_model.data.features import FACTS, Work, pair_facts, trivial_judges
from reward_model.data.files import hub_rows, read_rows, train_and_test_files
from reward_model.data.files import place_of as place
from reward_model.data.formats import Options, convert, recognise
from reward_model.data.pair import Messages, check_pair, shared_messages
from reward_model.evaluation.metrics import by_length, interval, length_correlation, measures, right

PROTOCOLS = ("pairs", "best", "ties", "rm-bench")

# RewardBench's sections and their subsets (Lambert et al. 2024).
SECTIONS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}


@dataclass(frozen=True)
class Item:
    """A prompt with better (`chosen`) and worse (`rejected`) answers, as whole conversations."""

    place: str
    subset: str
    protocol: str
    chosen: list[Messages]
    rejected: list[Messages]
    tools: Any = None

    @property
    def conversations(self) -> list[Messages]:
        """All of them, chosen first: the order of scores."""
        return [*self.chosen, *self.rejected]

    @property
    def pairs(self) -> list[dict[str, Messages]]:
        """Every chosen answer against every rejected one."""
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in product(self.chosen, self.rejected)]

    @property
    def key(self) -> str:
        """Equal for equal items, wherever they lie."""
        return xxh3_64_hexdigest(f"{self.conversations}{self.tools or ''}".encode("utf-8", "surrogatepass"))


def load_items(sources: Iterable[str], protocol: str = "auto") -> list[Item]:
    """The items of files, folders or hub ids, in order; raises InputError at the first row that is not one."""
    items = []
    for source in sources:
        train_files, test_files = train_and_test_files(source)
        files = [(str(file), read_rows(file)) for file in test_files or train_files]
        for name, rows in files or [(source, hub_rows(source))]:
            items += _items(name, list(rows), protocol)
    if not items:
        raise InputError(f"{', '.join(sources)}: no labelled pairs in there.")
    return items


def _items(source: str, rows: list[tuple[int, Any]], protocol: str) -> list[Item]:
    label, items, format_ = Path(source).name.split(".")[0], [], None
    for number, row in rows:
        where = place(source, number)
        try:
            if isinstance(row, RowError):
                raise row
            format_ = format_ or recognise((row for _, row in islice(rows, 100)), source)
            pairs = [check_pair(pair) for pair in convert(row, format_, Options(pairing="all"))]
        except RowError as error:
            if error.reason == "tie":
                continue
            raise InputError(f"{where}: {error} (prepare_data.py sets such rows aside and keeps the rest.)") from None
        tools = pairs[0].get("tools")
        subset = pairs[0].get("subset") or pairs[0].get("source") or label
        if format_ != "lists":
            items += [Item(where, subset, "pairs", [pair["chosen"]], [pair["rejected"]], tools) for pair in pairs]
            continue
        rejected = len(row["rejected"])
        chosen_side, rejected_side = [p["chosen"] for p in pairs[::rejected]], [p["rejected"] for p in pairs[:rejected]]
        found = protocol if protocol != "auto" else _protocol(subset, len(chosen_side), rejected)
        if found == "rm-bench" and (len(chosen_side), rejected) != (3, 3):
            raise InputError(
                f"{where}: RM-Bench has 3 chosen and 3 rejected answers, not {len(chosen_side)} and {rejected}."
            )
        items.append(Item(where, subset, found, chosen_side, rejected_side, tools))
    return items


def _protocol(subset: str, chosen: int, rejected: int) -> str:
    if (chosen, rejected) == (3, 3):
        return "rm-bench"
    if subset.lower() == "ties" or chosen > 1:
        return "ties"
    return "pairs" if rejected == 1 else "best"


@dataclass
class Scored:
    """Items with the scores of their conversations (chosen first)."""

    items: list[Item]
    scores: list[list[float]]

    def __post_init__(self) -> None:
        cuts = [len(item.chosen) for item in self.items]
        self.split = [(scores[:cut], scores[cut:]) for scores, cut in zip(self.scores, cuts, strict=True)]
        # margins[i][j]: score of chosen answer i less that of rejected answer j
        self.margins = [np.subtract.outer(chosen, rejected) for chosen, rejected in self.split]
        self.right = np.array([_right(item, margins) for item, margins in zip(self.items, self.margins, strict=True)])
        self.subsets = np.array([item.subset for item in self.items])
        self.prompts = np.array([repr(shared_messages(item.pairs[0])) for item in self.items])

    def records(self) -> Iterable[dict[str, Any]]:
        """One object for each item, as written to scores.jsonl; answers by their begin."""
        for item, scores, value in zip(self.items, self.scores, self.right, strict=True):
            shared = shared_messages(item.pairs[0])
            yield {
                "key": item.key,
                "place": item.place,
                "subset": item.subset,
                "protocol": item.protocol,
                "right": float(value),
                "chosen_scores": scores[: len(item.chosen)],
                "rejected_scores": scores[len(item.chosen) :],
                "prompt": str(shared[-1].get("content"))[:500],
                "chosen": [str(messages[-1].get("content"))[:500] for messages in item.chosen],
                "rejected": [str(messages[-1].get("content"))[:500] for messages in item.rejected],
            }


def _right(item: Item, margins: np.ndarray) -> float:
    if item.protocol == "rm-bench":
        return float(right(margins).mean())
    return float(right(margins.min()))


def figures(scored: Scored, seed: int = 0) -> dict[str, Any]:
    """All that is measured, as written to metrics.json."""
    answers = [
        (messages, score)
        for item, s in zip(scored.items, scored.scores, strict=True)
        for messages, score in zip(item.conversations, s, strict=True)
    ]
    lengths = np.array([len(str(messages[-1].get("content") or "")) for messages, _ in answers])
    facts = np.array(
        [(0, 0, 0, 0, *pair_facts(pair, Work(Options()))) for item in scored.items for pair in item.pairs], FACTS
    )
    margins = np.concatenate([margins.ravel() for margins in scored.margins])
    everything = np.ones(len(scored.items), dtype=bool)
    found: dict[str, Any] = {"all": _subset(scored, everything, seed)}
    found["subsets"] = {
        str(name): _subset(scored, scored.subsets == name, seed) for name in dict.fromkeys(scored.subsets)
    }
    found["by_length"] = by_length(margins, facts["chosen"], facts["rejected"])
    found["length_correlation"] = length_correlation(np.array([score for _, score in answers]), lengths)
    found["trivial_judges"] = trivial_judges(facts)
    sections = {name: np.isin(scored.subsets, subsets.split()) for name, subsets in SECTIONS.items()}
    if any(inside.any() for inside in sections.values()):
        found["sections"] = {
            name: float(scored.right[inside].mean()) for name, inside in sections.items() if inside.any()
        }
    styles = [right(m) for item, m in zip(scored.items, scored.margins, strict=True) if item.protocol == "rm-bench"]
    if styles:
        mean, (row, column) = np.mean(styles, axis=0), np.indices((3, 3))
        kinds = {"easy": row > column, "normal": row == column, "hard": row < column}
        found["rm_bench"] = {name: float(mean[cells].mean()) for name, cells in kinds.items()}
    ties = [m for item, m in zip(scored.items, scored.margins, strict=True) if item.protocol == "ties"]
    if ties:
        found["ties_gap_wider_than_spread"] = float(np.mean([m.min() > np.ptp(m[:, 0]) for m in ties]))
    return found


def _subset(scored: Scored, inside: np.ndarray, seed: int) -> dict[str, Any]:
    """Measures of some items: accuracy by their protocols, the rest from every chosen-rejected pair in them."""
    indices = np.flatnonzero(inside)
    margins = np.concatenate([scored.margins[index].ravel() for index in indices])
    prompts = np.concatenate([np.full(scored.margins[index].size, scored.prompts[index]) for index in indices])
    found = measures(margins, prompts, seed)
    low, high = interval(scored.right[indices], scored.prompts[indices], seed)
    return {"items": len(indices), **found, "accuracy": float(scored.right[indices].mean()), "low": low, "high": high}


def terminal(found: dict[str, Any]) -> str:
    """The table that evaluate.py prints."""
    width = max([20, *(len(name) + 2 for name in found["subsets"])])
    lines = [
        f"{'subset':<{width}}{'items':>7}{'accuracy':>10}{'95 % interval':>17}{'margin':>9}{'log loss':>10}{'ECE':>7}"
    ]
    for name, row in [*found["subsets"].items(), ("all", found["all"])]:
        limits = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(
            f"{name:<{width}}{row['items']:>7}{row['accuracy']:>10.3f}{limits:>17}{row['mean_margin']:>+9.3f}"
            f"{row['log_loss']:>10.3f}{row['calibration_error']:>7.3f}"
        )
    everything = found["all"]
    lines += [
        f"ties: {everything['ties']}; the temperature that calibrates sigmoid(margin): {everything['temperature']:.2f}"
    ]
    by_length = (f"{name} {row['accuracy']:.3f} ({row['pairs']})" for name, row in found["by_length"].items())
    lines += [f"chosen answer is … than rejected: {', '.join(by_length)}"]
    lines += [f"rank correlation of score and length: {found['length_correlation']:+.2f}"]
    judges = (f"{name} {value:.3f}" for name, value in found["trivial_judges"].items())
    lines += [f"judges that read nothing: {', '.join(judges)}"]
    for title, key in (("RewardBench sections", "sections"), ("RM-Bench", "rm_bench")):
        if key in found:
            lines += [f"{title}: " + ", ".join(f"{name} {value:.3f}" for name, value in found[key].items())]
    if "ties_gap_wider_than_spread" in found:
        lines += [f"ties: gap wider than the spread among the right answers: {found['ties_gap_wider_than_spread']:.3f}"]
    return "\n".join(lines)
