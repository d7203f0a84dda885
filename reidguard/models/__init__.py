"""Re-ID models: the contract, the model zoo, and wrappers and loaders for other networks."""

from reidguard.models.architectures.agw import AGW
from reidguard.models.architectures.fastreid import MGN, FastReID
from reidguard.models.architectures.ide import IDE
from reidguard.models.architectures.layumi import FTNet, LayumiPCB
from reidguard.models.architectures.osnet import OSNet
from reidguard.models.architectures.pcb import PCB
from reidguard.models.architectures.strong_baseline import StrongBaseline
from reidguard.models.base import Metric, ReIDModel, ReIDOutput
from reidguard.models.blackbox import BlackBoxModel, load_onnx, load_openvino
from reidguard.models.cameras import CameraModel
from reidguard.models.ensemble import EnsembleModel
from reidguard.models.factory import MODELS, create_model, load_model, register_model
from reidguard.models.flip import FlipModel
from reidguard.models.module_files import load_module
from reidguard.models.weights import LoadReport, load_weights
from reidguard.models.wrap import wrap_model

__all__ = [
    "AGW",
    "IDE",
    "MGN",
    "MODELS",
    "PCB",
    "BlackBoxModel",
    "CameraModel",
    "EnsembleModel",
    "FTNet",
    "FastReID",
    "FlipModel",
    "LayumiPCB",
    "LoadReport",
    "Metric",
    "OSNet",
    "ReIDModel",
    "ReIDOutput",
    "StrongBaseline",
    "create_model",
    "load_model",
    "load_module",
    "load_onnx",
    "load_openvino",
    "load_weights",
    "register_model",
    "wrap_model",
]
