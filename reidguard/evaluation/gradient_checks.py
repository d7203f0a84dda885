"""The checks of `audit` on input gradients: finite, not zero, repeatable, accurate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.evaluation.audit_report import Finding, make_finding
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import with_cameras
from reidguard.nn.gradients import check_graph, graph_needed
from reidguard.objectives import normalized_features

__all__ = ["GradientProbe", "gradient_findings", "probe_gradients"]

STARTS = 2  # random points of the ball around each probed image
PROBE = 0.1 / 255  # step of the finite difference, per pixel

# Limits beyond which a check warns; docs/audit.rst gives the reasons.
MASKED_STARTS = 0.1  # fraction of starts at which most of the gradient is exactly zero
RANDOM = 1e-3  # relative difference of two equal calls
MISMATCH = (0.5, 2.0)  # measured over predicted change of the objective, median


@dataclass
class GradientProbe:
    """Measurements of the gradient of SMA's objective, for each image and start: (P,) each.

    Args:
        connected: Whether the features depend on the image, as far as autograd knows.
        finite: Whether all values are finite.
        zero: Fraction of values that are exactly zero.
        features_differ: Relative difference of the features of two equal calls.
        gradients_differ: The same of the gradients.
        agreement: Measured over predicted change of the objective; NaN where none is predicted.
    """

    connected: Tensor
    finite: Tensor
    zero: Tensor
    features_differ: Tensor
    gradients_differ: Tensor
    agreement: Tensor

    @classmethod
    def concatenated(cls, probes: Sequence[GradientProbe]) -> GradientProbe:
        """Return all measurements, on the CPU."""
        names = vars(probes[0])
        return cls(**{name: torch.cat([vars(p)[name] for p in probes]).cpu() for name in names})


def probe_gradients(
    model: ReIDModel, x: Tensor, eps: float, seed: int, cameras: Tensor | None = None
) -> GradientProbe:
    """Measure gradients at :data:`STARTS` random points of the ε-ball around each image.

    Args:
        model: Its features define the objective.
        x: (N, 3, H, W) in [0, 1].
        eps: Radius of the ball, in [0, 1] units.
        seed: Fixes the points.
        cameras: (N,) cameras of the images, for a model whose features depend on them.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed)
    probes = []
    model = with_cameras(inference_view(model), cameras)
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            clean = normalized_features(model, x)

        def objective(images: Tensor) -> Tensor:
            return ((normalized_features(model, images) - clean) ** 2).sum(1)

        for _ in range(STARTS):
            noise = 2 * torch.rand(x.shape, generator=generator).to(x) - 1
            # Not up to the borders, so that the finite difference stays inside them.
            start = (x + eps * noise).clamp(PROBE, 1 - PROBE)
            (first, connected), (again, _) = (_gradient(objective, start) for _ in range(2))
            with torch.no_grad():
                pair = [normalized_features(model, start) for _ in range(2)]
                step = PROBE * first.sign().nan_to_num()
                predicted = 2 * (first * step).flatten(1).sum(1)
                measured = objective(start + step) - objective(start - step)
            probes.append(
                GradientProbe(
                    connected=torch.full((len(x),), connected),
                    finite=first.isfinite().flatten(1).all(1),
                    zero=(first == 0).double().flatten(1).mean(1),
                    features_differ=_difference(*pair),
                    gradients_differ=_difference(first, again),
                    agreement=(measured / predicted).double(),  # 0 / 0 is NaN, which is left out
                )
            )
    return GradientProbe.concatenated(probes)


def _gradient(objective: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, bool]:
    """Return the gradient, and whether there is one; zeros where there is none."""
    images = start.detach().requires_grad_()
    gradient = None
    with suppress(InputError), graph_needed(objective):  # no graph: zeros
        value = objective(images)
        check_graph(value, objective)
        (gradient,) = torch.autograd.grad(value.sum(), images, allow_unused=True)
    return (torch.zeros_like(start), False) if gradient is None else (gradient, True)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return |a − b| / |a| by row; 0 where both are equal or one is not finite."""
    a, b = (t.detach().double().flatten(1) for t in (a, b))
    size = torch.maximum(a.norm(dim=1), b.norm(dim=1))
    ratio: Tensor = (a - b).norm(dim=1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return ratio.nan_to_num(nan=0.0, posinf=0.0)


def gradient_findings(g: GradientProbe) -> list[Finding]:
    """Return the findings of the four checks of gradients."""
    broken = float((~g.finite).double().mean())
    masked = float((g.zero > 0.5).double().mean())
    features, gradients = float(g.features_differ.max()), float(g.gradients_differ.max())
    usable = g.agreement[g.agreement.isfinite()]
    findings = [
        make_finding(
            "non_finite_gradients",
            "error" if broken > 0 else "ok",
            f"NaN or infinite at {100 * broken:.0f} % of {len(g.finite)} starts",
            "above 0 %",
            {"fraction": broken},
        ),
        make_finding(
            "zero_gradients",
            "error" if masked > MASKED_STARTS else "ok",
            f"mostly zero at {100 * masked:.0f} % of starts",
            f"above {100 * MASKED_STARTS:.0f} %",
            {"fraction": masked, "zero_values": float(g.zero.mean())},
        ),
        make_finding(
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
        make_finding(
            "gradient_mismatch",
            "ok" if low <= agreement <= high else "warning",
            f"the loss changes {agreement:.2f} times as predicted (median)",
            f"outside {low:g} to {high:g}",
            {"median": agreement, "starts": float(len(usable))},
        )
    )
    return findings
