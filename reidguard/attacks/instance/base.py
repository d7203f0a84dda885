"""Per-image (instance) attacks: binding to a target model, gallery features and labels."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from reidguard.attacks.base import Attack
from reidguard.contexts import fixed_context
from reidguard.errors import InputError
from reidguard.nn import inference_view
from reidguard.nn.cameras import check_cameras, with_cameras
from reidguard.objectives import normalized_features
from reidguard.types import Embedder

__all__ = ["Guides", "InstanceAttack", "Objective"]

Objective = Callable[[Tensor], Tensor]
"""Function that an attack maximises: (N, D) normalized features to (N,) values, one per image."""

_DISTRACTOR, _UNKNOWN = -1, -2  # in place of an identity's index


@dataclass(frozen=True, eq=False)
class Guides:
    """Features and identities of clean images, such as the gallery's, for attacks that need them.

    Args:
        features: (G, D) as the target model's ``features`` gives them, not normalised.
        pids: (G,) identities. 0 marks distractors, which have no identity.

    Raises:
        InputError: If the shapes do not fit, features are not finite, or all are distractors.

    Example:
        >>> guides = Guides(torch.tensor([[0.0], [2.0], [9.0]]), [1, 1, 5])
        >>> guides.pids
        tensor([1, 1, 5])
    """

    features: Tensor
    pids: Tensor | Sequence[int]

    @fixed_context()
    def __post_init__(self) -> None:
        features, pids = self.features.detach(), torch.as_tensor(self.pids)
        if features.dim() != 2 or pids.shape != features.shape[:1] or pids.is_floating_point():
            raise InputError(
                f"guides need features (G, D) and G whole numbers as pids, not shapes "
                f"{tuple(features.shape)} and {tuple(pids.shape)} of {pids.dtype}"
            )
        if not bool((pids != 0).any()):
            raise InputError("guides need at least one image of an identity (a pid other than 0)")
        if not bool(torch.isfinite(features).all()):
            raise InputError("the guides' features are not finite; look at the model's weights")
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "pids", pids.to(features.device, torch.int64))


class Prototypes:
    """Guides in the space where the target model compares features, and the mean of each identity.

    Squared distances to all guides of an identity need only their mean:
    ``mean_g |f − g|² = |f − mean_g g|² + constant``.
    """

    def __init__(self, guides: Guides, metric: str) -> None:
        features = guides.features
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        self.features = F.normalize(features) if metric == "cosine" else features
        self.squares = (self.features * self.features).sum(1)
        pids = torch.as_tensor(guides.pids)
        identified = pids != 0
        self.known, index = torch.unique(pids[identified], return_inverse=True)
        self.index = torch.full_like(pids, _DISTRACTOR)
        self.index[identified] = index
        shape = (len(self.known), features.shape[1])
        # Summed in float64, in any order: on a GPU the order of additions is not fixed.
        sums = torch.zeros(shape, dtype=torch.float64, device=features.device)
        sums.index_add_(0, index, self.features[identified].double())
        counts = torch.bincount(index, minlength=len(self.known))
        self.means = (sums / counts[:, None]).to(self.features.dtype)

    def need_two(self, attack: str) -> None:
        """Refuse guides of a single identity.

        Raises:
            InputError: Naming the attack.
        """
        if len(self.known) < 2:
            raise InputError(
                f"{attack} needs guides of at least two identities, but all show pid "
                f"{int(self.known[0])}; bind it with more of the gallery"
            )

    def identity_of(self, pids: Tensor) -> Tensor:
        """Return the index of each pid among the known ones; a negative number for others."""
        place = torch.searchsorted(self.known, pids).clamp(max=len(self.known) - 1)
        return torch.where(self.known[place] == pids, place, _UNKNOWN)

    def nearest_identity(self, features: Tensor) -> Tensor:
        """Return the identity index of the guide nearest to each feature."""
        order = self.squares - 2 * features @ self.features.to(features.dtype).T
        order = order.masked_fill(self.index == _DISTRACTOR, torch.inf)
        return self.index[order.argmin(1)]

    def furthest_identity(self, features: Tensor, other_than: Tensor | None) -> Tensor:
        """Return the index of the identity whose mean is furthest from each feature.

        Args:
            features: (N, D) normalized features.
            other_than: (N,) indices that are not to be chosen, unless there is no other.
        """
        means = self.means.to(features.dtype)
        order = (means * means).sum(1) - 2 * features @ means.T
        if other_than is not None and len(self.known) > 1:
            indices = torch.arange(len(self.known), device=order.device)
            order = order.masked_fill(indices == other_than[:, None], -torch.inf)
        return order.argmax(1)

    def mean_of(self, identity: Tensor, fallback: Tensor) -> Tensor:
        """Return (N, D) means, and rows of ``fallback`` where the identity is unknown."""
        return torch.where(identity[:, None] < 0, fallback, self.means[identity.clamp(min=0)])


@dataclass(frozen=True, eq=False)
class Target:
    """Model, prototypes and labels that an attack is bound to.

    No module, so that nothing of it is registered or saved.

    Args:
        model: Gives ``features`` and has a ``metric``.
        prototypes: Of the guides; None without guides.
        pids: (N,) labels of the next call's images; None if they are not given.
        cameras: (N,) cameras of these images; None if they are not given.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(features=torch.flatten, metric="euclidean")
        >>> Target(model, prototypes=None).pids is None
        True
    """

    model: Embedder
    prototypes: Prototypes | None
    pids: Tensor | None = None
    cameras: Tensor | None = None

    def identities(self, clean: Tensor) -> Tensor:
        """Return the identity index of each image: its label, else that of the nearest guide."""
        assert self.prototypes is not None
        if self.pids is None:
            return self.prototypes.nearest_identity(clean)
        return self.prototypes.identity_of(self.pids.to(clean.device))


class InstanceAttack(Attack):
    """An attack without parameters that is computed for each image on a target model.

    Bind it first::

        attack = SMA(Budget(8 / 255)).bind(model)
        x_adv = attack(x)

    :meth:`bind` returns a new attack and leaves this one unchanged, so that it can be bound to many
    models. The target model is no submodule: it is in no ``state_dict`` and no saved file. Saved,
    loaded, copied and pickled attacks are unbound. The target model is only read: each call works
    on an inference view of it (:func:`~reidguard.nn.inference_view`).

    The result is constant: no gradient flows through the attack. Random draws are fixed by
    ``seed`` and the 8-bit content of each image, so an image's result depends neither on its place
    in a batch nor on the images beside it, nor on earlier calls, as far as the target model's own
    arithmetic rounds alike for batches of any size (on a GPU, or with convolutions, last bits may
    differ, and a sign may turn where a gradient is zero up to rounding).

    A subclass implements :meth:`search`.

    Args:
        budget: The L∞ ball around every image.
    """

    needs_guides: ClassVar[bool] = False
    """Whether :meth:`bind` needs guides. Attacks that need none ignore them."""

    seed: int = 0
    """Fixes the random draws; an argument of subclasses that draw."""

    _target: Target | None = None

    @fixed_context()
    def bind(self, model: Embedder, guides: Guides | None = None) -> Self:
        """Return this attack bound to a target model.

        Args:
            model: Gives ``features`` and says by which ``metric`` it compares them. A
                :class:`~reidguard.models.ReIDModel`, or anything else with these two.
            guides: Clean images of known identities, such as the gallery's.

        Raises:
            InputError: If the model lacks these, the attack needs guides and there are none, or
                the guides are on another device than the model.

        Example:
            >>> from reidguard.attacks import SMA
            >>> from reidguard.models import wrap_model
            >>> from reidguard.types import InputSpec
            >>> model = wrap_model(nn.Flatten(), input_spec=InputSpec(size=None))
            >>> attack = SMA().bind(model)
            >>> x = torch.full((1, 3, 4, 2), 0.5)
            >>> bool((attack(x) - x).abs().max() > 7 / 255)
            True
            >>> list(attack.modules()) == [attack]
            True
        """
        if not callable(getattr(model, "features", None)) or not hasattr(model, "metric"):
            raise InputError(
                f"{type(self).__name__} is bound to a model with features(x) and metric, not to a "
                f"{type(model).__name__}; wrap_model(module) makes one of any network"
            )
        if guides is None and self.needs_guides:
            raise InputError(
                f"{type(self).__name__} needs clean images of known identities: "
                "bind(model, guides=Guides(model.features(images), pids))"
            )
        bound = copy.copy(self)
        if guides is not None:
            _check_device(model, guides.features, "guides' features")
        # Tensors created in inference mode cannot take part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            prototypes = None if guides is None else Prototypes(guides, model.metric)
        bound._target = Target(model, prototypes)
        return bound

    @fixed_context()
    def with_labels(self, pids: Tensor | Sequence[int]) -> Self:
        """Return this bound attack with the ground-truth identities of the next call's images.

        Without labels, attacks with guides take the identity of an image's nearest guide. An
        identity without guides is allowed: the image's own clean feature is used in their place.

        Args:
            pids: (N,) identities of the images, in the numbers that the guides use.

        Raises:
            InputError: If the attack is not bound, or the pids are no list of whole numbers.
        """
        bound, labels = copy.copy(self), _whole_numbers("pids", pids)
        bound._target = replace(self.target, pids=labels)
        return bound

    @fixed_context()
    def with_cameras(self, cameras: Tensor | Sequence[int]) -> Self:
        """Return this bound attack with the cameras of the next call's images.

        A target model whose features depend on the camera needs them; others ignore them.

        Args:
            cameras: (N,) cameras of the images, as the samples of a dataset number them.

        Raises:
            InputError: If the attack is not bound, or the cameras are no list of whole numbers.
        """
        bound, numbers = copy.copy(self), _whole_numbers("cameras", cameras)
        bound._target = replace(self.target, cameras=numbers)
        return bound

    @property
    def target(self) -> Target:
        """The model, prototypes and labels that this attack is bound to.

        Raises:
            InputError: If it is not bound.
        """
        if self._target is None:
            raise InputError(
                f"{type(self).__name__} is not bound to a target model: call attack.bind(model) "
                "and use the attack that it returns (a loaded or copied attack is unbound, too)"
            )
        return self._target

    @abstractmethod
    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Return adversarial images near ``x``; implemented by a subclass.

        The target model's model is an inference view, and gradients are recorded.

        Args:
            x: (N, 3, H, W), at least float32, constant.
            clean: (N, D) normalized features of ``x``, constant.
            target: Model, with the cameras of ``x`` if it needs any, prototypes and labels.
        """

    def perturb(self, x: Tensor) -> Tensor:
        """Return the result of :meth:`search`."""
        target = self.target
        if target.pids is not None and len(target.pids) != len(x):
            raise InputError(
                f"the attack has labels of {len(target.pids)} images and got {len(x)} images; "
                "call with_labels(pids) for each batch"
            )
        if len(x) == 0:
            return x
        _check_device(target.model, x, "images")
        # Outside inference mode, in which gradients cannot be had, tensors are copied first.
        model = target.model
        view = inference_view(model) if isinstance(model, nn.Module) else model
        if target.cameras is not None:
            check_cameras(model, target.cameras)
            cameras = target.cameras.to(x.device, non_blocking=True)
            target = replace(target, cameras=cameras)
        target = replace(target, model=with_cameras(view, target.cameras))
        with torch.inference_mode(False), torch.enable_grad():
            images = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
            with torch.no_grad():
                clean = normalized_features(target.model, images)
            return self.search(images, clean, target).detach()

    def generators(self, x: Tensor, purpose: str) -> list[torch.Generator]:
        """Return one CPU generator per image, fixed by seed, purpose and 8-bit content."""
        pixels = (x * 255).round().to(torch.uint8).cpu().numpy()
        key = f"{self.seed} {purpose} {tuple(x.shape[1:])} ".encode()
        generators = []
        for image in pixels:
            digest = hashlib.blake2b(key + image.tobytes(), digest_size=8).digest()
            generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
        return generators

    def uniform(self, x: Tensor, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Return (N, ``*shape``) draws from [0, 1), the same for the same image on any device."""
        draws = [torch.rand(shape, generator=g) for g in self.generators(x, purpose)]
        return torch.stack(draws).to(x, non_blocking=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the target, which copies and pickles leave out."""
        return {name: value for name, value in self.__dict__.items() if name != "_target"}


def _whole_numbers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    numbers = torch.as_tensor(values)
    if numbers.dim() != 1 or numbers.is_floating_point():
        raise InputError(
            f"{name} must be N whole numbers, not {numbers.dtype} {tuple(numbers.shape)}"
        )
    return numbers.long()


def _check_device(model: Embedder, tensor: Tensor, name: str) -> None:
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is not None and weight.device != tensor.device:
        raise InputError(
            f"the target model is on {weight.device} and the {name} on {tensor.device}; "
            f"move one of them first, as with .to({str(weight.device)!r})"
        )


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise squared Euclidean distance. Its gradient at distance zero is zero."""
    return ((a - b) ** 2).sum(1)
