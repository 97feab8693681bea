"""Draw docs/flow.svg: how source files become scores and a report. Blue boxes are scripts, white boxes are files.

python -m docs.draw_flow
"""

from pathlib import Path

from docs.svg import COLORS, page, rectangle, text

WIDTH, HEIGHT, GAP, TOP = 148, 76, 22, 8  # of a box, and between two of them
LOWER = 132  # top of the second line, which is read from right to left
SCRIPTS = "#dfe9f4"


def left(column: int) -> float:
    return 4 + column * (WIDTH + GAP)


def box(column: int, y: float, height: float, script: bool, *lines: str) -> str:
    """Return a box with lines of text; the first line is its name."""
    edge = ' stroke="#4c78a8" rx="6"' if script else ' stroke="#999"'
    shapes = [rectangle(left(column), y, WIDTH, height, SCRIPTS if script else "white", edge)]
    shapes += [
        text(
            left(column) + WIDTH / 2,
            y + 18 + 16 * number,
            words,
            "middle",
            "#333" if number else "#000",
            11 + (not number),
        )
        for number, words in enumerate(lines)
    ]
    return "".join(shapes)


def arrow(points: list[tuple[float, float]]) -> str:
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{line}" fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#head)"/>'


def strip(x: float, y: float) -> str:
    """Return a small packed row of three pairs."""
    shapes = []
    for lengths in ((18, 12, 9), (10, 12, 16), (15, 8, 12)):
        for name, length in zip(COLORS, lengths, strict=True):
            shapes.append(rectangle(x, y, length - 1, 9, COLORS[name]))
            x += length
    return "".join(shapes)


def draw() -> str:
    half = (HEIGHT - 8) / 2 + 8
    shapes = [
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        box(0, TOP, HEIGHT, False, "source files", ".jsonl, .json, .csv,", ".parquet, or a Hub id"),
        box(
            1, TOP, HEIGHT, True, "prepare_data.py", "recognizes the format,", "checks each row,", "compares the pairs"
        ),
        box(2, TOP, HEIGHT, False, "checked pairs", "pairs.jsonl", "pairs.report.html", "pairs.rejected.jsonl"),
        box(3, TOP, HEIGHT, True, "train.py, train.sh", "a batch is a packed row:"),
        strip(left(3) + (WIDTH - 112) / 2, TOP + 46),
        box(4, TOP, HEIGHT, False, "model directory", "save/…", "one reward head,", "its own chat template"),
        box(3, LOWER, half, True, "infer_vllm.sh", "server, for client.py"),
        box(3, LOWER + half + 12, half, True, "infer_transformers.py", "without a server"),
        box(2, LOWER + 8, HEIGHT, False, "scores", "one number per answer,", "the same both ways"),
        box(
            1,
            LOWER + 8,
            HEIGHT,
            True,
            "evaluate.py",
            "accuracy, intervals,",
            "length, two models,",
            "parity with a server",
        ),
        box(0, LOWER + 8, HEIGHT, False, "report", "report.html", "metrics.json", "scores.jsonl"),
    ]
    middle, lower = TOP + HEIGHT / 2, LOWER + 8 + HEIGHT / 2
    shapes += [arrow([(left(column) + WIDTH, middle), (left(column + 1), middle)]) for column in range(4)]
    shapes += [arrow([(left(column + 1), lower), (left(column) + WIDTH, lower)]) for column in range(2)]
    down = left(4) + WIDTH / 2
    for y in (LOWER + half / 2, LOWER + half * 1.5 + 12):
        shapes.append(arrow([(down, TOP + HEIGHT), (down, y), (left(3) + WIDTH, y)]))
        shapes.append(
            arrow([(left(3), y), (left(3) - GAP / 2, y), (left(3) - GAP / 2, lower), (left(2) + WIDTH, lower)])
        )
    return page(left(5) - GAP + 4, LOWER + 2 * half + 20, shapes)


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(draw(), encoding="utf-8")
