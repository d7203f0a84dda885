"""Networks outside torch: features without gradients."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import CheckpointError, InputError
from reidguard.models.base import Metric, ReIDModel
from reidguard.models.fingerprint import probe_images
from reidguard.models.graphs import GraphNetwork
from reidguard.models.wrap import wrap_model
from reidguard.records import to_path
from reidguard.schema import MAX_SIDE
from reidguard.types import InputSpec

__all__ = ["BlackBoxModel", "load_onnx", "load_openvino"]

# Mean cosine of features of unlike images above which a network is taken to be blind. A network of
# the Open Model Zoo reads 0.64 with the right preprocessing and 0.995 or more with the wrong range.
ALIKE = 0.985
TRANSLATION_ERROR = 1e-3  # relative; a right translation differs by 1e-5 at most

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
                "no gradient passes through a network that is not torch: load its file with "
                "differentiable=True (--model-set differentiable=true), attack it with 'square', "
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
    differentiable: bool = False,
) -> ReIDModel:
    """Read a network from an ONNX file, to run it on the CPU by onnxruntime, or in torch.

    A warning says if its features hardly differ between images, as with a wrong ``input_spec``.

    Args:
        path: The file. Its first input takes images, its first output are features or maps.
        input_spec: Preprocessing; by default the size that the file names, else 256×128, and
            ImageNet's mean and standard deviation. With size None it is the size of the file.
        metric: How its features are compared.
        threads: Of onnxruntime; by default as many as torch uses.
        differentiable: Translate the operations to torch, so that gradients pass: attacks can be
            learnt on the network and computed on it, on any device, in batches of any size. The
            translation is compared with onnxruntime on two images. It also needs ``onnx``.

    Returns:
        A :class:`BlackBoxModel`, or the translated network as :func:`wrap_model` returns it.

    Raises:
        InputError: If onnxruntime is missing, the first input takes no RGB images, or an operation
            has no translation.
        CheckpointError: If the file is missing or no ONNX network.

    Example:
        >>> model = load_onnx("net.onnx")  # doctest: +SKIP
        >>> surrogate = load_onnx("net.onnx", differentiable=True)  # doctest: +SKIP
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
    _check_inputs(path, [(i.name, i.type) for i in session.get_inputs()], "tensor(float)")
    images, features = session.get_inputs()[0], session.get_outputs()[0]

    def run(x: npt.NDArray[np.float32]) -> Any:
        return session.run([features.name], {images.name: x})[0]

    def translate(batch: int | None) -> GraphNetwork:
        try:
            import onnx
        except ImportError:
            raise InputError(
                'translating an ONNX file to torch needs onnx: pip install "reidguard[onnx]"'
            ) from None
        from reidguard.models.onnx_graph import translate_onnx

        return translate_onnx(onnx.load(str(path)), batch)

    shape = [side if isinstance(side, int) else None for side in images.shape]
    box = _black_box(run, shape, (path, *_external_data(path)), input_spec, metric)
    model = _translated(box, translate(shape[0]), "onnxruntime") if differentiable else box
    return warn_if_blind(model, path)


def load_openvino(
    path: Path | str,
    *,
    input_spec: InputSpec | None = None,
    metric: Metric = "cosine",
    threads: int | None = None,
    differentiable: bool = False,
) -> ReIDModel:
    """Read a network from OpenVINO's IR, to run it on the CPU by openvino in float32, or in torch.

    A warning says if its features hardly differ between images, as with a wrong ``input_spec``:
    most networks of the Open Model Zoo take ``InputSpec(size=..., mean=(0, 0, 0), std=(1, 1, 1),
    channels="bgr", value_range=255)``.

    Args:
        path: The ``.xml`` file, which has its ``.bin`` beside it. Its first input takes images, its
            first output are features or maps.
        input_spec: Preprocessing; by default the size that the file names, else 256×128, and
            ImageNet's mean and standard deviation. With size None it is the size of the file.
        metric: How its features are compared.
        threads: Of openvino; by default as many as torch uses.
        differentiable: Translate the operations to torch, so that gradients pass: attacks can be
            learnt on the network and computed on it, on any device, in batches of any size. The
            translation is compared with openvino on two images.

    Returns:
        A :class:`BlackBoxModel`, or the translated network as :func:`wrap_model` returns it.

    Raises:
        InputError: If openvino is missing, the first input takes no RGB images, or an operation
            has no translation.
        CheckpointError: If a file is missing, or they are no network in IR.

    Example:
        >>> spec = InputSpec(  # doctest: +SKIP
        ...     size=(96, 48), channels="bgr", value_range=255, mean=(0, 0, 0), std=(1, 1, 1)
        ... )
        >>> model = load_openvino("net.xml", input_spec=spec)  # doctest: +SKIP
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
        ir = core.read_model(str(path), str(weights))
        network = core.compile_model(ir, "CPU", options)
    except RuntimeError as error:  # places in openvino's own code, then the reason
        reason = str(error).strip().split("\n")[-1]
        raise CheckpointError(
            f"{path} is no network in OpenVINO's IR that can be run: {reason}"
        ) from error

    _check_inputs(
        path,
        [(i.get_any_name(), i.get_element_type().get_type_name()) for i in network.inputs],
        "f32",
    )

    def run(x: npt.NDArray[np.float32]) -> Any:
        return network(x)[0]

    sides = network.input(0).partial_shape
    shape = (
        [] if sides.rank.is_dynamic else [s.get_length() if s.is_static else None for s in sides]
    )
    box = _black_box(run, shape, (path, weights), input_spec, metric)
    if not differentiable:
        return warn_if_blind(box, path)
    from reidguard.models.openvino_graph import translate_openvino

    return warn_if_blind(_translated(box, translate_openvino(ir, shape[0]), "openvino"), path)


def _check_inputs(path: Path, inputs: Sequence[tuple[str, str]], needed: str) -> None:
    """Check that a network takes one tensor of float32 images; ``inputs`` are names and types."""
    if len(inputs) != 1:
        names = ", ".join(name for name, _ in inputs) or "none"
        raise InputError(
            f"{path} has {len(inputs)} inputs ({names}): export the network with the images as its "
            "only one"
        )
    if (kind := inputs[0][1]) != needed:
        raise InputError(
            f"the input of {path} is of type {kind}, not {needed}: export the network for float32 "
            "images"
        )


def _external_data(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights: those that it names."""
    content = path.read_bytes()
    files = (f for f in path.parent.iterdir() if f != path and f.is_file())
    return sorted(f for f in files if f.name.encode("utf-8", "surrogateescape") in content)


def check_image_shape(
    path: Path, shape: Sequence[int | None], input_spec: InputSpec | None
) -> tuple[int | None, InputSpec]:
    """Return the batch of a network that takes images of ``shape``, and its preprocessing.

    Args:
        path: For the error message.
        shape: None where any number will do.
        input_spec: As the caller gave it; size None becomes that of the shape.

    Raises:
        InputError: If the network takes no RGB images, channels first.
    """
    if len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"the input of {path} has shape {tuple(shape)} (None: any), not (N, 3, H, W): "
            "export the network for RGB images, channels first"
        )
    batch, _, height, width = shape
    if max(batch or 0, height or 0, width or 0) > MAX_SIDE:
        raise InputError(
            f"the input of {path} has shape {tuple(shape)}: no more than {MAX_SIDE} images, or "
            "pixels a side, at a time can be run"
        )
    own = None if height is None or width is None else (height, width)
    if input_spec is None:
        input_spec = InputSpec() if own is None else InputSpec(size=own)
    elif input_spec.size is None:
        input_spec = replace(input_spec, size=own)
    return batch, input_spec


def _black_box(
    run: Function,
    shape: Sequence[int | None],
    files: Sequence[Path],
    input_spec: InputSpec | None,
    metric: Metric,
) -> BlackBoxModel:
    """Return the model of a network that takes images of ``shape``, None where any will do."""
    batch, input_spec = check_image_shape(files[0], shape, input_spec)

    def checked_run(x: npt.NDArray[np.float32]) -> Any:
        try:
            return run(x)
        except Exception as error:  # onnxruntime and openvino have classes of their own
            reason = (str(error).strip().splitlines() or ["unknown reason"])[-1]
            raise InputError(
                f"{files[0]} cannot be run on images of shape {x.shape}: {reason}; check the size "
                "in input_spec"
            ) from error

    def function(x: npt.NDArray[np.float32]) -> Any:
        if batch is None:
            return checked_run(x)
        # Exported for so many images at a time: the last batch is filled up.
        parts = []
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)])
            parts.append(checked_run(filled)[: len(part)])
        return np.concatenate(parts)

    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return BlackBoxModel(
        function, identity=digest.hexdigest(), input_spec=input_spec, metric=metric
    )


@torch.no_grad()
def _translated(box: BlackBoxModel, network: GraphNetwork, runtime: str) -> ReIDModel:
    """Return a translated network as a model, if its features are those of the black box."""
    model = wrap_model(network, input_spec=box.input_spec, metric=box.metric).eval()
    images = probe_images(box.input_spec.size or (256, 128))
    expected = box.features(images)
    error = float((model.features(images) - expected).abs().max())
    if not error <= TRANSLATION_ERROR * float(expected.abs().max()):
        raise InputError(
            f"the network as translated to torch gives other features than {runtime} (by up to "
            f"{error:.2g}): load it without differentiable=True, and attack it by queries"
        )
    return model


@torch.no_grad()
def warn_if_blind(model: ReIDModel, path: Path) -> ReIDModel:
    """Return the model; warn if its features hardly differ between images of coarse noise."""
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = torch.rand(8, 3, 8, 4, generator=generator, device="cpu")
    images = F.interpolate(coarse, model.input_spec.size or (256, 128), mode="bilinear")
    features = F.normalize(model.features(images).float())
    count = len(features)
    similarity = float(((features @ features.T).sum() - count) / (count * (count - 1)))
    if not similarity <= ALIKE:
        warnings.warn(
            f"the features of {path.name} hardly differ between images (mean cosine "
            f"{similarity:.4f}), as with wrong preprocessing: give input_spec=InputSpec(...) the "
            "network's channels ('rgb' or 'bgr'), value_range (1 or 255), mean and std (with "
            "--input on the command line)",
            stacklevel=3,
        )
    return model
