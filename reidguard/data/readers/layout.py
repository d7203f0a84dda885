"""Common parts of the readers: find the root folder, parse file names and lists, report gaps."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.layouts import Layout, normal_name
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.errors import DataError, InputError, a_few, printable
from reidguard.records import read_file, to_path
from reidguard.types import ReIDSample

__all__ = [
    "MARKET_FOLDERS",
    "check_choice",
    "check_files",
    "draw_one_each",
    "find_root",
    "parse_folder",
    "parse_identity_folders",
    "random_half",
    "random_split",
    "read_images",
    "read_list",
    "read_market_folders",
]

MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def find_root(root: Path | str, *layouts: Layout) -> Path:
    """Return ``root``, or the one folder in it, that holds the dataset.

    Args:
        root: The folder that the user named.
        layouts: Their ``folders`` are searched in ``root``, and in one another; one of the entries
            is enough to identify the dataset.

    Raises:
        DataError: If there is no such folder, or more than one.
    """
    holds = list(dict.fromkeys(entry.partition("/")[0] for lay in layouts for entry in lay.entries))
    expected = f"expected there: {', '.join(holds)}"
    root = to_path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {expected}")
    names = {normal_name(folder) for layout in layouts for folder in layout.folders}
    candidates = [root]
    while candidates:
        matching = [p for p in candidates if any((p / entry).exists() for entry in holds)]
        if len(matching) > 1:
            raise DataError(
                f"{root} holds more than one copy: {a_few(p.name for p in matching)}; name one of "
                f"them, as in {matching[0]}"
            )
        if matching:
            return matching[0]
        inner = [p for place in candidates for p in sorted(place.iterdir())]
        candidates = [p for p in inner if normal_name(p.name) in names and p.is_dir()]
    raise DataError(f"{root} does not hold this dataset; {expected}")


def parse_folder(
    folder: Path, pattern: re.Pattern[str], *, example: str, expected: int | None = None
) -> list[tuple[Path, re.Match[str]]]:
    """List a folder's images, each with the match of ``pattern`` on its whole stem.

    Args:
        folder: Folder of the images; other files are ignored.
        pattern: Pattern of a file name without its extension.
        example: A published file name, for error messages.
        expected: The published number of images, for error messages.

    Raises:
        DataError: If the folder is missing or empty, a name does not match, or one image is there
            under two extensions.
    """
    number = "images" if expected is None else f"{expected:,} images"
    content = f"expected there: {number}, named like {example}"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {content}")
    paths = list_images(folder)
    if not paths:
        raise DataError(f"the folder {folder} holds no image; {content}")
    parsed = [(path, match) for path in paths if (match := pattern.fullmatch(path.stem))]
    if len(parsed) < len(paths):
        wrong = sorted({path.name for path in paths} - {path.name for path, _ in parsed})
        raise DataError(
            f"{len(wrong)} image names in {folder} do not match {example}: {a_few(wrong)}; "
            "rename or remove them"
        )
    stems = Counter(path.stem for path in paths)
    if len(stems) < len(paths):
        twice = [path.name for path in paths if stems[path.stem] > 1]
        raise DataError(f"{folder} holds an image under two extensions: {a_few(twice)}; keep one")
    return parsed


def read_images(
    folder: Path,
    pattern: re.Pattern[str],
    *,
    example: str,
    expected: int | None = None,
    shift: int = 0,
    camera: int | None = None,
) -> list[ReIDSample]:
    """Read a folder whose image names contain identity and camera.

    Args:
        folder: As for :func:`parse_folder`, which lists its errors.
        pattern: With a group "pid" and, unless ``camera`` is given, "camid".
        example: A published file name, for error messages.
        expected: The published number of images, for error messages.
        shift: Number added to each pid.
        camera: The camera of all images.
    """
    return [
        ReIDSample(path, int(m["pid"]) + shift, int(m["camid"]) if camera is None else camera)
        for path, m in parse_folder(folder, pattern, example=example, expected=expected)
    ]


def parse_identity_folders(
    folder: Path, pattern: re.Pattern[str], *, example: str, shift: int = 0
) -> list[tuple[Path, int, re.Match[str]]]:
    """List images in one subfolder per identity, whose name is its number.

    Args:
        folder: Folder of the subfolders.
        pattern: Pattern of an image's name without its extension.
        example: A published image name, for error messages.
        shift: Added to the numbers.

    Returns:
        For each image its path, its identity, and the match of its name.

    Raises:
        DataError: If a folder is missing or empty or no number, or a name does not match.
    """
    content = f"expected there: one folder per identity with images such as {example}"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {content}")
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not inner:
        raise DataError(f"the folder {folder} holds no folder; {content}")
    if wrong := [p.name for p in inner if not re.fullmatch("[0-9]{1,9}", p.name)]:
        raise DataError(f"folders in {folder} are no identities: {a_few(wrong)}; remove them")
    return [
        (path, int(place.name) + shift, match)
        for place in inner
        for path, match in parse_folder(place, pattern, example=example)
    ]


def read_market_folders(
    root: Path,
    pattern: re.Pattern[str],
    *,
    example: str,
    published: Published | None = None,
    camera: int | None = None,
    distractors: bool = False,
) -> dict[str, list[ReIDSample]]:
    """Read the three folders of Market-1501's layout.

    Args:
        root: The folder that holds them.
        pattern: Pattern of a file name without its extension, with a group "pid" and, unless
            ``camera`` is given, "camid". A pid of −1 is junk.
        example: A published file name, for error messages.
        published: The published sizes, for error messages.
        camera: The camera of all images, where their names do not contain it.
        distractors: Whether pid 0 is allowed in the gallery.

    Returns:
        The samples of "train", "query" and "gallery", and those of "junk".

    Raises:
        DataError: If a folder is missing or empty, a name does not match, or an image has pid 0
            where none may.
    """
    splits: dict[str, list[ReIDSample]] = {split: [] for split in (*SPLITS, "junk")}
    for split, name in MARKET_FOLDERS.items():
        folder = root / name
        expected = None if published is None else published.of(split).images or None
        for sample in read_images(
            folder, pattern, example=example, expected=expected, camera=camera
        ):
            splits["junk" if sample.pid < 0 else split].append(sample)
        zeros = [s.path.name for s in splits[split] if s.pid == 0]
        if zeros and not (distractors and split == "gallery"):
            rule = (
                f"0 marks distractors, which belong in {MARKET_FOLDERS['gallery']} only"
                if distractors
                else "this dataset numbers identities from 1, so remove them"
            )
            raise DataError(
                f"{len(zeros)} images in {folder} show identity 0: {a_few(zeros)}; {rule}"
            )
    return splits


def read_list(
    path: Path,
    pattern: re.Pattern[str],
    folder: Path,
    *,
    example: str,
    expected: Count,
    shift: int,
    camera: str | int = "camid",
    suffix: str = "",
) -> list[ReIDSample]:
    """Read a list file of one image per line; empty lines are skipped.

    Args:
        path: The list.
        pattern: Pattern of a line, with the groups "path" and "pid".
        folder: Folder that the listed paths are relative to.
        example: A published line, for error messages.
        expected: The published size, for error messages.
        shift: Number added to each pid.
        camera: The group of ``pattern`` that gives the camera, or the camera of all images.
        suffix: What the listed paths lack of the files' names.

    Raises:
        DataError: If the list is missing or empty, a line does not match or is there twice, or
            listed images are missing.
    """
    content = (
        f"expected: {f'{expected.images:,} ' if expected.images else ''}lines like {example!r}"
    )
    if not path.is_file():
        raise DataError(f"the list {path} is missing; {content}")
    try:
        text = read_file(path, error=DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read the list {path}: {error}; {content}") from error
    samples = []
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line:
            continue
        match = pattern.fullmatch(line)
        if match is None or printable(line) != line:
            shown = line if len(line) <= 200 else f"{line[:200]}..."
            raise DataError(f"{path}, line {number} is {shown!r}; {content}")
        camid = camera if isinstance(camera, int) else int(match[camera])
        image = folder / (match["path"] + suffix)
        samples.append(ReIDSample(image, int(match["pid"]) + shift, camid))
    if not samples:
        raise DataError(f"the list {path} is empty; {content}")
    check_files([sample.path for sample in samples], listed_in=path)
    return samples


def check_files(paths: Collection[Path], *, listed_in: Path) -> None:
    """Check that listed images exist, and are listed once.

    Raises:
        DataError: Naming a few of them.
    """
    if twice := [str(path) for path, times in Counter(paths).items() if times > 1]:
        raise DataError(f"{listed_in} lists images twice: {a_few(twice)}; remove one line")
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    missing = []  # listing each folder once is faster than a stat of each file
    for folder, listed in folders.items():
        existing = set(os.listdir(folder)) if folder.is_dir() else set()
        missing += [str(path) for path in listed if path.name not in existing]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(paths):,} images that {listed_in} lists are missing: "
            f"{a_few(missing)}; copy them, or remove their lines"
        )


def draw_one_each(
    samples: Iterable[ReIDSample], seed: int, *, of_each_camera: bool = False
) -> list[ReIDSample]:
    """Draw one image of each identity, in their order; the same on every machine.

    Args:
        samples: Images to draw from.
        seed: Chooses the draw, whatever the order of the samples.
        of_each_camera: Draw one of each identity and camera.
    """
    groups: defaultdict[tuple[int, int], list[ReIDSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.pid, sample.camid if of_each_camera else 0].append(sample)

    def ticket(sample: ReIDSample) -> bytes:
        name = f"{seed}:{sample.path.parent.name}/{sample.path.name}"
        return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

    return [min(groups[key], key=ticket) for key in sorted(groups)]


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Check an option that has a few values.

    Raises:
        InputError: With the values.
    """
    choices = list(known)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def random_half(pids: Iterable[int], seed: int) -> set[int]:
    """Draw half of the identities, rounded down; the same on every machine and Python version."""

    def ticket(pid: int) -> bytes:
        return hashlib.sha256(f"{seed}:{pid}".encode()).digest()

    drawn = sorted(set(pids), key=ticket)
    return set(drawn[: len(drawn) // 2])


def random_split(
    published: Published, samples: Collection[ReIDSample], seed: int, *, root: Path
) -> ReIDDataset:
    """Split a dataset of two cameras at random: half of the identities for training.

    Of the others, camera 1 is the query and camera 2 the gallery.
    """
    train = random_half((s.pid for s in samples), seed)
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for sample in samples:
        test = "query" if sample.camid == 1 else "gallery"
        splits["train" if sample.pid in train else test].append(sample)
    notes = [f"random split of seed {seed}; average over ten seeds to compare"]
    return build_dataset(published, splits, root=root, notes=notes)
