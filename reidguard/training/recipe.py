"""A short recipe for re-ID models: triplet + cross-entropy on augmented batches, with Adam."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.distributed import processes
from reidguard.errors import InputError
from reidguard.meta import PlainLearner
from reidguard.models import ReIDModel
from reidguard.objectives.reid import ReIDObjective
from reidguard.training.loop import ProgressCallback, learn

__all__ = ["train_model"]

# The paper's schedule: 85 epochs, flat up to the 40th, then a factor of 10 lower every 40.
EPOCHS, FLAT = 85, 40


def train_model(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    epochs: int = EPOCHS,
    steps: int | None = None,
    lr: float = 3e-4,
    weight_decay: float = 5e-4,
    margin: float = 0.5,
    identities: int = 8,
    images_per_identity: int = 8,
    augment: Augment | None = Augment(),  # noqa: B008 (frozen: nothing can change it)
    image_size: tuple[int, int] = (256, 128),
    seed: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 50,
    progress: ProgressCallback | None = None,
) -> ReIDModel:
    """Train a model on a dataset's training images, in place.

    The loss is Eqs. 10 and 11, triplet and cross-entropy; the optimiser Adam. The learning rate
    stays flat for the first 40/85 of the epochs and then falls tenfold in as many epochs again:
    the paper's schedule, stretched to the epochs at hand.

    Args:
        model: With a classifier for this dataset, either under its name or as the only one:
            ``create_model("ide", num_classes=dataset.num_train_pids)``. Parameters that ask for
            no gradient stay as they are.
        dataset: Its ``train`` split is learnt.
        epochs: Passes over the images.
        steps: Steps in all, in place of ``epochs``.
        lr: Adam's learning rate at the start.
        weight_decay: Of Adam, on all parameters.
        margin: Of the triplet loss.
        identities: Identities in a batch.
        images_per_identity: Images of each.
        augment: What happens to each batch; None leaves the images as they are.
        image_size: Height and width that images are resized to.
        seed: Fixes batches, augmentation and dropout; initial weights are the caller's.
        checkpoint: File from which an interrupted run resumes, bit for bit. Its weights replace
            the given ones.
        checkpoint_every: Steps between two writes of that file.
        progress: Called with a :class:`~reidguard.training.Progress` after every step.

    Returns:
        The model itself, every submodule in the mode it was in; ``model.training_facts`` says how
        it was trained, and :meth:`ReIDModel.save` writes that down.

    Raises:
        InputError: If the model has no classifier that fits, or an argument is out of range.
        DataError: If the dataset has too few people, or an image cannot be read.
        TrainingError: When the loss is not finite.
        CheckpointError: When the checkpoint is damaged or belongs to other settings.

    Example:
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import create_model
        >>> data = load_dataset("market1501:/data")  # doctest: +SKIP
        >>> model = create_model("ide", num_classes=data.num_train_pids)  # doctest: +SKIP
        >>> train_model(model, data, epochs=20).save("ide.safetensors")  # doctest: +SKIP
    """
    domain = _domain_of(model, dataset)
    if not (lr > 0 and weight_decay >= 0):
        raise InputError(f"lr must be above 0 and weight_decay not below: {lr}, {weight_decay}")
    loader = BatchLoader(
        dataset.train,
        dataset.train_labels,
        image_size=image_size,
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        augment=augment,
        device=next(model.parameters()).device,
        processes=processes(),
    )
    if steps is None:
        steps = epochs * len(loader)
    if steps < 1:
        raise InputError(f"training needs at least one step, not {steps}")
    flat = FLAT / EPOCHS * steps / len(loader)  # in epochs
    facts: dict[str, Any] = {
        "recipe": "triplet + cross-entropy",
        "steps": steps,
        "lr": lr,
        "weight_decay": weight_decay,
        "margin": margin,
        "identities": identities,
        "images_per_identity": images_per_identity,
        "augment": None if augment is None else asdict(augment),
        "image_size": list(image_size),
        "seed": seed,
        "domain": domain,
        "train": {"name": dataset.name, "fingerprint": dataset.fingerprint("train")},
    }
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _training(model):
        learn(
            model,
            learner=PlainLearner(),
            objective=ReIDObjective(domain, margin),
            optimizer=torch.optim.Adam(wanted, lr=lr, weight_decay=weight_decay),
            meta_train=loader,
            steps=steps,
            schedule=lambda epoch: 0.1 ** max(0.0, (epoch - flat) / flat),
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            # The printed network, not its weights: a resumed run has those from the checkpoint.
            settings={**facts, "network": hashlib.sha256(repr(model).encode()).hexdigest()},
            progress=progress,
        )
    model.training_facts = facts
    return model


def _domain_of(model: ReIDModel, dataset: ReIDDataset) -> str:
    people = dataset.num_train_pids
    cure = f"create it with num_classes={{{dataset.name!r}: {people}}}"
    if dataset.name in model.num_classes:
        domain = dataset.name
    elif len(model.num_classes) == 1:
        (domain,) = model.num_classes
    else:
        known = ", ".join(model.num_classes) or "none"
        raise InputError(
            f"the model has no classifier for {dataset.name} (it has: {known}); {cure}"
        )
    if model.num_classes[domain] != people:
        raise InputError(
            f"the model's classifier {domain!r} knows {model.num_classes[domain]} identities, the "
            f"training images of {dataset.name} show {people}; {cure}"
        )
    return domain


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Switch to train mode, and afterwards every submodule back to its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
