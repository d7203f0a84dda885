"""Random changes of valid files and JSON values."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

CHUNKS = [
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff" * 64,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r\n\n",
    b'"',
    b"../../etc/passwd",
    b"<!DOCTYPE html><html>",
    struct.pack("<Q", 2**63 - 1),
    struct.pack("<Q", 2**40),
    struct.pack("<I", 2**31),
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3.7,
    2**31,
    2**63,
    10**30,
    10**400,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a" * 5000,
    "\0",
    "\ud800",
    "~nosuchuser/x",
    "/dev/zero",
    "../x",
    [],
    {},
    [[]],
    {"": {}},
    [None] * 3,
    [2**40, 2**40],
    [-1, 5],
    {"name": 5},
]


def mutated_bytes(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Return the bytes after one to four random changes; ``other`` may take their place."""
    if draw.random() < 0.02:
        return draw.choice([other, other[: len(other) // 2] + data, *CHUNKS])
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        # Most of what is parsed stands at the beginning.
        end = len(data) if draw.random() < 0.5 else min(len(data), 2000)
        place, length = draw.randrange(end + 1), draw.choice([1, 2, 4, 8, 100, 5000])
        kind = draw.randrange(6)
        if kind == 0 and place < len(data):
            flipped = bytes([data[place] ^ (1 << draw.randrange(8))])
            data = data[:place] + flipped + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + data[place + length :]
        elif kind == 3:
            data = data[:place] + data[place : place + length] + data[place:]
        elif kind == 4:
            data = data[:place] + draw.choice(CHUNKS) + data[place:]
        else:
            noise = draw.randbytes(min(length, 64))
            data = data[:place] + noise + data[place + len(noise) :]
    return data


def mutated_json(value: Any, draw: random.Random) -> Any:
    """Return a JSON value of which one to three parts are other ones, are missing or are new."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder = {"": value}
        container: Any = holder
        while True:
            keys = list(container) if isinstance(container, dict) else list(range(len(container)))
            key = draw.choice(keys)
            inner = container[key]
            if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
                break
            container = inner
        _change(container, key, draw)
        if "" not in holder:
            return copy.deepcopy(draw.choice(VALUES))
        value = holder[""]
    return value


def _change(container: Any, key: Any, draw: random.Random) -> None:
    old = container[key]
    kind = draw.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[draw.choice(["", "x", f"{key} ", str(key).upper()])] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(old)
    elif kind == 3:
        container[key] = [old]
    elif kind == 4:
        container[key] = {"a": old}
    elif kind == 5 and isinstance(old, int | float) and not isinstance(old, bool):
        container[key] = draw.choice([-old, old + 1, str(old), old * 10**6, [old, old]])
    elif kind == 6:
        for _ in range(draw.choice([40, 500])):
            old = [old]
        container[key] = old
    else:
        container[key] = copy.deepcopy(draw.choice(VALUES))


def json_bytes(value: Any, draw: random.Random) -> bytes:
    """Return a value as JSON text, sometimes with a name twice."""
    try:
        text = json.dumps(value, indent=2 if draw.random() < 0.5 else None)
    except RecursionError:
        text = "[" * 5000
    if draw.random() < 0.05:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def mutated_file(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Return the bytes of a JSON or other file after random changes of values or bytes."""
    if data[:1] != b"{" or draw.random() < 0.25:
        return mutated_bytes(data, draw, other)
    lines = data.splitlines(keepends=True)
    if b"}" not in lines[0]:
        return json_bytes(mutated_json(json.loads(data), draw), draw)
    number = draw.randrange(len(lines))
    lines[number] = json_bytes(mutated_json(json.loads(lines[number]), draw), draw) + b"\n"
    return b"".join(lines)


def mutated_safetensors(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Return a safetensors file after random changes of its card, its header or its bytes."""
    kind = draw.random()
    if kind < 0.35:
        return mutated_bytes(data, draw, other)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if kind < 0.8 and "card" in header.get("__metadata__", ()):
        card = mutated_json(json.loads(header["__metadata__"]["card"]), draw)
        text = json_bytes(card, draw).decode("utf-8", "surrogatepass")
        header["__metadata__"]["card"] = text.encode("utf-8", "replace").decode()
    else:
        header = mutated_json(header, draw)
    changed = json_bytes(header, draw)
    return struct.pack("<Q", len(changed)) + changed + body
