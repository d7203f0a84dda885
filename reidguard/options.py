"""Options of learning and evaluation, each defined once: type, default, range, one sentence.

Each group is a :class:`~typing.TypedDict` whose keys are annotated with their
:class:`~reidguard.schema.Option`: see :mod:`reidguard.schema`. The module imports neither torch nor
anything else that is slow to import.
"""

import os
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from reidguard.schema import MAX_SEED, MAX_SIDE, MAX_STEPS, Option

if TYPE_CHECKING:
    from reidguard.data.augment import Augment
    from reidguard.learners.base import MetaLearner
    from reidguard.objectives.base import AttackLoss
    from reidguard.types import ProgressCallback

__all__ = [
    "DEFENSE_DEFAULTS",
    "TRAIN_DEFAULTS",
    "AttackOptions",
    "AuditOptions",
    "AutoAttackOptions",
    "BatchOptions",
    "CertifyOptions",
    "DefenseOptions",
    "EvaluateOptions",
    "FitOptions",
    "GridOptions",
    "InputOptions",
    "LearnedAttackOptions",
    "LoopOptions",
    "MeasureOptions",
    "ModelOptions",
    "SurrogateOptions",
    "TrainOptions",
    "VirtualOptions",
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
        Literal["features", "loss", "gradient", "logits", "left_out"],
        Option(
            "how several surrogates count: by the distances of their joined features, by the mean "
            "of their losses, by their gradients, each normalised to the same length, by their "
            "mean logits, or, for learners with a meta-test, by the losses of all but one, and of "
            "that one for meta-test",
            "features",
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


class BatchOptions(TypedDict, total=False):
    """Options of everything that extracts features.

    Example:
        >>> small: BatchOptions = {"batch_size": 16}
    """

    batch_size: Annotated[
        int,
        Option(
            "images per forward pass; changes results by float noise at most",
            64,
            low=1,
            high=10**6,
            recorded=False,
        ),
    ]


class MeasureOptions(BatchOptions, total=False):
    """Options of everything that evaluates queries.

    Example:
        >>> quick: MeasureOptions = {"query_every": 8}
    """

    query_every: Annotated[
        int, Option("use every n-th query, for a quick look", 1, low=1, high=10**9)
    ]


class GridOptions(MeasureOptions, total=False):
    """Options of :func:`evaluate_grid <reidguard.evaluate_grid>`.

    Example:
        >>> quick: GridOptions = {"query_every": 8, "patterns": False}
        >>> result = evaluate_grid(attacks, models, datasets, **quick)  # doctest: +SKIP
    """

    patterns: Annotated[
        bool, Option("measure fixed patterns, too, where a learnt attack is transferred", True)
    ]


class EvaluateOptions(MeasureOptions, total=False):
    """Options of :func:`evaluate <reidguard.evaluate>`.

    Example:
        >>> gallery: EvaluateOptions = {"side": "gallery", "batch_size": 32}
        >>> result = evaluate(model, data, attack, **gallery)  # doctest: +SKIP
    """

    with_labels: Annotated[
        bool,
        Option(
            "give an instance attack the ground-truth identities, as the strongest attacker would "
            "know them; otherwise it infers them where it needs them",
            False,
        ),
    ]
    side: Annotated[
        Literal["query", "gallery"],
        Option("images that are perturbed: the queries, or the whole gallery", "query"),
    ]


class AutoAttackOptions(MeasureOptions, total=False):
    """Options of :meth:`RetrievalAutoAttack.run <reidguard.RetrievalAutoAttack.run>`.

    Example:
        >>> quick: AutoAttackOptions = {"query_every": 32, "audit_queries": 0}
        >>> result = RetrievalAutoAttack().run(model, data, **quick)  # doctest: +SKIP
    """

    early_stop: Annotated[
        bool, Option("attack a broken query no further; robust mAP is then not measured", False)
    ]
    audit_queries: Annotated[
        int,
        Option(
            "approximate number of queries of the audit; 0 for no audit", 100, low=0, high=10**9
        ),
    ]


class AuditOptions(BatchOptions, total=False):
    """Options of :func:`audit <reidguard.audit>`.

    Example:
        >>> quick: AuditOptions = {"queries": 24, "learning_steps": 0}
        >>> report = audit(model, data, **quick)  # doctest: +SKIP
    """

    eps: Annotated[
        float,
        Option("radius of the gradient checks and of transfer", 8 / 255, above=0, high=1),
    ]
    epsilons: Annotated[
        tuple[float, ...],
        Option(
            "rising radii of the curve; 0 is always measured",
            (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
            above=0,
            high=1,
        ),
    ]
    attack_steps: Annotated[
        int, Option("iterations of SMA, each of 2.5 ε / steps", 15, low=1, high=MAX_STEPS)
    ]
    learning_steps: Annotated[
        int, Option("steps of a universal delta; 0 for none", 50, low=0, high=10**9)
    ]
    queries: Annotated[
        int,
        Option("approximate number of queries to attack, evenly spaced", 100, low=1, high=10**9),
    ]
    probes: Annotated[int, Option("queries whose gradients are examined", 8, low=1, high=10**6)]
    seed: Annotated[int, Option("seed of starts and batches", 0, low=0, high=MAX_SEED)]


class CertifyOptions(MeasureOptions, total=False):
    """Options of :func:`certify <reidguard.certify>`.

    Example:
        >>> quick: CertifyOptions = {"sigma": 0.1, "draws": 100, "query_every": 64}
        >>> result = certify(model, data, **quick)  # doctest: +SKIP
    """

    sigma: Annotated[
        float,
        Option("standard deviation of the noise, in [0, 1] pixel units", 0.1, above=0, high=10),
    ]
    draws: Annotated[int, Option("noisy copies of each query", 1000, low=1, high=10**6)]
    alpha: Annotated[
        float,
        Option(
            "probability with which the bound of a query may be wrong", 0.001, above=0, high=0.5
        ),
    ]
    ranks: Annotated[
        tuple[int, ...],
        Option("a match must be among the first of so many", (1, 5, 10), low=1, high=10**6),
    ]
    radius: Annotated[
        float,
        Option("L2 radius of the accuracies that are shown and judged", 0.1, low=0, high=1e6),
    ]
    seed: Annotated[int, Option("seed of the noise", 0, low=0, high=MAX_SEED)]


class VirtualOptions(TypedDict, total=False):
    """Options of :func:`read_virtual <reidguard.virtual.read_virtual>`.

    Example:
        >>> few: VirtualOptions = {"train_identities": 10, "height": 64}
        >>> data = load_dataset("virtual:plaza", **few)  # doctest: +SKIP
    """

    train_identities: Annotated[int, Option("training identities", 100, low=1, high=5000)]
    test_identities: Annotated[
        int,
        Option(
            "test identities; the gallery has twice as many images of distractors",
            75,
            low=1,
            high=4998,
        ),
    ]
    cameras: Annotated[int, Option("cameras of the domain", 6, low=2, high=99)]
    images_per_camera: Annotated[
        int,
        Option(
            "images of each identity by each camera; in the test one is the query",
            4,
            low=2,
            high=999,
        ),
    ]
    height: Annotated[
        int,
        Option("image height, a multiple of 32; the width is half of it", 128, low=64, high=1024),
    ]
    seed: Annotated[
        int, Option("other identities and cameras of the domain", 0, low=0, high=MAX_SEED)
    ]
    balanced: Annotated[
        bool,
        Option(
            "show each identity to each camera once every 10 degrees: 36 images, whatever "
            "images_per_camera is",
            False,
        ),
    ]
