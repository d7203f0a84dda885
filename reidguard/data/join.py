"""Join several datasets; their identities and cameras stay distinct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.errors import InputError, a_few
from reidguard.types import ReIDSample

__all__ = ["join_datasets"]


def join_datasets(
    datasets: Mapping[str, ReIDDataset], *, splits: Sequence[str] = SPLITS
) -> ReIDDataset:
    """Join datasets; equal numbers in two of them stay different identities and cameras.

    Numbers are shifted: in the order of the mapping, a source's identities are numbered after
    those of the sources before it, and so are its cameras. An identity has one number in all
    splits of its source, distractors stay 0. The notes contain each source's shift.

    Args:
        datasets: The sources by name, at least one. A name may be any text; it appears in the
            joined dataset's name, licence and notes.
        splits: Splits to join; the others are left empty. ``("train",)`` joins the training sets.
            By default all three are joined, so every query is searched in every gallery.

    Returns:
        The joined dataset. It has no root, so that its fingerprint does not change when a source
        is moved.

    Raises:
        InputError: If there is no source, an unknown split, or an image in two sources.

    Example:
        >>> from pathlib import Path
        >>> a = ReIDDataset("a", [ReIDSample(Path("a/1.jpg"), 7, 1)], [], [])
        >>> b = ReIDDataset("b", [ReIDSample(Path("b/1.jpg"), 7, 1)], [], [])
        >>> [(s.pid, s.camid) for s in join_datasets({"a": a, "b": b}).train]
        [(7, 1), (14, 3)]
    """
    if not datasets:
        raise InputError("there is nothing to join; give at least one dataset")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise InputError(f"unknown split {unknown[0]!r}: choose from {', '.join(SPLITS)}")
    _check_disjoint(datasets)
    joined: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    notes = []
    pids = camids = clothes = tracklets = 0
    hidden: dict[int, frozenset[int]] = {}
    for name, dataset in datasets.items():
        for split in set(splits):
            joined[split] += [
                replace(
                    s,
                    pid=s.pid + pids if s.pid else 0,
                    camid=s.camid + camids,
                    clothes=s.clothes + clothes if s.clothes else 0,
                    tracklet=s.tracklet + tracklets if s.tracklet else 0,
                )
                for s in dataset.split(split)
            ]
        notes.append(f"{name}: identities are shifted by {pids}, cameras by {camids}")
        notes += [f"{name}: {note}" for note in dataset.notes]
        hidden |= {
            query + camids: frozenset(camera + camids for camera in cameras)
            for query, cameras in dataset.hidden.items()
        }
        samples = [s for split in SPLITS for s in dataset.split(split)]
        clothes += max((s.clothes for s in samples), default=0)
        tracklets += max((s.tracklet for s in samples), default=0)
        pids += max((s.pid for s in samples), default=0)
        camids += max((s.camid for s in samples), default=-1) + 1
    result = ReIDDataset(
        "+".join(datasets),
        *joined.values(),
        licence="; ".join(f"{name}: {dataset.licence}" for name, dataset in datasets.items()),
        junk=sum(dataset.junk for dataset in datasets.values()) if "gallery" in splits else 0,
        notes=notes,
    )
    result.hidden = hidden
    return result


def _check_disjoint(datasets: Mapping[str, ReIDDataset]) -> None:
    owner: dict[str, str] = {}
    for name, dataset in datasets.items():
        paths = {str(s.path) for split in SPLITS for s in dataset.split(split)}
        if shared := sorted(path for path in paths if path in owner):
            raise InputError(
                f"{owner[shared[0]]!r} and {name!r} share {len(shared)} images "
                f"({a_few(shared)}), whose identities would be doubled; join a source only once"
            )
        owner.update(dict.fromkeys(paths, name))
