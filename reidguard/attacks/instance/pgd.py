"""Projected gradient ascent on features (PGD, MI, DI, TI, Auto-PGD)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.attacks.instance.base import InstanceAttack, Objective, Target
from reidguard.errors import InputError
from reidguard.nn.gradients import (
    active_count,
    check_graph,
    count_gradients,
    graph_needed,
    usable,
)
from reidguard.objectives import normalized_features
from reidguard.objectives.base import normalize_for
from reidguard.objectives.diversity import diverse
from reidguard.schema import MAX_SEED, MAX_STEPS, checked
from reidguard.types import Budget

__all__ = ["GradientAttack"]

MAX_MOMENTUM, MAX_KERNEL = 10, 255

# Auto-PGD: weight of the new movement beside the last one, and the fraction of steps that have to
# raise the objective for the step size to stay.
_STEP_WEIGHT, _MIN_RISES = 0.75, 0.75

_ValueAndGrad = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class GradientAttack(InstanceAttack):
    """Maximises an objective on features by steps of the gradient's sign, inside the ball (PGD).

    ``x_{t+1} = clip(x_t + step_size · sign(g_t))``, where g is the gradient of the objective by
    the image. A subclass implements :meth:`objective`. For transfer to other networks there are
    momentum (MI), input diversity (DI) and translation invariance (TI); all are off by default.

    With ``step_size=None`` the step size adapts to each image (Auto-PGD: Croce & Hein, 2020). It
    starts at 2ε, with momentum 0.75 on the movement. At checkpoints, after 22 % of the steps and
    then ever more often, it is halved, and the ascent restarts from the best image so far, where
    fewer than three quarters of the steps since the last checkpoint raised the objective, or where
    neither step size nor best objective changed since then. The result is the best image of all
    steps.

    With several restarts the result with the highest objective is returned, for each image by
    itself. The first restart is that of ``restarts=1``, so the objective is never lower than with
    one.
    A subclass says in ``random_start`` whether that one starts at a random point of the ball
    or at the image; all further ones start at random.

    Cost in passes of the target model, per image: 1 forward for the clean features;
    ``restarts · steps`` forward and backward, the latter to the image only; ``restarts`` more
    forward where there is more than one restart, to compare them, and ``restarts`` more where
    ``step_size`` is None.

    Args:
        budget: The L∞ ball; 8/255 by default.
        steps: Iterations of each restart.
        step_size: Length of a step in [0, 1] pixel units; None adapts it.
        restarts: Ascents from different starts.
        momentum: Decay μ of MI: ``g_t = μ g_{t-1} + ∇ / mean|∇|``. 0 is plain PGD.
        diversity: Probability of DI: in each step, an image is shrunk to a random fraction of its
            size, between 0.9 and 1, and put on black at a random place.
        translation: Width in pixels of TI's Gaussian kernel, which smooths the gradient; an odd
            number; its edge is at 3 σ. 0 is none, and so is 1.
        seed: Fixes starts and diversity.

    Example:
        >>> from reidguard import SMA, MetricFGSM
        >>> issubclass(SMA, GradientAttack), SMA(steps=5).steps
        (True, 5)
    """

    random_start: ClassVar[bool] = True

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        steps: int = 15,
        step_size: float | None = 1 / 255,
        restarts: int = 1,
        momentum: float = 0.0,
        diversity: float = 0.0,
        translation: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(budget)
        self.steps = checked(int, "steps", steps, low=1, high=MAX_STEPS)
        self.step_size = step_size
        if step_size is not None:
            self.step_size = checked(float, "step_size", step_size, above=0, high=1)
        self.restarts = checked(int, "restarts", restarts, low=1, high=MAX_STEPS)
        self.momentum = checked(float, "momentum", momentum, low=0, high=MAX_MOMENTUM)
        self.diversity = checked(float, "diversity", diversity, low=0, high=1)
        self.translation = checked(int, "translation", translation, low=0, high=MAX_KERNEL)
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
        if step_size is None and momentum > 0:
            raise InputError(
                "momentum belongs to steps of a fixed size, and step_size=None has its own: give a "
                "step_size, such as 1/255, or momentum=0"
            )
        if translation != 0 and translation % 2 == 0:
            raise InputError(f"translation is a kernel's width: 0 or odd, not {translation}")

    @abstractmethod
    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return the function to maximise, given (N, D) clean normalized features."""

    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Ascend from every start and return the best result of each image."""
        with count_gradients(type(self).__name__):
            return self._search(x, self.objective(clean, target), target)

    def _search(self, x: Tensor, objective: Objective, target: Target) -> Tensor:
        low = (x - self.budget.eps).clamp(min=0)
        high = (x + self.budget.eps).clamp(max=1)
        best = best_value = None
        for restart in range(self.restarts):
            start = x
            if restart > 0 or self.random_start:
                noise = 2 * self.uniform(x, f"start {restart}", tuple(x.shape[1:])) - 1
                start = (x + self.budget.eps * noise).clamp(low, high)
            result = self._pgd(start, low, high, objective, target, restart)
            if self.restarts == 1:
                return result
            with torch.no_grad():
                value = objective(normalized_features(target.model, result))
            if best is None or best_value is None:
                best, best_value = result, value
            else:
                better = value > best_value
                best = torch.where(better[:, None, None, None], result, best)
                best_value = torch.where(better, value, best_value)
        assert best is not None
        return best

    def _pgd(
        self,
        x: Tensor,
        low: Tensor,
        high: Tensor,
        objective: Objective,
        target: Target,
        restart: int,
    ) -> Tensor:
        draws: Sequence[Tensor | None] = [None] * (self.steps + 1)
        if self.diversity > 0:
            # (steps, N, 4): the draws of one step for each image
            by_step = self.uniform(x, f"diversity {restart}", (self.steps, 4)).transpose(0, 1)
            draws = [*by_step, None]  # the final image is evaluated unchanged

        masks: list[Tensor] = []  # which gradients are usable, by step
        start: list[Tensor] = []  # features and objectives of the first step

        def value_and_grad(image: Tensor, step: int) -> tuple[Tensor, Tensor]:
            """Return (N,) objectives and their gradient, which is zero after the last step."""
            draw, last = draws[step], step == self.steps
            image = image.detach().requires_grad_(not last)
            inputs = image if draw is None else diverse(image, draw, self.diversity)
            with graph_needed(target.model):
                features = normalized_features(target.model, inputs)
            value = objective(features)
            if last:
                return value.detach(), torch.zeros_like(image)
            check_graph(value, target.model)
            (gradient,) = torch.autograd.grad(value.sum(), image, allow_unused=True)
            if gradient is None:
                check_graph(None, target.model)
            masks.append(usable(gradient))
            if len(masks) == 1:
                start.extend((features.detach(), value.detach()))
            if self.translation:
                gradient = _smoothed(gradient, self.translation)
            return value.detach(), gradient

        if self.step_size is None:
            x = self._apgd(x, low, high, value_and_grad)
        else:
            x = self._fixed_steps(x, low, high, value_and_grad)
        if (count := active_count()) is not None:
            steps = torch.stack(masks)
            count.add(steps | _can_rise(objective, start[0], start[1], target), steps)
        return x

    def _fixed_steps(
        self, x: Tensor, low: Tensor, high: Tensor, value_and_grad: _ValueAndGrad
    ) -> Tensor:
        """Steps of the gradient's sign, with momentum if there is any."""
        assert self.step_size is not None
        velocity = torch.zeros_like(x) if self.momentum > 0 else None
        for step in range(self.steps):
            _, gradient = value_and_grad(x, step)
            if velocity is not None:
                size = gradient.abs().mean((1, 2, 3), keepdim=True)
                tiny = torch.finfo(size.dtype).tiny
                velocity = self.momentum * velocity + gradient / size.clamp(min=tiny)
                gradient = velocity
            x = (x + self.step_size * gradient.sign()).clamp(low, high)
        return x

    def _apgd(self, x: Tensor, low: Tensor, high: Tensor, value_and_grad: _ValueAndGrad) -> Tensor:
        """Auto-PGD; every quantity is that of one image."""

        def choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

        checkpoints = _checkpoints(self.steps)
        length = torch.full((len(x),), 2 * self.budget.eps, dtype=x.dtype, device=x.device)
        value, gradient = value_and_grad(x, 0)
        before, best, best_value, best_gradient = x, x, value, gradient
        rises = torch.zeros_like(value)
        last_checkpoint, last_length, last_best = 0, length, best_value
        for step in range(1, self.steps + 1):
            aim = (x + length.view(-1, 1, 1, 1) * gradient.sign()).clamp(low, high)
            if step > 1:
                aim = x + _STEP_WEIGHT * (aim - x) + (1 - _STEP_WEIGHT) * (x - before)
            before, x = x, aim.clamp(low, high)
            last_value = value
            value, gradient = value_and_grad(x, step)
            rises = rises + (value > last_value)
            better = value > best_value
            best, best_value = choose(better, x, best), choose(better, value, best_value)
            best_gradient = choose(better, gradient, best_gradient)
            if step not in checkpoints:
                continue
            slow = rises < _MIN_RISES * (step - last_checkpoint)
            stuck = (length == last_length) & (best_value == last_best)
            restart = slow | stuck
            last_checkpoint, last_length, last_best = step, length, best_value
            rises = torch.zeros_like(rises)
            length = choose(restart, length / 2, length)
            x, gradient = choose(restart, best, x), choose(restart, best_gradient, gradient)
            before, value = choose(restart, best, before), choose(restart, best_value, value)
        return best


@torch.no_grad()
def _can_rise(objective: Objective, features: Tensor, value: Tensor, target: Target) -> Tensor:
    """Return (N,) bool: where the objective is not at its maximum, seen from nearby features."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator)
    direction = direction.to(features, non_blocking=True)
    length = 1e-3 * features.abs().amax(1, keepdim=True)
    shift = torch.where(length > 0, length, 1e-3) * direction
    metric = target.model.metric
    near = [objective(normalize_for(features + s, metric)) for s in (shift, -shift)]
    return ~((near[0] <= value) & (near[1] <= value))  # so that NaN counts


def _checkpoints(steps: int) -> set[int]:
    """Return the steps after which Auto-PGD decides whether to halve the step size."""
    fractions, gap = [0.22], 0.22
    while fractions[-1] < 1:
        gap = max(gap - 0.03, 0.06)
        fractions.append(fractions[-1] + gap)
    return {math.ceil(fraction * steps - 1e-9) for fraction in fractions}


def _smoothed(gradient: Tensor, width: int) -> Tensor:
    """Convolve with a Gaussian kernel of ``width`` pixels that ends at 3 σ."""
    places = torch.linspace(-3, 3, width, dtype=gradient.dtype, device=gradient.device)
    line = torch.exp(-places * places / 2)
    line = line / line.sum()
    half = width // 2
    across = F.conv2d(gradient, line.expand(3, 1, 1, width), padding=(0, half), groups=3)
    column = line.view(1, 1, width, 1).expand(3, 1, width, 1)
    return F.conv2d(across, column, padding=(half, 0), groups=3)
