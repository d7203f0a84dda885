"""`audit`: can the figures of gradient attacks on a model be believed, or are its gradients masked?

A model may look robust because attacks by gradients fail on it, and not because it resists. The
checks are those that the literature on adversarial examples asks for (Athalye et al., 2018; Carlini
et al., 2019), on features in place of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reidguard.attacks import SMA, Attack, DeltaAttack
from reidguard.data import ReIDDataset, iterate_images
from reidguard.errors import InputError, TrainingError
from reidguard.evaluation.evaluate import EvaluationResult, evaluate
from reidguard.evaluation.features import FeatureStore, module_device, to_device, to_float
from reidguard.evaluation.protocol import Protocol
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.objectives import normalized_features
from reidguard.storage import library_versions, weights_fingerprint
from reidguard.types import Budget

__all__ = ["AuditReport", "Finding", "audit"]

Progress = Callable[[int, int], None]
Level = Literal["ok", "warning", "error", "unchecked"]

STARTS = 2  # random points of the ball around each probed image
PROBE = 0.1 / 255  # step of the finite difference, per pixel

# Limits beyond which a check warns; docs/audit.rst gives the reasons.
MASKED_STARTS = 0.1  # share of starts at which most of the gradient is exactly zero
RANDOM = 1e-3  # relative difference of two equal calls
MISMATCH = (0.5, 2.0)  # measured over predicted change of the loss, median
POINTS = 0.02  # mAP that may be lost to chance, whatever the spread
DEVIATIONS = 3.0  # standard errors of a paired difference

TITLES = {
    "non_finite_gradients": "gradients are finite",
    "zero_gradients": "gradients are not zero",
    "randomness": "equal calls give equal results",
    "gradient_mismatch": "gradients predict the loss",
    "curve": "more ε hurts more",
    "transfer": "white-box hurts more than transfer",
}

CURES = {
    "non_finite_gradients": "Gradient attacks do nothing where the gradient is NaN or infinite. "
    "Find the operation (a root or a norm at zero, a logarithm, a division), bound it away from "
    "there, and measure again.",
    "zero_gradients": "Gradient attacks stand still. Replace what has no gradient (rounding, "
    "thresholds, detached tensors) by a differentiable stand-in in the backward pass, and attack "
    "with SquareAttack, which needs no gradient.",
    "randomness": "One gradient is one draw. Average gradients and features over many draws, or "
    "fix the draw, before any figure is reported.",
    "gradient_mismatch": "The backward pass is not the derivative of the forward pass, or the loss "
    "is shattered. Attack through a smooth stand-in, and with SquareAttack, which needs no "
    "gradient.",
    "curve": "The attack fails at the larger ε, the model does not resist. Give it more steps and "
    "restarts, and report the lowest figure of all ε up to the one that is named.",
    "transfer": "The white-box figure is too favourable. Report the transfer figure as the "
    "model's, and give the white-box attack more steps, restarts, or another goal (FNA, "
    "SquareAttack).",
}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: ``zero_gradients``, ``non_finite_gradients``, ``randomness``, ``gradient_mismatch``,
            ``curve`` or ``transfer``.
        level: ``error`` where attacks by gradients cannot have worked, ``warning`` where their
            figures are doubtful, ``ok``, or ``unchecked``.
        measured: The figure, in words; the reason where nothing was checked.
        limit: Beyond what the check warns.
        evidence: Figures by name. mAP lies in [0, 1], ε in grey levels.
        cure: What to do about it; empty where nothing is to be done.
    """

    name: str
    level: Level
    measured: str
    limit: str = ""
    evidence: dict[str, float] = field(default_factory=dict)
    cure: str = ""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Silence proves nothing: masked gradients may escape all checks.

    Attributes:
        findings: One of each check, in the order of severity.
        curve: mAP and rank-1 of SMA by ``eps`` (grey levels), from 0 (clean) up.
        transfer: Per attack, the mAP it leaves when made on the model and when made on the
            surrogate.
        facts: What was audited, and how.
    """

    findings: tuple[Finding, ...]
    curve: tuple[dict[str, float], ...]
    transfer: tuple[dict[str, Any], ...]
    facts: dict[str, Any]

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings of level ``error`` and ``warning``."""
        return tuple(f for f in self.findings if f.level in ("error", "warning"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: mAP in [0, 1], ε in grey levels."""
        return {
            "warnings": [finding.name for finding in self.warnings],
            "findings": [asdict(finding) for finding in self.findings],
            "curve": list(self.curve),
            "transfer": list(self.transfer),
            "facts": self.facts,
            "versions": library_versions(),
        }

    def to_markdown(self) -> str:
        """Return tables for people, and what to do about each warning."""
        verdicts = {"ok": "ok", "unchecked": "not checked", "warning": "WARNING", "error": "ERROR"}
        found = len(self.warnings)
        verdict = f"{found} warning{'s' * (found > 1)}" if found else "no sign of masked gradients"
        title = f"Audit on {self.facts['dataset']} ({self.facts['queries']} queries): {verdict}"
        rows = [
            [TITLES[f.name], f.measured, f.limit or "-", verdicts[f.level]] for f in self.findings
        ]
        parts = [title, _table(["check", "measured", "warns", ""], rows)]
        if self.curve:
            head = ["SMA, ε ·255", *(f"{point['eps']:g}" for point in self.curve)]
            shares = [
                [name, *(f"{100 * point[key]:.1f}" for point in self.curve)]
                for name, key in (("mAP", "mAP"), ("rank-1", "rank1"))
            ]
            parts.append(_table(head, shares))
        if self.transfer:
            cells = [
                [
                    row["attack"],
                    f"{100 * row['white_box']:.1f}",
                    f"{100 * row['surrogate']:.1f}",
                ]
                for row in self.transfer
            ]
            eps = f"{self.facts['eps']:g}"
            parts.append(
                _table([f"mAP at ε = {eps}/255, made on", "the model", "the surrogate"], cells)
            )
        parts += [f"{verdicts[f.level]}: {TITLES[f.name]}? {f.cure}" for f in self.warnings]
        return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def audit(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    surrogate: ReIDModel | None = None,
    eps: float = 8 / 255,
    epsilons: Sequence[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
    attack_steps: int = 15,
    learning_steps: int = 50,
    queries: int = 100,
    probes: int = 8,
    protocol: Protocol | None = None,
    store: FeatureStore | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditReport:
    """Look for signs that a model's gradients are masked, so that attacks on it fail.

    On a few queries, at random points of the ε-ball: gradients that are zero or not finite, that
    differ between two equal calls (as may features), or that do not predict the loss. On more
    queries: a curve of SMA over ε along which more ε hurts less. With a surrogate: SMA and a
    universal delta that hurt more when they were made on the surrogate than on the model itself,
    with equal steps and seeds. Cost: about ``attack_steps · (len(epsilons) + 1)`` passes forward
    and backward for each of the queries, and twice ``learning_steps`` steps of learning.

    Args:
        model: The model whose robustness is in question. It comes back untouched.
        dataset: Queries and gallery measure; training images teach the universal delta.
        surrogate: Another model, on the same device, such as the normal one that a defense started
            from; None leaves transfer unchecked.
        eps: The ball of the gradient checks and of transfer.
        epsilons: The curve's, rising; 0 is always measured.
        attack_steps: Iterations of SMA, each of 2.5 ε / steps.
        learning_steps: Steps that a universal delta learns; 0 leaves it out.
        queries: About how many queries to attack, evenly spaced.
        probes: Queries whose gradients are looked at.
        protocol: How to read and score; None is ``Protocol()``.
        store: Keeps the gallery's clean features for further calls.
        batch_size: Images per forward pass.
        seed: Fixes starts and batches.
        progress: Called with (parts done, parts in all).

    Raises:
        InputError: If an option has a wrong value, the models are on different devices, or the
            model's features themselves are not finite.
        DataError: If an image cannot be read.

    Example:
        >>> import tempfile
        >>> from reidguard.virtual import read_virtual
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grid = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
        >>> model = wrap_model(grid, input_spec=InputSpec(size=None))
        >>> few = {"train_identities": 3, "test_identities": 3, "cameras": 2, "height": 64}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = read_virtual(root=f"{folder}/set", images_per_camera=2, **few)
        ...     report = audit(model, people, protocol=Protocol(image_size=(64, 32)))
        >>> report.warnings
        ()
        >>> report.findings[-1].name, report.findings[-1].level
        ('transfer', 'unchecked')
    """
    protocol = Protocol() if protocol is None else protocol
    store = FeatureStore() if store is None else store
    budget = Budget(eps)
    radii = [Budget(e) for e in epsilons]
    rising = all(a.eps < b.eps for a, b in zip([Budget(0), *radii], radii, strict=False))
    if eps == 0 or not radii or not rising:
        raise InputError("eps must be above 0, and epsilons must be some that rise from above 0")
    if min(attack_steps, queries, probes, batch_size) < 1 or learning_steps < 0:
        raise InputError(
            "attack_steps, queries, probes and batch_size must be at least 1, and learning_steps "
            "at least 0"
        )
    if not dataset.query or not dataset.gallery:
        raise InputError(f"{dataset.name} has no query or no gallery images; nothing can be ranked")
    device = module_device(model)
    if surrogate is not None and module_device(surrogate) != device:
        raise InputError(
            f"the model is on {device}, the surrogate on {module_device(surrogate)}; "
            f"call surrogate.to({str(device)!r})"
        )
    every = math.ceil(len(dataset.query) / queries)
    parts = 1 + len(radii) + (0 if surrogate is None else 4)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, parts)

    def measure(attack: Attack) -> EvaluationResult:
        result = evaluate(
            model,
            dataset,
            attack,
            protocol,
            store=store,
            batch_size=batch_size,
            query_every=every,
        )
        tick()
        return result

    def sma(budget: Budget) -> SMA:
        return SMA(budget, steps=attack_steps, step_size=2.5 * budget.eps / attack_steps, seed=seed)

    chosen = dataset.query[:: max(1, len(dataset.query) // probes)][:probes]
    probed: list[_Gradients] = []
    for _, pixels in iterate_images(chosen, protocol.image_size, batch_size):
        x = to_float(to_device(pixels, device), protocol.dtype)
        probed.append(_probe(model, x, eps, seed))
    gradients = _Gradients(**{k: torch.cat([vars(g)[k] for g in probed]) for k in vars(probed[0])})
    findings = _gradient_findings(gradients)
    tick()

    curve: list[dict[str, float]] = []
    transfer: list[dict[str, Any]] = []
    if not bool(gradients.connected.all()):
        reason = "features are cut off from the image, so no gradient attack runs"
        findings += [Finding(name, "unchecked", reason) for name in ("curve", "transfer")]
    else:
        results = [measure(sma(radius).bind(model)) for radius in radii]
        finding, curve = _curve_finding(radii, results)
        findings.append(finding)
        if surrogate is None:
            findings.append(
                Finding("transfer", "unchecked", "no surrogate model was given to compare with")
            )
        else:
            pairs: list[tuple[str, Attack, Attack]] = [
                ("SMA", sma(budget).bind(model), sma(budget).bind(surrogate))
            ]
            if learning_steps > 0 and dataset.num_train_pids > 1:

                def delta(source: ReIDModel) -> DeltaAttack:
                    return (
                        DeltaAttack(budget, size=protocol.image_size)
                        .to(device)
                        .fit(
                            source,
                            dataset,
                            steps=learning_steps,
                            identities=min(8, dataset.num_train_pids),
                            image_size=protocol.image_size,
                            seed=seed,
                        )
                    )

                # Gradients that are not finite teach nothing, and are reported above.
                with suppress(TrainingError):
                    pairs.append(("delta", delta(model), delta(surrogate)))
            rows = [(name, measure(own), measure(other)) for name, own, other in pairs]
            finding, transfer = _transfer_finding(rows)
            findings.append(finding)
    if progress is not None and done < parts:
        progress(parts, parts)
    return AuditReport(
        findings=tuple(findings),
        curve=tuple(curve),
        transfer=tuple(transfer),
        facts={
            "dataset": dataset.name,
            "queries": len(dataset.query[::every]),
            "query_every": every,
            "probes": len(chosen),
            "eps": 255 * eps,
            "attack_steps": attack_steps,
            "learning_steps": learning_steps,
            "seed": seed,
            "protocol": protocol.to_dict(),
            "fingerprints": {s: dataset.fingerprint(s) for s in ("query", "gallery")},
            "weights": weights_fingerprint(model),
            "surrogate": None if surrogate is None else weights_fingerprint(surrogate),
        },
    )


@dataclass
class _Gradients:
    """Figures of the gradient of SMA's goal, one for each probed image and start: (P,) each."""

    connected: Tensor
    finite: Tensor
    zero: Tensor  # share of values that are exactly zero
    features_differ: Tensor  # relative difference of two equal calls
    gradients_differ: Tensor
    agreement: Tensor  # measured over predicted change of the goal; NaN where none is predicted


def _probe(model: ReIDModel, x: Tensor, eps: float, seed: int) -> _Gradients:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed)
    found = []
    model = inference_view(model)
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            clean = normalized_features(model, x)

        def goal(images: Tensor) -> Tensor:
            return ((normalized_features(model, images) - clean) ** 2).sum(1)

        for _ in range(STARTS):
            noise = 2 * torch.rand(x.shape, generator=generator).to(x) - 1
            # Not up to the borders, so that the finite difference stays inside them.
            start = (x + eps * noise).clamp(PROBE, 1 - PROBE)
            first, again = (_gradient(goal, start) for _ in range(2))
            with torch.no_grad():
                pair = [normalized_features(model, start) for _ in range(2)]
                step = PROBE * first.gradient.sign().nan_to_num()
                predicted = 2 * (first.gradient * step).flatten(1).sum(1)
                measured = goal(start + step) - goal(start - step)
            found.append(
                _Gradients(
                    connected=torch.full((len(x),), first.connected),
                    finite=first.gradient.isfinite().flatten(1).all(1),
                    zero=(first.gradient == 0).double().flatten(1).mean(1),
                    features_differ=_difference(*pair),
                    gradients_differ=_difference(first.gradient, again.gradient),
                    agreement=(measured / predicted).double(),  # 0 / 0 is NaN, which is left out
                )
            )
    return _Gradients(**{k: torch.cat([vars(f)[k] for f in found]).cpu() for k in vars(found[0])})


@dataclass
class _Gradient:
    gradient: Tensor
    connected: bool


def _gradient(goal: Callable[[Tensor], Tensor], start: Tensor) -> _Gradient:
    images = start.detach().requires_grad_()
    value = goal(images)
    if not value.requires_grad:
        return _Gradient(torch.zeros_like(start), False)
    (gradient,) = torch.autograd.grad(value.sum(), images, allow_unused=True)
    if gradient is None:
        return _Gradient(torch.zeros_like(start), False)
    return _Gradient(gradient, True)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return |a − b| / |a| by row; 0 where both are equal or one is not finite."""
    a, b = (t.detach().double().flatten(1) for t in (a, b))
    size = torch.maximum(a.norm(dim=1), b.norm(dim=1))
    share: Tensor = (a - b).norm(dim=1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return share.nan_to_num(nan=0.0, posinf=0.0)


def _gradient_findings(g: _Gradients) -> list[Finding]:
    broken = float((~g.finite).double().mean())
    masked = float((g.zero > 0.5).double().mean())
    features, gradients = float(g.features_differ.max()), float(g.gradients_differ.max())
    usable = g.agreement[g.agreement.isfinite()]
    findings = [
        _finding(
            "non_finite_gradients",
            "error" if broken > 0 else "ok",
            f"NaN or infinite at {100 * broken:.0f} % of {len(g.finite)} starts",
            "above 0 %",
            {"share": broken},
        ),
        _finding(
            "zero_gradients",
            "error" if masked > MASKED_STARTS else "ok",
            f"mostly zero at {100 * masked:.0f} % of starts",
            f"above {100 * MASKED_STARTS:.0f} %",
            {"share": masked, "zero_values": float(g.zero.mean())},
        ),
        _finding(
            "randomness",
            "warning" if max(features, gradients) > RANDOM else "ok",
            f"features differ by {features:.1e}, gradients by {gradients:.1e}",
            f"above {RANDOM:g}",
            {"features": features, "gradients": gradients},
        ),
    ]
    if len(usable) == 0:
        reason = "no gradient predicts any change of the loss"
        return [*findings, Finding("gradient_mismatch", "unchecked", reason)]
    agreement = float(usable.median())
    low, high = MISMATCH
    findings.append(
        _finding(
            "gradient_mismatch",
            "ok" if low <= agreement <= high else "warning",
            f"the loss changes {agreement:.2f} times as predicted (median)",
            f"outside {low:g} to {high:g}",
            {"median": agreement, "starts": float(len(usable))},
        )
    )
    return findings


def _finding(
    name: str, level: Level, measured: str, limit: str, evidence: dict[str, float]
) -> Finding:
    cure = CURES[name] if level in ("warning", "error") else ""
    return Finding(name, level, measured, limit, evidence, cure)


def _excess(stronger: Tensor, weaker: Tensor) -> tuple[float, float]:
    """Return by how much mAP what should be stronger stays above the other, and what chance may do.

    The same queries are in both, so their differences count, and skipped queries in neither.
    """
    gain = stronger - weaker
    gain = gain[~gain.isnan()]
    error = float(gain.std(correction=0)) / math.sqrt(len(gain))
    return float(gain.mean()), max(POINTS, DEVIATIONS * error)


def _curve_finding(
    radii: Sequence[Budget], results: Sequence[EvaluationResult]
) -> tuple[Finding, list[dict[str, float]]]:
    points = [(0.0, results[0].clean)]
    for radius, result in zip(radii, results, strict=True):
        assert result.attacked is not None
        points.append((255 * radius.eps, result.attacked.ranking))
    curve = [{"eps": e, "mAP": r.mAP, "rank1": r.rank_k(1)} for e, r in points]
    worst: tuple[float, dict[str, float]] | None = None
    for later, (eps, ranking) in enumerate(points):
        for before, lower in points[:later]:
            gain, margin = _excess(ranking.ap, lower.ap)
            if worst is None or gain - margin > worst[0]:
                evidence = {"eps": eps, "smaller_eps": before, "gain": gain, "margin": margin}
                worst = (gain - margin, evidence)
    assert worst is not None
    excess, evidence = worst
    finding = _finding(
        "curve",
        "warning" if excess > 0 else "ok",
        f"mAP {_points(evidence['gain'])} from ε = {evidence['smaller_eps']:g} to "
        f"{evidence['eps']:g}",
        f"above {_points(evidence['margin'])}",
        evidence,
    )
    return finding, curve


def _transfer_finding(
    rows: Sequence[tuple[str, EvaluationResult, EvaluationResult]],
) -> tuple[Finding, list[dict[str, Any]]]:
    table: list[dict[str, Any]] = []
    worst: tuple[float, str, dict[str, float]] | None = None
    for name, own, other in rows:
        assert own.attacked is not None
        assert other.attacked is not None
        gain, margin = _excess(own.attacked.ranking.ap, other.attacked.ranking.ap)
        white, black = own.attacked.ranking.mAP, other.attacked.ranking.mAP
        table.append({"attack": name, "white_box": white, "surrogate": black, "margin": margin})
        if worst is None or gain - margin > worst[0]:
            evidence = {"white_box": white, "surrogate": black, "gain": gain, "margin": margin}
            worst = (gain - margin, name, evidence)
    assert worst is not None
    excess, name, evidence = worst
    finding = _finding(
        "transfer",
        "warning" if excess > 0 else "ok",
        f"white-box {name} leaves {_points(evidence['gain'])} mAP over transfer",
        f"above {_points(evidence['margin'])}",
        evidence,
    )
    return finding, table


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
