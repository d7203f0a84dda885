"""Models by name: the registry, `create_model` and `load_model`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from reidguard.contexts import fixed_context, on_meta
from reidguard.errors import CheckpointError, a_few
from reidguard.models.base import Metric, ReIDModel
from reidguard.models.blur import BlurModel
from reidguard.models.weights import check_finite, load_weights
from reidguard.records import convert, to_path
from reidguard.registry import Registry
from reidguard.storage import load_tensors
from reidguard.types import InputSpec

__all__ = ["MODELS", "create_model", "load_model", "register_model"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class BlurCard:
    """What a card says of a :class:`~reidguard.models.BlurModel`: its arguments."""

    sigma: float
    scale: float


@dataclass(frozen=True)
class ModelCard:
    """The card of a saved model; ``blur`` if a blur is in front of it."""

    name: str
    kwargs: dict[str, Any]
    num_classes: list[tuple[str, int]]
    input_spec: InputSpec
    metric: Metric
    training: dict[str, Any] | None = None
    blur: BlurCard | None = None

    def wrapped(self, model: ReIDModel) -> ReIDModel:
        """Return the model behind the blur, if the card has one."""
        return model if self.blur is None else BlurModel(model, **vars(self.blur))


#: All models by name; the entry-point group of the same name adds those of other packages.
MODELS: Registry[ReIDModel] = Registry(
    "model",
    group="reidguard.models",
    base=ReIDModel,
    package="reidguard.models.architectures",
)


def register_model(name: str) -> Callable[[F], F]:
    """Register a class or function that builds a :class:`ReIDModel` under ``name``.

    It should take ``num_classes`` and only keyword arguments that JSON can hold, for that is how
    a checkpoint remembers them.

    Raises:
        RegistryError: If another object already has the name.

    Example:
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> @register_model("my_flat")  # doctest: +SKIP
        ... def flat(num_classes=None):
        ...     from torch import nn
        ...     return wrap_model(nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> model = create_model("my_flat")  # doctest: +SKIP
    """
    return MODELS.register(name)


@fixed_context()
def create_model(
    name: str,
    *,
    num_classes: int | Mapping[str, int] | None = None,
    weights: Path | str | None = None,
    strict: bool = True,
    **kwargs: Any,
) -> ReIDModel:
    """Build a registered model. Nothing is downloaded.

    Args:
        name: One of ``MODELS.list()``.
        num_classes: Training identities, one number or one per domain; None builds no classifier.
        weights: A file for :func:`load_weights`. Its report is in ``model.load_report``; a
            warning says if a part of the model stays as initialised.
        strict: Whether weights on which the features depend must be complete.
        **kwargs: Options of that model.

    Returns:
        The model: in train mode if fresh, as torch does, in eval mode with weights.

    Raises:
        RegistryError: If the name is unknown.
        InputError: If an option is unknown or has a wrong value.
        CheckpointError: If the weights do not fit.

    Example:
        >>> model = create_model("osnet_x0_25", num_classes=751)
        >>> model.num_classes
        {'default': 751}
    """
    options = kwargs if num_classes is None else {"num_classes": num_classes, **kwargs}
    model = MODELS.create(name, **options)
    # Pretrained initial weights are no part of the model: loading must not download them.
    model.build_spec = (name, {k: v for k, v in kwargs.items() if k != "pretrained"})
    if weights is not None:
        report = load_weights(model, weights, strict=strict)
        model.eval()
        if report.missing and strict:  # else load_weights warns of all
            warnings.warn(str(report), stacklevel=3)
    return model


@fixed_context()
def load_model(path: Path | str) -> ReIDModel:
    """Rebuild the model that :meth:`ReIDModel.save` wrote, bit by bit, in eval mode.

    Args:
        path: The file.

    Raises:
        CheckpointError: If the file is missing, damaged, no model of this library, or does not
            fit the model of that name exactly; load a torch file by
            ``create_model(name, weights=path)`` instead.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     create_model("ide", backbone="test_resnet").save(f"{folder}/ide.safetensors")
        ...     load_model(f"{folder}/ide.safetensors").training
        False
    """
    path = to_path(path)
    state, values = load_tensors(path, "model")
    card = convert(values, ModelCard, f"the card of {path}", cure="save the model again")
    # A card must not make us download or read another file.
    others = ("pretrained", "weights", "strict", "num_classes")
    kwargs = {k: v for k, v in card.kwargs.items() if k not in others}
    if len(card.num_classes) > len(state):
        raise CheckpointError(
            f"{path} names {len(card.num_classes)} classifiers but has {len(state)} tensors; "
            "save the model again"
        )

    if card.num_classes:
        kwargs["num_classes"] = dict(card.num_classes)
    try:
        with on_meta():  # takes no memory, whatever the card asks for
            draft: ReIDModel | None = card.wrapped(MODELS.create(card.name, **kwargs))
    except Exception:  # code that needs data; or the card is wrong, as is said below
        draft = None
    if draft is not None:
        _check_shapes(path, draft, state, card.name)
    try:
        model = card.wrapped(create_model(card.name, **kwargs))
    except Exception as error:  # a constructor may fail in any way with a damaged card
        raise CheckpointError(
            f"{path} holds a model {card.name!r} that cannot be built here: {error}"
        ) from error
    check_finite(path, state)
    try:
        model.load_state_dict(state, strict=True, assign=True)  # assign: keeps the file's dtypes
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the model {card.name!r} of its card: {error}"
        ) from error
    model.input_spec, model.metric = card.input_spec, card.metric
    model.provenance = card.training
    return model.eval()


def _check_shapes(path: Path, model: ReIDModel, state: Mapping[str, Tensor], name: str) -> None:
    """Raise a CheckpointError if a file lacks tensors of its model, or has others."""
    target = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    wrong = [
        n
        for n in target.keys() | state.keys()
        if n not in target
        or n not in state
        or target[n].shape != state[n].shape
        or target[n].is_floating_point() != state[n].is_floating_point()
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the model {name!r} of its card: {a_few(sorted(wrong), 4)} are "
            "missing, unknown or of another shape or type; save the model again, or load what it "
            "has by create_model(name, weights=path)"
        )
