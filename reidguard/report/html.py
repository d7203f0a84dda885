"""Components of a page as HTML strings, from jinja2 templates; text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from reidguard.errors import InputError, printable
from reidguard.files import atomic_write
from reidguard.tables import Cell, Table, percent

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "columns",
    "figure",
    "figure_row",
    "page",
    "paragraph",
    "preformatted",
    "rank_list",
    "render",
    "save_page",
    "section",
    "subsection",
    "swatches",
    "table",
]


@cache
def _environment() -> Environment:
    """Return the templates; jinja2 is imported only when a page is written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reidguard.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment


def render(template: str, **values: Any) -> str:
    """Return a rendered template of ``reidguard/report/templates``."""
    return _environment().get_template(template).render(**values)


def _component(name: str, *values: Any) -> str:
    macros = _environment().get_template("components.html.j2").module
    return str(getattr(macros, name)(*values)).strip()


def paragraph(text: str) -> str:
    """Return a paragraph.

    Example:
        >>> paragraph("ε < 8/255")
        '<p>ε &lt; 8/255</p>'
    """
    return _component("paragraph", text)


def preformatted(text: str) -> str:
    """Return text with its line breaks, in a region that scrolls on its own.

    Example:
        >>> "<pre" in preformatted("a < b")
        True
    """
    return _component("preformatted", text)


def section(title: str, *parts: str) -> str:
    """Return a section of a page.

    Args:
        title: Text of its heading.
        parts: HTML, as the other functions of this module return it.

    Example:
        >>> "<h2>" in section("Results", paragraph("None."))
        True
    """
    return _component("section", title, parts)


def subsection(title: str, *parts: str) -> str:
    """Return a part of a section, with a smaller heading.

    Args:
        title: Text of its heading.
        parts: HTML, as the other functions of this module return it.

    Example:
        >>> "<h3>" in subsection("Results", paragraph("None."))
        True
    """
    return _component("subsection", title, parts)


def columns(*parts: str) -> str:
    """Return parts of a page side by side; below each other where the screen is narrow.

    Example:
        >>> columns(paragraph("left"), paragraph("right")).count("<p>")
        2
    """
    return _component("columns", parts)


def table(
    head: Sequence[str], groups: Sequence[Sequence[Sequence[Cell]]], caption: str, *, text: int = 1
) -> str:
    """Return a table that scrolls on its own where the screen is too narrow.

    Args:
        head: Names of the columns.
        groups: Rows of cells in groups, separated by a thicker line.
        caption: Text above the table.
        text: How many columns at the left hold text; the others hold numbers.

    Raises:
        InputError: If a row is longer or shorter than the head.

    Example:
        >>> "<td>12.0" in table(["model", "mAP"], [[["mine", "12.0"]]], "Results")
        True
    """
    rows = Table(head, [row for group in groups for row in group], text)
    return _component("table", caption, rows.to_html([len(group) for group in groups]))


class _Embedded(NamedTuple):
    """An image as a data URI, with its size in the page in pixels."""

    source: str
    alt: str
    width: int
    height: int


def _embed(image: Image.Image, alt: str, *, lossless: bool, width: int | None = None) -> _Embedded:
    if not alt.strip():
        raise InputError("an image needs an alt text, for readers who cannot see it")
    stream = io.BytesIO()
    if lossless:
        image.save(stream, format="PNG", optimize=True)
    else:
        image.convert("RGB").save(stream, format="JPEG", quality=88)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    width = width or image.width
    height = round(width * image.height / image.width)
    kind = "png" if lossless else "jpeg"
    return _Embedded(f"data:image/{kind};base64,{data}", alt, width, height)


def figure(image: Image.Image, alt: str, caption: str, *, width: int | None = None) -> str:
    """Return an image with a caption, stored without loss.

    Args:
        image: Any mode that PNG supports.
        alt: Description for readers who cannot see it.
        caption: Text below it.
        width: In the page, in pixels; the image's own by default.

    Raises:
        InputError: If ``alt`` is empty.

    Example:
        >>> figure(Image.new("RGB", (2, 2)), "a black square", "Black.").count("<img")
        1
    """
    return _component("figure", _embed(image, alt, lossless=True, width=width), caption)


def figure_row(*figures: str) -> str:
    """Return figures side by side, which shrink where the screen is narrow.

    Example:
        >>> black = figure(Image.new("RGB", (2, 2)), "a black square", "Black.")
        >>> figure_row(black, black).count("<img")
        2
    """
    return _component("figure_row", figures)


def swatches(colors: Sequence[tuple[str, str, str, str]]) -> str:
    """Return patches of colour: each before, after, and with an exaggerated change.

    Args:
        colors: Name of each, and three CSS colours such as "#ff8000".

    Example:
        >>> "red" in swatches([("red", "#ff0000", "#f70800", "#bf4000")])
        True
    """
    return _component("swatches", colors)


def rank_list(
    title: str,
    query: tuple[Image.Image, str],
    results: Sequence[tuple[Image.Image, str, bool]],
) -> str:
    """Return a rank list: the query, then the gallery images, best first.

    A correct match has a solid blue frame and ✓, a wrong one a dashed orange frame and ✗.

    Args:
        title: Text above.
        query: Image and name.
        results: Image, name, and whether it is a correct match.

    Example:
        >>> tile = Image.new("RGB", (4, 8))
        >>> html = rank_list("Before", (tile, "query"), [(tile, "person 3", True)])
        >>> "✓" in html
        True
    """
    image, name = query
    cells = []
    for rank, (result, result_name, correct) in enumerate(results, 1):
        alt = f"rank {rank}, {'correct' if correct else 'wrong'}: {result_name}"
        cells.append((_embed(result, alt, lossless=False), result_name, correct))
    embedded = _embed(image, f"query: {name}", lossless=False)
    return _component("rank_list", title, embedded, name, cells)


def page(title: str, *parts: str) -> str:
    """Return a whole page, which loads nothing from a network (a policy in its head forbids it).

    Args:
        title: Of the page.
        parts: HTML, as the other functions of this module return it.

    Example:
        >>> page("My model", paragraph("It holds.")).startswith("<!DOCTYPE html>")
        True
    """
    return render("page.html.j2", title=title, parts=parts)


def save_page(path: Path | str, text: str) -> None:
    """Write a page atomically; control characters and other bytes than UTF-8 are escaped.

    Raises:
        CheckpointError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "page.html"
        >>> save_page(path, page("My model"))
        >>> path.exists()
        True
    """
    with atomic_write(path) as temporary:
        temporary.write_text(printable(text, keep="\n\t"), "utf-8")
