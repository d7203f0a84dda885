"""The directive ``executed``: a script of examples/, run while its page is built.

Its docstring and the comment lines after each ``# %%`` become text, the rest code. What the code
prints stands below it. The script runs in a folder of its own, and relative images and downloads
of its text are files that it wrote there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).parent
SCRIPTS = DOCS.parent / "examples"


def parts(source: str) -> Iterator[tuple[str, str]]:
    """Return the text and the code of each part of a script."""
    source = re.sub(r'\A"""(.*?)"""\n', r"# \1\n", source)
    for part in re.split(r"^# %%\n", source, flags=re.M):
        lines = part.splitlines()
        length = next((i for i, one in enumerate(lines) if not one.startswith("#")), len(lines))
        text = [line.removeprefix("#").removeprefix(" ") for line in lines[:length]]
        yield "\n".join(text), "\n".join(lines[length:]).strip("\n")


def executed(script: Path, folder: Path) -> str:
    """Run a script in a folder and return it, with what it prints, as reStructuredText."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page: list[str] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    with _working_in(folder), mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder.parent)):
        for text, code in parts(script.read_text("utf-8")):
            page += [text, ""]
            if not code:
                continue
            page += [_block("python", code)]
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(code, str(script), "exec"), names)
            if printed.getvalue().strip():
                page += ["It prints:", "", _block("none", printed.getvalue().rstrip())]
    return "\n".join(page)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _block(language: str, content: str) -> str:
    lines = "\n".join(f"   {line}".rstrip() for line in content.splitlines())
    return f".. code-block:: {language}\n\n{lines}\n"


class Executed(SphinxDirective):
    """``.. executed:: NAME.py``"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what stands in the page."""
        script = SCRIPTS / self.arguments[0]
        self.env.note_dependency(str(script))
        folder = DOCS / "_build" / "examples" / script.stem
        holder = nodes.section()
        lines = StringList(executed(script, folder).splitlines(), str(script))
        self.state.nested_parse(lines, self.content_offset, holder, match_titles=True)
        for image in holder.findall(nodes.image):
            image["uri"] = f"/{folder.relative_to(DOCS).as_posix()}/{image['uri']}"
        for file in holder.findall(addnodes.download_reference):
            file["reftarget"] = f"/{folder.relative_to(DOCS).as_posix()}/{file['reftarget']}"
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("executed", Executed)
    return {"parallel_read_safe": False}  # it changes the working folder
