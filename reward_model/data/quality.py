"""What only shows when pairs are compared with each other, on arrays of FACTS."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reward_model.data.statistics import DOUBTS, GOOD, REASONS

SHORTEST_CUT = 200  # characters (64 tokens): below, many answers have one length by chance
FEWEST_CUT = 5


def find_conflicts(facts: np.ndarray, drop: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reasons, doubts, others): for each pair an index into REASONS for which it is set aside, the same for what is
    doubtful in it but kept (DOUBTS that are not in `drop`), and the index of the pair that this is about."""
    reasons, doubts = np.zeros((2, len(facts)), dtype=np.uint8)
    others = np.arange(len(facts))
    for reason, find in enumerate((duplicates, both_orders, contradictions, cut_off), 1):
        left = np.flatnonzero(reasons == GOOD)
        found, other = find(facts[left])
        kept = REASONS[reason] in DOUBTS and REASONS[reason] not in drop
        (doubts if kept else reasons)[left[found]] = reason
        others[left[found]] = left[other]
    return reasons, doubts, others


def duplicates(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs that stood earlier already, and where."""
    keys = _keys(facts)
    again = np.flatnonzero(pd.Index(keys).duplicated())
    return again, _first(keys, keys[again])


def both_orders(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs whose two answers also stand the other way round, and where: nobody knows which is right."""
    other = _first(_keys(facts), _keys(facts, chosen="rejected_hash", rejected="chosen_hash"))
    found = np.flatnonzero(other >= 0)
    return found, other[found]


def contradictions(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs of one prompt whose preferences go round in a circle (A over B, B over C, C over A)."""
    prompts = pd.Series(facts["prompt_hash"])
    several = np.flatnonzero(prompts.groupby(prompts).transform("size") > 2)
    # A graph of all answers with an edge from each chosen one to the rejected one: an edge is in a circle if both its
    # ends are in one strongly connected component.
    answers = np.concatenate([facts["chosen_hash"][several], facts["rejected_hash"][several]])
    nodes = pd.DataFrame({"prompt": np.tile(prompts[several], 2), "answer": answers}).groupby(["prompt", "answer"])
    chosen, rejected = nodes.ngroup().to_numpy().reshape(2, -1)
    graph = coo_array((np.ones(len(several)), (chosen, rejected)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, connection="strong")
    circle = several[component[chosen] == component[rejected]]
    return circle, circle


def cut_off(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs with an answer that ends within a word, at a length where far more do so than at those near."""
    found = np.zeros(len(facts), dtype=bool)
    is_open = np.stack([facts["chosen_open"], facts["rejected_open"]])
    # Lists of answers to a prompt repeat each of them in several pairs.
    answers = facts["prompt_hash"] ^ np.stack([facts["chosen_hash"], facts["rejected_hash"]])
    _, distinct = np.unique(answers[is_open], return_index=True)
    for unit, shortest in (("", SHORTEST_CUT), ("_tokens", SHORTEST_CUT * 64 // 200)):
        lengths = np.stack([facts[f"chosen{unit}"], facts[f"rejected{unit}"]])
        of_each = lengths[is_open][distinct]
        counts = np.bincount(of_each[of_each >= shortest], minlength=1)
        around = np.convolve(counts, np.ones(101), mode="same")[: len(counts)] - counts
        # Ten times the mean of the 100 lengths near, raised by 0.2: where few answers end so, five at one length can be
        # chance (once in ten sets of 18,000 real pairs without that).
        common = (counts >= FEWEST_CUT) & (counts > (around + 20) / 10)
        found |= (is_open & common[lengths.clip(max=len(counts) - 1)] & (lengths < len(counts))).any(axis=0)
    indices = np.flatnonzero(found)
    return indices, indices


def _keys(facts: np.ndarray, chosen: str = "chosen_hash", rejected: str = "rejected_hash") -> np.ndarray:
    """64 bits for each pair, of its prompt and its answers in this order."""
    return pd.util.hash_pandas_object(
        pd.DataFrame({name: facts[name] for name in ("prompt_hash", chosen, rejected)}), index=False
    ).to_numpy()


def _first(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the first of `keys` that is equal to each wanted one; -1 where there is none."""
    first = np.flatnonzero(~pd.Index(keys).duplicated())
    found = pd.Index(keys[first]).get_indexer(wanted)
    return np.where(found < 0, -1, first[found])
