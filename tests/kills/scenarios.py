"""Every command that writes, on inputs so small that a run takes a moment.

Each function runs in a folder of its own, the working folder, and writes only there. The inputs lie
in ``../../input``: :func:`make_inputs` makes them. The model's name must be registered first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import reidguard as rg
from helpers.batches import rng
from reidguard.cli import main
from reidguard.cli.commands import demo
from reidguard.data import load_dataset
from reidguard.types import InputSpec
from reidguard.virtual import worker

INPUT = Path("../../input")
SIZE = (64, 32)
DATA = ["--data", f"market1501:{INPUT}/market"]
MODEL = ["--model", f"{INPUT}/model.safetensors"]
READING = ["--image-size", "64x32", "--batch-size", "3", "--cache", "cache", "--threads", "1"]
CALL = [*DATA, *MODEL, *READING]
LEARNING = ["--identities", "4", "--images-per-identity", "2", "--checkpoint-every", "2"]
FEW = {"identities": 4, "images_per_identity": 2, "image_size": SIZE}
PEOPLE = "train_identities=2&test_identities=1&cameras=2&images_per_camera=2&height=64"
TINY_DEMO = demo.Plan(
    networks=(
        demo.Network("One", "tiny", {"width": 4}, 2, 1e-3),
        demo.Network("Another", "tiny", {"width": 5}, 1, 1e-3),
    ),
    train_identities=2,
    meta_identities=2,
    test_identities=1,
    cameras=2,
    images_per_camera=2,
    size=SIZE,
    identities=2,
    images_per_identity=2,
    attack_steps=2,
)


class Tiny(rg.ReIDModel):
    """A network that costs next to nothing, with batch norm for its buffers."""

    def __init__(
        self, num_classes: Any = None, width: int = 4, size: tuple[int, int] = SIZE
    ) -> None:
        super().__init__(
            input_spec=InputSpec(size=size), metric="euclidean", num_classes=num_classes
        )
        self.body = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width))
        self.build_classifiers(width)

    def embed(self, inputs: Tensor) -> Tensor:
        return self.body(inputs).tanh().mean((2, 3))


def make_inputs(folder: Path) -> None:
    """Write a dataset of noise, a model, two attacks, changed queries and a finished run."""
    generator = rng(0)
    splits = {"bounding_box_train": range(1, 7), "query": (8, 9), "bounding_box_test": (8, 9, 10)}
    for split, pids in splits.items():
        (folder / "market" / split).mkdir(parents=True)
        cameras = (1,) if split == "query" else (1, 2)
        for pid, camera, shot in ((p, c, s) for p in pids for c in cameras for s in range(2)):
            pixels = torch.randint(0, 256, (*SIZE, 3), generator=generator, dtype=torch.uint8)
            name = f"{pid:04d}_c{camera}s1_{shot:06d}_00.png"
            Image.fromarray(pixels.numpy()).save(folder / "market" / split / name)
    data = load_dataset("market1501", folder / "market")
    torch.manual_seed(0)
    model = rg.create_model("tiny", num_classes=6).eval()
    model.save(folder / "model.safetensors")
    for name in ("delta", "color"):
        attack = rg.create_attack(name, **({"size": SIZE} if name == "delta" else {}))
        attack.fit(model, data, steps=1, **FEW).save(folder / f"{name}.safetensors")
    call = ["evaluate", "--data", f"market1501:{folder}/market", "--image-size", "64x32"]
    call += ["--model", f"{folder}/model.safetensors", "--cache", f"{folder}/cache"]
    assert main([*call, "--out", f"{folder}/run"]) == 0
    attack = rg.load_attack(folder / "delta.safetensors")
    rg.save_adversarial(attack, data, folder / "changed", image_size=SIZE)


def reidguard(*arguments: str) -> int:
    return main(list(arguments))


def attack() -> int:
    learning = ["--attack", "color", "--steps", "6", *LEARNING]
    products = ["--save-images", "images", "--cube", "table.cube"]
    return reidguard("attack", *CALL, *learning, *products, "--out", "out")


def instance_attack() -> int:
    options = ["--attack", "fna", "--set", "steps=2", "--save-images", "images"]
    return reidguard("attack", *CALL, *options, "--out", "out")


def train() -> int:
    return reidguard("train", *CALL, *LEARNING, "--steps", "6", "--out", "out")


def defend() -> int:
    options = ["--attack", f"{INPUT}/delta.safetensors", "--defense", "adversarial"]
    options += ["--set", "refresh_every=1", "--set", "refresh_steps=2", "--steps", "6"]
    return reidguard("defend", *CALL, *LEARNING, *options, "--out", "out")


def evaluate() -> int:
    return reidguard("evaluate", *CALL, "--query", f"{INPUT}/changed", "--out", "out")


def autoattack() -> int:
    options = ["--steps", "1", "--restarts", "1", "--squares", "1", "--audit-queries", "1"]
    options += ["--universal", f"{INPUT}/delta.safetensors", "--save-images", "images"]
    return reidguard("autoattack", *CALL, *options, "--out", "out")


def audit() -> int:
    options = ["--queries", "2", "--attack-steps", "2", "--learning-steps", "1", "--probes", "2"]
    return reidguard("audit", *CALL, *options, "--out", "out")


def data_export() -> int:
    sizes = ["--identities", "2", "--height", "64", "--cameras", "2", "--images-per-camera", "2"]
    return reidguard("data", "export", "virtual:plaza", "people", *sizes)


def data_export_by_processes() -> int:
    worker._processes = lambda images: 2
    return data_export()


def data() -> int:
    return reidguard("data", f"virtual:campus?{PEOPLE}", "--check")


def report() -> int:
    return reidguard("report", f"{INPUT}/run", "--out", "page.html", "--cache", "cache", "--blur")


def run_demo() -> int:
    demo.PLAN = TINY_DEMO
    return reidguard("demo", "--out", "out", "--threads", "1")


def grid() -> int:
    people = load_dataset("market1501", INPUT / "market")
    model = rg.load_model(INPUT / "model.safetensors")
    attacks = {name: rg.load_attack(INPUT / f"{name}.safetensors") for name in ("delta", "color")}
    store, protocol = rg.FeatureStore("cache"), rg.Protocol(image_size=SIZE)
    grid = rg.evaluate_grid(
        attacks, {"tiny": model}, {"noise": people}, protocol, folder="out", store=store
    )
    for suffix in ("json", "csv", "md"):
        grid.save(f"grid.{suffix}")
    return 0


def fit() -> int:
    people = load_dataset("market1501", INPUT / "market")
    model = rg.load_model(INPUT / "model.safetensors")
    attack = rg.create_attack("combinatorial", size=SIZE)
    attack.fit(model, people, steps=6, checkpoint="checkpoint", checkpoint_every=1, **FEW)
    attack.save("attack.safetensors")
    return 0


def share() -> int:
    for name in ("model", "delta"):
        load = rg.load_model if name == "model" else rg.load_attack
        rg.save_pretrained(load(INPUT / f"{name}.safetensors"), name)
    return 0


SCENARIOS: dict[str, Callable[[], int]] = {
    "train": train,
    "attack": attack,
    "instance attack": instance_attack,
    "defend": defend,
    "evaluate": evaluate,
    "autoattack": autoattack,
    "audit": audit,
    "data": data,
    "data export": data_export,
    "data export by processes": data_export_by_processes,
    "report": report,
    "demo": run_demo,
    "grid": grid,
    "fit": fit,
    "share": share,
}
