"""Draw docs/packed_row.svg: a packed row of two pairs and who sees whom, read out of the real attention function.

python -m docs.draw_packed_row
"""

from pathlib import Path

import torch

from reward_model.model.attention import sequence_attention
from reward_model.model.packing import pack

HERE = Path(__file__).resolve().parent

# Tokens of (prefix, chosen, rejected) in each pair.
LENGTHS = [(5, 4, 3), (3, 3, 4)]
NAMES = ("prefix", "chosen", "rejected")
COLORS = {"prefix": "#4c78a8", "chosen": "#54a24b", "rejected": "#e45756"}
CELL, LEFT, TOP = 20, 76, 56


def visible(row: dict) -> torch.Tensor:
    """(tokens, tokens): whether a query (first axis) sees a key, from attention over one-hot values."""
    index, tokens = row["key_index"], row["input_ids"].shape[1]
    zeros = torch.zeros(tokens, 1, 8)
    values = torch.eye(tokens)[index][:, None]
    sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    return sequence_attention(zeros, zeros[index], values, *sequences, scale=1.0, window=None)[:, 0] > 0


def draw() -> str:
    row = pack([([0] * prefix, [[0] * chosen, [0] * rejected]) for prefix, chosen, rejected in LENGTHS])
    sees, positions = visible(row), row["position_ids"][0].tolist()
    parts = [(name, length) for lengths in LENGTHS for name, length in zip(NAMES, lengths, strict=True)]
    kinds = [name for name, length in parts for _ in range(length)]
    ends = set(row["end_positions"].tolist())
    size = CELL * len(kinds)
    shapes = []
    for query, kind in enumerate(kinds):
        y = TOP + CELL * query
        for key, key_kind in enumerate(kinds):
            color = COLORS[key_kind] if sees[query, key] else "#f2f2f2"
            shapes.append(
                f'<rect x="{LEFT + CELL * key}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{color}"/>'
            )
        shapes.append(text(LEFT - 8, y + 14, str(positions[query]), "end"))
        if query in ends:
            shapes.append(text(LEFT + size + 6, y + 14, f"→ reward of {kind}", "start", COLORS[kind]))
    start = 0
    for name, length in parts:
        x, width = LEFT + CELL * start, CELL * length
        shapes.append(f'<rect x="{x}" y="{TOP - 24}" width="{width - 1}" height="18" fill="{COLORS[name]}"/>')
        shapes.append(text(x + width / 2, TOP - 10, name, "middle", "white"))
        start += length
    shapes += [text(LEFT, 18, "one row: what a query (line) sees of the keys (columns)", "start")]
    shapes += [text(LEFT - 8, TOP - 10, "position", "end")]
    width, height = LEFT + size + 150, TOP + size + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(shapes)}</svg>\n'
    )


def text(x: float, y: float, words: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{words}</text>'


if __name__ == "__main__":
    (HERE / "packed_row.svg").write_text(draw(), encoding="utf-8")
