"""Visible and infrared images: SYSU-MM01 (2017), RegDB (2017) and LLCM (2023)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reidguard.data.dataset import ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import check_choice, find_root, read_list
from reidguard.data.readers.matlab import load_matrix
from reidguard.data.readers.statistics import NO_TEXT, Count, Published, build_dataset
from reidguard.errors import DataError
from reidguard.records import read_file
from reidguard.schema import checked
from reidguard.types import ReIDSample

__all__ = ["read_llcm", "read_regdb", "read_sysu_mm01"]

AGREEMENT = "on signed agreement: research only; not to be distributed"
SYSU = Published("sysu-mm01", NO_TEXT, sized=False)
REGDB = Published("regdb", NO_TEXT, sized=False)
LLCM = Published("llcm", AGREEMENT, sized=False)

ANY = re.compile(".*", re.DOTALL)
VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)  # cameras of SYSU-MM01
SYSU_MODES = {"all": VISIBLE, "indoor": (1, 2)}
SYSU_LAYOUT = Layout(
    {**{f"cam{c}/*": ANY for c in (1, 2, 3, 4, 5, 6)}, "exp/test_id.txt": None}, ("SYSU-MM01",)
)
REGDB_PARTS = {"visible": 1, "thermal": 2}  # and their cameras
REGDB_LAYOUT = Layout(
    {f"idx/{split}_{part}_1.txt": None for split in ("train", "test") for part in REGDB_PARTS},
    ("RegDB",),
)
REGDB_LINE = re.compile(r"(?P<path>[^\s]+)\s+(?P<pid>[0-9]{1,9})")
REGDB_EXAMPLE = "Visible/1/male_front_v_00001_1.bmp 0"
REGDB_IDENTITIES = 206  # of each half
LLCM_PARTS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
LLCM_LAYOUT = Layout(
    {
        **dict.fromkeys(("test_vis", "test_nir"), ANY),
        **dict.fromkeys(f"idx/{name}.txt" for name in ("train_vis", "train_nir", "test_id")),
    },
    ("LLCM",),
)
LLCM_LINE = re.compile(
    r"(?P<path>(?:[^\s/]+/)*cam(?P<camid>[0-9])(?:/[^\s/]+)+)\s+(?P<pid>[0-9]{1,9})"
)
LLCM_EXAMPLE = "vis/cam1/0001/0001_c01_s1.jpg 0"
TRAIN_SHIFT = 10_000  # training lists number from 0, and test identities keep their own numbers
TEN = "average over ten trials to compare"


@register_dataset("sysu-mm01", SYSU_LAYOUT)
def read_sysu_mm01(
    root: Path | str, *, mode: str = "all", shots: int = 1, trial: int = 0
) -> ReIDDataset:
    """List SYSU-MM01: infrared queries, visible images in the gallery.

    ``cam3/0006/0001.jpg`` shows identity 6, seen by camera 3. Cameras 3 and 6 are infrared; 4 and 5
    are outdoors. Queries are all infrared images of the test identities; the gallery has a few
    images of each identity and visible camera. Queries of camera 3 do not search camera 2, which is
    in the same place (``ReIDDataset.hidden``). The published protocol averages over ten
    galleries: read the dataset with trials 0 to 9. Training uses the training and the validation
    identities.

    Args:
        root: The folder that holds ``cam1`` to ``cam6`` and ``exp``, or one above it, if there it
            is called ``SYSU-MM01``.
        mode: "all" searches cameras 1, 2, 4 and 5, "indoor" 1 and 2.
        shots: Images of each identity and camera in the gallery; 1 or 10 are published.
        trial: Chooses the gallery: by ``exp/rand_perm_cam.mat`` of the authors where it is there
            (which needs SciPy), else by the draw of AGW's code, with one shot.

    Raises:
        DataError: If a list of identities or a folder is missing.
        InputError: If an option has a wrong value, or SciPy is missing.
    """
    check_choice("mode", mode, SYSU_MODES)
    check_choice("shots", shots, (1, 10))
    trial = checked(int, "trial", trial, low=0, high=9)
    root = find_root(root, SYSU_LAYOUT)
    train, test = _ids(root / "exp", "train_id", "val_id"), _ids(root / "exp", "test_id")
    gallery, rule = _sysu_gallery(root, sorted(set(test)), SYSU_MODES[mode], shots, trial)
    splits = {
        "train": [
            sample
            for pid in sorted(set(train))
            for cameras in (VISIBLE, INFRARED)
            for camera in cameras
            for sample in _images(root / f"cam{camera}", pid, camera)
        ],
        "query": [
            sample
            for pid in sorted(set(test))
            for camera in INFRARED
            for sample in _images(root / f"cam{camera}", pid, camera)
        ],
        "gallery": gallery,
    }
    notes = [
        f"{mode} search, {'single' if shots == 1 else 'multi'}-shot gallery of trial {trial} "
        f"({rule}); {TEN}",
        "queries of camera 3 do not search camera 2; CMC counts images, and the authors' code "
        "identities, so rank-k for k > 1 may differ",
    ]
    dataset = build_dataset(SYSU._replace(name=f"sysu-mm01-{mode}"), splits, root=root, notes=notes)
    dataset.hidden = {3: frozenset({2})}
    return dataset


def _sysu_gallery(
    root: Path, pids: Sequence[int], cameras: Sequence[int], shots: int, trial: int
) -> tuple[list[ReIDSample], str]:
    """Return the gallery, and which rule it follows."""
    path = root / "exp" / "rand_perm_cam.mat"
    if path.is_file():
        permutations = load_matrix(path, "rand_perm_cam")
        chosen = []
        for pid in pids:
            for camera in cameras:
                numbers = _permutation(permutations, camera, pid, trial, path)[:shots]
                named = {f"{number:04d}" for number in numbers}
                images = _images(root / f"cam{camera}", pid, camera)
                chosen += [sample for sample in images if sample.path.stem in named]
        return chosen, "rand_perm_cam.mat"
    if shots != 1:
        raise DataError(f"{path} is missing, and only it says which ten images are the gallery")
    return _draw(((root / f"cam{c}", pid, c) for pid in pids for c in cameras), trial), "drawn"


def _permutation(cells: Any, camera: int, pid: int, trial: int, path: Path) -> list[int]:
    """Return the order of an identity's images of a camera, in the authors' cells of cells."""
    try:
        numbers = cells[camera - 1][0].squeeze()[pid - 1]
        return [int(number) for number in numbers[trial]] if numbers.size else []
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has no permutation of identity {pid} and camera {camera}; copy it again"
        ) from error


def _draw(places: Iterable[tuple[Path, int, int]], trial: int) -> list[ReIDSample]:
    """Draw one image of each identity and camera, as AGW's and LLCM's code does with this seed."""
    generator = random.Random(trial)
    drawn = []
    for folder, pid, camera in places:
        if images := _images(folder, pid, camera):
            drawn.append(generator.choice(images))
    return drawn


def _images(folder: Path, pid: int, camera: int) -> list[ReIDSample]:
    """List the images of an identity, none if the camera did not see it."""
    place = folder / f"{pid:04d}"
    return [ReIDSample(p, pid, camera) for p in list_images(place)] if place.is_dir() else []


def _ids(folder: Path, *names: str) -> list[int]:
    """Read lists of identities: numbers with commas between them."""
    pids: list[int] = []
    for name in names:
        path = folder / f"{name}.txt"
        content = "expected: identities such as 6,10,17"
        if not path.is_file():
            raise DataError(f"the list {path} is missing; {content}")
        text = read_file(path, error=DataError).decode("utf-8", "replace").strip()
        if not re.fullmatch(r"[0-9]{1,9}(?:\s*,\s*[0-9]{1,9})*,?", text):
            raise DataError(f"the list {path} begins with {text[:40]!r}; {content}")
        pids += [int(number) for number in text.split(",") if number.strip()]
    return pids


@register_dataset("regdb", REGDB_LAYOUT)
def read_regdb(root: Path | str, *, query: str = "visible", trial: int = 1) -> ReIDDataset:
    """List RegDB: visible and thermal images, half of the identities to train on.

    ``idx/test_visible_1.txt`` and so on list the images of ten random halves, so that models are
    trained anew for each trial. Camera 1 is visible, 2 is thermal. The lists number training and
    test identities from 0 each; here training identity n is n + 1, test identity n is n + 207.

    Args:
        root: The folder that holds ``idx``, ``Visible`` and ``Thermal``, or one above it, if there
            it is called ``RegDB``.
        query: "visible" searches thermal images, "thermal" visible ones.
        trial: 1 to 10.

    Raises:
        DataError: If a list or a listed image is missing.
        InputError: If an option has a wrong value.
    """
    check_choice("query", query, REGDB_PARTS)
    trial = checked(int, "trial", trial, low=1, high=10)
    root = find_root(root, REGDB_LAYOUT)

    def read(split: str, part: str) -> list[ReIDSample]:
        return read_list(
            root / "idx" / f"{split}_{part}_{trial}.txt",
            REGDB_LINE,
            root,
            example=REGDB_EXAMPLE,
            expected=Count(0, 0),
            shift=1 if split == "train" else 1 + REGDB_IDENTITIES,
            camera=REGDB_PARTS[part],
        )

    gallery = next(part for part in REGDB_PARTS if part != query)
    splits = {
        "train": read("train", "visible") + read("train", "thermal"),
        "query": read("test", query),
        "gallery": read("test", gallery),
    }
    notes = [f"{query} queries, {gallery} gallery, trial {trial}; {TEN}"]
    name = f"regdb-{query}-to-{gallery}"
    return build_dataset(REGDB._replace(name=name), splits, root=root, notes=notes)


@register_dataset("llcm", LLCM_LAYOUT)
def read_llcm(root: Path | str, *, query: str = "nir", trial: int = 0) -> ReIDDataset:
    """List LLCM: visible and near-infrared images in low light, nine cameras.

    ``test_vis/cam1/0004/...jpg`` shows identity 4, seen by camera 1. Queries are all test images of
    one kind; the gallery has one of the other kind of each identity and camera, drawn as the
    authors' code does. A camera has the same number for both kinds, so that a query does not match
    its own camera. The published protocol averages over trials 0 to 9. Training identity n of the
    lists is 10,000 + n here.

    Args:
        root: The folder that holds ``test_vis``, ``test_nir`` and ``idx``, or one above it, if
            there it is called ``LLCM``.
        query: "nir" searches visible images, "vis" near-infrared ones.
        trial: Chooses the gallery.

    Raises:
        DataError: If a list, a folder or a listed image is missing.
        InputError: If an option has a wrong value.
    """
    check_choice("query", query, LLCM_PARTS)
    trial = checked(int, "trial", trial, low=0, high=9)
    root = find_root(root, LLCM_LAYOUT)
    train = [
        sample
        for part in LLCM_PARTS
        for sample in read_list(
            root / "idx" / f"train_{part}.txt",
            LLCM_LINE,
            root,
            example=LLCM_EXAMPLE,
            expected=Count(0, 0),
            shift=TRAIN_SHIFT,
        )
    ]
    pids = sorted(set(_ids(root / "idx", "test_id")))
    places = {
        part: [(root / f"test_{part}" / f"cam{c}", pid, c) for pid in pids for c in cameras]
        for part, cameras in LLCM_PARTS.items()
    }
    other = next(part for part in LLCM_PARTS if part != query)
    splits = {
        "train": train,
        "query": [sample for place in places[query] for sample in _images(*place)],
        "gallery": _draw(places[other], trial),
    }
    notes = [f"{query} queries, {other} gallery, trial {trial}; {TEN}"]
    name = f"llcm-{query}-to-{other}"
    return build_dataset(LLCM._replace(name=name), splits, root=root, notes=notes)
