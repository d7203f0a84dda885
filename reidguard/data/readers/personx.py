"""PersonX (Sun and Zheng, CVPR 2019): synthetic people, seen every 10 degrees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import MARKET_FOLDERS, find_root, read_market_folders
from reidguard.data.readers.statistics import SYNTHETIC, Count, Published, build_dataset
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample

__all__ = ["read_personx", "read_personx_456"]

# The same number of images before each of the six backgrounds.
PUBLISHED = Published("personx", SYNTHETIC, Count(88560, 410), Count(5136, 856), Count(184896, 856))
HARD = Published("personx-hard", SYNTHETIC, Count(9840, 410), Count(5136, 856), Count(30816, 856))
BACKGROUNDS = (1, 2, 3, 4, 5, 6)
EXAMPLE = "0001_c1s1_33.jpg"
NAME = re.compile(r"(?P<pid>[0-9]{1,18})_c(?P<camid>[0-9]{1,9})(?:s[0-9]+)?(?:_[0-9]+)*")
# With one number after the sequence; Market-1501's names have two.
OWN_NAME = re.compile(r"[0-9]+_c[0-9]+s[0-9]+_[0-9]+")
LAYOUT = Layout(
    {f"{b}/{folder}": OWN_NAME for b in BACKGROUNDS for folder in MARKET_FOLDERS.values()},
    ("PersonX_v1", "PersonX"),
)
HARD_LAYOUT = Layout(dict.fromkeys(MARKET_FOLDERS.values(), OWN_NAME), LAYOUT.folders)


@register_dataset("personx", LAYOUT, HARD_LAYOUT)
def read_personx(root: Path | str, *, backgrounds: Sequence[int] = BACKGROUNDS) -> ReIDDataset:
    """List PersonX: 1,266 identities before up to six backgrounds, 36 viewpoints each.

    ``4/query/0001_c4s1_33.jpg`` shows identity 1 under viewpoint 33 before background 4. The
    camera is the background, which is the folder's number.

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
    selected = sorted(set(backgrounds))
    if not selected or not set(selected) <= set(BACKGROUNDS):
        raise InputError(f"backgrounds must be some of {BACKGROUNDS}, not {tuple(backgrounds)}")
    root = find_root(root, LAYOUT, HARD_LAYOUT)
    if not any((root / folder).is_dir() for folder in MARKET_FOLDERS.values()):
        return _read_backgrounds(root, selected)
    if selected != list(BACKGROUNDS):
        raise DataError(
            f"{root} holds the harder subset, which is not sorted by background; read it as "
            "personx, or give the folder that holds the backgrounds 1 to 6"
        )
    splits = read_market_folders(root, NAME, example="0001_c3s1_33.jpg", published=HARD)
    return build_dataset(HARD, splits, root=root)


@register_dataset("personx-456")
def read_personx_456(root: Path | str) -> ReIDDataset:
    """List the three scene backgrounds of PersonX; as :func:`read_personx`."""
    return read_personx(root, backgrounds=(4, 5, 6))


def _read_backgrounds(root: Path, backgrounds: Sequence[int]) -> ReIDDataset:
    single = _scaled("personx", 1)
    if missing := [str(b) for b in backgrounds if not (root / str(b)).is_dir()]:
        content = ", ".join(
            f"{folder}/ with {single.of(split).images:,} images"
            for split, folder in MARKET_FOLDERS.items()
        )
        raise DataError(
            f"{root} lacks the folder of background {', '.join(missing)}; expected in each: "
            f"{content}; or read only existing ones: load_dataset('personx', root, backgrounds=...)"
        )
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for background in backgrounds:
        samples = read_market_folders(
            root / str(background), NAME, example=EXAMPLE, published=single, camera=background
        )
        for split in SPLITS:
            splits[split] += samples[split]
    every = len(backgrounds) == len(BACKGROUNDS)
    name = "personx" if every else f"personx-{''.join(map(str, backgrounds))}"
    return build_dataset(_scaled(name, len(backgrounds)), splits, root=root)


def _scaled(name: str, backgrounds: int) -> Published:
    """Return the published sizes of a number of backgrounds."""
    train, query, gallery = (
        Count(count.images * backgrounds // len(BACKGROUNDS), count.identities)
        for count in map(PUBLISHED.of, SPLITS)
    )
    return Published(name, SYNTHETIC, train, query, gallery)
