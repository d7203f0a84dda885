"""Images as files, drawn here or in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from PIL import Image

from reidguard.virtual.render import render_person

__all__ = ["Order", "draw", "main"]


@dataclass(frozen=True)
class Order:
    """A file, and what :func:`render_person` shall put into it."""

    path: str
    domain: str
    identity: int
    camera: int
    viewpoint: int | None
    shot: int
    height: int
    seed: int


def draw(order: Order) -> None:
    """Render one image and save it as PNG."""
    wanted = asdict(order)
    pixels = render_person(wanted.pop("domain"), **{k: v for k, v in wanted.items() if k != "path"})
    Image.fromarray(pixels).save(order.path, compress_level=1)


def main() -> None:
    """Draw the orders that standard input lists as JSON; print a line after each."""
    for fields in json.load(sys.stdin):
        draw(Order(**fields))
        print(flush=True)  # fails, and so ends this process, when the parent is gone
