"""Adversarial queries as PNG files that are still inside the budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from reidguard.attacks import Attack, InstanceAttack
from reidguard.data import ReIDDataset, iterate_images
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation.features import attack_device, to_device, to_float, told
from reidguard.nn import inference_view
from reidguard.storage import atomic_write, weights_fingerprint, write_json

__all__ = ["save_adversarial"]

CARD = "adversarial.json"


def save_adversarial(
    attack: Attack,
    dataset: ReIDDataset,
    directory: Path | str,
    *,
    image_size: tuple[int, int] = (256, 128),
    batch_size: int = 64,
    with_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the adversarial queries of a dataset as PNG, each under its query's own name.

    Every file is within ⌊255·ε⌋ grey levels of the original as Pillow resizes it to
    ``image_size``. ``evaluate(model, dataset.with_query(directory))`` then gives, as clean
    figures, the 8-bit figures of the attack. Each file appears whole or not at all, and a call that
    was interrupted goes on where it stopped; ``adversarial.json`` in the folder tells whose images
    these are.

    Args:
        attack: Runs in eval mode on its own device (an instance attack on its victim's), and comes
            back untouched.
        dataset: Its queries are perturbed; the names are its ``query_names``.
        directory: New, empty, or one that the same call has begun.
        image_size: (height, width) of the images.
        batch_size: Images at a time.
        with_labels: Tell an instance attack the true identities, as in ``evaluate``.
        progress: Called with (images done, images in all).

    Returns:
        ``directory``.

    Raises:
        InputError: If the folder holds anything else, such as the images of another attack or of
            another victim, or an instance attack is not bound.
        DataError: If a query cannot be read, or two share a name.
        CheckpointError: If a file cannot be written.
    """
    device = attack_device(attack)
    if with_labels and not isinstance(attack, InstanceAttack):
        raise InputError("with_labels is for instance attacks, which may use the identities")
    directory = Path(directory).expanduser()
    names = dataset.query_names
    card = {
        "kind": "adversarial queries",
        "attack": type(attack).__name__,
        "attack_fingerprint": attack_fingerprint(attack),
        "eps": attack.budget.eps,
        "dataset": dataset.name,
        "query_fingerprint": dataset.fingerprint("query"),
        "image_size": list(image_size),
        **({"labels": "told"} if with_labels else {}),
    }
    targets = [directory / f"{name}.png" for name in names]
    claim_folder(directory, card, {*targets})
    missing = [i for i, path in enumerate(targets) if not path.exists()]
    done = len(targets) - len(missing)
    if progress is not None:
        progress(done, len(targets))
    samples = [dataset.query[i] for i in missing]
    view = inference_view(attack)
    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        for place, pixels in iterate_images(samples, image_size, batch_size):
            x = to_float(to_device(pixels, device))
            perturb = told(view, samples[place], with_labels)
            saved = attack.budget.quantize(perturb(x), x).cpu()
            list(pool.map(write_png, [targets[i] for i in missing[place]], saved))
            if progress is not None:
                progress(done + place.stop, len(targets))
    return directory


def write_png(path: Path, pixels: Tensor) -> None:
    """Write one (3, H, W) uint8 image, whole or not at all."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def attack_fingerprint(attack: Attack) -> str:
    """Return a digest of parameters, options and, of an instance attack, the victim."""
    try:
        config = json.dumps(attack.config(), sort_keys=True)
    except CheckpointError:  # an attack that cannot be saved as a file still has its parameters
        config = ""
    digest = hashlib.sha256((weights_fingerprint(attack) + config).encode())
    if isinstance(attack, InstanceAttack):  # what it makes depends on whom it is bound to
        victim = attack.target
        if isinstance(victim.model, torch.nn.Module):
            spec = getattr(victim.model, "input_spec", None)
            facts = f"{weights_fingerprint(victim.model)} {spec} {victim.model.metric}"
            digest.update(facts.encode())
        if victim.prototypes is not None:
            for tensor in (victim.prototypes.features, victim.prototypes.index):
                digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def claim_folder(directory: Path, card: dict[str, Any], ours: set[Path]) -> None:
    """Begin a folder or go on with it; refuse any other, and clear what a kill left behind."""
    try:
        present = [p for p in directory.rglob("*") if not p.is_dir()] if directory.exists() else []
    except OSError as error:
        raise InputError(f"cannot read the folder {directory}: {error.strerror}") from error
    if not directory.is_dir() and directory.exists():
        raise InputError(f"{directory} is a file; name a folder to save the images in")
    if not present:
        write_json(directory / CARD, card)
        return
    leftovers = {p for p in present if p.name.startswith(".") and p.name.endswith(".tmp")}
    try:
        found = json.loads((directory / CARD).read_text("utf-8"))
    except (OSError, ValueError):
        found = None
        if set(present) == leftovers:  # killed before the first file was whole
            found = card
            write_json(directory / CARD, card)
    if found is None:
        raise InputError(
            f"{directory} holds files that are not of this attack, such as {present[0].name}; "
            "choose a new or empty folder"
        )
    differing = [name for name in {**card, **found} if found.get(name) != card.get(name)]
    if differing:
        raise InputError(
            f"{directory} holds the images of another call (different {', '.join(differing)}); "
            "choose a new or empty folder"
        )
    foreign = sorted({*present} - ours - leftovers - {directory / CARD})
    if foreign:
        raise InputError(
            f"{directory} holds files that are not of this attack, such as {foreign[0].name}; "
            "move them away or choose another folder"
        )
    for path in leftovers:
        path.unlink(missing_ok=True)
