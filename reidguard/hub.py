"""Models and attacks in folders and in repositories of the Hugging Face Hub.

A folder holds one safetensors file and a model card. Loading reads only that file, without pickle,
and executes nothing from it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reidguard.attacks import Attack, load_attack
from reidguard.errors import CheckpointError, InputError
from reidguard.files import atomic_write
from reidguard.models import ReIDModel, load_model
from reidguard.records import to_path
from reidguard.storage import read_card

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

WEIGHTS, CARD = "model.safetensors", "README.md"  # the names that the hub expects
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    model: ReIDModel | Attack, save_directory: Path | str, *, repo_id: str = "owner/name"
) -> Path:
    """Save a model or an attack, and a model card, in a folder.

    Args:
        model: Built from the registry, so that it can be rebuilt.
        save_directory: Created if it is missing. An existing model card stays as it is, since it
            may have been edited.
        repo_id: Repository in the example of the model card.

    Returns:
        The folder.

    Raises:
        InputError: If it is neither a model nor an attack, or cannot be rebuilt.
        CheckpointError: If a file cannot be written.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25").eval()
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = save_pretrained(model, Path(parent) / "osnet")
        ...     print(*sorted(path.name for path in folder.iterdir()))
        ...     type(from_pretrained(folder)).__name__
        README.md model.safetensors
        'OSNet'
    """
    if not isinstance(model, ReIDModel | Attack):
        raise InputError(f"only models and attacks can be shared, not a {type(model).__name__}")
    folder = to_path(save_directory)
    model.save(folder / WEIGHTS)
    if not (folder / CARD).exists():
        with atomic_write(folder / CARD) as temporary:
            temporary.write_text(_model_card(read_card(folder / WEIGHTS), repo_id), "utf-8")
    return folder


def from_pretrained(
    name_or_path: Path | str, *, revision: str | None = None, token: str | None = None
) -> ReIDModel | Attack:
    """Load what :func:`save_pretrained` saved or :func:`push_to_hub` uploaded.

    Args:
        name_or_path: A folder, or the id "owner/name" of a repository, which is downloaded into
            huggingface_hub's cache. A folder of that name takes precedence.
        revision: Branch, tag or commit of the repository. Only a commit always names the same file.
        token: For private repositories; by default the one stored by ``hf auth login``.

    Returns:
        A model in eval mode, or an attack, on the CPU.

    Raises:
        CheckpointError: If there is no such folder or repository, the hub cannot be reached, or
            the file is damaged.

    Example:
        >>> model = from_pretrained("owner/name", revision="v1")  # doctest: +SKIP
    """
    path = to_path(name_or_path) / WEIGHTS
    if not path.parent.is_dir():
        missing = f"there is no folder {name_or_path}"
        repo_id = str(name_or_path)
        if not REPO_ID.fullmatch(repo_id):
            raise CheckpointError(f"{missing}; the id of a repository is 'owner/name'")
        with _hub(f"{missing}, and no {WEIGHTS} in a repository of that name") as hub:
            path = Path(hub.hf_hub_download(repo_id, WEIGHTS, revision=revision, token=token))
    kind = read_card(path).get("kind")
    if kind not in ("model", "attack"):
        raise CheckpointError(f"{path} holds a {kind!r}, neither a model nor an attack")
    return load_model(path) if kind == "model" else load_attack(path)


def push_to_hub(
    model: ReIDModel | Attack,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload from reidguard",
) -> str:
    """Upload a model or an attack with a model card; create the repository if it is missing.

    Args:
        model: As for :func:`save_pretrained`.
        repo_id: "owner/name". A model card that is already there stays as it is.
        private: Whether a new repository is private; by default as its owner's settings say.
        token: By default the one stored by ``hf auth login``.
        commit_message: First line of the commit.

    Returns:
        The URL of the commit.

    Raises:
        InputError: As for :func:`save_pretrained`, or if ``repo_id`` is invalid.
        CheckpointError: If the hub cannot be reached or refuses the upload.

    Example:
        >>> url = push_to_hub(model, "owner/name", private=True)  # doctest: +SKIP
    """
    if not REPO_ID.fullmatch(repo_id):
        raise InputError(f"the id of a repository is 'owner/name', not {repo_id!r}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(model, temporary, repo_id=repo_id)
        with _hub(f"cannot upload to {repo_id}") as hub:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, CARD):
                (folder / CARD).unlink()
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message
            )
    return str(commit.commit_url)


@contextmanager
def _hub(failure: str) -> Iterator[Any]:
    """Yield huggingface_hub with progress bars off; turn its errors into a CheckpointError."""
    import huggingface_hub

    utils: Any = huggingface_hub.utils
    bars = not utils.are_progress_bars_disabled()
    try:
        if bars:
            utils.disable_progress_bars()
        yield huggingface_hub
    except Exception as error:  # its own, or those of the HTTP library below
        reason = (str(error).strip().splitlines() or ["unknown reason"])[0]
        raise CheckpointError(
            f"{failure} ({type(error).__name__}: {reason}); check the name, the revision and the "
            "token (log in with `hf auth login`), or use a folder"
        ) from error
    finally:
        if bars:
            utils.enable_progress_bars()


def _model_card(card: dict[str, Any], repo_id: str) -> str:
    """Return a model card that says only what the card of the saved file says."""
    from huggingface_hub import ModelCard, ModelCardData

    unlisted = ("schema", "kind", "training", "versions")
    config = {key: value for key, value in card.items() if key not in unlisted}
    if "num_classes" in config:
        config["num_classes"] = dict(config["num_classes"])
    rendered = ModelCard.from_template(
        ModelCardData(
            library_name="reidguard",
            tags=["person-re-identification", f"reidguard-{card['kind']}"],
            pipeline_tag="image-feature-extraction" if card["kind"] == "model" else None,
        ),
        template_path=str(Path(__file__).with_name("model_card.md.j2")),
        card=card,
        config=config,
        repo_id=repo_id,
        json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    return str(rendered)
