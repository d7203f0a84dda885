"""Datasets of virtual people, rendered into folders in Market-1501's layout."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import Unpack

from reidguard.data.dataset import SPLITS, CountCallback, ReIDDataset
from reidguard.data.readers.layout import MARKET_FOLDERS, read_market_folders
from reidguard.data.readers.market1501 import EXAMPLE, NAME
from reidguard.errors import DataError, InputError
from reidguard.files import remove_leftovers, temporary_folder
from reidguard.fingerprint import fingerprint
from reidguard.options import VirtualOptions
from reidguard.records import Count, cache_folder, find_record, read_record, to_path
from reidguard.schema import checked, documented, resolve
from reidguard.virtual.domains import DOMAINS, find_domain
from reidguard.virtual.render import MAX_HEIGHT, render_person
from reidguard.virtual.worker import RenderJob, render_files

__all__ = ["contact_sheet", "load_virtual", "read_virtual", "write_virtual"]

MARKER = "virtual.json"  # written last but for the rename: where it is, the set is complete
VERSION = 1  # of the renderer: part of the marker, so that old folders are rendered again
LICENCE = "rendered by reidguard, free; shows nobody real"
FIRST_TEST = 5001  # fixed, so that an identity keeps its number in sets of all sizes
FIRST_DISTRACTOR = 10_000
VIEWS = 36


@dataclass(frozen=True)
class Marker:
    """Content of the marker file: how a set was rendered, and its number of images by split."""

    parameters: dict[str, str | int | bool]
    images: dict[str, Count]


@dataclass(frozen=True)
class VirtualConfig:
    """What a rendered folder contains: equal configurations have equal bytes."""

    domain: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, domain: str, options: Mapping[str, Any]) -> VirtualConfig:
        """Check a domain's name and options.

        Raises:
            InputError: If the domain or an option is unknown, or a value is out of range.
        """
        find_domain(domain)
        resolved = resolve(VirtualOptions, options)
        if resolved["height"] % 32:
            raise InputError(f"height must be a multiple of 32, not {resolved['height']}")
        return cls(domain, resolved)

    @property
    def parameters(self) -> dict[str, Any]:
        """The configuration as the marker file records it."""
        return {"domain": self.domain, **self.options, "version": VERSION}

    def jobs(self) -> list[RenderJob]:
        """Return a job for each image, with a path relative to the folder, sorted by camera."""
        options = self.options
        balanced = options["balanced"]
        shots = VIEWS if balanced else options["images_per_camera"]
        train = range(1, options["train_identities"] + 1)
        test = range(FIRST_TEST, FIRST_TEST + options["test_identities"])
        jobs = []
        for camera in range(1, options["cameras"] + 1):
            for pid in (*train, *test):
                query = pid * 7 % shots if balanced else 0  # not every query from the front
                for shot in range(shots):
                    split = "train" if pid in train else "query" if shot == query else "gallery"
                    view = 10 * shot if balanced else None
                    jobs.append(self._job(split, pid, pid, camera, shot, view))
            for i in range(camera - 1, 2 * len(test), options["cameras"]):
                jobs.append(self._job("gallery", 0, FIRST_DISTRACTOR + i, camera, i, None))
        return jobs

    def _job(
        self, split: str, pid: int, identity: int, camera: int, shot: int, view: int | None
    ) -> RenderJob:
        name = f"{pid:04d}_c{camera}s1_{shot:06d}_{(view or 0) // 10:02d}.png"
        path = f"{MARKET_FOLDERS[split]}/{name}"
        height, seed = self.options["height"], self.options["seed"]
        return RenderJob(path, self.domain, identity, camera, view, shot, height, seed)


@documented(VirtualOptions)
def read_virtual(
    domain: str = "plaza",
    *,
    root: Path | str | None = None,
    progress: CountCallback | None = None,
    **options: Unpack[VirtualOptions],
) -> ReIDDataset:
    """Read a virtual set, rendering it first where it does not exist yet.

    Args:
        domain: One of :data:`VIRTUAL_DOMAINS`.
        root: Folder of the set. None takes one below the user's cache (``$XDG_CACHE_HOME`` or
            ``~/.cache``) that depends on the options.
        progress: Called with (images done, images in all) while rendering.
        **options:

    Returns:
        The dataset "virtual:DOMAIN".

    Raises:
        InputError: If the domain is unknown or a size out of range.
        DataError: If the folder cannot be written, holds something else, or lost images.

    Example:
        >>> import tempfile
        >>> sizes = {"train_identities": 1, "test_identities": 1, "cameras": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_virtual("campus", root=f"{folder}/set", images_per_camera=2, **sizes)
        ReIDDataset('virtual:campus', train=4, query=2, gallery=4)
    """
    config = VirtualConfig.of(domain, options)
    if root is None:
        root = cache_folder() / f"virtual-{domain}-{fingerprint(config.parameters)[:12]}"
    root = to_path(root)
    _write(root, config, progress)
    return _read(root)


@documented(VirtualOptions)
def write_virtual(
    root: Path | str,
    domain: str = "plaza",
    *,
    progress: CountCallback | None = None,
    **options: Unpack[VirtualOptions],
) -> Path:
    """Render a set into a folder in Market-1501's layout, which the market1501 reader reads too.

    The folder appears complete or not at all; an existing folder of the same set is left as it is.

    Args:
        root: A folder that does not exist yet, or is empty.
        domain: One of :data:`VIRTUAL_DOMAINS`.
        progress: Called with (images done, images in all).
        **options:

    Returns:
        ``root``.

    Raises:
        InputError: If the domain is unknown or a size out of range.
        DataError: If the folder holds something else or cannot be written.

    Example:
        >>> folder = write_virtual("people", "plaza", train_identities=10)  # doctest: +SKIP
    """
    root = to_path(root)
    _write(root, VirtualConfig.of(domain, options), progress)
    return root


def load_virtual(
    root: Path | str = "plaza",
    *,
    folder: Path | str | None = None,
    progress: CountCallback | None = None,
    **options: Unpack[VirtualOptions],
) -> ReIDDataset:
    """Read "plaza", "plaza?train_identities=20&cameras=3", or a folder that was written before.

    Args:
        root: A domain, with options or without, or the folder of a set.
        folder: ``root`` of :func:`read_virtual`.
        progress: As for :func:`read_virtual`.
        **options: As for :func:`read_virtual`; they override those in ``root``.
    """
    text = str(root)
    if (to_path(root) / MARKER).is_file():
        return _read(to_path(root))
    if "/" in text or os.sep in text:
        raise DataError(
            f"{text} holds no virtual set; write one with: reidguard data export virtual:plaza "
            f"{text}"
        )
    return read_virtual(root=folder, progress=progress, **{**parse_name(text), **options})


def parse_name(text: str) -> dict[str, Any]:
    """Return the arguments of :func:`read_virtual` in "DOMAIN?option=value&option=value".

    ``identities`` stands for both train_identities and test_identities.

    Raises:
        InputError: If the domain or an option is unknown, or a value is out of range.
    """
    domain, _, query = text.partition("?")
    values: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        number: Any = int(value) if re.fullmatch("[0-9]{1,19}", value) else value
        if name == "identities":
            values["train_identities"] = values["test_identities"] = number
        else:
            values[name] = bool(number) if name == "balanced" and number in (0, 1) else number
    VirtualConfig.of(domain, values)
    return {"domain": domain, **values}


def _read(root: Path) -> ReIDDataset:
    cure = "delete that folder and load it again"
    marker = read_record(root / MARKER, Marker, cure=cure, error=DataError)
    domain = marker.parameters.get("domain", "unknown")
    splits = read_market_folders(root, NAME, example=EXAMPLE, distractors=True)
    dataset = ReIDDataset(
        f"virtual:{domain}", *(splits[split] for split in SPLITS), root=root, licence=LICENCE
    )
    if {split: len(dataset.split(split)) for split in SPLITS} != marker.images:
        raise DataError(f"images are missing from {root}; {cure}")
    return dataset


def _exists(root: Path, config: VirtualConfig) -> bool:
    marker = find_record(root / MARKER, Marker)
    if marker is not None and marker.parameters == config.parameters:
        return True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        content = "a virtual set of other parameters" if marker else "other files"
        raise DataError(f"{root} holds {content}; give a folder that is empty or does not exist")
    return False


def _write(root: Path, config: VirtualConfig, progress: CountCallback | None) -> None:
    try:
        remove_leftovers(root.parent)
        if _exists(root, config):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root.parent) as draft:
            inner = draft / "set"  # the draft is private; this one follows the umask
            for folder in MARKET_FOLDERS.values():
                (inner / folder).mkdir(parents=True)
            jobs = config.jobs()
            absolute = [replace(job, path=str(inner / job.path)) for job in jobs]
            render_files(absolute, progress=progress)
            counts = Counter(Path(job.path).parts[0] for job in jobs)
            images = {split: counts[folder] for split, folder in MARKET_FOLDERS.items()}
            marker = {"parameters": config.parameters, "images": images}
            (inner / MARKER).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")
            inner.rename(root)
    except OSError as error:
        if _exists(root, config):  # another process was faster
            return
        raise DataError(
            f"cannot write the virtual set to {root}: {error.strerror or error}; choose another "
            "folder: reidguard data export virtual:plaza /path/to/it"
        ) from error


def contact_sheet(
    domain: str | Sequence[str] | None = None,
    *,
    identities: int = 8,
    cameras: int = 6,
    views: int = 0,
    height: int = 128,
    seed: int = 0,
) -> Image.Image:
    """Render identities side by side: a row for each, with one image by every camera.

    Args:
        domain: A domain, several one below the other, or None for all.
        identities: Rows for each domain.
        cameras: Columns.
        views: Further columns, in which the person turns before camera 1.
        height: Of each image.
        seed: Of the identities and cameras.

    Returns:
        An RGB image.

    Example:
        >>> contact_sheet("mall", identities=1, cameras=2, views=2).size
        (256, 128)
    """
    domains = DOMAINS if domain is None else [domain] if isinstance(domain, str) else domain
    identities = checked(int, "identities", identities, low=1, high=1000)
    cameras = checked(int, "cameras", cameras, low=1, high=99)
    views = checked(int, "views", views, low=0, high=360)
    height = checked(int, "height", height, low=64, high=MAX_HEIGHT)
    cells: list[tuple[int, float | None]] = [(camera, None) for camera in range(1, cameras + 1)]
    cells += [(1, 360 * i / views) for i in range(views)]
    rows = [(name, identity) for name in domains for identity in range(1, identities + 1)]
    width = height // 2
    sheet = Image.new("RGB", (len(cells) * width, len(rows) * height))
    for row, (name, identity) in enumerate(rows):
        for column, (camera, view) in enumerate(cells):
            pixels = render_person(name, identity, camera, view, height=height, seed=seed)
            sheet.paste(Image.fromarray(pixels), (column * width, row * height))
    return sheet
