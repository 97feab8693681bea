"""Draw docs/packed_row.svg: a packed row of two pairs, and which tokens attend to which.

python -m docs.draw_packed_row
"""

from pathlib import Path

import torch

from docs.svg import COLORS, page, rectangle, text
from reward_model.model.attention import sequence_attention
from reward_model.model.packing import pack

# Tokens of (prefix, chosen, rejected) in each pair.
LENGTHS = [(5, 4, 4), (4, 4, 5)]
NAMES = ("prefix", "chosen", "rejected")
CELL, LEFT, TOP = 14, 54, 48


def visible(row: dict) -> torch.Tensor:
    """(tokens, tokens): whether a query (first axis) sees a key, from attention over one-hot values."""
    index, tokens = row["key_index"], row["input_ids"].shape[1]
    zeros = torch.zeros(tokens, 1, 8)
    values = torch.eye(tokens)[index][:, None]
    sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    return sequence_attention(zeros, zeros[index], values, *sequences, scale=1.0, window=None)[:, 0] > 0


def draw_row(trees: list[list[tuple[str, int]]], title: str, colors: dict[str, str] = COLORS) -> str:
    """Draw a row of trees, given as names and tokens of prefixes and branches, and which tokens attend to which."""
    row = pack([([0] * tree[0][1], [[0] * length for _, length in tree[1:]]) for tree in trees])
    sees, positions = visible(row), row["position_ids"][0].tolist()
    parts = [part for tree in trees for part in tree]
    kinds = [name for name, length in parts for _ in range(length)]
    ends = set(row["end_positions"].tolist())
    size = CELL * len(kinds)
    shapes = [text(LEFT, 16, title)]
    shapes += [text(LEFT - 6, TOP - 8, "position", "end", size=11)]
    start = 0
    for name, length in parts:
        x, width = LEFT + CELL * start, CELL * length
        shapes.append(rectangle(x, TOP - 21, width - 1, 18, colors[name]))
        shapes.append(text(x + width / 2, TOP - 8, name, "middle", "white", size=11))
        start += length
    for query, kind in enumerate(kinds):
        y = TOP + CELL * query
        for key, key_kind in enumerate(kinds):
            color = colors[key_kind] if sees[query, key] else "#f2f2f2"
            shapes.append(rectangle(LEFT + CELL * key, y, CELL - 1, CELL - 1, color))
        shapes.append(text(LEFT - 6, y + 11, str(positions[query]), "end", size=11))
        if query in ends:
            shapes.append(text(LEFT + size + 4, y + 11, "→ reward", color=colors[kind]))
    return page(LEFT + size + 66, TOP + size + 8, shapes)


def draw() -> str:
    trees = [list(zip(NAMES, lengths, strict=True)) for lengths in LENGTHS]
    return draw_row(trees, "one row: what a query (line) sees of the keys (columns)")


if __name__ == "__main__":
    Path(__file__).with_name("packed_row.svg").write_text(draw(), encoding="utf-8")
