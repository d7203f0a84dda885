"""Base class of all attacks: it projects every result onto the ε-ball, and saves and loads."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self, final

from reidguard.attacks.pictures import attacked_picture
from reidguard.contexts import fixed_context, fixed_defaults, wrap_methods
from reidguard.errors import CheckpointError, InputError
from reidguard.records import convert
from reidguard.registry import Registry
from reidguard.storage import library_versions, load_tensors, save_tensors
from reidguard.types import Budget, check_image_values, check_images

__all__ = [
    "ATTACKS",
    "Attack",
    "budget_or_default",
    "create_attack",
    "load_attack",
    "register_attack",
]


@dataclass(frozen=True)
class AttackCard:
    """The card of a saved attack."""

    name: str
    config: dict[str, Any]
    training: dict[str, Any] | None = None


class Attack(ABC, nn.Module):
    """A map from images to adversarial images that never leaves its budget.

    Calling the attack is final: it checks the images, calls :meth:`perturb` and projects the
    result onto the ε-ball and [0, 1] with :meth:`Budget.project`. A subclass writes only
    :meth:`perturb`, and keeps each constructor argument as an attribute of the same name, which
    :meth:`save` writes.

    Args:
        budget: The L∞ ball around every image.

    Example:
        >>> class Darker(Attack):
        ...     def perturb(self, x):
        ...         return 0.5 * x
        >>> x = torch.full((1, 3, 2, 2), 0.5)
        >>> round(255 * float((Darker(Budget(8 / 255))(x) - x).min()))  # projected onto the ball
        -8
    """

    provenance: dict[str, Any] | None = None
    """How the parameters were learned, if they were; saved in the card."""

    def __init__(self, budget: Budget | None = None) -> None:
        super().__init__()
        self.budget = budget_or_default(budget)

    if TYPE_CHECKING:  # Module's own returns Any

        def __call__(self, x: Tensor) -> Tensor:
            """Return the adversarial images of ``x``: see :meth:`forward`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap_methods(cls, "__init__", "fit")
        for name in ("forward", "__call__"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__} overrides {name}, which would let it leave the ε-ball; "
                    "override perturb(x) instead"
                )

    @abstractmethod
    def perturb(self, x: Tensor) -> Tensor:
        """Return perturbed images of the same shape; any values, any float dtype."""

    @final  # type: ignore[misc]  # for Module, forward is an attribute
    def forward(self, x: Tensor) -> Tensor:
        """Return the adversarial images of ``x``.

        Args:
            x: (N, 3, H, W) in [0, 1], any float dtype, any size.

        Returns:
            Same shape and dtype, with ``|result - x| <= eps + 1e-6``, in [0, 1].

        Raises:
            InputError: For a wrong shape or dtype and, on the CPU, for values outside [0, 1]. On
                a GPU this check would wait for the device, so it is done where data enters.
        """
        check_images(x)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # a tensor of inference mode cannot be part of a graph
        with fixed_defaults():
            if x.device.type == "cpu":
                check_image_values(x)
            return self.budget.project(self.perturb(x), x)

    @overload
    def apply(self, target: Image.Image | str | os.PathLike[str]) -> Image.Image: ...

    @overload
    def apply(self, target: Callable[[nn.Module], None]) -> Self: ...

    def apply(self, target: Any) -> Any:
        """Return the adversarial image of one picture.

        The attack runs in eval mode on its own device, at the size of the picture. An instance
        attack must be bound.

        Args:
            target: A Pillow image with 8 bits per channel, whose alpha is dropped, or the path of
                an image file, which is turned as its EXIF orientation says. A function is called
                with each module, as :meth:`torch.nn.Module.apply` does.

        Returns:
            An RGB image of the same size, each value within ⌊255·ε⌋ grey levels of the picture's in
            RGB. Save it without loss, as PNG: JPEG changes values by more.

        Raises:
            InputError: If the image has another mode, or an instance attack is not bound.
            DataError: If the file cannot be read.

        Example:
            >>> from reidguard.attacks import PatternAttack
            >>> grey = Image.new("RGB", (50, 100), (90, 90, 90))
            >>> changed = PatternAttack(Budget(8 / 255)).apply(grey)
            >>> changed.size, changed.getextrema()
            ((50, 100), ((82, 98), (82, 98), (82, 98)))
        """
        if callable(target):
            return super().apply(target)
        return attacked_picture(self, target)

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this attack, as JSON values."""
        names = [p for p in inspect.signature(type(self)).parameters if p != "budget"]
        try:
            return {"eps": self.budget.eps, **{name: getattr(self, name) for name in names}}
        except AttributeError as error:
            raise CheckpointError(
                f"{type(self).__name__} cannot be saved: keep each constructor argument as an "
                f"attribute of the same name, or override config() and from_config() ({error})"
            ) from None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Attack:
        """Rebuild an attack from :meth:`config`."""
        arguments = dict(config)
        return cls(budget=Budget(arguments.pop("eps")), **arguments)

    def card(self) -> dict[str, Any]:
        """Return the metadata of a saved file."""
        return {
            "kind": "attack",
            "name": ATTACKS.name_of(type(self)),
            "config": self.config(),
            "training": self.provenance,
            "versions": library_versions(),
        }

    def save(self, path: Path | str) -> None:
        """Write parameters and card as one safetensors file, atomically.

        Raises:
            CheckpointError: If the class is not registered or the file cannot be written.
        """
        save_tensors(path, self.state_dict(), self.card())


def budget_or_default(budget: Budget | None) -> Budget:
    """Return the budget, or the default one for None.

    Raises:
        InputError: If it is something else, such as a number.
    """
    if budget is None:
        return Budget()
    if not isinstance(budget, Budget):
        raise InputError(f"budget must be a Budget, such as Budget(8 / 255), not {budget!r}")
    return budget


ATTACKS: Registry[Attack] = Registry(
    "attack", group="reidguard.attacks", base=Attack, functions=False
)
A = TypeVar("A", bound=type[Attack])


def register_attack(name: str) -> Any:
    """Return a class decorator that registers an :class:`Attack` under ``name``.

    Example:
        >>> @register_attack("my_brighter")  # doctest: +SKIP
        ... class Brighter(Attack):
        ...     def perturb(self, x):
        ...         return x + 1
        >>> attack = create_attack("my_brighter")  # doctest: +SKIP
    """
    return ATTACKS.register(name)


def create_attack(name: str, /, **options: Any) -> Attack:
    """Build a registered attack.

    Example:
        >>> create_attack("delta", size=(64, 32)).size
        (64, 32)
    """
    return ATTACKS.create(name, **options)


@fixed_context()
def load_attack(path: Path | str) -> Attack:
    """Rebuild a saved attack on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind, or does not fit.

    Example:
        >>> import tempfile
        >>> from reidguard.attacks import DeltaAttack
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DeltaAttack(size=(64, 32)).save(f"{folder}/delta.safetensors")
        ...     load_attack(f"{folder}/delta.safetensors").size
        (64, 32)
    """
    tensors, values = load_tensors(path, "attack")
    card = convert(values, AttackCard, f"the card of {path}")
    cls = ATTACKS.get(card.name)
    if not (isinstance(cls, type) and issubclass(cls, Attack)):
        raise CheckpointError(f"attack {card.name!r} is not a class, so it cannot be loaded")
    try:
        attack = cls.from_config(card.config)
        attack.load_state_dict(tensors)
    except Exception as error:  # a constructor may fail in any way with a damaged card
        raise CheckpointError(f"{path} does not fit attack {card.name!r}: {error}") from error
    if any(not torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(f"{path} holds values that are not finite")
    attack.provenance = card.training
    return attack
