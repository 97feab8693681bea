"""What only shows when pairs are compared with each other, on arrays of FACTS."""

import numpy as np

# Index of a reason against a pair; 0 is none.
REASONS = ("", "duplicate", "both orders", "contradiction", "cut off")
GOOD = 0
# What is counted and kept unless it is named in --drop; beside these, the doubts about a text (record.doubt).
DOUBTS = ("duplicate", "cut off", "control characters", "broken encoding")
SHORTEST_CUT = 200  # characters (64 tokens): below, many answers have one length by chance
FEWEST_CUT = 5


def compare(facts: np.ndarray, drop: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    key = _mix(facts["prompt_hash"], facts["chosen_hash"], facts["rejected_hash"])
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(facts)))
    return again, first[inverse][again]


def both_orders(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs whose two answers also stand the other way round, and where: nobody knows which is right."""
    chosen, rejected = facts["chosen_hash"], facts["rejected_hash"]
    way = _mix(facts["prompt_hash"], chosen, rejected)
    back = _mix(facts["prompt_hash"], rejected, chosen)
    order = np.argsort(way, kind="stable")
    other = order[np.searchsorted(way, back, sorter=order).clip(max=len(way) - 1)] if len(way) else order
    found = np.flatnonzero(way[other] == back)
    return found, other[found]


def contradictions(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs of one prompt whose preferences go round in a circle (A over B, B over C, C over A)."""
    order = np.argsort(facts["prompt_hash"], kind="stable")
    _, starts, counts = np.unique(facts["prompt_hash"][order], return_index=True, return_counts=True)
    found: list[int] = []
    for start, count in zip(starts[counts > 2], counts[counts > 2], strict=True):
        edges = {
            int(i): (int(facts["chosen_hash"][i]), int(facts["rejected_hash"][i])) for i in order[start : start + count]
        }
        while True:  # an answer that always wins, or always loses, is in no circle
            winners, losers = ({edge[side] for edge in edges.values()} for side in (0, 1))
            inner = {i: edge for i, edge in edges.items() if edge[0] in losers and edge[1] in winners}
            if len(inner) == len(edges):
                break
            edges = inner
        found += edges
    circle = np.array(sorted(found), dtype=int)
    return circle, circle


def cut_off(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs with an answer that ends within a word, at a length where far more do so than at those near."""
    found = np.zeros(len(facts), dtype=bool)
    for unit, shortest in (("", SHORTEST_CUT), ("_tokens", SHORTEST_CUT * 64 // 200)):
        lengths = np.stack([facts[f"chosen{unit}"], facts[f"rejected{unit}"]])
        is_open = np.stack([facts["chosen_open"], facts["rejected_open"]])
        counts = np.bincount(lengths[is_open & (lengths >= shortest)], minlength=1)
        around = np.convolve(counts, np.ones(101), mode="same")[: len(counts)] - counts
        common = (counts >= FEWEST_CUT) & (counts > 10 * around / 100)
        found |= (is_open & common[lengths.clip(max=len(counts) - 1)] & (lengths < len(counts))).any(axis=0)
    indices = np.flatnonzero(found)
    return indices, indices


def _mix(*hashes: np.ndarray) -> np.ndarray:
    """One 64-bit hash of several, in order."""
    mixed = np.zeros(len(hashes[0]), dtype=np.uint64)
    for value in hashes:
        mixed = (mixed ^ value) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
