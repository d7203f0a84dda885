"""What readers of published layouts share: find the folder, parse names, say what is missing."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from reidguard.data.dataset import SPLITS, a_few
from reidguard.data.images import list_images
from reidguard.data.readers.statistics import Count, Published
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = [
    "MARKET_FOLDERS",
    "check_files",
    "find_root",
    "parse_folder",
    "random_half",
    "read_lines",
    "read_market_folders",
    "split_people",
]

MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def find_root(root: Path, below: Iterable[str], holds: Collection[str]) -> Path:
    """Return ``root``, or the one folder in it, that holds the dataset.

    Args:
        root: The folder that the user named.
        below: Names of folders in ``root`` to look into, in lower case; case does not matter.
        holds: Entries by which the dataset is known; one of them is enough.

    Raises:
        DataError: If there is no such folder, or more than one.
    """
    expected = f"expected there: {', '.join(holds)}"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {expected}")
    names = set(below)
    inner = [p for p in sorted(root.iterdir()) if p.name.lower() in names and p.is_dir()]
    for places in ([root], inner):
        found = [p for p in places if any((p / entry).exists() for entry in holds)]
        if len(found) > 1:
            raise DataError(
                f"{root} holds more than one copy: {a_few(p.name for p in found)}; name one of "
                f"them, as in {found[0]}"
            )
        if found:
            return found[0]
    raise DataError(f"{root} does not hold this dataset; {expected}")


def parse_folder(
    folder: Path, pattern: re.Pattern[str], *, example: str, expected: int | None = None
) -> list[tuple[Path, re.Match[str]]]:
    """List a folder's images, each with the match of ``pattern`` on its whole name.

    Args:
        folder: Where the images lie; other files are ignored.
        pattern: What a name without its extension must match.
        example: A published name, to show in errors.
        expected: How many images are published, to say in errors.

    Raises:
        DataError: If the folder is missing or empty, or a name does not match.
    """
    number = "images" if expected is None else f"{expected:,} images"
    wanted = f"expected there: {number}, named like {example}"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {wanted}")
    paths = list_images(folder)
    if not paths:
        raise DataError(f"the folder {folder} holds no image; {wanted}")
    parsed = [(path, pattern.fullmatch(path.stem)) for path in paths]
    wrong = [path.name for path, match in parsed if match is None]
    if wrong:
        raise DataError(
            f"{len(wrong)} image names in {folder} do not read like {example}: {a_few(wrong)}; "
            "rename or remove them"
        )
    return [(path, match) for path, match in parsed if match is not None]


def read_market_folders(
    root: Path,
    pattern: re.Pattern[str],
    *,
    example: str,
    facts: Published,
    camera: int | None = None,
) -> dict[str, list[ReIDSample]]:
    """Read the three folders that Market-1501 introduced.

    Args:
        root: The folder that holds them.
        pattern: Its groups "person" and, unless ``camera`` is given, "camera" are numbers.
        example: A published name, to show in errors.
        facts: How many images are published.
        camera: The camera of all images, where their names do not tell.

    Raises:
        DataError: If a folder is missing, a name does not match, or a person has number 0.
    """
    splits = {}
    for split, name in MARKET_FOLDERS.items():
        folder = root / name
        images = parse_folder(folder, pattern, example=example, expected=facts.of(split).images)
        splits[split] = [
            ReIDSample(path, int(m["person"]), int(m["camera"]) if camera is None else camera)
            for path, m in images
        ]
        if zeros := [s.path.name for s in splits[split] if s.pid == 0]:
            raise DataError(
                f"{len(zeros)} images in {folder} show person 0: {a_few(zeros)}; this dataset "
                "numbers people from 1, so remove them"
            )
    return splits


def read_lines(
    path: Path, pattern: re.Pattern[str], *, example: str, expected: Count
) -> list[re.Match[str]]:
    """Match every line of a list file that is not empty.

    Raises:
        DataError: If the file is missing or empty, or naming the first line that does not match.
    """
    wanted = f"expected: {expected.images:,} lines like {example!r}"
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"the list {path} is missing; {wanted}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}; {wanted}") from error
    matches = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = pattern.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{path}, line {number} is {line!r}; {wanted}")
        matches.append(match)
    if not matches:
        raise DataError(f"the list {path} is empty; {wanted}")
    return matches


def check_files(paths: Collection[Path], *, listed_in: Path) -> None:
    """Make sure that all images of a list exist, and are listed once.

    Raises:
        DataError: Saying how many are missing of how many, and naming a few.
    """
    if twice := [str(path) for path, times in Counter(paths).items() if times > 1]:
        raise DataError(f"{listed_in} lists images twice: {a_few(twice)}; remove one line")
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    missing = []  # one look into each folder is faster than one at each file
    for folder, wanted in folders.items():
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        missing += [str(path) for path in wanted if path.name not in there]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(paths):,} images that {listed_in} lists are missing: "
            f"{a_few(missing)}; copy them, or remove their lines"
        )


def random_half(people: Iterable[int], seed: int) -> set[int]:
    """Draw half of the people, rounded down; the same on every machine and Python version."""

    def ticket(person: int) -> bytes:
        return hashlib.sha256(f"{seed}:{person}".encode()).digest()

    drawn = sorted(set(people), key=ticket)
    return set(drawn[: len(drawn) // 2])


def split_people(
    samples: Iterable[ReIDSample], seed: int, *, is_query: Callable[[ReIDSample], bool]
) -> Mapping[str, list[ReIDSample]]:
    """Split a dataset of two views at random: half of the people train, one view searches."""
    samples = list(samples)
    train = random_half((s.pid for s in samples), seed)
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for sample in samples:
        test = "query" if is_query(sample) else "gallery"
        splits["train" if sample.pid in train else test].append(sample)
    return splits
