"""A universal perturbation found by queries alone: random search over blocks of ±ε."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self, Unpack

from reidguard.attacks.base import register_attack
from reidguard.attacks.learned import FitDefaults, check_same_device
from reidguard.attacks.universal.base import CleanRepresentations, with_representations
from reidguard.attacks.universal.delta import DeltaAttack
from reidguard.data import BatchLoader, ReIDDataset
from reidguard.distributed import world
from reidguard.errors import InputError, did_you_mean
from reidguard.fingerprint import fingerprint
from reidguard.learners import MetaLearner, Objective, StepResult
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, check_cameras, with_cameras
from reidguard.objectives import (
    ATTACK_LOSSES,
    AttackLoss,
    FeatureObjective,
    normalized_features,
)
from reidguard.options import AttackOptions, LoopOptions
from reidguard.schema import checked, documented, options_of, resolve, select, settings
from reidguard.training import Batches, batch_loaders, learn
from reidguard.types import Budget, ReIDBatch

__all__ = ["UniversalSquare"]

FEEDBACK = ("features", "scores", "ranks")
MAX_QUERIES = 10**9
USED = (
    *("identities", "images_per_identity", "image_size", "seed", "objective"),
    *("checkpoint", "checkpoint_every", "progress"),
)


@register_attack("universal_square")
class UniversalSquare(DeltaAttack):
    """A universal δ of blocks, found on a black box by queries; no gradient is needed.

    Random search as in the Square Attack (Andriushchenko et al., ECCV 2020), for one perturbation
    of all images. δ is ``grid`` blocks of ±ε per channel, and starts as a checkerboard of blocks.
    Each step draws a rectangle of blocks, negates it in some of the channels, and keeps the change
    if the loss of a batch of training images is lower with it than without. Sides of rectangles are
    log-uniform, from one block to the whole grid, so every step tries fine or coarse changes.

    ``feedback`` says what the attacker sees of the target:

    - "features": the feature of each query. The loss is any attack loss (``objective``).
    - "scores": distances to images of known identity, here the other training images. The loss is
      the distance to the nearest image of another identity, less that to the nearest of the own.
    - "ranks": only the order of these images. The loss is the average precision.

    Two queries are spent on each image of a batch: with and without the change. The provenance
    counts them.

    Args:
        budget: The ball; 8/255 by default.
        grid: Rows and columns of blocks.
        feedback: "features", "scores" or "ranks".
        queries: Adversarial images that :meth:`fit` may send to the target.

    Raises:
        InputError: If an option has a wrong value.

    Example:
        >>> attack = UniversalSquare(Budget(8 / 255), grid=(4, 2), queries=1000)
        >>> x = torch.full((1, 3, 8, 4), 0.5)
        >>> (255 * (attack(x) - x)).detach()[0, 0, ::2, ::2].round().int()
        tensor([[ 8, -8],
                [-8,  8],
                [ 8, -8],
                [-8,  8]], dtype=torch.int32)
    """

    fit_defaults = FitDefaults(learner=None)

    def __init__(
        self,
        budget: Budget | None = None,
        grid: tuple[int, int] = (16, 8),
        *,
        feedback: str = "features",
        queries: int = 50_000,
    ) -> None:
        super().__init__(budget, basis="blocks", grid=grid)
        if feedback not in FEEDBACK:
            raise InputError(
                f"unknown feedback {feedback!r}: {did_you_mean(str(feedback), FEEDBACK)}"
                f"choose one of {', '.join(FEEDBACK)}"
            )
        self.feedback = feedback
        self.queries = checked(int, "queries", queries, low=2, high=MAX_QUERIES)
        rows, columns = (torch.arange(count) for count in self.grid)
        board = 1 - 2 * ((rows[:, None] + columns) % 2)
        with torch.no_grad():
            self.delta.copy_(self.budget.eps * board)

    @documented(
        AttackOptions, **{"identities": 8, "images_per_identity": 4, "objective": "misranking"}
    )
    def fit(
        self,
        model: Any,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[AttackOptions],
    ) -> Self:
        """Search on the training images of a dataset until the queries are spent.

        The constructor's ``queries`` says how long, so ``steps`` and ``epochs`` are refused, and so
        are options of a gradient step, such as ``learner``, ``lr`` and ``diversity``.

        Args:
            model: The target, black boxes included; it is only read.
            meta_train: Its ``train`` split has the images that are sent.
            meta_test: Not used.
            **options: Any other of :class:`~reidguard.options.AttackOptions`. ``objective`` is for
                the feedback "features" alone.

        Returns:
            The attack itself.

        Raises:
            InputError: If an option is unknown, unused or out of range, if one batch takes more
                than the queries, or in a run of several processes.
        """
        if world() is not None:
            raise InputError("UniversalSquare searches in one process: start it without torchrun")
        given = {name: value for name, value in options.items() if value is not None}
        unused = [name for name in options_of(AttackOptions) if name not in USED]
        unused += ["objective"] if self.feedback != "features" else []
        if refused := [name for name in unused if name in given]:
            raise InputError(
                f"UniversalSquare with feedback={self.feedback!r} has no use for "
                f"{', '.join(refused)}: leave it out; queries=... of its constructor says how "
                "long it searches"
            )
        check_same_device(self, model)
        values = resolve(AttackOptions, options, identities=8, images_per_identity=4)
        batch = values["identities"] * values["images_per_identity"]
        values["steps"], values["epochs"] = self.queries // (2 * batch), None
        if values["steps"] == 0:
            raise InputError(
                f"queries={self.queries} are fewer than the {2 * batch} of one step: allow more, "
                "or take fewer identities or images_per_identity"
            )
        check_cameras(model, cameras_of(meta_train.train))
        (loader,) = batch_loaders([meta_train], values)
        view = inference_view(model)
        objective, source = self._objective(view, meta_train, loader, values)
        facts = {
            "model": fingerprint(model_key(model, values["image_size"])),
            "meta_train": {"name": meta_train.name, "train": meta_train.fingerprint("train")},
            "feedback": self.feedback,
            "queries": 2 * batch * values["steps"],
            **settings(AttackOptions, values),
        }
        learn(
            self,
            learner=RandomSearch(),
            objective=objective,
            optimizer=torch.optim.SGD(self.parameters(), lr=1.0),
            meta_train=source,
            settings={**facts, "attack": self.config()},
            **select(LoopOptions, values),
        )
        self.provenance = facts
        return self

    def _objective(
        self, view: ReIDModel, dataset: ReIDDataset, loader: BatchLoader, values: dict[str, Any]
    ) -> tuple[Objective, Batches]:
        """Return the objective of the feedback, and the batches that it takes."""
        compute = partial(
            with_representations, view=view, steps=values["steps"], progress=values["progress"]
        )
        if self.feedback == "features":
            loss = values["objective"] or "misranking"
            loss = loss if isinstance(loss, AttackLoss) else ATTACK_LOSSES.create(str(loss))
            values["objective"] = ATTACK_LOSSES.name_of(type(loss))
            source = compute(loader, loss=loss)
            if isinstance(source, CleanRepresentations):
                loss = loss.with_statistics(source.vectors)
            return FeatureObjective(view, loss), source
        gallery = compute(loader, loss=_Gallery())
        assert isinstance(gallery, CleanRepresentations)
        labels = dataset.train_labels
        pids = torch.tensor([labels[sample.pid] for sample in loader.samples])
        score = average_precision if self.feedback == "ranks" else margin
        return RetrievalObjective(
            view, gallery.vectors, pids.to(gallery.vectors.device), score
        ), loader


class _Gallery(AttackLoss):
    """No loss: it asks for the clean features of all training images."""

    needs_training_statistics = True

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class RetrievalObjective:
    """How well the other training images of its identity are found with each adversarial image.

    Args:
        model: The target.
        gallery: (images, D) clean normalized features of all training images.
        pids: (images,) their training labels.
        score: Of (N, images) distances, which of them are of the own identity, and which are of
            other images: (N,) values, lower for a stronger attack.
    """

    model: ReIDModel
    gallery: Tensor
    pids: Tensor
    score: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, attack: Callable[[Tensor], Tensor], batch: ReIDBatch) -> Tensor:
        """Return the mean score of a batch."""
        model = with_cameras(self.model, batch.camids)
        features = normalized_features(model, attack(batch.images))
        distance = torch.cdist(features, self.gallery.to(features.dtype))
        rows = torch.arange(len(features), device=features.device)
        others = torch.ones_like(distance, dtype=torch.bool)
        others[rows, batch.indices] = False  # the image itself
        matches = (self.pids == batch.pids[:, None]) & others
        return self.score(distance, matches, others).mean()


def margin(distance: Tensor, matches: Tensor, others: Tensor) -> Tensor:
    """Return the distance to the nearest non-match less that to the nearest match."""
    nearest = distance.masked_fill(~matches, torch.inf).amin(1)
    return distance.masked_fill(matches | ~others, torch.inf).amin(1) - nearest


def average_precision(distance: Tensor, matches: Tensor, others: Tensor) -> Tensor:
    """Return the average precision of each row."""
    order = distance.masked_fill(~others, torch.inf).argsort(1)
    hits = matches.gather(1, order)
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = hits.cumsum(1) / places
    return (precision * hits).sum(1) / hits.sum(1)


class RandomSearch(MetaLearner):
    """Tries one random change of the blocks of a δ, and leaves it as ``.grad`` if it is better.

    An optimiser that subtracts the gradient then takes the change.
    """

    needs_meta_test = False

    @torch.no_grad()
    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: ReIDBatch,
        meta_test_batch: ReIDBatch | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Compare the loss of a batch with and without a change.

        Args:
            module: A :class:`UniversalSquare`; it is left as it is.
            objective: Scalar loss of a module on a batch.
            meta_train_batch: The images that are sent.
            meta_test_batch: Not used.
            optimizer: Not used.
        """
        delta = module.get_parameter("delta")
        before = objective(module, meta_train_batch)
        old = delta.clone()
        negate_rectangle(delta)
        new = delta.clone()
        after = objective(module, meta_train_batch)
        delta.copy_(old)
        delta.grad = torch.where(after < before, old - new, torch.zeros_like(old))
        return StepResult(before)


def negate_rectangle(delta: Tensor) -> None:
    """Negate a random rectangle of blocks in some of the channels, in place.

    Args:
        delta: (1, 3, rows, columns). The global generator draws.
    """
    draws = torch.rand(4, dtype=torch.float64).tolist()
    spans = []
    for blocks, size, place in zip(delta.shape[2:], draws[:2], draws[2:], strict=True):
        side = min(int(math.exp(size * math.log(blocks + 1))), blocks)  # 1 as often as 2 and 3
        first = int(place * (blocks - side + 1))
        spans.append(slice(first, first + side))
    channels = 1 + int(torch.randint(7, ()))  # not empty
    for channel in range(3):
        if channels >> channel & 1:
            delta[:, channel, spans[0], spans[1]].neg_()
