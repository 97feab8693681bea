"""Draw docs/tree.svg: the tree of four answers to one prompt, which make six pairs.

python -m docs.draw_tree
"""

from pathlib import Path

from docs.draw_packed_row import draw_row
from docs.svg import COLORS

# Tokens and colour of each part.
TREE = {
    "prefix": (6, COLORS["prefix"]),
    "answer 1": (5, COLORS["chosen"]),
    "answer 2": (6, "#b279a2"),
    "answer 3": (5, "#f58518"),
    "answer 4": (6, COLORS["rejected"]),
}


def draw() -> str:
    parts = [(name, length) for name, (length, _) in TREE.items()]
    colors = {name: color for name, (_, color) in TREE.items()}
    return draw_row([parts], "a tree: four rewards, from which all six pairs are made", colors)


if __name__ == "__main__":
    Path(__file__).with_name("tree.svg").write_text(draw(), encoding="utf-8")
