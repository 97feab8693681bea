"""The protocols of public benchmarks: what counts as right in an item, and the figures that a benchmark reports.

pairs     chosen scores higher (RewardBench, LLMBar, JudgeBench, any pairs); a tie counts as half
best      every chosen answer scores higher than every rejected one (RewardBench 2)
ties      as best; told besides: whether that gap is wider than the spread among the chosen ones
rm-bench  three chosen and three rejected answers in three styles, plainest first: the share of 9 comparisons;
          told besides: easy (chosen is the fancier one), normal (same style) and hard (rejected is the fancier one)
"""

from typing import TYPE_CHECKING

import numpy as np

from reward_model.evaluation.metrics import right

if TYPE_CHECKING:
    from reward_model.evaluation.items import Scored

PROTOCOLS = ("pairs", "best", "ties", "rm-bench")

# RewardBench's sections and their subsets (Lambert et al. 2024).
SECTIONS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}


def item_protocol(subset: str, chosen: int, rejected: int) -> str:
    """The protocol of an item with so many chosen and rejected answers."""
    if (chosen, rejected) == (3, 3):
        return "rm-bench"
    if subset.lower() == "ties" or chosen > 1:
        return "ties"
    return "pairs" if rejected == 1 else "best"


def item_accuracy(protocol: str, margins: np.ndarray) -> float:
    """How right an item is, from 0 to 1; `margins` as in Scored."""
    return float(right(margins).mean() if protocol == "rm-bench" else right(margins.min()))


def official_figures(scored: "Scored") -> dict[str, dict[str, float]]:
    """The figures that benchmarks report besides accuracy, for those that the items come from."""
    found: dict[str, dict[str, float]] = {}
    sections = {name: np.isin(scored.subsets, subsets.split()) for name, subsets in SECTIONS.items()}
    if any(inside.any() for inside in sections.values()):
        found["RewardBench sections"] = {
            name: float(scored.right[inside].mean()) for name, inside in sections.items() if inside.any()
        }
    of_protocol: dict[str, list[np.ndarray]] = {protocol: [] for protocol in PROTOCOLS}
    for item, margins in zip(scored.items, scored.margins, strict=True):
        of_protocol[item.protocol].append(margins)
    if of_protocol["rm-bench"]:
        mean, (row, column) = np.mean([right(m) for m in of_protocol["rm-bench"]], axis=0), np.indices((3, 3))
        kinds = {"easy": row > column, "normal": row == column, "hard": row < column}
        found["RM-Bench"] = {name: float(mean[cells].mean()) for name, cells in kinds.items()}
    if of_protocol["ties"]:
        wider = [m.min() > np.ptp(m[:, 0]) for m in of_protocol["ties"]]
        found["Ties"] = {"gap wider than the spread among the right answers": float(np.mean(wider))}
    return found
