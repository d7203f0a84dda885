"""Recipes for re-ID models: losses on augmented batches, with Adam and a schedule."""

from __future__ import annotations

import difflib
import hashlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.distributed import world
from reidguard.errors import InputError
from reidguard.learners import Objective, PlainLearner
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.objectives.reid import AGWObjective, CentreLoss, ReIDObjective
from reidguard.training.loop import learn
from reidguard.types import Progress, ProgressCallback

__all__ = ["RECIPES", "Recipe", "train_model"]


# The paper's schedule: 85 epochs, flat up to the 40th.
EPOCHS, FLAT = 85, 40


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from its losses.

    Args:
        title: The losses, for people.
        epochs: Passes over the images.
        lr: Adam's learning rate.
        identities: Identities in a batch.
        images_per_identity: Images of each.
        augment: What happens to each batch.
        schedule: Factor on the learning rate from where an epoch starts and ends, counted in the
            recipe's own epochs.
    """

    title: str
    epochs: int
    lr: float
    identities: int
    images_per_identity: int
    augment: Augment
    schedule: Callable[[float, float], float]


def _flat_then_falling(start: float, end: float) -> float:
    """Flat up to the 40th epoch, then a factor of 10 lower every 40."""
    return float(0.1 ** max(0.0, (start - FLAT) / FLAT))


def _warm_then_steps(start: float, end: float) -> float:
    """A linear rise over ten epochs, then a factor of 10 lower at the 40th and at the 70th."""
    warm = min(1.0, 0.01 + 0.99 * end / 10)
    return warm if end < 40 else 0.1 if end < 70 else 0.01


RECIPES = {
    "paper": Recipe("triplet + cross-entropy", EPOCHS, 3e-4, 8, 8, Augment(), _flat_then_falling),
    "agw": Recipe(
        "weighted triplet + smoothed cross-entropy + centre loss",
        120,
        3.5e-4,
        16,
        4,
        Augment(crop="pad", erase_area=(0.02, 0.4)),
        _warm_then_steps,
    ),
}
"""The paper's own, and that of AGW (Ye et al., TPAMI 2021)."""


def train_model(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    recipe: str = "paper",
    epochs: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    weight_decay: float = 5e-4,
    margin: float | None = None,
    identities: int | None = None,
    images_per_identity: int | None = None,
    augment: Augment | Literal["recipe"] | None = "recipe",
    image_size: tuple[int, int] = (256, 128),
    seed: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 50,
    progress: ProgressCallback | None = None,
) -> ReIDModel:
    """Train a model on a dataset's training images, in place.

    The optimiser is Adam. What is None takes the recipe's value, and its schedule is stretched
    to the epochs at hand.

    * "paper": Eqs. 10 and 11, triplet (margin 0.5) and cross-entropy; 85 epochs of 8 × 8 images,
      learning rate 3e-4, flat for the first 40/85 and then falling tenfold in as many epochs again.
    * "agw": :class:`~reidguard.objectives.reid.AGWObjective`; 120 epochs of 16 × 4 images, learning
      rate 3.5e-4, rising over the first ten epochs, a tenth from the 40th on and a hundredth from
      the 70th; shifted, flipped and erased images. For any model with one embedding.

    Args:
        model: With a classifier for this dataset, either under its name or as the only one:
            ``create_model("ide", num_classes=dataset.num_train_pids)``. Parameters that ask for
            no gradient stay as they are.
        dataset: Its ``train`` split is learnt.
        recipe: "paper" or "agw".
        epochs: Passes over the images.
        steps: Steps in all, in place of ``epochs``.
        lr: Adam's learning rate at the start.
        weight_decay: Of Adam, on all parameters.
        margin: Of the paper's triplet loss; AGW's has none.
        identities: Identities in a batch.
        images_per_identity: Images of each.
        augment: What happens to each batch, "recipe" for the recipe's; None leaves the images as
            they are.
        image_size: Height and width that images are resized to.
        seed: Fixes batches, augmentation and dropout; initial weights are the caller's.
        checkpoint: File from which an interrupted run resumes, bit for bit. Its weights replace
            the given ones.
        checkpoint_every: Steps between two writes of that file.
        progress: Called with a :class:`~reidguard.training.Progress` after every step.

    Returns:
        The model itself, every submodule in the mode it was in; ``model.provenance`` says how
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
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown recipe {recipe!r}: {hint}known: {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]
    lr = chosen.lr if lr is None else lr
    augment = chosen.augment if augment == "recipe" else augment
    if identities is None:
        identities = chosen.identities
    if images_per_identity is None:
        images_per_identity = chosen.images_per_identity
    if recipe == "agw" and margin is not None:
        raise InputError("AGW's weighted triplet loss has no margin: leave it out")
    domain = _domain_of(model, dataset)
    if not (lr > 0 and weight_decay >= 0):
        raise InputError(f"lr must be above 0 and weight_decay not below: {lr}, {weight_decay}")
    loader = BatchLoader(
        dataset,
        image_size=image_size,
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        augment=augment,
        device=next(model.parameters()).device,
        world=world(),
    )
    if steps is None:
        steps = (chosen.epochs if epochs is None else epochs) * len(loader)
    if steps < 1:
        raise InputError(f"training needs at least one step, not {steps}")
    stretch = chosen.epochs * len(loader) / steps  # the recipe's epochs in one of these
    objective: Objective
    losses: dict[str, Any]
    if recipe == "agw":
        objective = _agw_objective(model, domain, image_size, seed)
        losses = {
            "smoothing": objective.smoothing,
            "centre_weight": objective.centre_weight,
            "centre_rate": objective.centres.rate,
        }
    else:
        margin = 0.5 if margin is None else margin
        objective, losses = ReIDObjective(domain, margin), {"margin": margin}
    facts: dict[str, Any] = {
        "recipe": chosen.title,
        "steps": steps,
        "lr": lr,
        "weight_decay": weight_decay,
        **losses,
        "identities": identities,
        "images_per_identity": images_per_identity,
        "augment": None if augment is None else asdict(augment),
        "image_size": list(image_size),
        "seed": seed,
        "domain": domain,
        "train": {"name": dataset.name, "fingerprint": dataset.fingerprint("train")},
    }
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    last: deque[float] = deque(maxlen=50)

    def told(news: Progress) -> None:
        if "loss" in news.metrics:
            last.append(news.metrics["loss"])
        if progress is not None:
            progress(news)

    with _training(model):
        learn(
            model,
            learner=PlainLearner(),
            objective=objective,
            optimizer=torch.optim.Adam(wanted, lr=lr, weight_decay=weight_decay),
            meta_train=loader,
            steps=steps,
            schedule=lambda epoch: chosen.schedule(epoch * stretch, (epoch + 1) * stretch),
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            # The printed network, not its weights: a resumed run has those from the checkpoint.
            settings={**facts, "network": hashlib.sha256(repr(model).encode()).hexdigest()},
            progress=told,
        )
    model.provenance = facts
    alike = math.log(2) if recipe == "agw" else losses["margin"]  # a triplet of equal embeddings
    embeddings = _embeddings(model, domain, image_size)
    parts = 1 if isinstance(embeddings, Tensor) else len(embeddings)
    _warn_of_collapse(last, model.num_classes[domain], alike, parts, lr)
    return model


def _warn_of_collapse(
    last: Collection[float], people: int, alike: float, parts: int, lr: float
) -> None:
    """Warn where the loss ended at that of a network to which all people look alike.

    Triplets of the hardest images pull everything together where the rate is too high; the loss
    falls while they do, and nothing else shows it.
    """
    chance = parts * (math.log(people) + alike)
    mean = sum(last) / max(1, len(last))
    if abs(mean / chance - 1) < 0.01:
        warnings.warn(
            f"the training ended at a loss of {mean:.3f}, which is that of a network to which all "
            f"people look alike (ln {people} + {alike:.2f}): it has collapsed. Try a rate below "
            f'{lr:g}; recipe="agw" has softer triplets than the paper\'s',
            stacklevel=3,
        )


def _agw_objective(
    model: ReIDModel, domain: str, image_size: tuple[int, int], seed: int
) -> AGWObjective:
    """Return the objective with fresh centres, as wide as the model's embeddings."""
    embeddings = _embeddings(model, domain, image_size)
    if not isinstance(embeddings, torch.Tensor):
        raise InputError(
            f"AGW's losses need one embedding of an image; {type(model).__name__} gives "
            f"{len(embeddings)} parts: take the recipe 'paper'"
        )
    centres = CentreLoss(model.num_classes[domain], embeddings.shape[1], seed=seed)
    return AGWObjective(centres, domain=domain).to(embeddings.device)


def _embeddings(
    model: ReIDModel, domain: str, image_size: tuple[int, int]
) -> Tensor | Sequence[Tensor]:
    """Return those of two black images: their shape, or the number of parts, is what matters."""
    black = next(model.parameters()).new_zeros(2, 3, *image_size)
    with torch.no_grad():
        output = inference_view(model)(black, domain=domain)
    embeddings: Tensor | Sequence[Tensor] = output.embeddings
    return embeddings


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
