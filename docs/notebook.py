"""Write examples/attack_timm_model.ipynb, for Colab and Jupyter: python docs/notebook.py.

A notebook has the text and the code of a script of examples/, as its tutorial has them, with the
installation before and without output.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from executed import SCRIPTS, parts

NOTEBOOKS = ("attack_timm_model",)
INSTALL = "%pip install -q reidguard"
IMAGE = re.compile(r"^\.\. image:: (\S+)\n +:alt: (.*)$", re.M)


def notebook(source: str) -> dict[str, Any]:
    """Return a script as a notebook of the format 4.5."""
    cells = []
    for text, code in parts(source):
        images = IMAGE.findall(text)
        cells += [_cell("markdown", markdown)] if (markdown := as_markdown(text)) else []
        cells += [_cell("code", INSTALL)] if len(cells) == 1 else []
        cells += [_cell("code", code)] if code else []
        cells += [
            _cell("code", f'import IPython\n\nIPython.display.Image("{name}")  # {alt}')
            for name, alt in images
        ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def as_markdown(text: str) -> str:
    """Return the reStructuredText of a script's comments as Markdown."""
    text = IMAGE.sub("", text)
    text = re.sub(r"^(.+)\n~+$", r"## \1", text, flags=re.M)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").strip()


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def as_text(value: dict[str, Any]) -> str:
    """Return a notebook as its file has it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in NOTEBOOKS:
        script = SCRIPTS / f"{name}.py"
        script.with_suffix(".ipynb").write_text(
            as_text(notebook(script.read_text("utf-8"))), "utf-8"
        )
