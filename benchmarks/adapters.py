"""OSNet x0.25 through every way into the library, clean, on Market-1501: the same mAP by each.

Run: python benchmarks/adapters.py [--query-every 8] [--keep runs/adapters]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS, and onnx, onnxruntime and openvino (extra "dev").
REIDGUARD_CACHE names a folder in which features are kept: features of the gallery are extracted
once for ways that give a model of the same weights and architecture, and again for each other.
--keep is where the converted files are written, and found by the next run.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import torch
from common import CHECKPOINT, market, osnet, save
from safetensors.torch import save_file
from torch import nn

from reidguard.evaluation import FeatureStore, evaluate, extract_features
from reidguard.fingerprint import weights_fingerprint
from reidguard.hub import from_pretrained, save_pretrained
from reidguard.models import (
    EnsembleModel,
    create_model,
    load_model,
    load_onnx,
    load_openvino,
    wrap_model,
)


class Bare(nn.Module):
    """The network as a stranger would have it: normalised images in, features out."""

    def __init__(self, state) -> None:
        super().__init__()
        for name, child in create_model("osnet_x0_25").named_children():
            if name != "classifier":
                self.add_module(name, child)
        self.load_state_dict({n: t for n, t in state.items() if not n.startswith("classifier")})

    def forward(self, x):
        for part in (self.conv1, self.maxpool, self.conv2, self.conv3, self.conv4, self.conv5):
            x = part(x)
        return self.fc(x.mean((2, 3)))


def onnx_file(network: nn.Module, path: Path) -> Path:
    """Convert once; batches of any length."""
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's advice to itself
            torch.onnx.export(
                network,
                (torch.zeros(2, 3, 256, 128),),
                str(path),
                input_names=["images"],
                output_names=["features"],
                dynamic_axes={"images": {0: "N"}, "features": {0: "N"}},
                dynamo=False,
            )
    return path


def openvino_file(onnx: Path, path: Path, half: bool) -> Path:
    """Convert once; ``half`` keeps the weights in float16, as the converter does by default."""
    if not path.exists():
        import openvino

        openvino.save_model(openvino.Core().read_model(onnx), path, compress_to_fp16=half)
    return path


def ways(keep: Path):
    """Name of each way, and what builds the model."""
    published = Path(os.environ["REIDGUARD_WEIGHTS"]) / CHECKPOINT
    state = torch.load(published, weights_only=True, map_location="cpu")
    straight = osnet().eval()
    keep.mkdir(parents=True, exist_ok=True)

    def layout(name, content):
        torch.save(content, keep / name)
        return lambda: create_model("osnet_x0_25", weights=keep / name)

    def renamed(prefix):
        return {prefix + name: tensor for name, tensor in state.items()}

    save_file(dict(state), keep / "plain.safetensors")
    straight.save(keep / "ours.safetensors")
    shared = save_pretrained(straight, keep / "shared")
    network = Bare(state).eval()
    onnx = onnx_file(network, keep / "osnet.onnx")
    single = openvino_file(onnx, keep / "osnet.xml", half=False)
    half = openvino_file(onnx, keep / "osnet-fp16.xml", half=True)
    return {
        "create_model, torchreid's file": osnet,
        "the same under module., with other state": layout(
            "train.pth.tar", {"state_dict": renamed("module."), "epoch": 250}
        ),
        "the same under model.backbone. (fast-reid's nesting)": layout(
            "fastreid.pth", {"model": renamed("backbone.")}
        ),
        "plain safetensors": lambda: create_model(
            "osnet_x0_25", weights=keep / "plain.safetensors"
        ),
        "save, load_model": lambda: load_model(keep / "ours.safetensors"),
        "save_pretrained, from_pretrained": lambda: from_pretrained(shared),
        "wrap_model of the bare network": lambda: wrap_model(
            network, input_spec=straight.input_spec
        ),
        "EnsembleModel of one": lambda: EnsembleModel([osnet()]),
        "load_onnx": lambda: load_onnx(onnx),
        "load_openvino": lambda: load_openvino(single),
        "load_openvino, weights in float16": lambda: load_openvino(half),
    }


def unit(features):
    return nn.functional.normalize(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--keep", type=Path, default=Path("runs/adapters"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    dataset = market()
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    queries = dataset.query[:: options.query_every]
    rows, known, reference = [], {}, None
    for name, build in ways(options.keep).items():
        began = time.perf_counter()
        model = build().eval()
        own = extract_features(model, queries)
        reference = own if reference is None else reference
        result = evaluate(model, dataset, store=store, query_every=options.query_every)
        fingerprint = weights_fingerprint(model)
        rows.append(
            {
                "way": name,
                "mAP": round(100 * result.clean.mAP, 4),
                "rank1": round(100 * result.clean.rank_k(1), 4),
                "same_bits": bool(torch.equal(own, reference)),
                "largest_difference": float((unit(own) - unit(reference)).abs().max()),
                "gallery_of": known.setdefault(fingerprint, name),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        print(rows[-1], flush=True)
        save(
            "adapters",
            {"query_every": options.query_every, "queries": len(queries), "rows": rows},
            dataset,
        )


if __name__ == "__main__":
    main()
