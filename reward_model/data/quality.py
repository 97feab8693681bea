"""Find bad pairs by comparing them: duplicates, contradictions, and prompts from benchmarks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from xxhash import xxh32_intdigest

from reward_model import InputError, RowError
from reward_model.data.convert import FIRST_ROWS, recognize, validated_pairs
from reward_model.data.fields import PROMPTS
from reward_model.data.formats import DEFAULT_OPTIONS
from reward_model.data.messages import prompt_messages
from reward_model.data.pair import WARNINGS, Messages, shared_messages
from reward_model.data.readers import data_files, place_of, read_rows

# Why pairs conflict with others, in the order of the checks; index 0 means no conflict.
REASONS = ("", "duplicate", "both orders", "contradiction")
PERMUTATIONS = 128
SHINGLE = 5  # characters; words would not work for Chinese


class Conflicts(NamedTuple):
    """The conflicts between pairs, as arrays with one value per pair.

    Attributes:
        reasons: Why the pair is set aside, as an index into REASONS.
        warnings: The warning about a pair that is kept, as an index into REASONS.
        others: The index of the pair that this pair conflicts with.
    """

    reasons: np.ndarray
    warnings: np.ndarray
    others: np.ndarray


def find_conflicts(facts: np.ndarray, drop: tuple[str, ...]) -> Conflicts:
    """Return the conflicts between pairs, based on their FACTS; pairs with a warning in `drop` are set aside."""
    reasons, warnings = np.zeros((2, len(facts)), dtype=np.uint8)
    others = np.arange(len(facts))
    for reason, find in enumerate((duplicates, both_orders, contradictions), 1):
        left = np.flatnonzero(reasons == 0)
        found, other = find(facts[left])
        is_kept = REASONS[reason] in WARNINGS and REASONS[reason] not in drop
        (warnings if is_kept else reasons)[left[found]] = reason
        others[left[found]] = left[other]
    return Conflicts(reasons, warnings, others)


def duplicates(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of pairs that repeat an earlier pair, and the indices of those earlier pairs."""
    keys = _pair_keys(facts)
    repeated = np.flatnonzero(pd.Index(keys).duplicated())
    return repeated, _first_index(keys, keys[repeated])


def both_orders(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of pairs whose answers also occur in reverse order, and the indices of the reversed pairs."""
    other = _first_index(_pair_keys(facts), _pair_keys(facts, chosen="rejected_hash", rejected="chosen_hash"))
    found = np.flatnonzero(other >= 0)
    return found, other[found]


def contradictions(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, twice, of the pairs that form preference cycles in a prompt: A over B, B over C, C over A."""
    prompts = pd.Series(facts["prompt_hash"])
    several = np.flatnonzero(prompts.groupby(prompts).transform("size") > 2)
    # In a graph with an edge from each chosen answer to the rejected one, an edge is in a cycle if and only if both of
    # its ends are in the same strongly connected component.
    answers = np.concatenate([facts["chosen_hash"][several], facts["rejected_hash"][several]])
    nodes = pd.DataFrame({"prompt": np.tile(prompts[several], 2), "answer": answers}).groupby(["prompt", "answer"])
    chosen, rejected = nodes.ngroup().to_numpy().reshape(2, -1)
    graph = coo_array((np.ones(len(several)), (chosen, rejected)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, connection="strong")
    found = several[component[chosen] == component[rejected]]
    return found, found


def _pair_keys(facts: np.ndarray, chosen: str = "chosen_hash", rejected: str = "rejected_hash") -> np.ndarray:
    """Return a 64-bit hash for each pair of its prompt and the two answers, in the order of the arguments."""
    columns = pd.DataFrame({name: facts[name] for name in ("prompt_hash", chosen, rejected)})
    return pd.util.hash_pandas_object(columns, index=False).to_numpy()


def _first_index(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return, for each wanted key, the index of the first key that equals it, or -1 if there is none."""
    first = np.flatnonzero(~pd.Index(keys).duplicated())
    found = pd.Index(keys[first]).get_indexer(wanted)
    return np.where(found < 0, -1, first[found])


class ExcludedPrompts:
    """The prompts in files, such as benchmarks, that must not be trained on.

    The similarity between two prompts is the Jaccard similarity of their sets of 5-character substrings, estimated by
    MinHash (Broder 1997).

    Args:
        sources: Files or directories.
        similarity: Prompts that are at least this similar to one in the files are excluded, too.
    """

    def __init__(self, sources: Iterable[str], similarity: float) -> None:
        from datasketch import MinHashLSH  # takes 0.4 s to import

        self.similarity = similarity
        self.places: dict[str, str] = {}  # location of each text
        self.hashes: dict[str, Any] = {}
        self.near = MinHashLSH(threshold=min(similarity, 0.95), num_perm=PERMUTATIONS)  # 0.99 is rejected
        for source in sources:
            files = data_files(source)
            if not files:
                raise InputError(f"--exclude_prompts {source}: no such file or directory.")
            for place, prompt in (found for file in files for found in _prompts_of(file)):
                text = _user_text(prompt)
                if text not in self.places:
                    self.places[text] = place
                    self.hashes[place] = _minhash(text)
                    self.near.insert(place, self.hashes[place], check_duplication=False)

    def check(self, prompt: Messages) -> None:
        """Raise RowError if a prompt is identical or similar to one of the excluded prompts."""
        text = _user_text(prompt)
        if text in self.places:
            raise RowError("contaminated", f"the prompt duplicates the one at {self.places[text]}, which is excluded.")
        minhash = _minhash(text)
        for place in self.near.query(minhash):
            similarity = minhash.jaccard(self.hashes[place])
            if similarity >= self.similarity:
                found = f"the prompt is {similarity:.0%} similar to the one at {place}, which is excluded."
                raise RowError("nearly contaminated", found)


def _prompts_of(file: Path) -> list[tuple[str, Messages]]:
    """Return (location, prompt) for each row in a file; a row needs a prompt, but no answers."""
    rows = list(read_rows(file))
    try:
        format_ = recognize([row for _, row in rows[:FIRST_ROWS]], str(file))
    except InputError:
        format_ = None
    found = [(place_of(file, number), prompt) for number, row in rows if (prompt := _prompt_of(row, format_))]
    if 0 < len(found) < len(rows):
        print(f"--exclude_prompts {file}: {len(rows) - len(found)} of {len(rows)} rows have no prompt and are ignored.")
    if not found:
        raise InputError(
            f"--exclude_prompts {file}: no prompts found; each row must have one of {', '.join(PROMPTS)}, or be a pair."
        )
    return found


def _prompt_of(row: Any, format_: str | None) -> Messages | None:
    for pair in validated_pairs(row, format_, DEFAULT_OPTIONS) if format_ else []:
        if not isinstance(pair, RowError):
            return shared_messages(pair)
    if not isinstance(row, dict):
        return None
    prompt = next((row[name] for name in PROMPTS if row.get(name)), None)  # a row without a valid pair, such as a tie
    return prompt_messages(prompt) if prompt else None


def _user_text(prompt: Messages) -> str:
    """Return the text of the user turns only, with case and whitespace normalized."""
    messages = [message for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
    texts = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    return " ".join(" ".join(texts).casefold().split())


def _minhash(text: str) -> Any:
    from datasketch import MinHash

    minhash = MinHash(num_perm=PERMUTATIONS, hashfunc=xxh32_intdigest)
    shingles = {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}
    minhash.update_batch([shingle.encode() for shingle in shingles])
    return minhash
