"""PersonX (Sun and Zheng, CVPR 2019): synthetic people, seen every 10 degrees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset, register_dataset
from reidguard.data.readers.layout import MARKET_FOLDERS, find_root, read_market_folders
from reidguard.data.readers.statistics import PUBLISHED, Count, Published, published_dataset
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample

__all__ = ["read_personx", "read_personx_456"]

BACKGROUNDS = (1, 2, 3, 4, 5, 6)
EXAMPLE = "0001_c1s1_33.jpg"
NAME = re.compile(r"(?P<person>[0-9]{1,18})_c(?P<camera>[0-9]{1,9})(?:s[0-9]+)?(?:_[0-9]+)*")


@register_dataset("personx")
def read_personx(root: Path | str, *, backgrounds: Sequence[int] = BACKGROUNDS) -> ReIDDataset:
    """List PersonX: 1,266 people before up to six backgrounds, 36 viewpoints each.

    ``4/query/0001_c4s1_33.jpg`` shows person 1 under viewpoint 33 before background 4. The
    background, which is the folder's number, is the camera.

    The same authors' harder subset, which is one folder in Market-1501's layout with cameras 3, 4,
    8, 10, 11 and 12, is read too, as "personx-hard"; there the camera comes from the name.

    Args:
        root: The folder that holds the backgrounds ``1`` to ``6``, each with
            ``bounding_box_train``, ``query`` and ``bounding_box_test``, or its parent, if there it
            is called ``PersonX_v1`` or ``PersonX``.
        backgrounds: Which of them to read: (4, 6) is what the paper calls PersonX46. 1 to 3 are
            plain colours, 4 to 6 are scenes.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
        InputError: If a background does not exist.
    """
    return _read(Path(root), backgrounds)


@register_dataset("personx-456")
def read_personx_456(root: Path | str) -> ReIDDataset:
    """List the three scene backgrounds of PersonX; as :func:`read_personx`."""
    return _read(Path(root), (4, 5, 6))


def _read(root: Path, backgrounds: Sequence[int]) -> ReIDDataset:
    wanted = sorted(set(backgrounds))
    if not wanted or not set(wanted) <= set(BACKGROUNDS):
        raise InputError(f"backgrounds must be some of {BACKGROUNDS}, not {tuple(backgrounds)}")
    holds = [*(str(b) for b in BACKGROUNDS), *MARKET_FOLDERS.values()]
    root = find_root(root, ["personx_v1", "personx"], holds)
    if any((root / folder).is_dir() for folder in MARKET_FOLDERS.values()):
        if wanted != list(BACKGROUNDS):
            raise DataError(
                f"{root} holds the harder subset, which is not sorted by background; read it as "
                "personx, or give the folder that holds the backgrounds 1 to 6"
            )
        facts = PUBLISHED["personx-hard"]
        splits = read_market_folders(root, NAME, example="0001_c3s1_33.jpg", facts=facts)
        return published_dataset("personx-hard", facts, splits, root=root)
    return _read_backgrounds(root, wanted)


def _read_backgrounds(root: Path, backgrounds: Sequence[int]) -> ReIDDataset:
    one = _share(PUBLISHED["personx"], 1)
    if missing := [str(b) for b in backgrounds if not (root / str(b)).is_dir()]:
        raise DataError(
            f"{root} lacks the folder of background {', '.join(missing)}; expected in each: "
            + ", ".join(f"{f}/ with {one.of(s).images:,} images" for s, f in MARKET_FOLDERS.items())
            + "; or read only what is there: read_personx(root, backgrounds=...)"
        )
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for background in backgrounds:
        found = read_market_folders(
            root / str(background), NAME, example=EXAMPLE, facts=one, camera=background
        )
        for split, samples in found.items():
            splits[split] += samples
    digits = "".join(map(str, backgrounds))
    name = "personx" if len(backgrounds) == len(BACKGROUNDS) else f"personx-{digits}"
    return published_dataset(
        name, _share(PUBLISHED["personx"], len(backgrounds)), splits, root=root
    )


def _share(facts: Published, backgrounds: int) -> Published:
    """Return the published counts of some of the backgrounds, which all have the same number."""

    def part(count: Count) -> Count:
        return Count(count.images * backgrounds // len(BACKGROUNDS), count.identities)

    return Published(facts.licence, part(facts.train), part(facts.query), part(facts.gallery))
