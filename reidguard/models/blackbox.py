"""Networks outside torch: features without gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reidguard.errors import CheckpointError, InputError
from reidguard.models.base import Metric, ReIDModel
from reidguard.records import to_path
from reidguard.types import InputSpec

__all__ = ["BlackBoxModel", "load_onnx", "load_openvino"]

Function = Callable[[npt.NDArray[np.float32]], Any]


class BlackBoxModel(ReIDModel):
    """A model of any function of arrays, for evaluation and for attacks that only query features.

    A gradient cannot pass: learning an attack on it, or a gradient attack, is an error that names
    what works. It has no parameters, works on the CPU, and is not saved.

    Args:
        function: Takes normalised float32 images (N, 3, H, W) and gives features (N, D), or maps
            (N, C, H, W) that are then averaged over all places.
        identity: Identifies this network, such as a hash of its file: cached features are keyed
            by it.
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
            raise InputError("identity must be unique to this network, such as a file's hash")
        self.function = function
        self.identity = identity

    def embed(self, inputs: Tensor) -> Tensor:
        """Return what the function gives, as a tensor on the images' device."""
        if inputs.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "no gradient passes through a network that is not torch: attack it with 'square', "
                "which only queries features, or learn the attack on a torch model and evaluate it "
                "here"
            )
        images = inputs.detach().cpu().contiguous().float().numpy()
        features = np.asarray(self.function(images), dtype=np.float32)
        if features.ndim == 4:
            features = features.mean((2, 3))
        if features.ndim != 2 or len(features) != len(images):
            raise InputError(
                f"the network gives shape {features.shape} for {len(images)} images, where "
                "features (N, D) or maps (N, C, H, W) are needed"
            )
        return torch.from_numpy(np.ascontiguousarray(features)).to(inputs.device, inputs.dtype)

    def extra_repr(self) -> str:
        """Return the identity."""
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
    path = to_path(path)
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
        reason = (str(error).splitlines() or ["unknown reason"])[0]
        raise CheckpointError(f"{path} is no ONNX network that can be run: {reason}") from error
    images, features = session.get_inputs()[0], session.get_outputs()[0]

    def run(x: npt.NDArray[np.float32]) -> Any:
        return session.run([features.name], {images.name: x})[0]

    shape = [side if isinstance(side, int) else None for side in images.shape]
    return _from_file(run, shape, (path,), input_spec, metric)


def load_openvino(
    path: Path | str,
    *,
    input_spec: InputSpec | None = None,
    metric: Metric = "cosine",
    threads: int | None = None,
) -> BlackBoxModel:
    """Read a network from OpenVINO's IR, to run it on the CPU in float32 by openvino.

    Args:
        path: The ``.xml`` file, which has its ``.bin`` beside it. Its first input takes images, its
            first output are features or maps.
        input_spec: Size and normalisation; by default the size that the file names, else 256×128,
            and ImageNet's mean and standard deviation.
        metric: How its features are compared.
        threads: Of openvino; by default as many as torch uses.

    Raises:
        InputError: If openvino is missing, or the first input takes no RGB images.
        CheckpointError: If a file is missing, or they are no network in IR.
    """
    try:
        import openvino
    except ImportError:
        raise InputError(
            'OpenVINO files need openvino: pip install "reidguard[openvino]"'
        ) from None
    path = to_path(path)
    if path.suffix != ".xml":  # openvino would read other formats, too
        raise InputError(
            f"{path} is not the .xml file of a network in OpenVINO's IR: give that, or take "
            "load_onnx for an .onnx file"
        )
    weights = path.with_suffix(".bin")
    for part in (path, weights):
        if not part.is_file():
            raise CheckpointError(
                f"there is no file {part}: a network in OpenVINO's IR is {path.name} with "
                f"{weights.name} beside it"
            )
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads() if threads is None else threads,
        "INFERENCE_PRECISION_HINT": "f32",  # by default bfloat16 where the processor has it
    }
    try:
        core = openvino.Core()
        network = core.compile_model(core.read_model(str(path), str(weights)), "CPU", options)
    except RuntimeError as error:  # places in openvino's own code, then the reason
        reason = str(error).strip().split("\n")[-1]
        raise CheckpointError(
            f"{path} is no network in OpenVINO's IR that can be run: {reason}"
        ) from error

    def run(x: npt.NDArray[np.float32]) -> Any:
        return network(x)[0]

    sides = network.input(0).partial_shape
    shape = (
        [] if sides.rank.is_dynamic else [s.get_length() if s.is_static else None for s in sides]
    )
    return _from_file(run, shape, (path, weights), input_spec, metric)


def _from_file(
    run: Function,
    shape: Sequence[int | None],
    files: Sequence[Path],
    input_spec: InputSpec | None,
    metric: Metric,
) -> BlackBoxModel:
    """Return the model of a network that takes images of ``shape``, None where any will do."""
    if len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"the input of {files[0]} has shape {tuple(shape)} (None: any), not (N, 3, H, W): "
            "export the network for RGB images, channels first"
        )
    batch, _, height, width = shape
    if input_spec is None:
        input_spec = InputSpec()
        if height is not None and width is not None:
            input_spec = InputSpec(size=(height, width))

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

    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return BlackBoxModel(
        function, identity=digest.hexdigest(), input_spec=input_spec, metric=metric
    )
