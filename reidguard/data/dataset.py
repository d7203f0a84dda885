"""Re-ID datasets: the samples of three splits, their statistics and fingerprints."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from reidguard.data.decoding import MAX_BYTES, format_names, list_images, open_rgb
from reidguard.data.images import thread_pool
from reidguard.errors import DataError, InputError, a_few, printable
from reidguard.records import read_file, to_path
from reidguard.schema import checked
from reidguard.types import ReIDSample

if TYPE_CHECKING:
    from reidguard.data.torch_dataset import TorchSplit

__all__ = ["SPLITS", "CountCallback", "ReIDDataset"]

SPLITS = ("train", "query", "gallery")
CountCallback = Callable[[int, int], None]  # progress: (done, total)

Result = TypeVar("Result")


class ReIDDataset:
    """The train, query and gallery samples of one dataset; images are read when needed.

    Args:
        name: Name in tables. In name and notes, what cannot be printed is escaped.
        train: Training samples; their ``pid`` is the dataset's own number.
        query: Query samples.
        gallery: Gallery samples. ``pid`` 0 marks a distractor.
        root: Folder that file names are relative to in a fingerprint.
        licence: The dataset's terms in one line.
        junk: Number of junk images (pid −1) that the reader left out.
        notes: Remarks for the user, for instance that this is a subset.

    Attributes:
        query_folder: Where :meth:`with_query` found the query images; None for the dataset's own.
        original: The dataset with its own query images, if ``query_folder`` replaces them.
        query_every: One in how many queries :meth:`with_query` kept.
        multi_query: Further images of the queries' identities, for multi-query search; a reader
            may set it.
        hidden: For a camera of queries, the cameras whose gallery images these queries do not
            search, whatever they show, as the protocol of SYSU-MM01 has it; usually empty.

    Raises:
        DataError: If an identity number is negative, or a query is a distractor.
        InputError: If an argument has another type.

    Example:
        >>> samples = [ReIDSample(Path("a.jpg"), 7, 1), ReIDSample(Path("b.jpg"), 3, 1)]
        >>> dataset = ReIDDataset("mine", samples)
        >>> dataset.train_labels
        {3: 0, 7: 1}
    """

    def __init__(
        self,
        name: str,
        train: Sequence[ReIDSample] = (),
        query: Sequence[ReIDSample] = (),
        gallery: Sequence[ReIDSample] = (),
        *,
        root: Path | str | None = None,
        licence: str = "unknown",
        junk: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        if isinstance(notes, str) or not all(isinstance(note, str) for note in notes):
            raise InputError(f"notes must be a list of strings, not {notes!r}")
        self.name = printable(checked(str, "name", name))
        self.train = _samples("train", train)
        self.query = _samples("query", query)
        self.gallery = _samples("gallery", gallery)
        self.root = to_path(root) if root is not None else None
        self.licence = checked(str, "licence", licence)
        self.junk = checked(int, "junk", junk, low=0)
        self.notes = tuple(map(printable, notes))
        self.query_folder: Path | None = None
        self.original: ReIDDataset | None = None
        self.query_every = 1
        self.multi_query: tuple[ReIDSample, ...] = ()
        self.hidden: Mapping[int, frozenset[int]] = {}
        self._fingerprints: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        for split in SPLITS:
            lowest = 1 if split == "query" else 0
            wrong = [str(s.path) for s in self.split(split) if s.pid < lowest]
            if wrong:
                raise DataError(
                    f"{split} samples of {name} have an identity number below {lowest}: "
                    f"{a_few(wrong)}; number identities from 1 (0 marks a distractor, which no "
                    "query may be; junk, -1, is left out)"
                )

    def __repr__(self) -> str:
        counts = ", ".join(f"{split}={len(self.split(split))}" for split in SPLITS)
        return f"ReIDDataset({self.name!r}, {counts})"

    def split(self, split: str) -> tuple[ReIDSample, ...]:
        """Return the samples of "train", "query" or "gallery".

        Raises:
            InputError: If there is no split of that name.
        """
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        samples: tuple[ReIDSample, ...] = getattr(self, split)
        return samples

    def as_torch(
        self,
        split: str = "train",
        *,
        transform: Callable[[Image.Image], Any] | None = None,
        image_size: tuple[int, int] = (256, 128),
    ) -> TorchSplit:
        """Return a split as a ``torch.utils.data.Dataset``: see :class:`TorchSplit`.

        Args:
            split: "train", "query" or "gallery".
            transform: Takes a PIL image in RGB, as torchvision's transforms do; None resizes to
                ``image_size`` and returns a float tensor in [0, 1].
            image_size: (height, width) of the images without a transform.

        Raises:
            InputError: If there is no such split, or an argument is wrong.
        """
        from reidguard.data.torch_dataset import TorchSplit

        return TorchSplit(self, split, transform=transform, image_size=image_size)

    @property
    def train_labels(self) -> dict[int, int]:
        """Training label 0, 1, ... of each ``pid`` in ``train``, in order of ``pid``."""
        pids = sorted({sample.pid for sample in self.train})
        return {pid: label for label, pid in enumerate(pids)}

    @property
    def num_train_pids(self) -> int:
        """Number of training identities, the size of a classifier."""
        return len(self.train_labels)

    def summary(self) -> dict[str, Any]:
        """Count images, identities and cameras; distractors are no identity.

        Returns:
            Name, licence, for each split the numbers of images, identities and cameras, the numbers
            of distractors and junk images, and notes; ready for JSON.
        """
        counts = {}
        for split in SPLITS:
            samples = self.split(split)
            pids = {s.pid for s in samples}
            counts[split] = {
                "images": len(samples),
                "identities": len(pids if split == "train" else pids - {0}),
                "cameras": len({s.camid for s in samples}),
            }
        return {
            "name": self.name,
            "licence": self.licence,
            **counts,
            "distractors": sum(s.pid == 0 for s in self.gallery),
            "junk": self.junk,
            "notes": list(self.notes),
        }

    def names(self, split: str) -> tuple[str, ...]:
        """Return a split's file names, in its order and with "/" on every system.

        They are relative to the root, or bare names of files outside it. Computed once.

        Raises:
            InputError: If there is no split of that name.
        """
        if split not in self._names:
            self._names[split] = tuple(
                s.path.relative_to(self.root).as_posix()
                if self.root is not None and s.path.is_relative_to(self.root)
                else s.path.name
                for s in self.split(split)
            )
        return self._names[split]

    def fingerprint(self, split: str) -> str:
        """Hash a split: names, identities, cameras and every byte of the images.

        It depends neither on the dataset's folder nor on the order of the samples. It is the
        SHA-256 of one JSON line ``[name, pid, camid, sha256 of the file]`` for each sample, sorted;
        with clothes and tracklet at the end of a line that has them.
        Computed once.

        Raises:
            DataError: Naming a file that cannot be read.
        """
        samples = self.split(split)
        if split not in self._fingerprints:
            digests = _in_threads(_file_digest, [s.path for s in samples])
            rows = sorted(
                (name, s.pid, s.camid, digest, *_extra_labels(s))
                for name, s, digest in zip(self.names(split), samples, digests, strict=True)
            )
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            self._fingerprints[split] = hashlib.sha256(lines.encode()).hexdigest()
        return self._fingerprints[split]

    def check(self, *, progress: CountCallback | None = None) -> None:
        """Decode every image, so that damage shows now and not hours into a run.

        Args:
            progress: Called with (done, total).

        Raises:
            DataError: Naming all damaged images at once, one a line.
        """
        paths = sorted({s.path for split in SPLITS for s in self.split(split)})
        damaged = []
        for done, problem in enumerate(_in_threads(_damage, paths), 1):
            if problem is not None:
                damaged.append(problem)
            if progress is not None:
                progress(done, len(paths))
        if damaged:
            raise DataError(
                f"{len(damaged)} of {len(paths)} images of {self.name} are damaged; replace them:\n"
                + "\n".join(damaged)
            )

    @property
    def query_names(self) -> tuple[str, ...]:
        """A distinct file name, without extension, for a changed copy of each query image.

        It is the file's stem, or, where two queries share a stem, all names are paths relative to
        the deepest folder that holds all queries ("alice/001").

        Raises:
            DataError: If two queries still share a name (``001.jpg`` beside ``001.png``).
        """
        # Without "..", so that no name leaves the folder that it is written into.
        paths = [Path(os.path.abspath(sample.path)).with_suffix("") for sample in self.query]
        names = [path.name for path in paths]
        if len(set(names)) < len(names):
            shared = os.path.commonpath([path.parent for path in paths])
            names = [path.relative_to(shared).as_posix() for path in paths]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"queries of {self.name} share a name: {a_few(twice)}; rename one")
        return tuple(names)

    def with_query(self, folder: Path | str, *, query_every: int = 1) -> ReIDDataset:
        """Return this dataset with its query images read from another folder.

        To evaluate saved adversarial images: write each query under its name in
        :attr:`query_names` (with .png), then evaluate ``dataset.with_query(folder)``, which
        compares them with the originals. Identities and cameras stay those of the original with
        the same name. ``~`` is expanded.

        Args:
            folder: Folder of the images. It may hold images of the queries that are left out.
            query_every: Use every n-th query alone, as ``evaluate`` and ``save_adversarial`` do.

        Raises:
            InputError: If ``query_every`` is below 1.
            DataError: If a name is missing, unknown, or there twice; the message names a few.
        """
        folder = to_path(folder)
        query_every = checked(int, "query_every", query_every, low=1, high=10**9)
        source = self if self.original is None else self.original
        every_name = source.query_names
        names = every_name[::query_every]
        nested = any("/" in name for name in every_name)
        replacements: dict[str, Path] = {}
        for path in _images_below(folder):
            name = path.relative_to(folder).with_suffix("").as_posix() if nested else path.stem
            if name in replacements:
                raise DataError(
                    f"{folder} holds {replacements[name].name} and {path.name}; remove one"
                )
            replacements[name] = path
        problems = []
        if missing := [name for name in names if name not in replacements]:
            problems.append(f"{len(missing)} of {len(names)} are missing ({a_few(missing)})")
        if extra := sorted(replacements.keys() - set(every_name)):
            problems.append(f"{len(extra)} belong to no query ({a_few(extra)})")
        if problems:
            raise DataError(
                f"the images in {folder} do not match the queries of {self.name}: "
                f"{'; '.join(problems)}; the folder needs exactly one image ({format_names()}) "
                "per query, under the query's own name"
            )
        original = source._with_queries(source.query[::query_every])
        changed = original._with_queries(
            replace(sample, path=replacements[name])
            for name, sample in zip(names, original.query, strict=True)
        )
        changed.query_folder = folder
        changed.original = original
        changed.query_every = query_every
        changed.notes = (*source.notes, printable(f"query images are read from {folder}"))
        return changed

    def _with_queries(self, samples: Iterable[ReIDSample]) -> ReIDDataset:
        changed = copy.copy(self)
        changed.query = tuple(samples)
        changed._names = {}
        changed._fingerprints = {k: h for k, h in self._fingerprints.items() if k != "query"}
        return changed


def _extra_labels(sample: ReIDSample) -> tuple[int, ...]:
    """Return clothes and tracklet, if the sample has any."""
    labels = (sample.clothes, sample.tracklet)
    return labels if any(labels) else ()


def _samples(split: str, samples: Sequence[ReIDSample]) -> tuple[ReIDSample, ...]:
    result = tuple(samples) if isinstance(samples, Iterable) else (samples,)
    if wrong := [sample for sample in result if not isinstance(sample, ReIDSample)]:
        raise InputError(f"{split} must be a list of ReIDSample objects, but holds {wrong[0]!r}")
    return result


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the folder of the query images")
    inner = sorted(path for path in folder.rglob("*") if path.is_dir())
    return [path for parent in [folder, *inner] for path in list_images(parent)]


def _in_threads(function: Callable[[Path], Result], paths: Sequence[Path]) -> Iterator[Result]:
    # A future for every file would cost more than hashing it.
    chunks = [paths[start : start + 32] for start in range(0, len(paths), 32)]
    with thread_pool() as pool:
        for results in pool.map(lambda chunk: [function(path) for path in chunk], chunks):
            yield from results


def _file_digest(path: Path) -> str:
    return hashlib.sha256(read_file(path, error=DataError, limit=MAX_BYTES)).hexdigest()


def _damage(path: Path) -> str | None:
    try:
        open_rgb(path)
    except DataError as error:
        reason = str(error.__cause__ or error)
        return reason if str(path) in reason else f"{path}: {reason}"
    return None
