"""Surrogates with altered passes, so that attacks on them transfer to other networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.models.base import ReIDModel, ReIDOutput
from reidguard.models.ensemble import EnsembleModel
from reidguard.models.front import FrontModel
from reidguard.nn import inference_view
from reidguard.nn.altered import Alteration, AlteredPass
from reidguard.nn.cameras import probe_cameras, with_cameras
from reidguard.schema import check_instance, checked

__all__ = ["TransferModel", "for_transfer"]


class TransferModel(FrontModel):
    """A surrogate whose passes with gradients are altered, so that attacks on it transfer.

    Features without gradients are the model's. Residual branches and ReLUs (ReLU6, too) are found
    in a pass of the network, whatever its layers are; a network of TorchScript or of
    ``torch.compile`` shows none.

    Args:
        model: It is not changed; an inference view of it is used, in eval mode.
        skip_gradient: Factor on gradients that pass residual branches, so that more of the gradient
            comes through the shortcuts (skip gradient method, Wu et al., ICLR 2020); 1 is off.
        linear_backward: Fraction of the ReLUs, counted from the last, whose derivative is taken to
            be 1 (LinBP, Guo et al., NeurIPS 2020); 0 is off. The gradient of each residual branch
            is rescaled, for each image, to the length that it has with the true derivatives.
        ghost: Λ: in each pass shortcuts are multiplied by factors drawn from [1 − Λ, 1 + Λ] by
            the global generator (ghost networks, Li et al., AAAI 2020); 0 is off.

    Raises:
        InputError: If an option is out of range, or no residual branch or ReLU is found.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25", size=(64, 32)).eval()
        >>> surrogate = TransferModel(model, skip_gradient=0.5)
        >>> x = torch.rand(1, 3, 64, 32)
        >>> torch.equal(surrogate.features(x), model.features(x))
        True
    """

    def __init__(
        self,
        model: ReIDModel,
        *,
        skip_gradient: float = 1.0,
        linear_backward: float = 0.0,
        ghost: float = 0.0,
    ) -> None:
        check_instance(ReIDModel, "model", model)
        super().__init__(model.metric)
        self.model = inference_view(model, fold=False)
        self.num_classes = model.num_classes
        self.cameras = model.cameras
        self.skip_gradient = checked(float, "skip_gradient", skip_gradient, above=0, high=1)
        self.linear_backward = checked(float, "linear_backward", linear_backward, low=0, high=1)
        self.ghost = checked(float, "ghost", ghost, low=0, high=1)
        self.alteration = self._alteration()

    def extra_repr(self) -> str:
        """Return what differs from the model, which fingerprints see, too."""
        names = ("skip_gradient", "linear_backward", "ghost")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return (N, D) features; see :meth:`ReIDModel.features`."""
        model = with_cameras(self.model, cameras)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return model.features(x)
        with AlteredPass(self.alteration):
            return model.features(x)

    def forward(
        self,
        x: Tensor,
        domain: str | None = None,
        cameras: Tensor | Sequence[int] | None = None,
    ) -> ReIDOutput:
        """Return the model's training outputs; see :meth:`ReIDModel.forward`."""
        model = with_cameras(self.model, cameras)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return model(x, domain=domain)
        with AlteredPass(self.alteration):
            return model(x, domain=domain)

    def _alteration(self) -> Alteration:
        """Count residual branches and ReLUs in a pass of one image."""
        found = self._probe()
        cure = "leave the option out, or take another surrogate, such as OSNet or a ResNet"
        if not found.branches and (self.skip_gradient < 1 or self.ghost):
            name = "skip_gradient" if self.skip_gradient < 1 else "ghost"
            raise InputError(
                f"{name} is for networks with residual branches, and no sum of a shortcut and a "
                f"branch was found in a pass of {type(self.model).__name__}: {cure}"
            )
        if not found.relus and self.linear_backward:
            raise InputError(
                "linear_backward is for networks with ReLUs, and none was found in a pass of "
                f"{type(self.model).__name__}: {cure}"
            )
        linear = math.ceil(self.linear_backward * found.relus - 1e-9)
        relus = max(1, found.relus)
        return Alteration(self.skip_gradient, self.ghost, relus, found.relus - linear)

    def _probe(self) -> AlteredPass:
        place = next(self.model.parameters(), torch.empty(0))
        size = self.model.input_spec.size or (256, 128)
        x = torch.linspace(0, 1, 3 * size[0] * size[1]).view(1, 3, *size).to(place.device)
        model = with_cameras(self.model, probe_cameras(self.model, 1))
        found = AlteredPass()
        with torch.inference_mode(False), torch.enable_grad(), found:
            model.features(x.requires_grad_())
        return found


def for_transfer(
    model: ReIDModel, *, skip_gradient: float, linear_backward: float, ghost: float
) -> ReIDModel:
    """Return a :class:`TransferModel`, of each member of an ensemble; the model if all is off."""
    if skip_gradient == 1 and linear_backward == 0 and ghost == 0:
        return model
    options = {"linear_backward": linear_backward, "skip_gradient": skip_gradient, "ghost": ghost}
    if isinstance(model, EnsembleModel):
        members = [member for member in model.members if isinstance(member, ReIDModel)]
        return EnsembleModel([TransferModel(member, **options) for member in members])
    return TransferModel(model, **options)
