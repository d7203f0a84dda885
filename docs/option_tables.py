"""The directive ``options``: a table of a group of options, from its definition."""

from __future__ import annotations

import csv
import io
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import reidguard.options
from reidguard.schema import options_of


def rows(group: str) -> list[tuple[str, str, str, str]]:
    """Return name, values, default and sentence of each option of a group."""
    options = options_of(getattr(reidguard.options, group))
    return [
        (
            f"``{name}``",
            option.values,
            "" if option.default is None else f"``{option.default!r}``",
            option.help,
        )
        for name, option in options.items()
    ]


def table(group: str) -> str:
    """Return the table as reStructuredText."""
    text = io.StringIO()
    csv.writer(text).writerows([("option", "values", "default", "meaning"), *rows(group)])
    lines = [".. csv-table::", "   :header-rows: 1", "   :widths: 16 24 14 46", ""]
    return "\n".join([*lines, *(f"   {line}" for line in text.getvalue().splitlines()), ""])


class Options(SphinxDirective):
    """``.. options:: FitOptions``"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        holder = nodes.section()
        lines = StringList(table(self.arguments[0]).splitlines(), "reidguard/options")
        self.state.nested_parse(lines, self.content_offset, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("options", Options)
    return {"parallel_read_safe": True}
