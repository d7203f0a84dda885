"""Datasets by name or by path: the registry of readers, and `load_dataset`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout, recognise
from reidguard.data.unread import unread_images
from reidguard.errors import DataError, InputError, did_you_mean, printable
from reidguard.records import to_path
from reidguard.registry import Registry

__all__ = ["DATASETS", "LAYOUTS", "load_dataset", "register_dataset"]

Reader = TypeVar("Reader", bound=Callable[..., Any])

DATASETS: Registry[ReIDDataset] = Registry(
    "dataset",
    group="reidguard.datasets",
    builtin={"virtual": "reidguard.virtual.dataset:load_virtual"},
)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "virtual": (
        Layout(dict.fromkeys(("virtual.json", "bounding_box_train", "query", "bounding_box_test"))),
    )
}
"""The layouts that a path is compared with, by the name of the reader."""


def register_dataset(name: str, *layouts: Layout) -> Callable[[Reader], Reader]:
    """Return a decorator that registers a reader ``(root: Path) -> ReIDDataset`` under ``name``.

    Keyword arguments of the reader are options of :func:`load_dataset`. A reader whose ``root`` has
    a default can be loaded without a path.

    Args:
        name: Name of the dataset.
        layouts: What its folder holds, so that :func:`load_dataset` recognises it without its
            name.

    Example:
        >>> from reidguard.data import ReIDDataset
        >>> @register_dataset("my_empty")  # doctest: +SKIP
        ... def empty(root):
        ...     return ReIDDataset("empty", [])
        >>> data = load_dataset("my_empty:/data")  # doctest: +SKIP
    """
    register = DATASETS.register(name)

    def decorate(reader: Reader) -> Reader:
        reader = register(reader)
        if layouts:
            LAYOUTS[name] = layouts
        return reader

    return decorate


def load_dataset(name: Path | str, root: Path | str | None = None, **options: Any) -> ReIDDataset:
    """Read a dataset's file lists; without a name, recognise which dataset it is.

    Args:
        name: "NAME:PATH" as on the command line; or a name alone with ``root`` beside it; or a path
            alone, of a dataset's folder or of one up to three levels above it, whose layout tells
            which dataset it is (the first note says why). "NAME:PATH?seed=3&trial=2" gives the
            reader's options, too. Some datasets ("virtual") need no path.
        root: The dataset's folder, or for "csv" its file. ``~`` is expanded.
        **options: Keyword arguments of the reader, such as ``seed`` of "viper". ``pattern`` alone
            with a path is that of "flat".

    Raises:
        RegistryError: If no dataset has that name.
        DataError: If the path is missing, or does not hold what the dataset needs.
        InputError: If there are two paths, a path has the layout of no known dataset or of
            several, or the reader has no such option.

    Example:
        >>> load_dataset("market1501:/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.DataError: there is no folder /nowhere; ...
    """
    if root is None and (path := _as_path(name)) is not None:
        return _load_path(path, options)
    if not isinstance(name, str):
        raise InputError(
            f"a dataset is named by text, such as 'market1501:/data/market1501', not {name!r}"
        )
    name, colon, path_text = name.partition(":")
    if path_text and root is not None:
        raise InputError(f"the dataset has two paths, {path_text!r} and {str(root)!r}; give one")
    if root == "" or (colon and not path_text and root is None):
        raise InputError(f"the path of dataset {name!r} is empty; write {name}:/path/to/it")
    reader = DATASETS.get(name)
    place = path_text or root
    first = next(iter(inspect.signature(reader).parameters.values()))
    if place is None and first.default is first.empty:
        raise DataError(f"dataset {name!r} needs a path; write {name}:/path/to/it")
    return _read(name, place, options)


def _as_path(name: object) -> Path | None:
    """Return the path that stands in place of a name; None if it is a name."""
    if isinstance(name, os.PathLike):
        return to_path(name)
    if not isinstance(name, str) or not name or name.partition(":")[0] in DATASETS:
        return None
    is_path = name.startswith(("/", "~", "./", "../")) or os.path.exists(name)
    return to_path(name) if is_path else None


def _load_path(path: Path, options: dict[str, Any]) -> ReIDDataset:
    """Read the dataset of a path without a name."""
    try:
        return _load_recognised(path, options)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; check its permissions") from error


def _load_recognised(path: Path, options: dict[str, Any]) -> ReIDDataset:
    bare, query = _split_query(path)
    if not bare.exists():
        raise DataError(f"there is no folder or file {path}; check the path of the dataset")
    if bare.is_file():
        if bare.suffix.lower() != ".csv":
            raise InputError(f"{path} is a file; a dataset is a folder or a CSV file (.csv)")
        return _read("csv", path, options)
    if "pattern" in {**options, **query}:
        return _read("flat", path, options)
    DATASETS.list()  # loads plugins, whose layouts are known then
    name, place, reason = recognise(bare, LAYOUTS)
    dataset = _read(name, place, {**_parse_options(name, query), **options})
    dataset.notes = (printable(f"recognised as {name}: {reason}"), *dataset.notes)
    return dataset


def _read(name: str, place: Path | str | None, options: dict[str, Any]) -> ReIDDataset:
    reader = DATASETS.get(name)
    if place is not None:
        bare, query = _split_query(to_path(place))
        if query and name != "virtual" and bare.is_dir():
            place, options = bare, {**_parse_options(name, query), **options}
    args = () if place is None else (to_path(place),)
    try:
        inspect.signature(reader).bind(*args, **options)
    except TypeError as error:
        raise InputError(f"dataset {name!r}: {error}") from None
    try:
        dataset = reader(*args, **options)
        if not getattr(reader, "__module__", "").startswith("reidguard.data.readers."):
            _note_unread(dataset)
        return dataset
    except OSError as error:
        raise DataError(
            f"cannot read dataset {name!r}: {error}; check the path and its permissions"
        ) from error


def _note_unread(dataset: ReIDDataset) -> None:
    """Count what a reader of another package leaves in the folders that it reads."""
    if isinstance(dataset, ReIDDataset) and dataset.root is not None:
        samples = (*dataset.train, *dataset.query, *dataset.gallery, *dataset.multi_query)
        notes = unread_images(dataset.root, [s.path for s in samples], deep=False)
        junk = " (junk is among them)" if dataset.junk else ""
        dataset.notes = (*dataset.notes, *(note + junk for note in notes))


def _split_query(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the path before a "?" and the options after it, unless the "?" is in a file's name."""
    text, mark, query = str(path).partition("?")
    if not mark or not text or path.exists():
        return path, {}
    return Path(text), {
        key: value for key, _, value in (p.partition("=") for p in query.split("&") if p)
    }


def _parse_options(name: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Convert the options of a reader from text, as its annotations say.

    Raises:
        InputError: If the reader has no such option, or the text is no value of it.
    """
    if not query:
        return {}
    reader = DATASETS.get(name)
    known = list(inspect.signature(reader).parameters)[1:]
    try:
        hints = get_type_hints(reader)
    except (NameError, TypeError):  # of a plugin whose annotations are for type checkers alone
        hints = {}
    values: dict[str, Any] = {}
    for key, text in query.items():
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(
                f"dataset {name!r} has no option {key!r}: {did_you_mean(key, known)}{takes}"
            )
        values[key] = _convert(f"{name}: {key}", text, hints.get(key, str))
    return values


def _convert(where: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"{where} must be true or false, not {text!r}")
        return text.lower() in ("true", "1")
    if kind is not int and int not in get_args(kind):
        return text
    numbers = text.split(",")
    if not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
        raise InputError(f"{where} must be a whole number, not {text!r}")
    several = get_origin(kind) is Sequence
    if len(numbers) > 1 and not several:
        raise InputError(f"{where} must be one number, not {text!r}")
    return [int(number) for number in numbers] if several else int(numbers[0])
