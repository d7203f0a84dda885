"""Recipes for re-ID models: losses on augmented batches, with Adam and a schedule."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from reidguard.contexts import fixed_context
from reidguard.data import Augment, NoisyAugment, ReIDDataset
from reidguard.errors import InputError
from reidguard.learners import Objective, PlainLearner
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, check_cameras, probe_cameras, with_cameras
from reidguard.objectives.reid import AGWObjective, CentreLoss, ReIDObjective
from reidguard.options import TRAIN_DEFAULTS, LoopOptions, TrainOptions
from reidguard.schema import documented, resolve, select, settings
from reidguard.training.averaging import average_of
from reidguard.training.loop import LoopHooks, batch_loaders, learn
from reidguard.types import Progress, ProgressCallback

__all__ = ["RECIPES", "TrainingRecipe", "train_model"]


# The paper's schedule: 85 epochs, flat up to the 40th.
EPOCHS, FLAT = 85, 40
BATCH = ("identities", "images_per_identity")


@dataclass(frozen=True)
class TrainingRecipe:
    """How a model is trained: defaults of its options, and the learning-rate schedule.

    Args:
        losses: Names of the losses, for display.
        epochs: Passes over the images.
        lr: Adam's learning rate.
        identities: Identities in a batch.
        images_per_identity: Images of each.
        augment: Augmentation of each batch.
        schedule: Factor on the learning rate from where an epoch starts and ends, counted in the
            recipe's own epochs.
    """

    losses: str
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
    "paper": TrainingRecipe(
        "triplet + cross-entropy", EPOCHS, 3e-4, 8, 8, Augment(), _flat_then_falling
    ),
    "agw": TrainingRecipe(
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


@documented(TrainOptions, **TRAIN_DEFAULTS)
@fixed_context()
def train_model(
    model: ReIDModel, dataset: ReIDDataset, **options: Unpack[TrainOptions]
) -> ReIDModel:
    """Train a model on a dataset's training images, in place.

    The optimiser is Adam. The recipe's schedule is stretched to the requested epochs or steps.

    * "paper": Eqs. 10 and 11, triplet (margin 0.5) and cross-entropy; 85 epochs of 8 × 8 images,
      learning rate 3e-4, flat for the first 40/85 and then falling tenfold in as many epochs again.
    * "agw": :class:`~reidguard.objectives.reid.AGWObjective`; 120 epochs of 16 × 4 images, learning
      rate 3.5e-4, rising over the first ten epochs, a tenth from the 40th on and a hundredth from
      the 70th; shifted, flipped and erased images. For any model with one embedding.

    Args:
        model: With a classifier for this dataset, either under its name or as the only one:
            ``create_model("ide", num_classes=dataset.num_train_pids)``. Parameters that require no
            gradient stay as they are. Initial weights are the caller's, unless a checkpoint
            replaces them.
        dataset: Its ``train`` split is learnt.
        **options: Any of :class:`~reidguard.options.TrainOptions`.

    Returns:
        The model itself, every submodule in the mode it was in; ``model.provenance`` says how
        it was trained, and :meth:`ReIDModel.save` writes that down.

    Raises:
        InputError: If the model has no classifier that fits, or an option is unknown or out of
            range.
        DataError: If the dataset has too few identities, or an image cannot be read.
        TrainingError: When the loss is not finite.
        CheckpointError: When the checkpoint is damaged or belongs to other settings.

    Example:
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import create_model
        >>> data = load_dataset("market1501:/data")  # doctest: +SKIP
        >>> model = create_model("ide", num_classes=data.num_train_pids)  # doctest: +SKIP
        >>> train_model(model, data, epochs=20).save("ide.safetensors")  # doctest: +SKIP
    """
    recipe = RECIPES[resolve(TrainOptions, options)["recipe"]]
    defaults = {name: getattr(recipe, name) for name in ("epochs", "lr", *BATCH)}
    values = resolve(TrainOptions, options, **defaults)
    if values["augment"] == "recipe":
        values["augment"] = recipe.augment
    if values["noise"] is not None:
        values["augment"] = NoisyAugment.after(values["augment"], values["noise"])
    domain = _domain_of(model, dataset)
    device = next(model.parameters()).device
    check_cameras(model, cameras_of(dataset.train))
    (loader,) = batch_loaders([dataset], values, augment=values["augment"], device=device)
    objective, losses = _objective(model, domain, values)
    facts: dict[str, Any] = {
        **settings(TrainOptions, values),
        **losses,
        "losses": recipe.losses,
        "domain": domain,
        "train": {"name": dataset.name, "fingerprint": dataset.fingerprint("train")},
    }
    last: deque[float] = deque(maxlen=50)
    progress: ProgressCallback | None = values["progress"]

    def record(news: Progress) -> None:
        if "loss" in news.metrics:
            last.append(news.metrics["loss"])
        if progress is not None:
            progress(news)

    average = average_of(model, values)
    stretch = recipe.epochs * len(loader) / values["steps"]  # the recipe's epochs in one of these
    with _training(model):
        learn(
            model,
            learner=PlainLearner(),
            objective=objective,
            optimizer=torch.optim.Adam(
                [p for p in model.parameters() if p.requires_grad],
                lr=values["lr"],
                weight_decay=values["weight_decay"],
            ),
            meta_train=loader,
            hooks=LoopHooks(
                lambda epoch: recipe.schedule(epoch * stretch, (epoch + 1) * stretch),
                after_step=lambda: None if average is None else average.update(model),
                state={} if average is None else {"average": average},
            ),
            # The printed network, not its weights: a resumed run has those from the checkpoint.
            settings={**facts, "network": hashlib.sha256(repr(model).encode()).hexdigest()},
            **{**select(LoopOptions, values), "progress": record},
        )
    if average is not None:
        average.copy_to(model)
    model.provenance = facts
    embeddings = _embeddings(model, domain, values["image_size"])
    parts = 1 if isinstance(embeddings, Tensor) else len(embeddings)
    equal = losses.get("margin", math.log(2))  # the loss of a triplet of equal embeddings
    _warn_of_collapse(last, model.num_classes[domain], equal, parts, values["lr"])
    return model


def _objective(
    model: ReIDModel, domain: str, values: dict[str, Any]
) -> tuple[Objective, dict[str, Any]]:
    """Return the objective of a recipe, and the settings of its losses."""
    if values["recipe"] == "paper":
        margin = 0.5 if values["margin"] is None else values["margin"]
        return ReIDObjective(domain, margin), {"margin": margin}
    if values["margin"] is not None:
        raise InputError("AGW's weighted triplet loss has no margin: leave it out")
    embeddings = _embeddings(model, domain, values["image_size"])
    if not isinstance(embeddings, Tensor):
        raise InputError(
            f"AGW's losses need one embedding of an image; {type(model).__name__} gives "
            f"{len(embeddings)} parts: take the recipe 'paper'"
        )
    # Fresh centres, as wide as the model's embeddings.
    centres = CentreLoss(model.num_classes[domain], embeddings.shape[1], seed=values["seed"])
    objective = AGWObjective(centres, domain=domain).to(embeddings.device)
    return objective, {
        "smoothing": objective.smoothing,
        "centre_weight": objective.centre_weight,
        "centre_rate": objective.centres.rate,
    }


def _warn_of_collapse(
    last: Collection[float], identities: int, equal: float, parts: int, lr: float
) -> None:
    """Warn if the loss ended at that of a network that maps all images to one embedding.

    With too high a learning rate, triplets of the hardest images pull all embeddings together; the
    loss falls all the same, and nothing else shows it.
    """
    chance = parts * (math.log(identities) + equal)
    mean = sum(last) / max(1, len(last))
    if abs(mean / chance - 1) < 0.01:
        warnings.warn(
            f"the training ended at a loss of {mean:.3f}, which is that of a network that gives "
            f"all images one embedding (ln {identities} + {equal:.2f}): it has collapsed. Try a "
            f'rate below {lr:g}; recipe="agw" has softer triplets than the paper\'s',
            stacklevel=3,
        )


def _embeddings(
    model: ReIDModel, domain: str, image_size: tuple[int, int]
) -> Tensor | Sequence[Tensor]:
    """Return the embeddings of two black images, for their shape and the number of parts."""
    black = next(model.parameters()).new_zeros(2, 3, *image_size)
    with torch.no_grad():
        view = with_cameras(inference_view(model), probe_cameras(model, len(black)))
    output = view(black, domain=domain)
    embeddings: Tensor | Sequence[Tensor] = output.embeddings
    return embeddings


def _domain_of(model: ReIDModel, dataset: ReIDDataset) -> str:
    identities = dataset.num_train_pids
    advice = f"create it with num_classes={{{dataset.name!r}: {identities}}}"
    if dataset.name in model.num_classes:
        domain = dataset.name
    elif len(model.num_classes) == 1:
        (domain,) = model.num_classes
    else:
        known = ", ".join(model.num_classes) or "none"
        raise InputError(
            f"the model has no classifier for {dataset.name} (it has: {known}); {advice}"
        )
    if model.num_classes[domain] != identities:
        raise InputError(
            f"the model's classifier {domain!r} knows {model.num_classes[domain]} identities, the "
            f"training images of {dataset.name} show {identities}; {advice}"
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
