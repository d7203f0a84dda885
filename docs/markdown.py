"""The directive ``markdown``: a file of the repository that is written in simple Markdown.

It knows headings, paragraphs, lists, ``code`` and links, which is what CHANGELOG.md holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]


def as_rst(text: str) -> str:
    """Return Markdown as reStructuredText, without its title."""
    text = re.sub(r"`([^`]+)`", r"``\1``", text)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", text)
    lines = []
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        if heading := re.match(r"(##+) (.*)", line):
            line = f".. rubric:: {heading[2]}\n   :heading-level: {len(heading[1])}"
        lines.append(line)
    return "\n".join(lines)


class Markdown(SphinxDirective):
    """``.. markdown:: CHANGELOG.md``"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what stands in the page."""
        path = ROOT / self.arguments[0]
        self.env.note_dependency(str(path))
        holder = nodes.section()
        lines = StringList(as_rst(path.read_text("utf-8")).splitlines(), str(path))
        self.state.nested_parse(lines, self.content_offset, holder, match_titles=True)
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("markdown", Markdown)
    return {"parallel_read_safe": True}
