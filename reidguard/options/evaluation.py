"""Options of everything that measures: evaluations, grids, audits and certificates."""

from typing import Annotated, Literal, TypedDict

from reidguard.schema import MAX_SEED, MAX_STEPS, Option

__all__ = [
    "AuditOptions",
    "AutoAttackOptions",
    "BatchOptions",
    "CertifyOptions",
    "EvaluateOptions",
    "GridOptions",
    "MeasureOptions",
]


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
