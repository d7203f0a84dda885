"""Images in a dataset's folder that its reader does not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from reidguard.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from reidguard.errors import a_few

__all__ = ["unread_images"]

ANY_IMAGE = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)


def unread_images(root: Path, read: Iterable[Path], *, deep: bool = True) -> list[str]:
    """Return a note that counts the images that are not read, by folder; [] if all are.

    Args:
        root: The dataset's folder. Hidden files and folders do not count.
        read: Images that are read, or left out as junk.
        deep: Whether all folders below ``root`` are searched; else only those of ``read``.
    """
    known = {os.path.normpath(path) for path in read}
    unread: Counter[str] = Counter()
    folders = _walk(root) if deep else sorted({os.path.dirname(path) for path in known})
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:  # a folder that cannot be listed is none that a reader needs
            continue
        images = [n for n in names if n.lower().endswith(ANY_IMAGE) and not n.startswith(".")]
        count = sum(os.path.normpath(os.path.join(folder, n)) not in known for n in images)
        place = Path(os.path.relpath(folder, root)).as_posix()
        unread[place.partition("/")[0] if deep else place] += count
    total = sum(unread.values())
    each = a_few((f"{place} ({n:,})" for place, n in sorted(unread.items()) if n), shown=8)
    plural = "image is" if total == 1 else "images are"
    return [f"{total:,} {plural} not read: {each}"] if total else []


def _walk(root: Path) -> Iterator[str]:
    for folder, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield folder
