"""Records, paths and environment variables from outside: the right value, or one clear error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from reidguard.errors import CheckpointError, DataError, InputError
from reidguard.records import (
    MAX_DEPTH,
    Count,
    Fraction,
    cache_folder,
    convert,
    environment_number,
    parse_json,
    read_file,
    read_record,
    to_path,
)


@dataclass(frozen=True)
class Size:
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError("a side is below 1")


@dataclass(frozen=True)
class Record:
    steps: Count
    size: Size
    status: Literal["new", "finished"] = "new"
    rate: Fraction = 0.5
    names: dict[str, float] = field(default_factory=dict)


SIZE = {"height": 4, "width": 2}
VALID = {"steps": 3, "size": SIZE}


def test_a_valid_record_is_read_with_its_defaults_and_without_unknown_fields():
    text = (
        '{"steps": 3, "size": {"height": 4, "width": 2}, "rate": 1, "later": [null], "names": {}}'
    )
    assert parse_json(text, Record, "here") == Record(3, Size(4, 2), "new", 1.0, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": "3"}, "steps: expected int, got str"),
        ({"steps": True}, "steps: expected int, got bool"),
        ({"steps": 3.0}, "steps: expected int, got float"),
        ({"steps": -1}, "steps: expected int >= 0"),
        ({"steps": 10**30}, "steps: "),
        ({"size": None}, "size: expected object, got null"),
        ({"size": {"height": 4}}, "size: object missing required field width"),
        ({"size": {"height": 0, "width": 2}}, "size: a side is below 1"),
        ({"status": "old"}, "status: unknown value 'old'"),
        ({"rate": float("nan")}, "rate: expected float"),
        ({"rate": 1.5}, "rate: expected float <= 1.0"),
        ({"names": {"a": "b"}}, r"names\[...\]: expected float, got str"),
        ({"names": {"a": 10**400}}, r"names\[...\]: number out of range"),
        ({"names": {1: 2.0}}, "key of names: expected str"),
    ],
)
def test_a_wrong_field_is_named(change, reason):
    with pytest.raises(
        CheckpointError, match=rf"^here is not valid \({reason}.*\); write it anew$"
    ):
        convert({**VALID, **change}, Record, "here", cure="write it anew")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1,]",
        b"{}{}",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "a": 1}}]',
        b"1" * 5000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'"\xff"',
        b'"\xed\xa0\x80"',
        rb'"\ud800"',
        rb'"\udc00 and more"',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_not_strict_json_is_one_error(text):
    with pytest.raises(DataError, match=r"^here is damaged .*; cure$"):
        parse_json(text, Any, "here", cure="cure", error=DataError)


def test_json_is_read_exactly():
    nested: Any = "end"
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    text = str(nested).replace("'", '"')
    assert parse_json(f'{{"deep": {text}}}', Any, "here") == {"deep": nested}
    assert parse_json("0.1", float, "here") == 0.1
    assert parse_json("12345678901234567890123", Any, "here") == 12345678901234567890123


def test_files_that_are_none_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "absent", "there is no file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a pipe"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path / "pipe" / "below", "cannot read .*: Not a directory"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_record(path, Any)
    (tmp_path / "file").write_bytes(b"[1, 2]")
    assert read_record(tmp_path / "file", list[int]) == [1, 2]
    with pytest.raises(DataError, match="6 bytes, and at most 5 are read"):
        read_file(tmp_path / "file", limit=5, error=DataError)


@pytest.mark.parametrize(
    "value", ["", "~nosuchuser/x", "a\0b", "a" * 5000, "a/" * 5000, b"bytes", None, 3, ["a"]]
)
def test_what_is_no_path_is_refused(value):
    with pytest.raises(InputError, match=r"^not a path: .*; give the path of a file or folder"):
        to_path(value)


def test_a_loop_of_links_is_no_path(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="not a path"):
        to_path(tmp_path / "loop" / "file")


def test_paths_may_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert to_path("~/new/file") == tmp_path / "new" / "file"
    assert to_path(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    assert to_path(tmp_path / "file" / "below") == tmp_path / "file" / "below"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "reidguard"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/reidguard")


def test_environment_numbers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert environment_number("WORLD_SIZE", 1) == 4
    for text in ("", "two", "-1", "1.0", "٤", "9" * 5000):
        monkeypatch.setenv("WORLD_SIZE", text)
        with pytest.raises(InputError, match="variable WORLD_SIZE must be a whole number"):
            environment_number("WORLD_SIZE", 1)
