"""Re-ID models: the contract, the model zoo, and wrappers and loaders for other networks.

The networks of ``architectures``, and timm with them, are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reidguard.models.base import Metric, ReIDModel, ReIDOutput
from reidguard.models.blackbox import BlackBoxModel, load_onnx, load_openvino
from reidguard.models.blur import BlurModel
from reidguard.models.cameras import CameraModel
from reidguard.models.ensemble import EnsembleModel
from reidguard.models.factory import MODELS, create_model, load_model, register_model
from reidguard.models.fast import FastModel
from reidguard.models.flip import FlipModel
from reidguard.models.identify import Identification, identify_weights
from reidguard.models.module_files import load_module
from reidguard.models.transfer import TransferModel
from reidguard.models.weights import LoadReport, load_weights
from reidguard.models.wrap import wrap_model

if TYPE_CHECKING:
    from reidguard.models.architectures.agw import AGW
    from reidguard.models.architectures.fastreid import MGN, FastReID
    from reidguard.models.architectures.ide import IDE
    from reidguard.models.architectures.layumi import FTNet, LayumiPCB
    from reidguard.models.architectures.osnet import OSNet
    from reidguard.models.architectures.pcb import PCB
    from reidguard.models.architectures.strong_baseline import StrongBaseline

__all__ = [
    "AGW",
    "IDE",
    "MGN",
    "MODELS",
    "PCB",
    "BlackBoxModel",
    "BlurModel",
    "CameraModel",
    "EnsembleModel",
    "FTNet",
    "FastModel",
    "FastReID",
    "FlipModel",
    "Identification",
    "LayumiPCB",
    "LoadReport",
    "Metric",
    "OSNet",
    "ReIDModel",
    "ReIDOutput",
    "StrongBaseline",
    "TransferModel",
    "create_model",
    "identify_weights",
    "load_model",
    "load_module",
    "load_onnx",
    "load_openvino",
    "load_weights",
    "register_model",
    "wrap_model",
]

# Names of each module of .architectures, those of the imports above.
_ARCHITECTURES = {
    "agw": "AGW",
    "fastreid": "MGN FastReID",
    "ide": "IDE",
    "layumi": "FTNet LayumiPCB",
    "osnet": "OSNet",
    "pcb": "PCB",
    "strong_baseline": "StrongBaseline",
}
_HOME = {name: module for module, names in _ARCHITECTURES.items() for name in names.split()}

if not TYPE_CHECKING:  # a type checker would take any misspelt name for an attribute

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.architectures.{_HOME[name]}"), name)
        globals()[name] = value
        return value
