"""Sets of people who change clothes: PRCC (Yang et al., 2019), LTCC and VC-Clothes (2020)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import (
    check_choice,
    draw_one_each,
    find_root,
    parse_folder,
    parse_identity_folders,
    read_images,
)
from reidguard.data.readers.statistics import NO_TEXT, SYNTHETIC, Published, build_dataset
from reidguard.types import ReIDSample

__all__ = ["read_ltcc", "read_prcc", "read_vc_clothes"]

PRCC = Published("prcc", NO_TEXT, sized=False)
LTCC = Published("ltcc", NO_TEXT, sized=False)
VC_CLOTHES = Published("vc-clothes", SYNTHETIC, sized=False)

PRCC_CAMERAS = {"A": 1, "B": 2, "C": 3}
PRCC_TRAIN_NAME = re.compile(r"(?P<camera>[ABC]).*", re.DOTALL)
PRCC_TEST_NAME = re.compile(".*", re.DOTALL)
PRCC_LAYOUT = Layout(
    {
        "rgb/train/*": PRCC_TRAIN_NAME,
        **{f"rgb/test/{camera}/*": PRCC_TEST_NAME for camera in PRCC_CAMERAS},
    },
    ("PRCC",),
)
LTCC_EXAMPLE = "103_1_c12_014856.png"
LTCC_NAME = re.compile(r"(?P<pid>[0-9]{1,9})_(?P<clothes>[0-9]{1,9})_c(?P<camid>[0-9]{1,9})_[0-9]+")
LTCC_FOLDERS = {"train": "train", "query": "query", "gallery": "test"}
LTCC_LAYOUT = Layout(dict.fromkeys(LTCC_FOLDERS.values(), LTCC_NAME), ("LTCC_ReID", "LTCC"))
VC_EXAMPLE = "0001-01-02-25.jpg"
VC_NAME = re.compile(r"(?P<pid>[0-9]{1,9})-(?P<camid>[0-9]{1,9})-(?P<clothes>[0-9]{1,9})-[0-9]+")
VC_FOLDERS = ("train", "query", "gallery")
VC_LAYOUT = Layout(dict.fromkeys(VC_FOLDERS, VC_NAME), ("VC-Clothes",))
VC_CAMERAS = {"same": (2, 3), "change": (3, 4)}


@register_dataset("prcc", PRCC_LAYOUT)
def read_prcc(
    root: Path | str, *, clothes: str = "change", trial: int | None = None
) -> ReIDDataset:
    """List PRCC: an identity wears the same clothes before cameras A and B, others before C.

    The gallery is camera A; the queries are those of camera C, or of B. Cameras A, B and C are 1, 2
    and 3. The folders ``sketch`` and ``rgb/val`` are not read.

    Args:
        root: The folder that holds ``rgb/train/<identity>`` and ``rgb/test/A/<identity>``, or one
            above it, if there it is called ``prcc``.
        clothes: "change" for queries in other clothes (camera C), "same" for the same (camera B).
        trial: None searches all images of camera A. A number, 0 to 9 in the published protocol,
            draws one image of each identity; the draw is ours, since no list is published.

    Raises:
        DataError: If a folder is missing or empty, or no identity.
        InputError: If ``clothes`` is unknown.
    """
    check_choice("clothes", clothes, ("change", "same"))
    root = find_root(root, PRCC_LAYOUT)
    splits = {"train": _prcc_train(root / "rgb" / "train")}
    for split, letter in (("query", "C" if clothes == "change" else "B"), ("gallery", "A")):
        splits[split] = [
            ReIDSample(path, pid, PRCC_CAMERAS[letter])
            for path, pid, _ in parse_identity_folders(
                root / "rgb" / "test" / letter, PRCC_TEST_NAME, example="cropped_rgb001.jpg"
            )
        ]
    notes = [f"queries in {'other' if clothes == 'change' else 'the same'} clothes (clothes=...)"]
    if trial is not None:
        splits["gallery"] = draw_one_each(splits["gallery"], trial)
        notes.append(f"one gallery image of each identity, trial {trial}; average over ten trials")
    return build_dataset(PRCC._replace(name=f"prcc-{clothes}"), splits, root=root, notes=notes)


def _prcc_train(folder: Path) -> list[ReIDSample]:
    parsed = parse_identity_folders(folder, PRCC_TRAIN_NAME, example="A_cropped_rgb001.jpg")
    return [ReIDSample(path, pid, PRCC_CAMERAS[match["camera"]]) for path, pid, match in parsed]


@register_dataset("ltcc", LTCC_LAYOUT)
def read_ltcc(root: Path | str, *, clothes: str = "change") -> ReIDDataset:
    """List LTCC: 12 cameras, identities in several clothes.

    ``103_1_c12_014856.png`` shows identity 103 in its clothes 1, seen by camera 12. Here identity n
    becomes n + 1, so that none is number 0.

    Args:
        root: The folder that holds ``train``, ``query`` and ``test``, or one above it, if there it
            is called ``LTCC_ReID``.
        clothes: "change" leaves out, per query, gallery images of its identity in its clothes, as
            well as those by its camera; "any" is the standard protocol.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
        InputError: If ``clothes`` is unknown.
    """
    check_choice("clothes", clothes, ("change", "any"))
    root = find_root(root, LTCC_LAYOUT)
    parsed = {
        split: parse_folder(root / folder, LTCC_NAME, example=LTCC_EXAMPLE)
        for split, folder in LTCC_FOLDERS.items()
    }
    worn = {(m["pid"], m["clothes"]) for s in ("query", "gallery") for _, m in parsed[s]}
    numbers = {pair: number for number, pair in enumerate(sorted(worn), 1)}
    splits = {}
    for split, images in parsed.items():
        labels = numbers if clothes == "change" and split != "train" else {}
        splits[split] = [
            ReIDSample(
                path, int(m["pid"]) + 1, int(m["camid"]), labels.get((m["pid"], m["clothes"]), 0)
            )
            for path, m in images
        ]
    notes = ["the standard protocol (clothes='any')"]
    if clothes == "change":
        notes = ["gallery images of the query's identity in its clothes are left out (clothes=...)"]
    return build_dataset(LTCC._replace(name=f"ltcc-{clothes}"), splits, root=root, notes=notes)


@register_dataset("vc-clothes", VC_LAYOUT)
def read_vc_clothes(root: Path | str, *, clothes: str = "change") -> ReIDDataset:
    """List VC-Clothes: rendered people before four cameras.

    ``0001-01-02-25.jpg`` shows identity 1, seen by camera 1, in its clothes 2. Identities wear the
    same clothes before cameras 2 and 3, and others before camera 4.

    Args:
        root: The folder that holds ``train``, ``query`` and ``gallery``, or one above it, if there
            it is called ``VC-Clothes``.
        clothes: "change" takes queries and gallery of cameras 3 and 4, "same" those of cameras 2
            and 3, and "any" those of all four.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
        InputError: If ``clothes`` is unknown.
    """
    check_choice("clothes", clothes, ("change", "same", "any"))
    root = find_root(root, VC_LAYOUT)
    splits: dict[str, list[ReIDSample]] = {}
    for split in VC_FOLDERS:
        samples = read_images(root / split, VC_NAME, example=VC_EXAMPLE)
        cameras = VC_CAMERAS.get(clothes) if split != "train" else None
        splits[split] = [s for s in samples if cameras is None or s.camid in cameras]
    notes = ["queries and gallery of all cameras (clothes='any')"]
    if clothes in VC_CAMERAS:
        first, second = VC_CAMERAS[clothes]
        notes = [f"queries and gallery of cameras {first} and {second} (clothes={clothes!r})"]
    name = f"vc-clothes-{clothes}"
    return build_dataset(VC_CLOTHES._replace(name=name), splits, root=root, notes=notes)
