"""Adversarial queries as PNG files inside the budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reidguard.attacks import Attack, InstanceAttack
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset, iterate_images
from reidguard.data.images import to_device
from reidguard.errors import InputError
from reidguard.evaluation.features import (
    CountCallback,
    attack_device,
    for_samples,
    to_float,
)
from reidguard.files import atomic_write
from reidguard.nn import inference_view
from reidguard.nn.gradients import count_gradients
from reidguard.records import to_path
from reidguard.schema import MAX_SIDE, checked
from reidguard.storage import ResumableStore

__all__ = ["save_adversarial"]

CARD = "adversarial.json"


@fixed_context()
def save_adversarial(
    attack: Attack,
    dataset: ReIDDataset,
    directory: Path | str,
    *,
    image_size: tuple[int, int] = (256, 128),
    batch_size: int = 64,
    with_labels: bool = False,
    query_every: int = 1,
    progress: CountCallback | None = None,
) -> Path:
    """Write the adversarial queries of a dataset as PNG, each under its query's own name.

    Every file is within ⌊255·ε⌋ grey levels of the original as Pillow resizes it to
    ``image_size``. ``evaluate(model, dataset.with_query(directory))`` then gives the 8-bit metrics
    of the attack. Files are written atomically, and an interrupted call
    resumes where it stopped; ``adversarial.json`` in the folder names attack and dataset.

    Args:
        attack: Runs in eval mode on its own device (an instance attack on its target model's), and
            is not changed.
        dataset: Its queries are perturbed; the names are its ``query_names``.
        directory: New, empty, or that of an interrupted call with the same arguments.
        image_size: (height, width) of the images.
        batch_size: Images at a time.
        with_labels: Give an instance attack the ground-truth identities, as in ``evaluate``.
        query_every: Write every n-th query alone, the same ones that ``evaluate`` uses.
        progress: Called with (images done, images in all).

    Returns:
        ``directory``.

    Raises:
        InputError: If an instance attack is not bound, or ``query_every`` is below 1.
        DataError: If a query cannot be read, or two share a name.
        CheckpointError: If a file cannot be written or would lie outside the folder, or the folder
            holds anything else, such as the images of another attack or of another target model.

    Example:
        >>> import tempfile
        >>> from reidguard import DeltaAttack
        >>> from reidguard.testing import small_dataset
        >>> folder = Path(tempfile.mkdtemp()) / "images"
        >>> with small_dataset() as data:
        ...     attack = DeltaAttack(size=(32, 16))
        ...     saved = save_adversarial(attack, data, folder, image_size=(32, 16))
        >>> sorted(path.name for path in saved.glob("*.png"))[0]
        '0005_0.png'
    """
    device = attack_device(attack)
    if with_labels and not isinstance(attack, InstanceAttack):
        raise InputError("with_labels is for instance attacks, which may use the identities")
    image_size = checked(tuple[int, int], "image_size", image_size, low=1, high=MAX_SIDE)
    batch_size = checked(int, "batch_size", batch_size, low=1, high=10**6)
    directory = to_path(directory)
    query_every = checked(int, "query_every", query_every, low=1, high=10**9)
    names = dataset.query_names[::query_every]
    queries = dataset.query[::query_every]
    settings = {
        "kind": "adversarial queries",
        "attack": type(attack).__name__,
        "attack_fingerprint": attack_fingerprint(attack, image_size),
        "eps": attack.budget.eps,
        "dataset": dataset.name,
        "query_fingerprint": dataset.fingerprint("query"),
        "image_size": list(image_size),
        **({"with_labels": True} if with_labels else {}),
        **({"query_every": query_every} if query_every > 1 else {}),
    }
    files = [f"{name}.png" for name in names]
    view = inference_view(attack)
    with (
        ResumableStore(directory, settings, card=CARD, files=files),
        torch.no_grad(),
        count_gradients(type(attack).__name__),
        ThreadPoolExecutor(2) as pool,
    ):
        missing = [i for i, file in enumerate(files) if not (directory / file).exists()]
        done = len(files) - len(missing)
        if progress is not None:
            progress(done, len(files))
        samples = [queries[i] for i in missing]
        for place, pixels in iterate_images(samples, image_size, batch_size):
            x = to_float(to_device(pixels, device))
            x_adv = for_samples(view, samples[place], with_labels)(x)
            saved = attack.budget.quantize(x_adv, x).cpu()
            list(pool.map(write_png, [directory / files[i] for i in missing[place]], saved))
            if progress is not None:
                progress(done + place.stop, len(files))
    return directory


def write_png(path: Path, pixels: Tensor) -> None:
    """Write one (3, H, W) uint8 image as PNG, atomically."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
