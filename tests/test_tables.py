"""One table in four formats, each read back by a parser of its own."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import pytest

from reidguard.errors import InputError
from reidguard.tables import Cell, Table, percent

HEADER = ["queries", "L∞ ·255", "note, if any"]
ROWS: list[list[Cell]] = [
    ["a|b & <c>", 8.25, None],
    ["50 %_x", 10, 'said "no", twice'],
    ["∞", "-0.5", "±"],
]


@pytest.fixture
def table() -> Table:
    return Table(HEADER, ROWS)


def test_columns_of_numbers_are_recognised(table: Table) -> None:
    assert table.is_text == [True, False, True]
    assert Table(["a", "b"], [["1", "2"]]).is_text == [False, False]
    assert Table(["a", "b"], [["1", "2"]], text_columns=1).is_text == [True, False]
    assert Table(["a", "b"], []).is_text == [True, True]
    assert Table(["a", "b"], [[None, "+1"], ["1", ""]]).is_text == [False, False]


def test_markdown_is_aligned_and_escaped(table: Table) -> None:
    assert table.to_markdown().splitlines() == [
        "| queries    | L∞ ·255 | note, if any     |",
        "| ---------- | ------: | ---------------- |",
        "| a\\|b & <c> |    8.25 | -                |",
        '| 50 %_x     |      10 | said "no", twice |',
        "| ∞          |    -0.5 | ±                |",
    ]


def test_csv_reads_back(table: Table) -> None:
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    assert rows == [
        HEADER,
        ["a|b & <c>", "8.25", ""],
        ["50 %_x", "10", 'said "no", twice'],
        ["∞", "-0.5", "±"],
    ]


def test_csv_holds_no_formula_and_numbers_stay_numbers() -> None:
    formulas = ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", " =1", "－1", "\t=1", "-"]
    numbers: list[Cell] = ["-0.5", "+1.5", "1e-3", "-12 %", "-1,234.5", -2, -0.25, None, "a=b", ""]
    table = Table(["=name"], [[cell] for cell in [*formulas, *numbers]])
    cells = [row[0] for row in csv.reader(io.StringIO(table.to_csv())) if row]
    escaped = [f"'{cell}" for cell in formulas]
    escaped[6] = r"\t=1"
    assert cells == ["'=name", *escaped, *("" if n is None else str(n) for n in numbers)]


def test_no_format_passes_on_what_cannot_be_printed() -> None:
    table = Table(["name\x00"], [["\x1b[31mred\x1b[0m"], ["two\nlines\udcff"]])
    for text in (table.to_csv(), table.to_markdown(), table.to_latex(), table.to_html()):
        assert all(c.isprintable() or c == "\n" for c in text)
        text.encode()
    assert table.to_csv().count("\n") == 3
    assert "\\x1b[31mred" in table.to_markdown()


def test_latex_is_escaped(table: Table) -> None:
    lines = table.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrl}"
    assert lines[2] == r"queries & L$\infty$ $\cdot$255 & note, if any \\"
    assert lines[4:6] == [r"a|b \& <c> & 8.25 & - \\", r"50 \%\_x & 10 & said " '"no", twice \\\\']
    assert lines[-1] == r"\end{tabular}"
    assert [n for n, line in enumerate(lines) if line == r"\hline"] == [1, 3, 7]


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[int] = []
        self.cells: list[list[tuple[str, dict[str, str | None], str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tbody":
            self.bodies.append(len(self.cells))
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("th", "td"):
            self.cells[-1].append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cells and self.cells[-1] and data.strip():
            tag, attributes, text = self.cells[-1].pop()
            self.cells[-1].append((tag, attributes, text + data))


def test_html_reads_back_in_groups(table: Table) -> None:
    page = Cells()
    page.feed(table.to_html(groups=[1, 2]))
    assert [[text for _, _, text in row] for row in page.cells] == [
        HEADER,
        ["a|b & <c>", "8.25", "-"],
        ["50 %_x", "10", 'said "no", twice'],
        ["∞", "-0.5", "±"],
    ]
    assert page.bodies == [1, 2]
    assert [tag for tag, _, _ in page.cells[0]] == ["th"] * 3
    assert [tag for tag, _, _ in page.cells[1]] == ["th", "td", "td"]
    assert page.cells[1][0][1] == {"scope": "row", "class": "text"}
    assert page.cells[1][1][1] == {}
    assert page.cells[0][2][1] == {"scope": "col", "class": "text"}


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="2 cells"):
        Table(["a", "b"], [["1"]])


def test_percent() -> None:
    assert [percent(x) for x in (0.0, 0.12345, 1.0, None)] == ["0.0", "12.3", "100.0", None]
