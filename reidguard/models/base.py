"""The contract of re-identification models."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from reidguard.contexts import wrap_methods
from reidguard.errors import InputError, did_you_mean
from reidguard.schema import MAX_SIDE, checked
from reidguard.storage import library_versions, save_tensors
from reidguard.types import InputSpec, Metric, check_images

if TYPE_CHECKING:
    from reidguard.models.weights import LoadReport

__all__ = ["Metric", "ReIDModel", "ReIDOutput"]


@dataclass(frozen=True)
class ReIDOutput:
    """Training outputs of a model.

    Args:
        features: (N, D), the same as :meth:`ReIDModel.features` gives.
        embeddings: What the triplet loss compares: (N, E), or a list of them, one per part.
        logits: (N, identities), or a list of them, one per part; None without a classifier.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("ide", backbone="test_resnet", num_classes=3)
        >>> model(torch.rand(2, 3, 64, 32)).logits.shape
        torch.Size([2, 3])
    """

    features: Tensor
    embeddings: Tensor | list[Tensor]
    logits: Tensor | list[Tensor] | None


# ABC goes first: `higher` mixes its own (ABC, Module) class into a copy of this one.
class ReIDModel(ABC, nn.Module):
    """A network that turns [0, 1] RGB images of any size into features for retrieval.

    A subclass implements :meth:`embed`. Classifiers, one per domain, come from
    :meth:`build_classifiers`; a network with a training branch overrides :meth:`logits`. One with
    parts overrides :meth:`forward`, with :meth:`build_part_classifiers` and :meth:`part_logits`.

    Args:
        input_spec: Resizing and normalisation, done inside the model.
        metric: How features are compared in retrieval. Features stay unnormalised: with "cosine"
            retrieval and attacks normalise them.
        num_classes: Training identities per domain, such as ``{"market1501": 751}``; one number
            means ``{"default": number}``; None builds no classifier.

    Example:
        >>> class Means(ReIDModel):
        ...     def embed(self, inputs):
        ...         return inputs.mean((2, 3))
        >>> model = Means(input_spec=InputSpec(size=(8, 4)), metric="euclidean").eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 3])
    """

    #: Names under which parameters serve only the training labels. Checkpoints may lack them.
    head_prefixes: tuple[str, ...] = ("classifier.",)

    #: Numbers of the cameras that features depend on; None if they depend on the image alone. Only
    #: models with cameras get those of the samples: see :class:`CameraModel`.
    cameras: range | None = None

    #: How the pixels of inputs are laid out. Convolutions are fastest on channels-last, on the CPU
    #: and the GPU alike (OSNet x0.25: half the time of a pass).
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def __init__(
        self,
        *,
        input_spec: InputSpec,
        metric: Metric,
        num_classes: int | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if metric not in get_args(Metric):
            raise InputError(f"metric must be 'euclidean' or 'cosine', not {metric!r}")
        self.input_spec = input_spec
        self.metric: Metric = metric
        self.num_classes = _domains(num_classes)
        #: The report of the last `load_weights`; None for a fresh model.
        self.load_report: LoadReport | None = None
        #: Registry name and arguments, set by `create_model`: how a checkpoint is rebuilt.
        self.build_spec: tuple[str, dict[str, Any]] | None = None
        #: How the weights were learnt, if by this library; `save` writes it into the card.
        self.provenance: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap_methods(cls, "__init__")

    def build_classifiers(self, width: int, *, bias: bool = True) -> None:
        """Add ``self.classifier``: one linear layer per domain on vectors of ``width``."""
        self.classifier = nn.ModuleDict()
        for domain, identities in self.num_classes.items():
            self.classifier[domain] = identity_layer(width, identities, bias=bias)

    def build_part_classifiers(self, widths: Sequence[int], *, bias: bool = True) -> None:
        """Add ``self.classifier``: per domain one linear layer for each part, of these widths."""
        self.classifier = nn.ModuleDict()
        for domain, identities in self.num_classes.items():
            layers = (identity_layer(width, identities, bias=bias) for width in widths)
            self.classifier[domain] = nn.ModuleList(layers)

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, D) features of inputs that are already resized and normalised."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return images as :meth:`embed` takes them: resized, normalised, in the weights' dtype.

        Args:
            x: (N, 3, H, W) images in [0, 1], any size.

        Raises:
            InputError: If ``x`` is not such a tensor. Its values are not checked.
        """
        check_images(x)
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        inputs = self.input_spec.apply(x).contiguous(memory_format=self.memory_format)
        return inputs if weight is None else inputs.to(weight.dtype)

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the test-time embedding, before any L2 normalisation.

        Args:
            x: (N, 3, H, W) images in [0, 1], any size.
            cameras: (N,) their cameras, which only a :class:`CameraModel` uses.

        Returns:
            (N, D).

        Raises:
            InputError: If ``x`` is not such a tensor. Its values are not checked.
        """
        return self.embed(self.prepare(x))

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain's classifier."""
        scores: Tensor = self.classifier[domain](features)
        return scores

    def part_logits(self, parts: Sequence[Tensor], domain: str | None) -> list[Tensor] | None:
        """Return each part's (N, identities) scores by its own classifier; None without a domain.

        Args:
            parts: (N, width) vectors, as many as :meth:`build_part_classifiers` was given widths.
            domain: What :meth:`resolve_domain` returned.
        """
        if domain is None:
            return None
        layers = self.classifier[domain].children()
        return [layer(part) for layer, part in zip(layers, parts, strict=True)]

    if TYPE_CHECKING:  # Module's own returns Any

        def __call__(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
            """Return the training outputs: see :meth:`forward`."""

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, embeddings and logits of (N, 3, H, W) images in [0, 1].

        Args:
            x: Images of any size.
            domain: Whose classifier to use. May be left out if there is only one.

        Raises:
            InputError: If the domain is unknown, or left out where there are several.
        """
        chosen = self.resolve_domain(domain)
        features = self.features(x)
        return ReIDOutput(
            features, features, None if chosen is None else self.logits(features, chosen)
        )

    def resolve_domain(self, domain: str | None) -> str | None:
        """Return the domain to use; None if the model has no classifier and none is requested.

        Raises:
            InputError: If the domain is unknown, or left out where there are several.
        """
        known = list(self.num_classes)
        if domain is None:
            if len(known) > 1:
                raise InputError(
                    f"this model has classifiers for {', '.join(known)}: "
                    f"say which one, as in model(x, domain={known[0]!r})"
                )
            return known[0] if known else None
        if domain in self.num_classes:
            return domain
        if not known:
            raise InputError(
                f"domain {domain!r} needs a classifier and this model has none: "
                f"create it with num_classes={{{domain!r}: <number of identities>}}"
            )
        hint = did_you_mean(domain, known)
        raise InputError(f"unknown domain {domain!r}: {hint}known: {', '.join(known)}")

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of other code bases' checkpoints to this model's names."""
        return state

    def save(self, path: Path | str) -> None:
        """Write weights and card, with :attr:`provenance`, to one safetensors file, atomically.

        Args:
            path: Target file, which :func:`load_model` reads.

        Raises:
            InputError: If the model was not built by :func:`create_model`, so that no file could
                say how to build it again, or if the card has values that JSON lacks.
            CheckpointError: If the file cannot be written.
        """
        card = self._card()
        try:
            json.dumps(card, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the card of {path} must consist of JSON values ({error}); "
                "give provenance and model arguments as numbers, strings, lists and dicts"
            ) from None
        save_tensors(path, self.state_dict(), card)

    def _card(self) -> dict[str, Any]:
        """Return what a saved file says about the model; see :meth:`save`."""
        if self.build_spec is None:
            raise InputError(
                f"this {type(self).__name__} cannot be rebuilt from a file, since it was not made "
                "by create_model; register a function that builds it with @register_model(name) "
                "and use create_model(name), or keep its state_dict() yourself"
            )
        name, kwargs = self.build_spec
        return {
            "kind": "model",
            "name": name,
            "kwargs": kwargs,
            "input_spec": self.input_spec.to_dict(),
            "metric": self.metric,
            # pairs: a card sorts its keys, and the order of domains is the model's
            "num_classes": [list(pair) for pair in self.num_classes.items()],
            "versions": library_versions(),
            "training": self.provenance,
        }


def identity_layer(width: int, identities: int, *, bias: bool = True) -> nn.Linear:
    """Return a fresh classifier of identities on vectors of ``width``."""
    layer = nn.Linear(width, identities, bias=bias)
    nn.init.normal_(layer.weight, std=0.01)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def image_size(size: object) -> tuple[int, int]:
    """Return (height, width) from any pair, such as the list that a card has.

    Raises:
        InputError: If it is none.
    """
    return checked(tuple[int, int], "size", size, low=1, high=MAX_SIDE)


def _domains(num_classes: int | Mapping[str, int] | None) -> dict[str, int]:
    if num_classes is None:
        return {}
    domains = dict(num_classes) if isinstance(num_classes, Mapping) else {"default": num_classes}
    for domain, identities in domains.items():
        domains[domain] = checked(int, "num_classes", identities, low=1, high=10**7)
        # torch keeps the classifiers in a ModuleDict under these names
        if (
            not isinstance(domain, str)
            or not domain
            or "." in domain
            or hasattr(nn.ModuleDict(), domain)
        ):
            raise InputError(
                f"{domain!r} cannot name a domain: use a word without dots that is no method of "
                "torch.nn.ModuleDict, such as 'market1501'"
            )
    return domains
