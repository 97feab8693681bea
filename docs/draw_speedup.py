"""Draw docs/speedup.svg: pairs per second against stock trl, from the table "Training" in docs/benchmarks.md.

python -m docs.draw_speedup
"""

import re
from pathlib import Path

from docs.svg import COLORS, page, rectangle, text

# | data | batch size | pairs/s, stock trl | pairs/s, here | **3.92x** (3.28–3.97) | …
ROW = re.compile(r"^\| ([^|]+) \| (\d+) \|[^|]+\|[^|]+\| \*\*([\d.]+)x\*\* \(([\d.]+)–([\d.]+)\) \|", re.M)
LEFT, TOP, LINE, TIMES = 180, 62, 30, 25  # TIMES: pixels of "1x"


def rows() -> list[tuple[str, str, float, float, float]]:
    """Return (data, batch size, median, lowest, highest ratio) for each row of the table."""
    found = ROW.findall(Path(__file__).with_name("benchmarks.md").read_text(encoding="utf-8"))
    return [(data, size, float(median), float(low), float(high)) for data, size, median, low, high in found]


def draw() -> str:
    table = rows()
    bottom = TOP + LINE * len(table)
    shapes = [text(8, 16, "training: pairs per second, in multiples of stock trl", size=12)]
    shapes += [text(8, 32, "(batch size); bar: median of 3 rounds, line: lowest to highest", color="#666", size=11)]
    for times in range(0, 9, 2):
        x = LEFT + TIMES * times
        shapes.append(rectangle(x, TOP - 4, 1, bottom - TOP + 4, "#e4e4e4"))
        shapes.append(text(x, bottom + 14, f"{times}x", "middle", "#666", size=11))
    for number, (data, size, median, low, high) in enumerate(table):
        y = TOP + LINE * number
        shapes.append(text(LEFT - 8, y + 15, f"{data} ({size})", "end"))
        shapes.append(rectangle(LEFT, y + 2, TIMES * median, 18, COLORS["prefix"]))
        shapes.append(rectangle(LEFT + TIMES * low, y + 10, TIMES * (high - low), 2, "#222"))
        shapes.append(text(LEFT + TIMES * high + 5, y + 15, f"{median:.1f}x"))
    shapes.append(rectangle(LEFT + TIMES, TOP - 4, 1, bottom - TOP + 4, COLORS["rejected"]))
    shapes.append(text(LEFT + TIMES, TOP - 9, "stock trl", "middle", COLORS["rejected"], size=11))
    shapes.append(text(8, bottom + 34, "2 CPU cores, fp32, November 2026; not run on a GPU yet", color="#666", size=11))
    return page(LEFT + TIMES * 9, bottom + 44, shapes)


if __name__ == "__main__":
    Path(__file__).with_name("speedup.svg").write_text(draw(), encoding="utf-8")
