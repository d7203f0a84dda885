"""Networks that are not torch: features come out, and no gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reidguard.errors import CheckpointError, InputError
from reidguard.models.base import Metric, ReIDModel
from reidguard.types import InputSpec

__all__ = ["BlackBoxModel", "load_onnx"]

Function = Callable[[npt.NDArray[np.float32]], Any]


class BlackBoxModel(ReIDModel):
    """A model of any function of arrays, for evaluation and for attacks that only ask features.

    A gradient cannot pass: learning an attack on it, or a gradient attack, is an error that names
    what works. It has no parameters, works on the CPU, and is not saved.

    Args:
        function: Takes normalised float32 images (N, 3, H, W) and gives features (N, D), or maps
            (N, C, H, W) that are then averaged over all places.
        identity: What tells this network from every other, such as a hash of its file: features
            that are kept are found again by it.
        input_spec: Size and normalisation that the network expects.
        metric: How its features are compared, "euclidean" or "cosine".

    Raises:
        InputError: If the function is none; in a call, if its output has another shape.

    Example:
        >>> mean = BlackBoxModel(lambda x: x.mean((2, 3)), identity="mean colour of 8×4 pixels",
        ...                      input_spec=InputSpec(size=(8, 4)))
        >>> mean.features(torch.rand(2, 3, 64, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        function: Function,
        *,
        identity: str,
        input_spec: InputSpec | None = None,
        metric: Metric = "cosine",
    ) -> None:
        super().__init__(input_spec=input_spec or InputSpec(), metric=metric)
        if not callable(function):
            raise InputError(f"function must be callable, not a {type(function).__name__}")
        if not identity:
            raise InputError("identity must tell this network from others, such as a file's hash")
        self.function = function
        self.identity = identity

    def embed(self, inputs: Tensor) -> Tensor:
        """Return what the function gives, as a tensor on the images' device."""
        if inputs.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "no gradient passes through a network that is not torch: attack it with 'square', "
                "which asks features only, or learn the attack on a torch model and evaluate it "
                "here"
            )
        given = inputs.detach().cpu().contiguous().float().numpy()
        found = np.asarray(self.function(given), dtype=np.float32)
        if found.ndim == 4:
            found = found.mean((2, 3))
        if found.ndim != 2 or len(found) != len(given):
            raise InputError(
                f"the network gives shape {found.shape} for {len(given)} images, where features "
                "(N, D) or maps (N, C, H, W) are needed"
            )
        return torch.from_numpy(np.ascontiguousarray(found)).to(inputs.device, inputs.dtype)

    def extra_repr(self) -> str:
        """Tell which network it is."""
        return f"identity={self.identity!r}"


def load_onnx(
    path: Path | str,
    *,
    input_spec: InputSpec | None = None,
    metric: Metric = "cosine",
    threads: int | None = None,
) -> BlackBoxModel:
    """Read a network from an ONNX file, to run it on the CPU by onnxruntime.

    Args:
        path: The file. Its first input takes images, its first output are features or maps.
        input_spec: Size and normalisation; by default the size that the file names, else 256×128,
            and ImageNet's mean and standard deviation.
        metric: How its features are compared.
        threads: Of onnxruntime; by default as many as torch uses.

    Raises:
        InputError: If onnxruntime is missing, or the first input takes no RGB images.
        CheckpointError: If the file is missing or no ONNX network.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError('ONNX files need onnxruntime: pip install "reidguard[onnx]"') from None
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3  # errors; they come as exceptions, too
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has classes of its own for each kind of damage
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise CheckpointError(f"{path} is no ONNX network that can be run: {reason}") from error
    images, features = session.get_inputs()[0], session.get_outputs()[0]
    shape = list(images.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"the input {images.name!r} of {path} has shape {shape}, not (N, 3, H, W): export the "
            "network for RGB images, channels first"
        )
    fixed = tuple(shape[2:])
    if input_spec is None:
        known = all(isinstance(side, int) for side in fixed)
        input_spec = InputSpec(size=(fixed[0], fixed[1])) if known else InputSpec()
    batch = shape[0] if isinstance(shape[0], int) else None

    def run(x: npt.NDArray[np.float32]) -> Any:
        return session.run([features.name], {images.name: x})[0]

    def function(x: npt.NDArray[np.float32]) -> Any:
        if batch is None:
            return run(x)
        # Exported for so many images at a time: the last batch is filled up.
        parts = []
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)])
            parts.append(run(filled)[: len(part)])
        return np.concatenate(parts)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return BlackBoxModel(function, identity=digest, input_spec=input_spec, metric=metric)
