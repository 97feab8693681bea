"""Render reports from Jinja templates: text for the terminal, and HTML pages with SVG plots."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # keep text as text: the browser's fonts include Chinese characters
        "svg.hashsalt": "reward model",  # make the file reproducible
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
)
BLUE, ORANGE, GRAY = "#2563a8", "#d9722b", "#8a8f98"


def render(template: str, **values: Any) -> str:
    """Render the template at a path relative to this package."""
    return TEMPLATES.get_template(template).render(values)


def plot(title: str, xlabel: str = "", ylabel: str = "") -> tuple[Figure, Axes]:
    """Return a figure and its axes, sized so that three figures fit side by side on a page."""
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def svg(figure: Figure) -> str:
    """Return a figure as an <svg> element."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    return text[text.index("<svg") :]


def conversation(messages: list[dict]) -> str:
    """Format messages as plain text, each preceded by its role."""
    texts = []
    for message in messages:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}  # calls, reasoning
        parts = [message.get("content") or "", json.dumps(rest, indent=1, ensure_ascii=False) if rest else ""]
        texts.append(f"{message['role']}: " + "\n".join(filter(None, parts)))
    return "\n\n".join(texts)


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.jinja"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters |= {"svg": svg, "conversation": conversation, "thousands": "{:,}".format}
