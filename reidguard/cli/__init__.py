"""The command ``reidguard``: parse, call the library, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as :func:`reidguard.cli.app.main` does.

    Imports come only now, so that Ctrl-C ends them, too, in one line. Before them torch is asked
    for huge pages (Linux): the tensors of a forward pass are new memory each time, and with pages
    of 4 KiB the system takes up to 40 % of the pass to provide it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        from reidguard.cli import app

        return app.main(argv)
    except KeyboardInterrupt:
        print("\nreidguard: interrupted", file=sys.stderr)
        return 130
