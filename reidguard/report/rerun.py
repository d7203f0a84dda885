"""The command line that measures a run's result again, from the run's manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MACHINE", "rerun_command", "shortened", "without_folders"]

# Options that say where a run works and what it writes, not what it measures.
MACHINE = {"by", "cache", "config", "cube", "debug", "device", "fail_below", "mlflow", "out"}
MACHINE |= {"save_images", "tensorboard", "threads", "wandb"}
# Options that name a file or a folder, some after "NAME:".
PLACES = ("data", "model", "surrogate", "universal", "query", "load", "meta_data", "lpips")
USUAL = ("model.safetensors", "attack.safetensors")  # names that say nothing without their folder


def rerun_command(manifest: Mapping[str, Any], **replaced: str | None) -> tuple[str, ...]:
    """Return the command line that measures a run's result again, with all options it was given.

    Args:
        manifest: Content of the run's manifest.
        replaced: Values that take the place of those of the manifest, by option, unless None.
    """
    options = {**manifest["options"], **{k: v for k, v in replaced.items() if v is not None}}
    given = set(options) if manifest.get("given") is None else {*manifest["given"], *replaced}
    words = ["reidguard", str(manifest["settings"].get("command", "")).partition(" ")[0]]
    first = [name for name in ("data", "model") if name in options]
    for name in dict.fromkeys([*first, *sorted(options)]):
        if name in MACHINE or name not in given:
            continue
        flag = f"--{name.replace('_', '-')}"
        for text in _texts(name, options[name]):
            words += [flag] if text is None else _option(flag, text)
    return tuple(words)


def shortened(spec: str) -> str:
    """Return the value of an option such as ``NAME:PATH`` with the last part of its path alone."""
    name, colon, path = spec.rpartition(":")
    if any(mark in name for mark in ("/", "\\", "?")):
        name, colon, path = "", "", spec
    parts = [part for part in re.split(r"[/\\]", path) if part]
    kept = parts[-2:] if parts[-1:] and parts[-1] in USUAL else parts[-1:]
    return f"{name}{colon}{'/'.join(kept)}"


def without_folders(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command, with the last part alone of each that names a place."""
    return {
        name: shortened(value) if name in PLACES and isinstance(value, str) else value
        for name, value in options.items()
    }


def _option(flag: str, text: str) -> list[str]:
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _texts(name: str, value: Any) -> Iterator[str | None]:
    """Yield the values of an option as a command line has them; None is a flag without a value."""
    if value is None or value is False:
        return
    if value is True:
        yield None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{key}={_item(item)}"
    elif isinstance(value, list):
        yield ("x" if name == "image_size" else ",").join(map(_number, value))
    else:
        yield value if isinstance(value, str) else _number(value)


def _item(value: Any) -> str:
    """Return a value of KEY=VALUE."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./+-]*", value):
        return value if value not in ("true", "false", "null") else json.dumps(value)
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
        return f"{value[0]}x{value[1]}"
    return json.dumps(value)


def _number(value: Any) -> str:
    """Return a number, a fraction of 255 as "8/255"."""
    if isinstance(value, float) and 0 < value < 1 and round(255 * value) / 255 == value:
        return f"{round(255 * value)}/255"
    return str(value)
