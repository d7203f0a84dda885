"""The base class and registry of defenses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from reidguard.contexts import wrap_methods
from reidguard.data import ReIDDataset
from reidguard.models import ReIDModel
from reidguard.registry import Registry

__all__ = ["DEFENSES", "Defense"]


class Defense(ABC):
    """A method that learns a robust model; its settings are arguments of the constructor.

    Defenses of other packages register in the entry-point group ``reidguard.defenses``. Those
    that the command line runs take the options of :meth:`AdversarialTraining.fit`.

    Example:
        >>> import copy
        >>> class DoNothing(Defense):
        ...     def fit(self, model, meta_train, meta_test=None):
        ...         return copy.deepcopy(model)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap_methods(cls, "fit")

    @abstractmethod
    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
    ) -> ReIDModel:
        """Learn a robust model on training images.

        Args:
            model: Initial weights. It is only read: weights, buffers, modes and
                ``requires_grad`` come back as they were.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for defenses that use one.

        Returns:
            A new model, on the device of ``model``.
        """


DEFENSES: Registry[Defense] = Registry(
    "defense", group="reidguard.defenses", base=Defense, functions=False
)
