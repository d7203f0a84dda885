"""A tiny set of drawn people, for tests and for a first run without any real data.

Each person has fixed colours, patterns and build; each camera has a background and a light; each
image has its own shift, size and noise. That is enough for a network to learn from and for an
attack to have something to destroy. It says nothing about real people.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.market1501 import FOLDERS, read_market_layout
from reidguard.errors import DataError, InputError

__all__ = ["read_synthetic", "write_synthetic"]

HEIGHT, WIDTH = 128, 64
MARKER = "synthetic.json"  # written last but for the rename: where it is, the set is whole
VERSION = 1  # of the drawing: part of the marker, so old folders are not taken for new ones
DEFAULTS = {"identities": 16, "cameras": 3, "images_per_camera": 3, "seed": 0}
DISTRACTORS, JUNK = 6, 4
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5


@register_dataset("synthetic")
def read_synthetic(root: Path | str | None = None, **parameters: int) -> ReIDDataset:
    """Read the synthetic set, drawing it first where it does not exist yet.

    Args:
        root: Folder of the set. None takes a folder of its own per parameters below the user's
            cache (``$XDG_CACHE_HOME`` or ``~/.cache``).
        parameters: As in :func:`write_synthetic`. Without any, a set that is already in ``root``
            is read whatever its parameters were.

    Raises:
        DataError: If the folder cannot be written, or holds something else.
    """
    if root is None:
        wanted = _check({**DEFAULTS, **parameters})
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(cache) / "reidguard" / f"synthetic-{key}"
    root = Path(root)
    if parameters or _read_marker(root) is None:
        write_synthetic(root, **parameters)
    dataset = read_market_layout(root, name="synthetic", licence="drawn by reidguard, free")
    counts = {split: len(dataset.split(split)) for split in FOLDERS}
    if counts != (_read_marker(root) or {}).get("images"):
        raise DataError(f"images are missing from {root}; delete that folder and load it again")
    return dataset


def write_synthetic(
    root: Path | str,
    *,
    identities: int = 16,
    cameras: int = 3,
    images_per_camera: int = 3,
    seed: int = 0,
) -> Path:
    """Draw people in Market-1501's layout: 64×128 PNGs, named like 0002_c1s1_000451_03.png.

    Half of the people are for training, the other half for the test: each is shown
    ``images_per_camera`` times by every camera, in the test once as a query and else in the
    gallery. 6 distractors (0000) and 4 junk images (-1) are added to the gallery. The same
    parameters give the same bytes (with the same versions of numpy and Pillow). The folder appears
    whole or not at all; where the same set is there already, nothing is done.

    Args:
        root: A folder that does not exist yet, or is empty.
        identities: People in training, and as many others in the test.
        cameras: At least 2.
        images_per_camera: At least 2.
        seed: Not negative.

    Returns:
        ``root``.

    Raises:
        DataError: If the folder holds something else or cannot be written.
    """
    root = Path(root)
    wanted = _check(
        {
            "identities": identities,
            "cameras": cameras,
            "images_per_camera": images_per_camera,
            "seed": seed,
        }
    )
    if _is_there(root, wanted):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            inner = draft / "set"  # mkdtemp makes a private folder; this one follows the umask
            inner.mkdir()
            _draw_all(inner, wanted)
            inner.rename(root)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if _is_there(root, wanted):  # another process was faster
            return root
        raise DataError(
            f"cannot write the synthetic set to {root}: {error.strerror}; choose another folder: "
            "synthetic:/path/to/it"
        ) from error
    return root


def _check(wanted: dict[str, int]) -> dict[str, int]:
    if unknown := sorted(wanted.keys() - DEFAULTS.keys()):
        raise InputError(f"unknown parameter {unknown[0]!r}: known are {', '.join(DEFAULTS)}")
    for name, least in (("identities", 1), ("cameras", 2), ("images_per_camera", 2), ("seed", 0)):
        if wanted[name] < least:
            raise InputError(f"{name} must be at least {least}, not {wanted[name]}")
    return {**wanted, "version": VERSION}


def _read_marker(root: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((root / MARKER).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _is_there(root: Path, wanted: dict[str, int]) -> bool:
    marker = _read_marker(root)
    if marker is not None and marker.get("parameters") == wanted:
        return True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        what = "a synthetic set of other parameters" if marker else "other files"
        raise DataError(f"{root} holds {what}; give a folder that is empty or does not exist")
    return False


def _draw_all(root: Path, wanted: dict[str, int]) -> None:
    seed, people = wanted["seed"], wanted["identities"]
    images = dict.fromkeys(FOLDERS, 0)
    for folder in FOLDERS.values():
        (root / folder).mkdir()

    def save(split: str, pid: int, camera: int, number: int, look: int) -> None:
        person = "-1" if pid < 0 else f"{pid:04d}"
        name = f"{person}_c{camera}s1_{number:06d}_00.png"
        pixels = _draw(seed, look, camera, number)
        Image.fromarray(pixels).save(root / FOLDERS[split] / name, compress_level=1)
        images[split] += pid >= 0

    for pid in range(1, 2 * people + 1):
        for camera in range(1, wanted["cameras"] + 1):
            for number in range(wanted["images_per_camera"]):
                test = "query" if number == 0 else "gallery"
                save("train" if pid <= people else test, pid, camera, number, look=pid)
    for number in range(DISTRACTORS + JUNK):  # each shows somebody who appears nowhere else
        pid = 0 if number < DISTRACTORS else -1
        save("gallery", pid, 1 + number % wanted["cameras"], number, look=2 * people + 1 + number)
    marker = {"parameters": wanted, "images": images}
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _draw(seed: int, look: int, camera: int, number: int) -> NDArray[np.uint8]:
    """Draw one image: (128, 64, 3) uint8."""
    person, view, shot = (
        _rng(seed, 0, look),
        _rng(seed, 1, camera),
        _rng(seed, 2, look, camera, number),
    )
    canvas = _background(view)
    # Figure coordinates: u across from the middle, v down from the top of the head.
    size = (0.95 + 0.1 * shot.random()) * (0.9 + 0.15 * person.random())
    u = (X - WIDTH / 2 - shot.uniform(-4, 4)) / size
    v = (Y - 6 - shot.uniform(-4, 4)) / size
    across = np.abs(u)
    skin, hair, top, second, legs, shoes, bag = _colours(person)
    half = person.uniform(10, 14)  # half the shoulder width
    pattern = _pattern(person, u, v)
    canvas[(across > half) & (across < half + 5) & (v > 24) & (v < 64)] = 0.8 * top
    canvas[(across > 1) & (across < 0.8 * half) & (v > 62) & (v < 114)] = legs
    canvas[(across > 1) & (across < 0.9 * half) & (v > 110) & (v < 117)] = shoes
    torso = (across < half) & (v > 22) & (v < 66)
    canvas[torso] = np.where(pattern[..., None], second, top)[torso]
    head = (u / 6.5) ** 2 + ((v - 12) / 9) ** 2 < 1
    canvas[head] = skin
    canvas[head & (v < person.uniform(7, 13))] = hair
    if person.random() < 0.4:
        side = person.choice([-1, 1])
        canvas[(side * u > half) & (side * u < half + 8) & (v > 44) & (v < 64)] = bag
    canvas = canvas * view.uniform(0.75, 1.1) * view.uniform(0.92, 1.08, 3)  # the camera's light
    canvas = canvas + shot.normal(0, 0.02, canvas.shape)
    return (255 * canvas.clip(0, 1)).round().astype(np.uint8)


def _background(view: np.random.Generator) -> NDArray[np.float64]:
    wall, floor = view.uniform(0.3, 0.8, 3), view.uniform(0.2, 0.6, 3)
    horizon = view.uniform(70, 100)
    waves = 0.06 * np.sin(X / view.uniform(2, 8) + Y / view.uniform(4, 16) + view.uniform(0, 6))
    canvas: NDArray[np.float64] = np.where((horizon > Y)[..., None], wall, floor)
    canvas += waves[..., None]
    return canvas


def _colours(person: np.random.Generator) -> NDArray[np.float64]:
    colours = person.random((7, 3))
    colours[0] = np.array([0.85, 0.65, 0.5]) * person.uniform(0.4, 1.1)  # skin
    colours[1] *= 0.4  # hair
    return colours


def _pattern(person: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> Any:
    """Return where the torso shows its second colour: nowhere, in stripes, checks or a block."""
    step = person.uniform(4, 9)
    across, down = np.floor(u / step) % 2 == 0, np.floor(v / step) % 2 == 0
    plain = np.zeros(u.shape, bool)
    return [plain, across, down, across ^ down, v > 44][person.integers(5)]
