"""Whole datasets of virtual people, as folders in Market-1501's layout."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.readers.layout import MARKET_FOLDERS, read_market_folders
from reidguard.data.readers.market1501 import EXAMPLE, NAME
from reidguard.errors import DataError, InputError
from reidguard.virtual.domains import DOMAINS, find_domain
from reidguard.virtual.render import render_person
from reidguard.virtual.worker import Order, draw

__all__ = ["contact_sheet", "load_virtual", "read_virtual", "write_virtual"]

MARKER = "virtual.json"  # written last but for the rename: where it is, the set is whole
VERSION = 1  # of the drawing: part of the marker, so old folders are not taken for new ones
LICENCE = "rendered by reidguard, free; shows nobody real"
FIRST_TEST = 5001  # so that a person keeps the number whatever the sizes
FIRST_DISTRACTOR = 10_000
VIEWS = 36
ALONE = 100  # images; with fewer another process costs more than it saves

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Set:
    """What is in a folder; the same fields, the same bytes."""

    domain: str = "plaza"
    train_identities: int = 100
    test_identities: int = 75
    cameras: int = 6
    images_per_camera: int = 4
    height: int = 128
    seed: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        find_domain(self.domain)
        limits = {
            "train_identities": (1, FIRST_TEST - 1),
            "test_identities": (1, 9999 - FIRST_TEST),
            "cameras": (2, 99),
            "images_per_camera": (2, 999),
            "seed": (0, 2**63),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name} must be a whole number from {least} to {most}: {value!r}")
        if self.height not in range(64, 1025, 32):
            raise InputError(f"height must be a multiple of 32 from 64 to 1024, not {self.height}")

    @property
    def marker(self) -> dict[str, Any]:
        return {**asdict(self), "version": VERSION}

    def jobs(self) -> list[_Job]:
        """Every image, ordered by camera so that a process needs few backdrops."""
        shots = VIEWS if self.balanced else self.images_per_camera
        test = range(FIRST_TEST, FIRST_TEST + self.test_identities)
        out = []
        for camera in range(1, self.cameras + 1):
            for pid in (*range(1, self.train_identities + 1), *test):
                asked = pid * 7 % shots if self.balanced else 0  # not everybody from the front
                for shot in range(shots):
                    split = "train" if pid < FIRST_TEST else "gallery"
                    if split == "gallery" and shot == asked:
                        split = "query"
                    view = 10 * shot if self.balanced else None
                    out.append(_Job(split, pid, pid, camera, shot, view))
            strangers = self.test_identities * 2
            out += [_Job("gallery", 0, FIRST_DISTRACTOR + i, camera, i, None)
                    for i in range(camera - 1, strangers, self.cameras)]  # fmt: skip
        return out


@dataclass(frozen=True)
class _Job:
    split: str
    pid: int
    identity: int
    camera: int
    shot: int
    viewpoint: int | None

    def order(self, root: Path, wanted: _Set) -> Order:
        view = 0 if self.viewpoint is None else self.viewpoint // 10
        name = f"{self.pid:04d}_c{self.camera}s1_{self.shot:06d}_{view:02d}.png"
        return Order(str(root / MARKET_FOLDERS[self.split] / name), wanted.domain, self.identity,
                     self.camera, self.viewpoint, self.shot, wanted.height,
                     wanted.seed)  # fmt: skip


def read_virtual(
    domain: str = "plaza",
    *,
    train_identities: int = 100,
    test_identities: int = 75,
    cameras: int = 6,
    images_per_camera: int = 4,
    height: int = 128,
    seed: int = 0,
    balanced: bool = False,
    root: Path | str | None = None,
    progress: Progress | None = None,
) -> ReIDDataset:
    """Read a virtual set, rendering it first where it does not exist yet.

    Args:
        domain: One of :data:`VIRTUAL_DOMAINS`.
        train_identities: People to learn from.
        test_identities: People to search for. Twice as many images of strangers (0000) are added
            to the gallery.
        cameras: At least 2.
        images_per_camera: Of each person; in the test one of them is the query.
        height: Of the images, a multiple of 32; the width is half of it.
        seed: Other people and other cameras of the same domain.
        balanced: Show each person to each camera once from every 10° instead, 36 images.
        root: Folder of the set. None takes one of its own below the user's cache
            (``$XDG_CACHE_HOME`` or ``~/.cache``).
        progress: Called with (images done, images in all) while rendering.

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
    wanted = _Set(domain, train_identities, test_identities, cameras, images_per_camera, height,
                  seed, balanced)  # fmt: skip
    if root is None:
        key = hashlib.sha256(json.dumps(wanted.marker, sort_keys=True).encode()).hexdigest()[:12]
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(cache) / "reidguard" / f"virtual-{domain}-{key}"
    _write(Path(root), wanted, progress)
    return _read(Path(root))


def write_virtual(
    root: Path | str,
    domain: str = "plaza",
    *,
    train_identities: int = 100,
    test_identities: int = 75,
    cameras: int = 6,
    images_per_camera: int = 4,
    height: int = 128,
    seed: int = 0,
    balanced: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Render a set into a folder in Market-1501's layout, which the market1501 reader reads too.

    Arguments as for :func:`read_virtual`. The folder appears whole or not at all; where the same
    set is there already, nothing is done.

    Args:
        root: A folder that does not exist yet, or is empty.
        domain: One of :data:`VIRTUAL_DOMAINS`.
        train_identities: People to learn from.
        test_identities: People to search for.
        cameras: At least 2.
        images_per_camera: Of each person.
        height: Of the images.
        seed: Of the people and cameras.
        balanced: Each person from every 10°.
        progress: Called with (images done, images in all).

    Returns:
        ``root``.

    Raises:
        InputError: If the domain is unknown or a size out of range.
        DataError: If the folder holds something else or cannot be written.
    """
    wanted = _Set(domain, train_identities, test_identities, cameras, images_per_camera, height,
                  seed, balanced)  # fmt: skip
    _write(Path(root), wanted, progress)
    return Path(root)


def load_virtual(root: Path | str = "plaza") -> ReIDDataset:
    """Read "plaza", "plaza?train_identities=20&cameras=3", or a folder that was written before."""
    text = str(root)
    if (Path(text) / MARKER).is_file():
        return _read(Path(text))
    if "/" in text or os.sep in text:
        raise DataError(
            f"{text} holds no virtual set; write one with: reidguard data export virtual:plaza "
            f"{text}"
        )
    return read_virtual(**parse_name(text))


def parse_name(text: str) -> dict[str, Any]:
    """Arguments of :func:`read_virtual` from "DOMAIN?option=value&option=value".

    ``identities`` stands for both train_identities and test_identities.

    Raises:
        InputError: For unknown domains and options, and values that are no numbers.
    """
    domain, _, query = text.partition("?")
    find_domain(domain)
    known = [*(name for name in asdict(_Set()) if name != "domain"), "identities"]
    values: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"unknown option {name!r} of virtual:{domain}: {hint}known: {', '.join(known)}"
            )
        if not (value.isascii() and value.isdigit()):
            raise InputError(f"option {name} of virtual:{domain} needs a number, not {value!r}")
        names = ("train_identities", "test_identities") if name == "identities" else (name,)
        for one in names:
            values[one] = bool(int(value)) if one == "balanced" else int(value)
    return {"domain": domain, **values}


def _read(root: Path) -> ReIDDataset:
    marker = _read_marker(root) or {}
    domain = str((marker.get("parameters") or {}).get("domain", "unknown"))
    splits = read_market_folders(root, NAME, example=EXAMPLE, distractors=True)
    dataset = ReIDDataset(
        f"virtual:{domain}",
        *(splits[split] for split in SPLITS),
        root=root,
        licence=LICENCE,
    )
    if {split: len(dataset.split(split)) for split in SPLITS} != marker.get("images"):
        raise DataError(f"images are missing from {root}; delete that folder and load it again")
    return dataset


def _read_marker(root: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((root / MARKER).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _is_there(root: Path, wanted: _Set) -> bool:
    marker = _read_marker(root)
    if marker is not None and marker.get("parameters") == wanted.marker:
        return True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        what = "a virtual set of other parameters" if marker else "other files"
        raise DataError(f"{root} holds {what}; give a folder that is empty or does not exist")
    return False


def _write(root: Path, wanted: _Set, progress: Progress | None) -> None:
    try:
        if _is_there(root, wanted):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            inner = draft / "set"  # mkdtemp makes a private folder; this one follows the umask
            inner.mkdir()
            for folder in MARKET_FOLDERS.values():
                (inner / folder).mkdir()
            jobs = wanted.jobs()
            _draw(inner, wanted, jobs, _processes(len(jobs)), progress)
            images = {split: sum(job.split == split for job in jobs) for split in MARKET_FOLDERS}
            marker = {"parameters": wanted.marker, "images": images}
            (inner / MARKER).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")
            inner.rename(root)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if _is_there(root, wanted):  # another process was faster
            return
        raise DataError(
            f"cannot write the virtual set to {root}: {error.strerror or error}; choose another "
            "folder: reidguard data export virtual:plaza /path/to/it"
        ) from error


def _processes(images: int) -> int:
    """Rendering is many small steps of Python, so only processes help."""
    if images < ALONE or not sys.executable:
        return 1
    with contextlib.suppress(AttributeError):  # not every system has it
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _draw(
    root: Path, wanted: _Set, jobs: Sequence[_Job], processes: int, progress: Progress | None
) -> None:
    orders = [job.order(root, wanted) for job in jobs]
    if processes == 1:
        for done, order in enumerate(orders, 1):
            draw(order)
            if progress is not None:
                progress(done, len(orders))
        return
    # Not multiprocessing: its children start the caller's script again, guarded or not.
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    bounds = [len(jobs) * i // processes for i in range(processes + 1)]
    news: SimpleQueue[int] = SimpleQueue()
    children = []
    try:
        for start, stop in itertools.pairwise(bounds):
            with tempfile.TemporaryFile("w+", encoding="utf-8") as task:
                json.dump([asdict(order) for order in orders[start:stop]], task)
                task.seek(0)
                child = subprocess.Popen(
                    [sys.executable, "-c", _CHILD], stdin=task, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=env, text=True,
                )  # fmt: skip
            children.append(child)
            threading.Thread(target=_listen, args=(child, news), daemon=True).start()
        done = ended = 0
        while ended < len(children):
            count = news.get()
            ended += count == 0
            done += count
            if progress is not None and count:
                progress(done, len(jobs))
        for child in children:
            if child.wait():
                said = child.stderr.read().strip().splitlines() if child.stderr else []
                raise OSError(f"a rendering process failed: {said[-1] if said else child.wait()}")
    finally:
        for child in children:
            child.kill()
            child.communicate()


_CHILD = "from reidguard.virtual.worker import main; main()"


def _listen(child: subprocess.Popen[str], news: SimpleQueue[int]) -> None:
    assert child.stdout is not None
    for _ in child.stdout:
        news.put(1)
    news.put(0)


def contact_sheet(
    domain: str | Sequence[str] | None = None,
    *,
    identities: int = 8,
    cameras: int = 6,
    views: int = 0,
    height: int = 128,
    seed: int = 0,
) -> Image.Image:
    """Show people side by side: a row for each, with one image by every camera.

    Args:
        domain: One, several one below the other, or None for all.
        identities: Rows for each domain.
        cameras: Columns.
        views: As many more columns show the person turn before camera 1.
        height: Of each image.
        seed: Of the people and cameras.

    Returns:
        One RGB image.

    Example:
        >>> contact_sheet("mall", identities=1, cameras=2, views=2).size
        (256, 128)
    """
    domains = DOMAINS if domain is None else [domain] if isinstance(domain, str) else domain
    if identities < 1 or cameras < 1 or views < 0:
        raise InputError("a contact sheet needs at least one identity and one camera")
    wide = height // 2
    size = ((cameras + views) * wide, len(domains) * identities * height)
    sheet = Image.new("RGB", size)
    row = 0
    for name in domains:
        for identity in range(1, identities + 1):
            cells = [render_person(name, identity, c, height=height, seed=seed)
                     for c in range(1, cameras + 1)]  # fmt: skip
            cells += [render_person(name, identity, 1, 360 * i / views, height=height, seed=seed)
                      for i in range(views)]  # fmt: skip
            for column, cell in enumerate(cells):
                sheet.paste(Image.fromarray(cell), (column * wide, row * height))
            row += 1
    return sheet
