"""Networks of ``torch.jit.save`` and ``torch.export.save``, as models that can be attacked."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reidguard.contexts import fixed_context
from reidguard.errors import CheckpointError, InputError
from reidguard.models.base import Metric, ReIDModel
from reidguard.models.blackbox import check_image_shape, warn_if_blind
from reidguard.models.exported import ExportedNetwork, read_exported
from reidguard.models.wrap import FixedBatch, wrap_model
from reidguard.records import to_path
from reidguard.tensor_files import check_archive
from reidguard.types import InputSpec

__all__ = ["load_module", "module_kind", "read_script"]

ModuleKind = Literal["TorchScript", "torch.export"]

# Batches that a traced network may be fixed to, if it does not take any number.
BATCHES = (2, 1, 4, 8, 16, 32, 64)
# Families of operators that compute. Others talk to other processes, or write profiles.
FAMILIES = ("aten", "prim", "quantized")
# Operators of "aten" that read or write files.
FILE_OPERATORS = re.compile(r"\b(save|from_file)\b")


def module_kind(path: Path) -> ModuleKind | None:
    """Return by which function of torch a file with a network was written; None if by neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith("/models/model.json") for name in names):
        return "torch.export"
    is_script = any(name.endswith("/constants.pkl") for name in names) and any(
        "/code/" in name for name in names
    )
    return "TorchScript" if is_script else None


@fixed_context()
def load_module(
    path: Path | str, *, input_spec: InputSpec | None = None, metric: Metric = "cosine"
) -> ReIDModel:
    """Read a network that ``torch.jit.save`` or ``torch.export.save`` wrote.

    Gradients pass, so attacks can be learnt on it and computed on it. It takes any number of
    images, also where it was saved for a fixed number. A warning says if its features hardly differ
    between images, as with a wrong ``input_spec``.

    No pickle in the file is read. TorchScript is a program: one with operators that use files or
    other processes is refused, but running it may still take any time and memory. Exported networks
    are read as a list of torch's operators; ``torch.export.load``, which unpickles, is not used.

    Args:
        path: The file, of ``torch.jit.save``, or of ``torch.export.save`` of torch 2.9 or later.
            The network takes images (N, 3, H, W) and gives features or maps; it should have been in
            eval mode.
        input_spec: Preprocessing; by default the size that the file names, else 256×128, and
            ImageNet's mean and standard deviation. With size None it is the size of the file.
        metric: How its features are compared.

    Returns:
        The network as :func:`wrap_model` returns it.

    Raises:
        InputError: If the network takes no RGB images, gives no features, or has operators that
            are no computations.
        CheckpointError: If the file is missing, damaged, or holds no such network.

    Example:
        >>> model = load_module("net.pt2")  # doctest: +SKIP
        >>> model.features(images).shape  # doctest: +SKIP
        torch.Size([2, 512])
    """
    path = to_path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    kind = module_kind(path)
    if kind is None:
        raise CheckpointError(
            f"{path} holds no network of torch.jit.save or torch.export.save; for a state_dict use "
            "create_model(name, weights=path), and reidguard identify names the model"
        )
    if kind == "torch.export":
        exported = read_exported(path)
        batch, spec = check_image_shape(path, exported.shape, input_spec)
        network: nn.Module = exported
    else:
        network = read_script(path)
        spec = input_spec or InputSpec()
        batch = _script_batch(path, network, spec)
    module = network if batch is None else FixedBatch(network, batch)
    model = wrap_model(module, input_spec=spec, metric=metric).eval()
    if isinstance(network, ExportedNetwork):
        _check_runs(path, model, spec)
    return warn_if_blind(model, path)


def read_script(path: Path) -> torch.jit.ScriptModule:
    """Return the module of a TorchScript file, in eval mode, if its operators only compute.

    Raises:
        InputError: If it has operators that use files or other processes.
        CheckpointError: If it is damaged.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                _check_code(path, archive.read(name).decode("utf-8", "replace"))
            if name.endswith(".pkl"):
                _check_classes(path, archive.read(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are still in use
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            script: torch.jit.ScriptModule = module.eval()
    except Exception as error:  # a foreign program, which runs code of its own when it is loaded
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{path} is no TorchScript that this torch can load ({reason}); save it again"
        ) from error
    return script


def _check_code(path: Path, code: str) -> None:
    tokens = re.sub(r"#.*", "", code)
    families = set(re.findall(r"\bops\s*\.\s*(\w+)", tokens)) - set(FAMILIES)
    calls = {match[0] for match in FILE_OPERATORS.finditer(tokens)}
    if found := sorted(families | calls):
        raise InputError(
            f"{path} has operators that may use files or other processes ({', '.join(found)}), "
            "which are not run here: save the network without them"
        )


def _check_classes(path: Path, data: bytes) -> None:
    classes = set(re.findall(rb"__torch__\.torch\.classes\.(\w+)", data)) - {b"quantized"}
    if classes:
        names = ", ".join(sorted(name.decode() for name in classes))
        raise InputError(
            f"{path} has objects of C++ ({names}), which are not made here: save the network "
            "without them"
        )


@torch.no_grad()
def _script_batch(path: Path, network: nn.Module, spec: InputSpec) -> int | None:
    """Return the batch that a network is fixed to, None for any.

    Raises:
        InputError: If it takes no batch of images of this size.
    """
    size = spec.size or (256, 128)
    reason = ""
    for batch in BATCHES:
        images = torch.zeros(batch, 3, *size)
        try:
            output = network(images)
        except Exception as error:  # whatever a foreign program raises
            reason = reason or (str(error).strip().splitlines() or ["unknown reason"])[-1]
            continue
        if not isinstance(output, Tensor):
            return None  # the model says what it needs
        if len(output) == batch:
            return None if batch == BATCHES[0] else batch
        reason = reason or f"it gives shape {tuple(output.shape)} for {batch} images"
    raise InputError(
        f"{path} cannot be run on images of {size[0]}×{size[1]} ({reason[:200]}): give their size "
        "with input_spec=InputSpec(size=(height, width)) (--input HEIGHTxWIDTH)"
    )


@torch.no_grad()
def _check_runs(path: Path, model: ReIDModel, spec: InputSpec) -> None:
    size = spec.size or (256, 128)
    try:
        model.features(torch.zeros(1, 3, *size))
    except InputError:
        raise
    except Exception as error:  # an operator that the size does not fit, or a damaged graph
        reason = (str(error).strip().splitlines() or ["unknown reason"])[-1][:200]
        raise InputError(
            f"{path} cannot be run on images of {size[0]}×{size[1]} ({reason}); check the size in "
            "input_spec (--input HEIGHTxWIDTH), or export the network again"
        ) from error
