"""Sharing models and attacks: a folder with one safetensors file and a page that tells of it.

The same folder can lie on a disk or in a repository of the Hugging Face Hub, which needs
``huggingface_hub`` (timm brings it). Only that one file is ever read, and nothing is executed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reidguard.attacks import Attack, load_attack
from reidguard.errors import CheckpointError, InputError
from reidguard.models import ReIDModel, load_model
from reidguard.storage import atomic_write, read_card

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

FILE = "reidguard.safetensors"
PAGE = "README.md"


def save_pretrained(thing: ReIDModel | Attack, folder: Path | str) -> Path:
    """Write a model or an attack, and a page about it, into a folder.

    Args:
        thing: What has a name in the registry, so that it can be built again.
        folder: Made if it is missing. A page that is there already is left as it is: it may have
            been written by hand.

    Returns:
        The folder.

    Raises:
        InputError: If it is neither a model nor an attack, or cannot be built again.
        CheckpointError: If a file cannot be written.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25").eval()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save_pretrained(model, Path(place) / "osnet")
        ...     print(*sorted(path.name for path in folder.iterdir()))
        ...     type(from_pretrained(folder)).__name__
        README.md reidguard.safetensors
        'OSNet'
    """
    if not isinstance(thing, ReIDModel | Attack):
        raise InputError(f"only models and attacks can be shared, not a {type(thing).__name__}")
    folder = Path(folder).expanduser()
    thing.save(folder / FILE)
    if not (folder / PAGE).exists():
        with atomic_write(folder / PAGE) as temporary:
            temporary.write_text(_page(read_card(folder / FILE)), "utf-8")
    return folder


def from_pretrained(
    source: Path | str, *, revision: str | None = None, token: str | None = None
) -> ReIDModel | Attack:
    """Load what :func:`save_pretrained` wrote or :func:`push_to_hub` uploaded.

    Args:
        source: A folder, or a repository of the hub ("owner/name"), which is downloaded into
            huggingface_hub's cache. A folder of that name comes first.
        revision: Branch, tag or commit of the repository. Naming a commit makes sure that it is
            the same file tomorrow.
        token: For private repositories; by default the one that huggingface_hub has stored.

    Returns:
        A model in eval mode, or an attack, on the CPU.

    Raises:
        CheckpointError: If there is no such folder or repository, the hub cannot be reached, or
            the file is damaged.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        file = place / FILE
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        hub = _hub()
        try:
            with _without_bars():
                file = Path(hub.hf_hub_download(str(source), FILE, revision=revision, token=token))
        except Exception as error:  # of whichever HTTP library is below
            raise CheckpointError(
                f"there is no folder {source}, and the hub gave no {FILE} of a repository of that "
                f"name ({type(error).__name__}: {_first_line(error)}); check the name, revision "
                "and token, or pass a folder"
            ) from error
    else:
        raise CheckpointError(
            f"there is no folder {source}; a repository of the hub is named 'owner/name'"
        )
    kind = read_card(file).get("kind")
    if kind not in ("model", "attack"):
        raise CheckpointError(f"{file} holds a {kind!r}, neither a model nor an attack")
    return load_model(file) if kind == "model" else load_attack(file)


def push_to_hub(
    thing: ReIDModel | Attack,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a model or an attack with its page; the repository is made if it is missing.

    Args:
        thing: As for :func:`save_pretrained`.
        repository: "owner/name".
        private: Whether a new repository can be seen by its owner only.
        token: By default the one that huggingface_hub has stored.
        message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        InputError: As for :func:`save_pretrained`, or if the name is none.
        CheckpointError: If the hub cannot be reached or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"a repository is named 'owner/name', not {repository!r}")
    hub = _hub()
    with tempfile.TemporaryDirectory() as place:
        folder = save_pretrained(thing, place)
        api = hub.HfApi(token=token)
        try:
            with _without_bars():
                api.create_repo(repository, private=private, exist_ok=True)
                if api.file_exists(repository, PAGE):
                    (folder / PAGE).unlink()  # its owner may have written it
                done = api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    commit_message=message or "Upload from reidguard",
                )
        except Exception as error:  # of whichever HTTP library is below
            raise CheckpointError(
                f"cannot upload to {repository} ({type(error).__name__}: {_first_line(error)}); "
                "log in with `hf auth login`, or pass a token that may write there"
            ) from error
    return str(done.commit_url)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            "the hub needs huggingface_hub: pip install huggingface_hub, or use a folder"
        ) from None
    return huggingface_hub


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library prints nothing, so that one must not either."""
    utils = _hub().utils
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _page(card: Mapping[str, Any]) -> str:
    """A page from the card alone: nothing is said that the file does not know."""
    kind, name = card["kind"], card["name"]
    config = card["kwargs"] if kind == "model" else card["config"]
    facts: dict[str, Any] = {"name": name, **config}
    if kind == "model":
        facts["input"] = card["input_spec"]
        facts["metric"] = card["metric"]
        facts["classifiers"] = dict(card["num_classes"])
    load = "model" if kind == "model" else "attack"
    use = (
        "features = model.features(images)  # (N, 3, H, W) in [0, 1], any size"
        if kind == "model"
        else "adversarial = attack(images)  # (N, 3, H, W) in [0, 1], any size"
    )
    purpose = (
        "A person re-identification model."
        if kind == "model"
        else "An attack on person re-identification models, to measure and to harden them. "
        f"It changes no value by more than ε = {255 * card['config']['eps']:g}/255."
        if "eps" in card["config"]
        else "An attack on person re-identification models, to measure and to harden them."
    )
    training = card.get("training")
    return f"""---
library_name: reidguard
tags:
- person-re-identification
- reidguard-{kind}
---

# {name}

{purpose} Written by reidguard.

```python
from reidguard import from_pretrained

{load} = from_pretrained("owner/name")  # this repository, or a folder
{use}
```

## What it is

```json
{json.dumps(facts, indent=2, ensure_ascii=False)}
```

## How it was learnt

{_fenced(training) if training else "The file does not say."}

Images that it learnt from have terms of their own, which may bind what is learnt from them.

## Versions

{_fenced(card["versions"])}
"""


def _fenced(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"
