"""Draw text, rectangles and a white page as SVG."""

COLORS = {"prefix": "#4c78a8", "chosen": "#54a24b", "rejected": "#e45756"}


def text(x: float, y: float, words: str, anchor: str = "start", color: str = "#333", size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{words}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{more}/>'


def page(width: float, height: float, shapes: list[str]) -> str:
    """Return a complete picture. It is drawn on white, so that it is readable on dark pages too."""
    lines = "\n".join([rectangle(0, 0, width, height, "white"), *shapes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif">\n{lines}\n</svg>\n'
    )
