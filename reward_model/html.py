"""A report as one HTML file that needs nothing else: text, tables, and plots as SVG."""

import json
from collections.abc import Sequence
from html import escape
from io import StringIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text: the browser's fonts know Chinese
        "svg.hashsalt": "reward model",  # equal reports are equal files
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
)
BLUE, ORANGE, GRAY = "#2563a8", "#d9722b", "#8a8f98"

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1c2430; }
h1 { font-size: 1.5rem; margin: .3rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { max-width: 75ch; } .note { color: #566070; font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #dfe3e8; border-radius: 6px; padding: .5rem; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #dfe3e8; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th:not(:first-child) { text-align: right; } .plots + .wide { margin-top: .8rem; }
li { overflow-wrap: anywhere; font-size: .9rem; }
details { border: 1px solid #dfe3e8; border-radius: 6px; padding: .5rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: .8rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; font-size: .9rem; }
.chosen, .rejected { border-left: 3px solid #2563a8; padding-left: .6rem; } .rejected { border-color: #d9722b; }
"""


def page(title: str, subtitle: str, sections: list[tuple[str, str]]) -> str:
    """The whole page from (heading, HTML) sections."""
    body = "".join(f"<section><h2>{escape(heading)}</h2>{html}</section>\n" for heading, html in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="note">{escape(subtitle)}</p>\n{body}</body></html>\n'
    )


def plot(title: str, xlabel: str = "", ylabel: str = "") -> tuple[Figure, Axes]:
    """A figure of the size that the page shows three of in a row, with one set of axes."""
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def plots(figures: list[Figure]) -> str:
    """Figures side by side, as many as fit."""
    return '<div class="plots">' + "".join(f"<figure>{svg(figure)}</figure>" for figure in figures) + "</div>"


def svg(figure: Figure) -> str:
    """The figure as an <svg> element."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    return text[text.index("<svg") :]


def table(header: list[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers stand to the right."""

    def cell(tag: str, value: object) -> str:
        number = isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit() and " " not in value)
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{' class=number' if number else ''}>{escape(shown)}</{tag}>"

    lines = [[cell("th", name) for name in header], *([cell("td", value) for value in row] for row in rows)]
    cells = "".join("<tr>" + "".join(line) + "</tr>" for line in lines)
    return f'<div class="wide"><table>{cells}</table></div>'


def bullets(lines: list[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def conversation(messages: list[dict]) -> str:
    """Messages as plain text to read, each after its role."""
    shown = []
    for message in messages:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}  # calls, reasoning
        said = [message.get("content") or "", json.dumps(rest, indent=1, ensure_ascii=False) if rest else ""]
        shown.append(f"{message['role']}: " + "\n".join(filter(None, said)))
    return escape("\n\n".join(shown))


def pair(summary: str, shared: list[dict], chosen: list[dict], rejected: list[dict]) -> str:
    """A pair to unfold: what both sides share, then the two answers side by side."""
    sides = "".join(
        f'<div class="{name}"><strong>{name}</strong><div class="text">{conversation(messages)}</div></div>'
        for name, messages in (("chosen", chosen), ("rejected", rejected))
    )
    return (
        f"<details><summary>{escape(summary)}</summary>"
        f'<div class="text">{conversation(shared)}</div><div class="sides">{sides}</div></details>'
    )
