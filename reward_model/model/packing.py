"""Lay out a batch without padding: one row that contains each shared prefix once, followed by its branches.

    [prefix 1 | chosen 1 | rejected 1 | prefix 2 | answer 1 | answer 2 | answer 3 | …]

A prefix with its branches is a tree: a pair has two branches, and k answers to one prompt have k, however many pairs
they form. Positions restart after the prefix, so every branch has the same positions as a separate conversation.
Attention sees the row as variable-length sequences, in FlashAttention's terms: `cu_seq_lens_q` divides the queries of
the row into (prefix + first branch), second branch, …; for each of these, `key_index` gathers the keys of the prefix
and of the branch, with boundaries at `cu_seq_lens_k`. Within a sequence, attention is causal and aligned at the end.
All index arithmetic is in this module.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from reward_model.data.pair import common_prefix_length

CHUNK = 64  # tokens that kernels for linear attention compute at a time, even if the sequence has fewer
Group = tuple[Sequence[int], Sequence[Sequence[int]]]


def tree(conversations: Sequence[Sequence[int]], switch: int | None = None) -> Group:
    """Return the prefix that all conversations share, and the rest of each. A single conversation has no prefix.

    If only some of them are longer than `switch` tokens (`modeling.rope_switch`), they share no prefix, because its
    rotary factors would differ.
    """
    alike = len({len(ids) > switch for ids in conversations}) == 1 if switch else True
    shared = common_prefix_length(conversations) if len(conversations) > 1 and alike else 0
    return conversations[0][:shared], [ids[shared:] for ids in conversations]


def positions(group: Group) -> int:
    """Return the number of token positions that a tree takes up in a row."""
    return len(group[0]) + sum(map(len, group[1]))


def pack(groups: list[Group]) -> dict[str, Any]:
    """Pack (prefix, branches) groups into a row. A prefix may be empty; a branch has at least one token.

    Returns:
        Tensors `input_ids` and `position_ids`, `(1, tokens)`; `end_positions`, `(branches,)`, the last token of each
        branch in the row; int32 `cu_seq_lens_q` and `cu_seq_lens_k`, `(branches + 1,)`; `key_index`, `(keys,)`; and the
        ints `max_length_q` and `max_length_k`.

    Raises:
        ValueError: A branch has no tokens.
    """
    tokens, positions, ends, keys, query_lengths, key_lengths = [], [], [], [], [], []
    row = 0
    for prefix, branches in groups:
        prefix_keys = np.arange(row, row + len(prefix))
        tokens.append(prefix)
        positions.append(np.arange(len(prefix)))
        row += len(prefix)
        for number, branch in enumerate(branches):
            if not branch:
                raise ValueError("A branch needs at least one token: the reward is read at its last one.")
            tokens.append(branch)
            positions.append(np.arange(len(prefix), len(prefix) + len(branch)))
            keys += [prefix_keys, np.arange(row, row + len(branch))]
            # The queries of the prefix belong to the first branch.
            query_lengths.append(len(branch) + (len(prefix) if number == 0 else 0))
            key_lengths.append(len(prefix) + len(branch))
            row += len(branch)
            ends.append(row - 1)
    return {
        "input_ids": torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in tokens]))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        "end_positions": torch.tensor(ends),
        "key_index": torch.from_numpy(np.concatenate(keys)),
        "cu_seq_lens_q": torch.tensor([0, *np.cumsum(query_lengths)], dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor([0, *np.cumsum(key_lengths)], dtype=torch.int32),
        "max_length_q": max(query_lengths),
        "max_length_k": max(key_lengths),
    }


def mixer_layout(
    cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor, key_index: torch.Tensor, by_length: bool = True
) -> dict[str, Any]:
    """Return the layout of a packed row for recurrent layers, which run prefixes in batches, then branches in batches.

    Args:
        cu_seq_lens_q: Boundaries of the queries of each branch, as `pack` returns them, `(branches + 1,)`.
        cu_seq_lens_k: Boundaries of the keys of each branch, `(branches + 1,)`.
        key_index: Position of each key in the row, `(keys,)`.
        by_length: Batch only sequences of similar length, because these layers compute padding like any other token.
            If False, there is one batch of prefixes and one of branches.

    Returns:
        `prefixes`, for each batch `(prefixes, longest)`: row positions of each prefix, padded with -1 on the left.
        `branches`, for each batch `(branches, longest)`: row positions of each branch, padded with -1 on the right.
        `groups`, for each batch of branches `(branches,)`: index of each branch's prefix, or -1 if it has none.
        `order`, `(tokens,)`: index of each token of the row in the flattened prefixes and branches.
    """
    starts = key_index[cu_seq_lens_k[:-1].long()].tolist()  # where each branch's prefix starts
    ends, keys = cu_seq_lens_q[1:].tolist(), cu_seq_lens_k.diff().tolist()
    queries = cu_seq_lens_q.diff().tolist()
    # All branches but the first of a tree have fewer queries than keys.
    shared = {start: k - q for start, q, k in zip(starts, queries, keys, strict=True) if q < k}
    prefixes = _batches([range(start, start + length) for start, length in shared.items()], by_length)
    numbers = {prefix.start: number for number, prefix in enumerate(chain(*prefixes))}
    each = [range(end - k + shared.get(start, 0), end) for start, end, k in zip(starts, ends, keys, strict=True)]
    branches = _batches(each, by_length)
    group = {branch.start: numbers.get(start, -1) for branch, start in zip(each, starts, strict=True)}
    arrays = {
        "prefixes": [_row_positions(batch, pad_left=True) for batch in prefixes],
        "branches": [_row_positions(batch, pad_left=False) for batch in branches],
        "groups": [np.array([group[branch.start] for branch in batch]) for batch in branches],
    }
    places = np.concatenate([batch.ravel() for batch in (*arrays["prefixes"], *arrays["branches"])])
    order = np.empty(cu_seq_lens_q[-1].item(), dtype=np.int64)
    order[places[places >= 0]] = np.flatnonzero(places >= 0)
    device = key_index.device
    layout: dict[str, Any] = {name: [torch.from_numpy(one).to(device) for one in a] for name, a in arrays.items()}
    return layout | {"order": torch.from_numpy(order).to(device)}


def _batches(sequences: list[range], by_length: bool) -> list[list[range]]:
    """Group sequences whose numbers of chunks round up to the same power of two: at most half are padding."""
    batches: dict[int, list[range]] = {}
    for sequence in sequences:
        chunks = math.ceil(len(sequence) / CHUNK)
        batches.setdefault((chunks - 1).bit_length() if by_length else 0, []).append(sequence)
    return list(batches.values())


def _row_positions(batch: list[range], pad_left: bool) -> np.ndarray:
    """Return the row positions of each sequence, `(sequences, longest)`, padded with -1."""
    positions = np.full((len(batch), max(map(len, batch))), -1)
    for row, sequence in zip(positions, batch, strict=True):
        row[len(row) - len(sequence) if pad_left else 0 :][: len(sequence)] = sequence
    return positions
