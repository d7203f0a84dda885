"""Options of everything that learns: attacks, re-ID models and defenses."""

import os
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from reidguard.schema import MAX_SEED, MAX_SIDE, Option

if TYPE_CHECKING:
    from reidguard.data.augment import Augment
    from reidguard.learners.base import MetaLearner
    from reidguard.objectives.base import AttackLoss
    from reidguard.types import ProgressCallback

__all__ = [
    "DEFENSE_DEFAULTS",
    "TRAIN_DEFAULTS",
    "AttackOptions",
    "DefenseOptions",
    "FitOptions",
    "InputOptions",
    "LearnedAttackOptions",
    "LoopOptions",
    "ModelOptions",
    "SurrogateOptions",
    "TrainOptions",
]


class LoopOptions(TypedDict, total=False):
    """Options of :func:`learn <reidguard.training.learn>`, the loop of attacks and models.

    Example:
        >>> short: LoopOptions = {"steps": 100, "checkpoint": "run.safetensors"}
    """

    steps: Annotated[
        int | None,
        Option(
            "steps in all, in place of epochs",
            low=1,
            high=10**9,
            aliases=("iterations", "num_steps", "max_steps", "max_iter"),
        ),
    ]
    seed: Annotated[
        int, Option("seed of batches, augmentation and random layers", 0, low=0, high=MAX_SEED)
    ]
    checkpoint: Annotated[
        str | os.PathLike[str] | None,
        Option("file from which an interrupted run resumes, bit for bit", recorded=False),
    ]
    checkpoint_every: Annotated[
        int,
        Option("steps between two writes of the checkpoint", 50, low=1, high=10**9, recorded=False),
    ]
    progress: Annotated[
        "ProgressCallback | None", Option("called with a Progress after every step", recorded=False)
    ]


class FitOptions(LoopOptions, total=False):
    """Options of everything that learns from images.

    Example:
        >>> short: FitOptions = {"epochs": 1, "image_size": (128, 64)}
    """

    epochs: Annotated[
        int | None,
        Option(
            "passes over the training images, of the larger of two",
            low=1,
            high=10**6,
            excludes="steps",
            aliases=("num_epochs", "max_epochs"),
        ),
    ]
    lr: Annotated[
        float | None,
        Option(
            "learning rate at the start; of attacks, the step in [0, 1] pixel units",
            above=0,
            high=1e6,
            aliases=("learning_rate", "step_size", "alpha"),
        ),
    ]
    identities: Annotated[
        int | None,
        Option(
            "identities in a batch", low=1, high=10**4, aliases=("batch_size", "num_identities")
        ),
    ]
    images_per_identity: Annotated[
        int | None,
        Option(
            "images of each identity", low=1, high=10**4, aliases=("batch_size", "num_instances")
        ),
    ]
    image_size: Annotated[
        tuple[int, int],
        Option("height and width that images are resized to", (256, 128), low=1, high=MAX_SIDE),
    ]


class LearnedAttackOptions(FitOptions, total=False):
    """Options of every learned attack; all that :meth:`MisRank.fit <reidguard.MisRank.fit>` has.

    Example:
        >>> joint: LearnedAttackOptions = {"learner": "joint", "steps": 100}
    """

    learner: Annotated[
        "MetaLearner | str | None", Option("a learner or its registered name", recorded=False)
    ]
    momentum: Annotated[
        float | None,
        Option("weight of past gradients: of MI-SGD, or beta 1 of Adam", low=0, high=1),
    ]


class InputOptions(TypedDict, total=False):
    """What a surrogate sees of adversarial images, so that an attack suits other networks.

    Example:
        >>> diverse: InputOptions = {"diversity": 0.7, "scales": 3}
    """

    diversity: Annotated[
        float,
        Option(
            "probability with which the model sees an adversarial image shrunk to at least 0.9 of "
            "its size and shifted: weaker on the surrogate, stronger on other networks",
            0.0,
            low=0,
            high=1,
        ),
    ]
    shift: Annotated[
        int,
        Option(
            "largest shift in pixels, each way, of the adversarial image that the model sees",
            0,
            low=0,
            high=64,
        ),
    ]
    scales: Annotated[
        int,
        Option(
            "copies of an adversarial image that the model sees, each half as bright as the one "
            "before: as many passes per step",
            1,
            low=1,
            high=8,
        ),
    ]
    admix: Annotated[
        float,
        Option(
            "weight of an image of another identity that is added to each copy that the model sees",
            0.0,
            low=0,
            high=1,
        ),
    ]


class SurrogateOptions(TypedDict, total=False):
    """How passes of a surrogate are altered, so that an attack suits other networks.

    Example:
        >>> altered: SurrogateOptions = {"skip_gradient": 0.5, "ghost": 0.2}
    """

    skip_gradient: Annotated[
        float,
        Option(
            "factor on gradients through residual branches of the surrogate (SGM); 1 is off",
            1.0,
            above=0,
            high=1,
        ),
    ]
    linear_backward: Annotated[
        float,
        Option(
            "fraction of the surrogate's ReLUs, from the last, with a derivative of 1 (LinBP)",
            0.0,
            low=0,
            high=1,
        ),
    ]
    ghost: Annotated[
        float,
        Option(
            "multiply the surrogate's shortcuts by factors drawn from 1 ± this in each step (ghost "
            "networks)",
            0.0,
            low=0,
            high=1,
        ),
    ]


class AttackOptions(LearnedAttackOptions, InputOptions, SurrogateOptions, total=False):
    """Options of :meth:`UniversalAttack.fit <reidguard.UniversalAttack.fit>`.

    Example:
        >>> diverse: AttackOptions = {"diversity": 0.7, "objective": "misranking"}
        >>> attack.fit(model, data, **diverse)  # doctest: +SKIP
    """

    objective: Annotated["AttackLoss | str | None", Option("a loss or its registered name")]
    clip: Annotated[
        bool | None,
        Option("bring parameters into their bounds after each step; the budget holds anyway"),
    ]
    ensemble: Annotated[
        Literal["features", "loss", "gradient", "logits", "left_out"] | None,
        Option(
            "how several surrogates count: by the distances of their joined features (the default, "
            "unless a preset has another), by the mean of their losses, by their gradients, each "
            "normalised to the same length, by their mean logits, or, for learners with a "
            "meta-test, by the losses of all but one, and of that one for meta-test",
        ),
    ]
    nesterov: Annotated[
        bool, Option("compute the gradient where the momentum alone would lead", False)
    ]
    aggregate: Annotated[
        int,
        Option(
            "small batches that each batch is divided into, a divisor of images_per_identity: "
            "their gradients, each taken a step after the other, add up to that of one step",
            1,
            low=1,
            high=10**4,
        ),
    ]


class ModelOptions(FitOptions, total=False):
    """Options of everything that trains a re-ID model.

    Example:
        >>> plain: ModelOptions = {"augment": None, "weight_decay": 0.0}
    """

    weight_decay: Annotated[float, Option("weight decay of Adam", 5e-4, low=0, high=1e6)]
    augment: Annotated[
        "Augment | Literal['recipe'] | None",
        Option("augmentation of each batch; None leaves the images as they are", "recipe"),
    ]
    ema: Annotated[
        float | None,
        Option(
            "decay of an exponential moving average of the weights, which becomes the result; "
            "0.999 suits thousands of steps, 0.99 hundreds",
            above=0,
            high=1,
            excludes="swa",
            aliases=("ema_decay", "model_ema"),
        ),
    ]
    swa: Annotated[
        float | None,
        Option(
            "fraction of the steps after which the weights of all steps are averaged (SWA); the "
            "average becomes the result",
            low=0,
            high=1,
        ),
    ]


class TrainOptions(ModelOptions, total=False):
    """Options of :func:`train_model <reidguard.train_model>`.

    Example:
        >>> long: TrainOptions = {"recipe": "agw", "epochs": 120}
        >>> train_model(model, data, **long)  # doctest: +SKIP
    """

    recipe: Annotated[
        Literal["paper", "agw"], Option("losses, schedule and defaults of other options", "paper")
    ]
    margin: Annotated[
        float | None,
        Option("margin of the paper's triplet loss; AGW's has none", low=0, high=1e6),
    ]
    noise: Annotated[
        float | None,
        Option(
            "standard deviation of Gaussian noise on each training image, in [0, 1] pixel units, "
            "for larger certified radii",
            above=0,
            high=10,
        ),
    ]


TRAIN_DEFAULTS = {
    "epochs": "85, agw 120",
    "lr": "3e-4, agw 3.5e-4",
    "identities": "8, agw 16",
    "images_per_identity": "8, agw 4",
    "margin": "0.5",
}
"""Defaults of :class:`TrainOptions` that depend on the recipe, in words."""


class DefenseOptions(ModelOptions, total=False):
    """Options of :meth:`AdversarialTraining.fit <reidguard.AdversarialTraining.fit>`.

    Example:
        >>> small: DefenseOptions = {"epochs": 10, "recompute": True}
        >>> hardened = defense.fit(model, data, **small)  # doctest: +SKIP
    """

    recompute: Annotated[
        bool,
        Option(
            "recompute activations in the backward pass: less memory, one more forward pass for "
            "each with gradients; not with the learner 'maml'",
            False,
            recorded=False,
        ),
    ]


DEFENSE_DEFAULTS = {
    "epochs": "85",
    "lr": "3e-4, meta_released 2e-4",
    "identities": "8",
    "images_per_identity": "8",
}
"""Defaults of :class:`DefenseOptions` that depend on the defense, in words."""
