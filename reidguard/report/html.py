"""Pieces of a page as strings of HTML. Text is escaped, pictures are part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from reidguard.errors import InputError
from reidguard.storage import atomic_write

__all__ = [
    "figure",
    "figure_row",
    "page",
    "paragraph",
    "rank_list",
    "save_page",
    "section",
    "table",
]

# Blue and vermilion (Okabe and Ito) differ for every kind of colour vision; the frames also differ
# by line and sign, so nothing is told by colour alone.
STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #595959; --line: #d0d0d0;
  --right: #0072b2; --wrong: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem;
  break-after: avoid; }
p { max-width: 44rem; margin: .5rem 0; }
.wide { overflow-x: auto; background: linear-gradient(to right, #fff 30%, #fff0) left / 2.5rem 100%
  local, linear-gradient(to left, #fff 30%, #fff0) right / 2.5rem 100% local,
  linear-gradient(to right, #0003, #0000) left / .7rem 100%,
  linear-gradient(to left, #0003, #0000) right / .7rem 100%; background-repeat: no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; }
.text { text-align: left; white-space: normal; }
tbody.part > tr:first-child > * { border-top: 2px solid var(--soft); }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .8rem; line-height: 1.3; color: var(--soft); margin-top: .2rem;
  overflow-wrap: anywhere; }
.gallery { display: inline-flex; vertical-align: top; gap: .6rem; margin: .6rem 1.6rem .6rem 0;
  max-width: 100%; break-inside: avoid; }
.gallery figure { min-width: 0; }
.list { margin: .6rem 0 1rem; break-inside: avoid; }
.list > p { margin: 0; font-size: .9rem; font-weight: 600; }
.list ol { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; margin: .3rem 0;
  padding: 0; }
.list img { display: block; width: 100%; height: auto; }
.list li { width: 4.4rem; font-size: .7rem; line-height: 1.2; text-align: center; }
.list li > span { display: block; padding-top: .15rem; }
.query img { border: 4px solid #fff; outline: 1px solid var(--soft); outline-offset: -3px; }
.query { margin-right: .6rem; }
.right img { border: 4px solid var(--right); }
.wrong img { border: 4px dashed var(--wrong); }
.right > span { color: var(--right); font-weight: 600; }
.wrong > span { color: #a34700; }
.tabular > figcaption { font-size: .9rem; max-width: 44rem; margin: .2rem 0 .5rem; }
.chart { max-width: 34rem; margin: 1rem 0; }
.chart > figcaption { font-size: .9rem; }
.chart > svg { display: block; width: 100%; height: auto; font-size: 14px; }
.chart text { fill: var(--ink); }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .axis { stroke: var(--soft); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .8rem; margin: .3rem 0; }
code { font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .6rem; } table { font-size: .75rem; }
  th, td { padding: .25rem .3rem; } .list li { width: 3.6rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible;
  background: none; } table { font-size: 8pt; } .chart { max-width: 24rem; }
  img { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def paragraph(text: str) -> str:
    """Return a paragraph.

    Example:
        >>> paragraph("ε < 8/255")
        '<p>ε &lt; 8/255</p>'
    """
    return f"<p>{escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """Return a part of a page under a title.

    Args:
        title: Text.
        parts: What the other functions of this module return.
    """
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def table(
    head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], caption: str, *, text: int = 1
) -> str:
    """Return a table, which scrolls by itself where the screen is too narrow.

    Args:
        head: Names of the columns.
        groups: Rows of cells in groups, which a thicker line divides.
        caption: What the table shows.
        text: How many columns at the left are text; the others are numbers.

    Raises:
        InputError: If a row is longer or shorter than the head.
    """
    if any(len(row) != len(head) for rows in groups for row in rows):
        raise InputError(f"every row needs {len(head)} cells, as the head has")

    def line(cells: Sequence[str], tag: str, scope: str = "") -> str:
        made = []
        for number, cell in enumerate(cells):
            left = ' class="text"' if number < text else ""
            row_head = tag == "td" and number == 0
            kind, say = ("th", ' scope="row"') if row_head else (tag, scope)
            made.append(f"<{kind}{say}{left}>{escape(cell)}</{kind}>")
        return f"<tr>{''.join(made)}</tr>"

    bodies = "\n".join(
        '<tbody class="part">\n' + "\n".join(line(row, "td") for row in rows) + "\n</tbody>"
        for rows in groups
    )
    top = line(head, "th", ' scope="col"')
    # Reachable by keyboard, or nobody without a mouse could scroll it.
    return (
        f'<figure class="tabular">\n<figcaption>{escape(caption)}</figcaption>\n'
        f'<div class="wide" role="region" tabindex="0" aria-label="table">\n<table>\n'
        f"<thead>{top}</thead>\n{bodies}\n</table>\n</div>\n</figure>"
    )


def _img(image: Image.Image, alt: str, lossless: bool, width: int | None = None) -> str:
    if not alt.strip():
        raise InputError("a picture needs an alt text, for those who cannot see it")
    stream = io.BytesIO()
    if lossless:
        image.save(stream, format="PNG", optimize=True)
    else:
        image.convert("RGB").save(stream, format="JPEG", quality=88)
    kind = "png" if lossless else "jpeg"
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    shown = width or image.width
    height = round(shown * image.height / image.width)
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(alt, quote=True)}" '
        f'width="{shown}" height="{height}">'
    )


def figure(image: Image.Image, alt: str, caption: str, *, width: int | None = None) -> str:
    """Return a picture with a caption. It is stored without loss.

    Args:
        image: Any mode that PNG knows.
        alt: What it shows, for those who cannot see it.
        caption: Text below it.
        width: In the page, in pixels; the image's own by default.

    Raises:
        InputError: If ``alt`` is empty.
    """
    shown = width or image.width
    return (
        f'<figure style="flex:0 1 {shown}px">{_img(image, alt, True, width)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _lines(parts: Sequence[str]) -> str:
    return "\n".join(parts)


def figure_row(*pictures: str) -> str:
    """Return pictures side by side, smaller where there is less room."""
    return f'<div class="gallery">\n{_lines(pictures)}\n</div>'


def rank_list(
    title: str,
    query: tuple[Image.Image, str],
    found: Sequence[tuple[Image.Image, str, bool]],
) -> str:
    """Return a rank list: the query, then what was found, best first, right or wrong.

    A right image has a solid blue frame and ✓, a wrong one a dashed orange frame and ✗.

    Args:
        title: Text above.
        query: Image and who it is.
        found: Image, who it is, and whether that is right.
    """
    image, name = query
    cells = [
        f'<li class="query">{_img(image, f"query: {name}", False)}<span>query<br>'
        f"{escape(name)}</span></li>"
    ]
    for rank, (image, name, right) in enumerate(found, 1):
        kind, sign = ("right", "✓") if right else ("wrong", "✗")
        img = _img(image, f"rank {rank}, {kind}: {name}", False)
        cells.append(f'<li class="{kind}">{img}<span>{rank} {sign}<br>{escape(name)}</span></li>')
    return f'<div class="list">\n<p>{escape(title)}</p>\n<ol>\n{_lines(cells)}\n</ol>\n</div>'


def page(title: str, *parts: str) -> str:
    """Return a whole page.

    It asks nothing of a network, and says so to the browser.

    Args:
        title: Of the page.
        parts: What the other functions of this module return.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def save_page(path: Path | str, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")
