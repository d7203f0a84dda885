"""Ways to put colour and delta under one ε, compared at equal steps on real data.

Run: python benchmarks/parametrisations.py [--seeds 0 1] [--query-every 8]
Options as for attacks.py. What won became CombinatorialAttack; the others stand only here.
"""

import torch
from attacks import EIGHT, parser, run

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.attacks.universal.color import interpolate_colors

EPS = EIGHT.eps


class Variant(CombinatorialAttack):
    """Joint, with bounds and step sizes of their own for the two stages (in shares of ε)."""

    def __init__(self, color=1.0, delta=1.0, color_step=1.0, delta_step=1.0, resolution=25):
        super().__init__(EIGHT, resolution)
        self.bounds = (color * EPS, delta * EPS)
        self.steps = (color_step, delta_step)

    def config(self):
        return {"bounds": self.bounds, "steps": self.steps, "variant": type(self).__name__}

    def parameter_groups(self, lr):
        return [
            {"params": list(stage.parameters()), "lr": lr * step}
            for stage, step in zip((self.color, self.delta), self.steps, strict=True)
        ]

    @torch.no_grad()
    def clip_parameters(self):
        self.color.offset.clamp_(-self.bounds[0], self.bounds[0])
        self.delta.delta.clamp_(-self.bounds[1], self.bounds[1])

    def residual(self, x):
        return interpolate_colors(self.color.offset, x) + self.delta.resized(*x.shape[2:])

    def stage_sizes(self, x):
        with torch.no_grad():
            color = interpolate_colors(self.color.offset, x)
            return float(color.abs().mean()), float(self.delta.delta.abs().mean())


class StraightThrough(Variant):
    """The gradient ignores the clip."""

    def perturb(self, x):
        wanted = x + self.residual(x)
        return wanted + (self.budget.project(wanted, x) - wanted).detach()


class Tanh(Variant):
    """ε·tanh of the sum: no pixel is ever stuck."""

    def perturb(self, x):
        return x + EPS * torch.tanh(self.residual(x) / EPS)


class DeltaFirst(Variant):
    """δ alone for 70 steps, then both."""

    def __init__(self):
        super().__init__()
        self.done = 0

    def clip_parameters(self):
        self.done += 1
        if self.done <= 70:
            self.color.offset.data.zero_()
        super().clip_parameters()


class LearntSplit(Variant):
    """δ takes a share s of ε and colour the rest; s is learnt with them."""

    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.5))

    def parameter_groups(self, lr):
        return [*super().parameter_groups(lr), {"params": [self.share], "lr": 0.01}]

    def clip_parameters(self):
        super().clip_parameters()
        self.share.data.clamp_(0.02, 0.98)

    def residual(self, x):
        color = interpolate_colors(self.color.offset, x) * (1 - self.share)
        return color + self.delta.resized(*x.shape[2:]) * self.share

    def stage_sizes(self, x):
        color, delta = super().stage_sizes(x)
        share = float(self.share.detach())
        return color * (1 - share), delta * share


VARIANTS = {
    "delta alone": lambda: DeltaAttack(EIGHT),
    "color alone": lambda: ColorAttack(EIGHT),
    "joint, true gradient (chosen)": lambda: CombinatorialAttack(EIGHT),
    "joint, straight-through gradient": StraightThrough,
    "joint, tanh, δ up to 2ε": lambda: Tanh(delta=2.0, delta_step=2.0),
    "joint, colour residual ≤ ε/4 under δ": lambda: Variant(color=0.25, color_step=0.25),
    "split, δ 6/8 + colour 2/8": lambda: Variant(0.25, 0.75, 0.25, 0.75),
    "split, δ 7/8 + colour 1/8": lambda: Variant(0.15, 0.85, 0.15, 0.85),
    "split learnt": LearntSplit,
    "δ for 70 steps, then both": DeltaFirst,
    "joint, colour steps a quarter": lambda: Variant(color_step=0.25),
}
MOMENTUM = {
    "delta alone, momentum 1": (lambda: DeltaAttack(EIGHT), {"momentum": 1.0}),
    "joint, true gradient, momentum 1": (lambda: CombinatorialAttack(EIGHT), {"momentum": 1.0}),
}

if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(seeds=[0, 1], query_every=8)
    every = {name: (make, {}) for name, make in VARIANTS.items()}
    run("parametrisations", {**every, **MOMENTUM}, options.parse_args())
