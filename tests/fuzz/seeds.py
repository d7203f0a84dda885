"""Valid files of every kind that the library reads, written by the library itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.batches import rng
from helpers.models import tiny_model
from reidguard.attacks import create_attack
from reidguard.data import ReIDDataset, load_dataset
from reidguard.data.decoding import IMAGE_SUFFIXES
from reidguard.evaluation import (
    Protocol,
    RetrievalAutoAttack,
    audit,
    evaluate,
    evaluate_grid,
    save_adversarial,
)
from reidguard.evaluation.features import FeatureStore
from reidguard.models import wrap_model
from reidguard.report.records import Manifest
from reidguard.storage import ResumableStore, write_json
from reidguard.types import Budget, InputSpec

SIZE = (64, 32)
SETTINGS = {"seed": 0, "model": {"name": "ide", "size": [64, 32]}}
STORE_KEY = {"weights": "a", "size": [64, 32]}
ATTACKS: dict[str, dict[str, Any]] = {
    "delta": {"size": (8, 4)},
    "color": {"resolution": 3},
    "combinatorial": {"size": (8, 4), "resolution": 3},
    "sma": {"steps": 2},
    "fna": {"steps": 2},
    "square": {"steps": 2},
    "pattern": {},
}


def write_seeds(root: Path) -> None:
    """Write all seeds, a folder for each kind."""
    write_weights(root)
    write_stores(root)
    write_data(root)
    write_networks(root)
    write_runs(root)


def write_weights(root: Path) -> None:
    """Write attacks, models, torch files and weights of other programs."""
    for name, options in ATTACKS.items():
        attack = create_attack(name, budget=Budget(0.03), **options)
        attack.provenance = {"steps": 2, "model": "0" * 64, "meta_train": {"name": "x"}}
        attack.save(root / "attacks" / f"{name}.safetensors")
    networks = {
        "ide": {"num_classes": {"a": 3, "b": 2}},
        "pcb": {"parts": 2},
        "agw": {"num_classes": 4},
    }
    for name, more in networks.items():
        tiny_model(name, **more).save(root / "models" / f"{name}.safetensors")
    folder = root / "weights"
    folder.mkdir(parents=True)
    state = tiny_model("ide").state_dict()
    torch.save(state, folder / "plain.pth")
    nested = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "best": 0.5}
    torch.save(nested, folder / "nested.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")


def write_stores(root: Path) -> None:
    """Write checkpoints, caches and stores."""
    with ResumableStore(root / "store", SETTINGS) as store:
        store.put("part", {"mAP": 0.5, "cells": [1, 2]})
        store.put_tensors("batch", {"ap": torch.rand(2, 3)}, {"done": 2})
    FeatureStore(root / "features").put(STORE_KEY, torch.rand(3, 4))
    folder = root / "metrics"
    folder.mkdir(parents=True)
    lines = [{"step": i, "loss": 1 / i, "time": 1.5} for i in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_data(root: Path) -> None:
    """Write images, lists of images and configuration files."""
    pixels = torch.randint(0, 256, (40, 20, 3), generator=rng(), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    folder = root / "images"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for suffix in ("avif", "bmp", "gif", "jp2", "jpg", "png", "ppm", "tif", "webp"):
        if f".{suffix}" in IMAGE_SUFFIXES:  # as Pillow was built
            image.save(folder / f"image.{suffix}", exif=exif)
    image.convert("P").save(folder / "palette.png")
    image.convert("CMYK").save(folder / "inks.tiff", compression="tiff_lzw")
    image.convert("RGBA").save(folder / "alpha.png")
    people = root / "people"
    people.mkdir()
    rows = ["path,pid,camid,split"]
    for number, split in enumerate(("train", "train", "query", "gallery", "gallery")):
        image.save(people / f"{number}.png")
        rows.append(f"{number}.png,{1 + number % 2},{number},{split}")
    (people / "people.csv").write_text("\n".join(rows) + "\n")
    lists = root / "lists"
    for name, start, images in (("train", 0, "train"), ("val", 2, "train"), ("query", 0, "test")):
        lines = []
        for pid in range(start, start + 2):
            path = f"{pid:04d}/{pid:04d}_000_01_0303morning_0008_0.jpg"
            (lists / images / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(lists / images / path)
            lines.append(f"{path} {pid}\n")
        (lists / f"list_{name}.txt").write_text("".join(lines))
    (lists / "list_gallery.txt").write_text((lists / "list_query.txt").read_text())
    configs = root / "configs"
    configs.mkdir()
    (configs / "c.toml").write_text(
        'data = "virtual:plaza"\nmodel = "ide"\nsteps = 5\nlr = 1e-3\nimage-size = "64x32"\n'
        'device = "cpu"\n[model-set]\nbackbone = "test_resnet"\nsize = [64, 32]\n'
    )
    (configs / "c.yaml").write_text(
        "data: virtual:plaza\nmodel: ide\nsteps: 5\nlr: 0.001\nimage-size: 64x32\n"
        "model-set:\n  backbone: test_resnet\n  size: [64, 32]\n"
    )


def write_networks(root: Path) -> None:
    """Write a small network as ONNX and as OpenVINO's IR, where the libraries are installed."""
    folder = root / "networks"
    folder.mkdir(parents=True)
    try:
        import onnx
        from onnx import TensorProto, helper

        images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 4])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 6, 2])
        weight = torch.rand(5, 3, 3, 3, generator=rng()).numpy().tobytes()
        weights = helper.make_tensor("w", TensorProto.FLOAT, [5, 3, 3, 3], weight, raw=True)
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "net", [images], [output], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, folder / "net.onnx")
    except ImportError:
        pass
    try:
        import numpy as np
        import openvino as ov
        from openvino import opset13 as ops

        x = ops.parameter([-1, 3, 8, 4], np.float32, "x")
        kernel = torch.rand(5, 3, 3, 3, generator=rng()).numpy()
        y = ops.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        network = ov.Model([y], [x], "net")
        ov.save_model(network, str(folder / "net.xml"), compress_to_fp16=False)
    except ImportError:
        pass


def write_runs(root: Path) -> None:
    """Write a virtual set, and run folders of each command with real results on it."""
    few = "virtual:plaza?identities=3&cameras=2&images_per_camera=2&height=64"
    dataset = load_dataset(few, folder=root / "virtual")
    pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
    model = wrap_model(pooled, input_spec=InputSpec(size=None))
    small = Protocol(image_size=SIZE)
    attack = create_attack("sma", steps=2).bind(model)
    measured = {
        "evaluation": evaluate(model, dataset, attack, small).to_dict(),
        "training": {"steps": 3, "learner": "maml", "inner_lr": 0.5},
        "seconds_per_step": 0.25,
    }
    run = write_run(root, "attack", measured, dataset)
    steps = [{"step": i, "loss": 3.0 - i, "test_loss": 2.0, "time": 1.0} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    report = audit(model, dataset, protocol=small, surrogate=model, queries=4, learning_steps=0)
    write_run(root, "audit", report.to_dict(), dataset, name="audit.json")
    suite = RetrievalAutoAttack(Budget(2 / 255), restarts=1, steps=2, squares=2)
    result = suite.run(model, dataset, small, audit_queries=2, state=root / "suite")
    write_run(root, "autoattack", result.to_dict(), dataset)
    folder = save_adversarial(attack, dataset, root / "adversarial", image_size=SIZE)
    changed = evaluate(model, dataset.with_query(folder), None, small)
    write_run(root, "evaluate", {"evaluation": changed.to_dict()}, dataset)
    table = {"caption": "A", "header": ["a", "b"], "text_columns": 1, "rows": [["x", 1.5]]}
    write_run(root, "paper", {"table": 3, "tables": [table]}, dataset)
    models, sets = {"A": model}, {"plaza": dataset}
    evaluate_grid({"SMA": create_attack("sma", steps=2)}, models, sets, small, folder=root / "grid")


def write_run(
    root: Path, command: str, result: Any, dataset: ReIDDataset, *, name: str = "result.json"
) -> Path:
    """Write a finished run folder."""
    folder = root / "runs" / command
    write_json(folder / name, result)
    options = {
        "data": f"virtual:{dataset.root}", "model": "ide", "model_set": {"backbone": "test_resnet"},
        "load": None, "query_every": 1, "image_size": [64, 32], "surrogate": None, "attack": "sma",
    }  # fmt: skip
    manifest = Manifest(
        command=["reidguard", command, "--data", "virtual:plaza"],
        status="finished",
        started="2026-01-01T00:00:00+00:00",
        versions={"torch": "2"},
        settings={"command": command, "seed": 0},
        options=options,
    )
    write_json(folder / "manifest.json", asdict(manifest))
    return folder
