"""`audit`: check whether the gradients of a model are masked, so that gradient attacks on it fail.

A model may look robust because gradient attacks fail on it, and not because it resists. The checks
are those of the literature on adversarial examples (Athalye et al., 2018; Carlini et al., 2019), on
features in place of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from reidguard.attacks import SMA, Attack, DeltaAttack
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.errors import InputError, TrainingError
from reidguard.evaluation.audit_report import AuditReport, Finding, make_finding
from reidguard.evaluation.evaluate import evaluate_with
from reidguard.evaluation.features import CountCallback, FeatureStore
from reidguard.evaluation.gradient_checks import GradientProbe, gradient_findings, probe_gradients
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.retrieval import Retrieval
from reidguard.fingerprint import weights_fingerprint
from reidguard.metrics import RankingResult
from reidguard.models import ReIDModel
from reidguard.nn.cameras import cameras_of
from reidguard.nn.gradients import count_gradients
from reidguard.options import AuditOptions
from reidguard.schema import documented, resolve
from reidguard.types import Budget

__all__ = ["audit"]

POINTS = 0.02  # mAP that may be lost to chance, whatever the spread
DEVIATIONS = 3.0  # standard errors of a paired difference


@documented(AuditOptions)
@count_gradients()  # its findings say what warnings would
@fixed_context()
def audit(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    surrogate: ReIDModel | None = None,
    protocol: Protocol | None = None,
    store: FeatureStore | None = None,
    progress: CountCallback | None = None,
    **options: Unpack[AuditOptions],
) -> AuditReport:
    """Look for signs that a model's gradients are masked, so that attacks on it fail.

    On a few queries, at random points of the ε-ball: gradients that are zero or not finite, that
    differ between two equal calls (as may features), or that do not predict the loss. On more
    queries: mAP under SMA that is higher at a larger ε. With a surrogate: SMA and a universal delta
    that are stronger when made on the surrogate than on the model itself, with equal steps and
    seeds. Cost: about ``attack_steps · (len(epsilons) + 1)`` passes forward and backward for each
    of the queries, and twice ``learning_steps`` training steps.

    Args:
        model: The model whose robustness is in question. It is not changed.
        dataset: Queries and gallery are for measuring, training images for the universal delta.
        surrogate: Another model, on the same device, such as the normal one that a defense started
            from; None leaves transfer unchecked.
        protocol: How to read and score; None is ``Protocol()``.
        store: Caches clean features for further calls.
        progress: Called with (parts done, parts in all).
        **options: Any of :class:`~reidguard.options.AuditOptions`.

    Raises:
        InputError: If an option has a wrong value, the models are on different devices, or the
            model's features themselves are not finite.
        DataError: If an image cannot be read.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grid = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
        >>> model = wrap_model(grid, input_spec=InputSpec(size=None))
        >>> few = "virtual:plaza?identities=3&cameras=2&images_per_camera=2&height=64"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = load_dataset(few, folder=f"{folder}/set")
        ...     report = audit(model, people, protocol=Protocol(image_size=(64, 32)))
        >>> report.warnings
        ()
        >>> report.findings[-1].name, report.findings[-1].level
        ('transfer', 'unchecked')
    """
    values = resolve(AuditOptions, options)
    radii = [Budget(eps) for eps in values["epsilons"]]
    rising = all(a.eps < b.eps for a, b in zip([Budget(0), *radii], radii, strict=False))
    if not radii or not rising:
        raise InputError("epsilons must be some that rise from above 0")
    retrieval = Retrieval(model, dataset, protocol, store, values["batch_size"])
    retrieval.check_device("surrogate", surrogate)
    every = math.ceil(len(dataset.query) / values["queries"])
    total = 1 + len(radii) + (0 if surrogate is None else 4)
    remaining = iter(range(1, total + 1))

    def tick() -> None:
        done = next(remaining)
        if progress is not None:
            progress(done, total)

    run = AuditRun(retrieval, every, values, tick)
    gradients, probes = run.probe()
    findings = gradient_findings(gradients)
    tick()
    curve: list[dict[str, float]] = []
    transfer: list[dict[str, Any]] = []
    if not bool(gradients.connected.all()):
        reason = "features are cut off from the image, so no gradient attack runs"
        findings += [Finding(name, "unchecked", reason) for name in ("curve", "transfer")]
    else:
        finding, curve = run.curve(radii)
        findings.append(finding)
        finding, transfer = run.transfer(surrogate)
        findings.append(finding)
    if progress is not None and next(remaining, None) is not None:
        progress(total, total)
    return AuditReport(
        findings=tuple(findings),
        curve=tuple(curve),
        transfer=tuple(transfer),
        facts={
            "dataset": dataset.name,
            "queries": len(dataset.query[::every]),
            "query_every": every,
            "probes": probes,
            **{name: values[name] for name in ("eps", "attack_steps", "learning_steps", "seed")},
            "protocol": retrieval.protocol.to_dict(),
            "fingerprints": {s: dataset.fingerprint(s) for s in ("query", "gallery")},
            "weights": weights_fingerprint(model),
            "surrogate": None if surrogate is None else weights_fingerprint(surrogate),
        },
    )


@dataclass(frozen=True)
class AuditRun:
    """The measurements of an audit.

    Args:
        retrieval: Model, dataset and protocol.
        every: Every n-th query is attacked.
        options: All of :class:`~reidguard.options.AuditOptions`.
        tick: Called after each measurement of an attack.
    """

    retrieval: Retrieval
    every: int
    options: Mapping[str, Any]
    tick: Callable[[], None]

    def probe(self) -> tuple[GradientProbe, int]:
        """Measure the gradients of some queries, and return the number of these, too."""
        query, count = self.retrieval.dataset.query, self.options["probes"]
        samples = query[:: max(1, len(query) // count)][:count]
        probes = [
            probe_gradients(
                self.retrieval.model,
                self.retrieval.to_input(pixels),
                self.options["eps"],
                self.options["seed"],
                cameras_of(samples[place]),
            )
            for place, pixels in self.retrieval.read(samples)
        ]
        return GradientProbe.concatenated(probes), len(samples)

    def measure(self, attack: Attack) -> tuple[RankingResult, RankingResult]:
        """Return the clean and the attacked ranking."""
        result = evaluate_with(self.retrieval, attack, self.every)
        self.tick()
        assert result.attacked is not None
        return result.clean, result.attacked.ranking

    def sma(self, budget: Budget, source: ReIDModel) -> Attack:
        """Return SMA with steps of 2.5 ε / steps, bound to a model."""
        steps, seed = self.options["attack_steps"], self.options["seed"]
        return SMA(budget, steps=steps, step_size=2.5 * budget.eps / steps, seed=seed).bind(source)

    def delta(self, budget: Budget, source: ReIDModel) -> Attack:
        """Return a universal delta learnt on a model."""
        dataset, size = self.retrieval.dataset, self.retrieval.protocol.image_size
        attack = DeltaAttack(budget, size=size).to(self.retrieval.device)
        return attack.fit(
            source,
            dataset,
            steps=self.options["learning_steps"],
            identities=min(8, dataset.num_train_pids),
            image_size=size,
            seed=self.options["seed"],
        )

    def curve(self, radii: Sequence[Budget]) -> tuple[Finding, list[dict[str, float]]]:
        """Check that mAP under SMA falls as ε rises."""
        rankings = [self.measure(self.sma(budget, self.retrieval.model)) for budget in radii]
        points = [(0.0, rankings[0][0])]
        points += [(b.eps, attacked) for b, (_, attacked) in zip(radii, rankings, strict=True)]
        pairs = [
            (*_excess(ranking.ap, lower.ap), eps, smaller)
            for later, (eps, ranking) in enumerate(points)
            for smaller, lower in points[:later]
        ]
        gain, margin, eps, smaller = max(pairs, key=lambda pair: pair[0] - pair[1])
        finding = make_finding(
            "curve",
            "warning" if gain > margin else "ok",
            f"mAP {_points(gain)} from ε = {255 * smaller:g} to {255 * eps:g}",
            f"above {_points(margin)}",
            {"eps": eps, "smaller_eps": smaller, "gain": gain, "margin": margin},
        )
        return finding, [{"eps": e, "mAP": r.mAP, "rank1": r.rank_k(1)} for e, r in points]

    def transfer(self, surrogate: ReIDModel | None) -> tuple[Finding, list[dict[str, Any]]]:
        """Check that attacks made on the model are stronger than those on the surrogate."""
        if surrogate is None:
            reason = "no surrogate model to compare with"
            return Finding("transfer", "unchecked", reason), []
        budget, sources = Budget(self.options["eps"]), (self.retrieval.model, surrogate)
        attacks = {"SMA": [self.sma(budget, source) for source in sources]}
        if self.options["learning_steps"] > 0 and self.retrieval.dataset.num_train_pids > 1:
            # Gradients that are not finite teach nothing, and are reported above.
            with suppress(TrainingError):
                attacks["delta"] = [self.delta(budget, source) for source in sources]
        rows: list[dict[str, Any]] = []
        for name, pair in attacks.items():
            own, other = (self.measure(attack)[1] for attack in pair)
            gain, margin = _excess(own.ap, other.ap)
            row = {"attack": name, "white_box": own.mAP, "surrogate": other.mAP, "gain": gain}
            rows.append({**row, "margin": margin})
        worst = max(rows, key=lambda row: row["gain"] - row["margin"])
        gain, margin = worst["gain"], worst["margin"]
        finding = make_finding(
            "transfer",
            "warning" if gain > margin else "ok",
            f"white-box {worst['attack']} leaves {_points(gain)} mAP over transfer",
            f"above {_points(margin)}",
            {name: value for name, value in worst.items() if name != "attack"},
        )
        return finding, rows


def _excess(stronger: Tensor, weaker: Tensor) -> tuple[float, float]:
    """Return the mAP of the stronger attack less that of the weaker, and the margin of chance.

    Both are measured on the same queries, so paired differences count; skipped queries do not.
    """
    gain = stronger - weaker
    gain = gain[~gain.isnan()]
    error = float(gain.std(correction=0)) / math.sqrt(len(gain))
    return float(gain.mean()), max(POINTS, DEVIATIONS * error)


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f} points"
