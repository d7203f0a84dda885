"""Keys of cached features: what the features of a model depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.contexts import seeded
from reidguard.fingerprint import fingerprint, weights_fingerprint
from reidguard.models.base import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import probe_cameras, with_cameras

__all__ = ["model_key", "output_digest", "probe_images", "tensor_digest"]

M = TypeVar("M", bound=nn.Module)

# Relative resolution of a digest. Passes in double precision agree to 1e-12 whatever the number of
# threads, the processor or the device; passes in single precision to 1e-6. The probability that
# rounding tells equal outputs apart is about 16 times the disagreement over the resolution.
FINE, COARSE = 2.0**-16, 2.0**-7
PROJECTIONS = 16


def model_key(model: nn.Module, image_size: tuple[int, int] = (256, 128)) -> dict[str, Any]:
    """Return JSON values that are equal for two models only if their features are.

    They are the fingerprint of architecture and weights; of the model and of each model inside it
    (as in an ensemble), the InputSpec, the metric and how it is built; and a digest of the features
    of two fixed images. The digest covers what the others cannot see: plain attributes, buffers
    that are not saved, code, and files outside the model. It costs one pass of two images.

    Args:
        model: It is not changed.
        image_size: (height, width) of the two images if no InputSpec names a size.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25", size=(64, 32))
        >>> key = model_key(model)
        >>> key["models"][0]["metric"], key["models"][0]["input_spec"]["size"]
        ('cosine', [64, 32])
        >>> embed = model.embed
        >>> model.embed = lambda inputs: embed(inputs)[:, :8]
        >>> key["weights"] == model_key(model)["weights"], key == model_key(model)
        (True, False)
    """
    inner = [part for part in model.modules() if isinstance(part, ReIDModel)]
    models = [
        {
            "input_spec": part.input_spec.to_dict(),
            "metric": part.metric,
            **({} if part.cameras is None else {"cameras": [part.cameras[0], part.cameras[-1]]}),
            "build_spec": json.loads(json.dumps(part.build_spec, default=repr)),
        }
        for part in inner
    ]
    key = {"weights": weights_fingerprint(model), "models": models}
    if inner:
        size = next((part.input_spec.size for part in inner if part.input_spec.size), image_size)
        key["features"] = output_digest(inner[0], _features, size)
    return key


def _features(model: ReIDModel, x: Tensor) -> Tensor:
    return with_cameras(model, probe_cameras(model, len(x))).features(x)


def output_digest(module: M, run: Callable[[M, Tensor], Tensor], size: tuple[int, int]) -> str:
    """Return a digest of what a module in eval mode gives for two fixed images.

    Equal modules have equal digests whatever the number of threads, the batch size or the device.
    The pass is in double precision where the module can do that. Random layers draw from a fixed
    seed; the global generator is restored.

    Args:
        module: It is not changed.
        run: Calls a view of the module on the images (2, 3, H, W), on the module's device.
        size: (height, width) of the images.
    """
    place = next((t.device for g in (module.parameters(), module.buffers()) for t in g), None)
    images = probe_images(size).to(place or "cpu")

    def output(view: M, x: Tensor) -> Tensor:
        with seeded(0, place):
            return run(view, x)

    with torch.inference_mode(False), torch.no_grad():
        try:
            return tensor_digest(output(_in_double(module), images.double()))
        except Exception:  # some layers have single precision only, such as quantized ones
            return tensor_digest(output(inference_view(module, fold=False), images))


def _in_double(module: M) -> M:
    """Return a view in double precision that shares no weights with the model."""

    def widened(tensor: Tensor) -> Tensor:
        wide = torch.float64 if tensor.is_floating_point() else tensor.dtype
        return tensor.to(wide, copy=True)

    return cast(M, cast(Any, inference_view(module, fold=False))._apply(widened))


def probe_images(size: tuple[int, int]) -> Tensor:
    """Return two fixed float32 images in [0, 1], of fine and of coarse noise."""
    generator = torch.Generator("cpu").manual_seed(0)
    fine, coarse = (
        torch.randint(256, (1, 3, *shape), generator=generator, device="cpu").float() / 255
        for shape in (size, (8, 4))
    )
    return torch.cat([fine, F.interpolate(coarse, size)])


def tensor_digest(tensor: Tensor) -> str:
    """Return a digest of the rounded numbers of a tensor (N, ...), equal for almost equal tensors.

    It rounds the logarithm of each row's length and projections of its direction, to a relative
    precision of 2⁻¹⁶, or of 2⁻⁷ if the numbers have single precision.

    Example:
        >>> rows = torch.arange(6.0).view(2, 3)
        >>> tensor_digest(rows) == tensor_digest(rows * (1 + 1e-7))
        True
        >>> tensor_digest(rows) == tensor_digest(rows * 1.1)
        False
    """
    rows = tensor.detach().to("cpu", torch.float64).flatten(1)
    step = COARSE if bool((rows == rows.float()).all()) else FINE
    lengths = rows.norm(dim=1, keepdim=True)
    directions = rows / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    places = torch.arange(1, rows.shape[1] + 1, device="cpu", dtype=torch.float64)
    waves = torch.arange(1, PROJECTIONS + 1, device="cpu", dtype=torch.float64)
    projections = directions @ (math.sqrt(2) * torch.cos(places.outer(waves)))
    numbers = torch.cat([lengths.clamp(min=1e-300).log(), projections], 1) / step
    return fingerprint([list(rows.shape), *numbers.round().flatten().tolist()])[:32]
