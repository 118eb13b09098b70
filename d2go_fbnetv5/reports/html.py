"""Parts of pages: sections, notes, and figures that need no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from d2go_fbnetv5.reports.html_style import STYLE
from d2go_fbnetv5.utils.files import SIGNATURE
from d2go_fbnetv5.version import __version__


def page(title: str, header: str, sections: Sequence[str]) -> str:
    """A whole page that needs no server, no network and no script.

    Args:
        title: plain text.
        header, sections: markup.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="{SIGNATURE}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{header}\n{''.join(sections)}"
        f"<footer>d2go_fbnetv5 {escape(__version__)}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a titled part of the page, nothing without parts; a part that is not markup is a note."""
    if not parts:
        return ""
    body = "\n".join(part if part.startswith("<") else f"<p class=note>{part}</p>" for part in parts)
    return f"<section><h2>{title}</h2>\n{body}\n</section>\n"


def figure_image(figure: Figure, description: str, small: bool = False) -> str:
    """Return the figure as an image within the page; an SVG of its own, so that nothing of it leaks into the page."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "d2go_fbnetv5", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = "figure small" if small else "figure"
    width = 100 * figure.get_figwidth()  # pixels beyond which its text would outgrow the page's
    image = f'<img alt="{escape(description)}" style="max-width: {width:.0f}px" src="data:image/svg+xml;base64,{data}">'
    return f'<div class="{kind}">{image}</div>'


def figures_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table of figures under their names; each row's first cell says whose they are. Cells are markup."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(heads, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table class=results><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
