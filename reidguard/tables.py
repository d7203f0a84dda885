"""Tables of results as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reidguard.errors import InputError, printable

__all__ = ["Table", "percent"]

Cell = str | int | float | None

FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")  # in any of the forms that spreadsheets know
NUMBER = re.compile(r"[+-]?[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?\s?%?")


def percent(fraction: float | None) -> str | None:
    """Return a fraction in [0, 1] as a percentage with one decimal; None stays None.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3', None)
    """
    return None if fraction is None else f"{100 * fraction:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Cells are text or numbers; None is an empty cell in CSV and "-" in the other formats. Columns
    of numbers are right-aligned, the others left-aligned. What cannot be printed is escaped.

    Args:
        header: Names of the columns.
        rows: (R, C) cells.
        text_columns: How many columns at the left hold text; the others hold numbers. By default
            a column holds numbers if each of its cells is empty or starts with a digit, a sign
            or ∞.

    Raises:
        InputError: If a row is longer or shorter than the header.

    Example:
        >>> table = Table(["queries", "mAP"], [["clean", 7.5], ["attacked", None]])
        >>> print(table.to_markdown())
        | queries  | mAP |
        | -------- | --: |
        | clean    | 7.5 |
        | attacked |   - |
        >>> print(table.to_csv(), end="")
        queries,mAP
        clean,7.5
        attacked,
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int | None = None

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise InputError(f"every row needs {len(self.header)} cells, as the header has")

    @property
    def is_text(self) -> list[bool]:
        """For each column, whether it holds text (and is left-aligned)."""
        columns = range(len(self.header))
        if self.text_columns is not None:
            return [column < self.text_columns for column in columns]
        cells = self._cells(str)
        return [
            not cells or any(not (row[c][:1].isdigit() or row[c][:1] in "-+∞") for row in cells)
            for c in columns
        ]

    def to_csv(self) -> str:
        """Return the header and one line per row, with commas.

        Text that a spreadsheet would take for a formula gets a quote in front of it, so that it is
        shown and not computed.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([_csv_cell(cell) for cell in row] for row in [self.header, *self.rows])
        return stream.getvalue()

    def to_markdown(self) -> str:
        """Return a Markdown table, padded for reading as plain text."""
        header, *rows = self._cells(lambda cell: cell.replace("|", "\\|"), header=True)
        text = self.is_text
        widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
        rule = [
            "-" * w if left else "-" * (w - 1) + ":" for w, left in zip(widths, text, strict=True)
        ]
        return "\n".join(
            "| "
            + " | ".join(
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(row, widths, text, strict=True)
            )
            + " |"
            for row in (header, rule, *rows)
        )

    def to_latex(self) -> str:
        """Return a LaTeX ``tabular``, which needs no package."""
        columns = "".join("l" if left else "r" for left in self.is_text)
        header, *rows = (" & ".join(row) + r" \\" for row in self._cells(latex, header=True))
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", header, r"\hline", *rows]
        return "\n".join([*lines, r"\hline", r"\end{tabular}"])

    def to_html(self, groups: Sequence[int] = ()) -> str:
        """Return an HTML ``table``; cells of text columns have the class "text".

        Args:
            groups: Numbers of consecutive rows that share a ``tbody``; all rows by default.
        """
        text = [' class="text"' if left else "" for left in self.is_text]
        header, *rows = self._cells(html.escape, header=True)
        names = [
            f'<th scope="col"{kind}>{cell}</th>' for cell, kind in zip(header, text, strict=True)
        ]
        lines = []
        for row in rows:
            first, *others = (f"{kind}>{cell}" for cell, kind in zip(row, text, strict=True))
            lines.append(
                f'<tr><th scope="row"{first}</th>{"".join(f"<td{c}</td>" for c in others)}</tr>'
            )
        parts = ["<table>", f"<thead><tr>{''.join(names)}</tr></thead>"]
        start = 0
        for size in groups or (len(lines),):
            parts += ["<tbody>", *lines[start : start + size], "</tbody>"]
            start += size
        return "\n".join([*parts, "</table>"])

    def _cells(self, escape: Callable[[str], str], header: bool = False) -> list[list[str]]:
        rows = [self.header, *self.rows] if header else self.rows
        return [
            ["-" if cell is None else escape(printable(str(cell))) for cell in row] for row in rows
        ]


def _csv_cell(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    is_formula = FORMULA.match(text) is not None and NUMBER.fullmatch(text) is None
    return f"'{text}" if is_formula else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\epsilon$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Escape the characters that are special in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
