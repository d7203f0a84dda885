"""Tables of text, for terminals and Markdown."""

from __future__ import annotations

__all__ = ["markdown_table"]


def markdown_table(rows: list[list[str]]) -> str:
    """Return a Markdown table, padded for reading; numbers to the right, the first row on top."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [
        all(cell[:1].isdigit() or cell[:1] in "-∞" for cell in column)
        for column in zip(*rows[1:], strict=True)
    ]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = [
        "-" * (w - 1) + ":" if flush else "-" * w for w, flush in zip(widths, right, strict=True)
    ]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])
