"""Projected gradient ascent on features: the iterations that gradient attacks share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.attacks.instance.base import Goal, InstanceAttack, Target
from reidguard.errors import InputError
from reidguard.objectives import normalized_features
from reidguard.objectives.diversity import diverse
from reidguard.types import Budget

__all__ = ["GradientAttack"]

# Of Auto-PGD: the share of a movement that is new, and that of steps that ought to raise the goal.
_KEEP, _RISES = 0.75, 0.75


_Look = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class GradientAttack(InstanceAttack):
    """Climbs a goal on features by steps of the gradient's sign, inside the ball (PGD).

    ``x_{t+1} = clip(x_t + step_size · sign(g_t))``, where g is the gradient of the goal by the
    image. A subclass writes :meth:`goal`. For transfer to other networks there are momentum (MI),
    input diversity (DI) and translation invariance (TI); all are off by default.

    With ``step_size=None`` each image finds its own step (Auto-PGD: Croce & Hein, 2020). It starts
    at 2ε, with momentum 0.75 on the movement. At checkpoints, after 22 % of the steps and then ever
    more often, it is halved, and the ascent goes on from the best image so far, where fewer than
    three quarters of the steps since the last checkpoint raised the goal, or where neither step nor
    best goal changed since then. The best image on the way is the result.

    With several restarts the image with the highest goal is kept, for each image by itself. The
    first restart is the one that ``restarts=1`` does, so the goal is never lower than with one.
    A subclass says in :attr:`random_start` whether that one starts at a random point of the ball
    or at the image; all further ones start at random.

    Cost in passes of the victim, per image: 1 forward for the clean features; ``restarts · steps``
    forward and backward, the latter to the image only; ``restarts`` more forward where there is
    more than one restart, to compare them, and ``restarts`` more where ``step_size`` is None.

    Args:
        budget: The L∞ ball; 8/255 by default.
        steps: Iterations of each restart.
        step_size: Length of a step in [0, 1] pixel units; None adapts it.
        restarts: Ascents from different starts.
        momentum: Decay μ of MI: ``g_t = μ g_{t-1} + ∇ / mean|∇|``. 0 is plain PGD.
        diversity: Probability of DI: in each step, an image is shrunk to a random share of its
            size, between 0.9 and 1, and put on black at a random place.
        translation: Width in pixels of TI's Gaussian kernel, which smooths the gradient; an odd
            number of which 3 σ reach to the rim. 0 is none, and so is 1.
        seed: Fixes starts and diversity.
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
        if steps < 1 or restarts < 1:
            raise InputError(f"steps and restarts must be at least 1, not {steps} and {restarts}")
        if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
            raise InputError(f"step_size must be positive, such as 1/255, or None, not {step_size}")
        if not (math.isfinite(momentum) and momentum >= 0):
            raise InputError(f"momentum must not be negative, and is 1 in MI-FGSM; not {momentum}")
        if step_size is None and momentum > 0:
            raise InputError(
                "momentum belongs to steps of a fixed size, and step_size=None has its own: give a "
                "step_size, such as 1/255, or momentum=0"
            )
        if not 0 <= diversity <= 1:
            raise InputError(f"diversity is a probability in [0, 1], not {diversity}")
        if translation != 0 and (translation < 0 or translation % 2 == 0):
            raise InputError(f"translation is a kernel's width: 0 or odd, not {translation}")
        self.steps = steps
        self.step_size = step_size
        self.restarts = restarts
        self.momentum = momentum
        self.diversity = diversity
        self.translation = translation
        self.seed = seed

    @abstractmethod
    def goal(self, clean: Tensor, victim: Target) -> Goal:
        """Return what to maximise, given (N, D) clean comparable features."""

    def search(self, x: Tensor, clean: Tensor, victim: Target) -> Tensor:
        """Ascend from every start and keep the best of each image."""
        goal = self.goal(clean, victim)
        low = (x - self.budget.eps).clamp(min=0)
        high = (x + self.budget.eps).clamp(max=1)
        best = best_value = None
        for restart in range(self.restarts):
            start = x
            if restart > 0 or self.random_start:
                noise = 2 * self.uniform(x, f"start {restart}", tuple(x.shape[1:])) - 1
                start = (x + self.budget.eps * noise).clamp(low, high)
            found = self._pgd(start, low, high, goal, victim, restart)
            if self.restarts == 1:
                return found
            with torch.no_grad():
                value = goal(normalized_features(victim.model, found))
            if best is None or best_value is None:
                best, best_value = found, value
            else:
                better = value > best_value
                best = torch.where(better[:, None, None, None], found, best)
                best_value = torch.where(better, value, best_value)
        assert best is not None
        return best

    def _pgd(
        self, x: Tensor, low: Tensor, high: Tensor, goal: Goal, victim: Target, restart: int
    ) -> Tensor:
        draws: Sequence[Tensor | None] = [None] * (self.steps + 1)
        if self.diversity > 0:
            # (steps, N, 4): what one step draws for each image
            drawn = self.uniform(x, f"diversity {restart}", (self.steps, 4)).transpose(0, 1)
            draws = [*drawn, None]  # the image that comes out is judged as it is

        def look(image: Tensor, step: int) -> tuple[Tensor, Tensor]:
            """Return (N,) goals and their gradient, which is not needed after the last step."""
            draw, last = draws[step], step == self.steps
            image = image.detach().requires_grad_(not last)
            seen = image if draw is None else diverse(image, draw, self.diversity)
            value = goal(normalized_features(victim.model, seen))
            if last:
                return value.detach(), torch.zeros_like(image)
            (gradient,) = torch.autograd.grad(value.sum(), image)
            if self.translation:
                gradient = _smoothed(gradient, self.translation)
            return value.detach(), gradient

        if self.step_size is None:
            return self._apgd(x, low, high, look)
        gathered = torch.zeros_like(x) if self.momentum > 0 else None
        for step in range(self.steps):
            _, gradient = look(x, step)
            if gathered is not None:
                size = gradient.abs().mean((1, 2, 3), keepdim=True)
                tiny = torch.finfo(size.dtype).tiny
                gathered = self.momentum * gathered + gradient / size.clamp(min=tiny)
                gradient = gathered
            x = (x + self.step_size * gradient.sign()).clamp(low, high)
        return x

    def _apgd(self, x: Tensor, low: Tensor, high: Tensor, look: _Look) -> Tensor:
        """Auto-PGD. Everything is worked out for each image by itself."""

        def choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

        ends = _checkpoints(self.steps)
        length = torch.full((len(x),), 2 * self.budget.eps, dtype=x.dtype, device=x.device)
        value, gradient = look(x, 0)
        before, best, best_value, best_gradient = x, x, value, gradient
        rises = torch.zeros_like(value)
        last_end, last_length, last_best = 0, length, best_value
        for step in range(1, self.steps + 1):
            aim = (x + length.view(-1, 1, 1, 1) * gradient.sign()).clamp(low, high)
            if step > 1:
                aim = x + _KEEP * (aim - x) + (1 - _KEEP) * (x - before)
            before, x = x, aim.clamp(low, high)
            risen, gradient = look(x, step)
            rises = rises + (risen > value)
            value = risen
            better = value > best_value
            best, best_value = choose(better, x, best), choose(better, value, best_value)
            best_gradient = choose(better, gradient, best_gradient)
            if step not in ends:
                continue
            slow = rises < _RISES * (step - last_end)
            stuck = (length == last_length) & (best_value == last_best)
            again = slow | stuck
            last_end, last_length, last_best = step, length, best_value
            rises = torch.zeros_like(rises)
            length = choose(again, length / 2, length)
            x, gradient = choose(again, best, x), choose(again, best_gradient, gradient)
            before, value = choose(again, best, before), choose(again, best_value, value)
        return best


def _checkpoints(steps: int) -> set[int]:
    """Return after how many steps Auto-PGD looks back."""
    shares, gap = [0.22], 0.22
    while shares[-1] < 1:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    return {math.ceil(share * steps - 1e-9) for share in shares}


def _smoothed(gradient: Tensor, width: int) -> Tensor:
    """Convolve with a Gaussian whose 3 σ reach to the rim of ``width`` pixels."""
    places = torch.linspace(-3, 3, width, dtype=gradient.dtype, device=gradient.device)
    line = torch.exp(-places * places / 2)
    line = line / line.sum()
    half = width // 2
    across = F.conv2d(gradient, line.expand(3, 1, 1, width), padding=(0, half), groups=3)
    column = line.view(1, 1, width, 1).expand(3, 1, width, 1)
    return F.conv2d(across, column, padding=(half, 0), groups=3)
