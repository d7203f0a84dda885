"""``reidguard train``."""

from __future__ import annotations

from functools import partial
from typing import Any

from reidguard.cli import common
from reidguard.cli.options import Options, Parser, amount, did_you_mean
from reidguard.cli.run_dir import default_folder
from reidguard.data import load_dataset
from reidguard.errors import InputError
from reidguard.models import load_model
from reidguard.training import train_model
from reidguard.training.recipe import RECIPES

EXAMPLES = """\
  the paper's recipe, on a ResNet-50 with weights of your own:
    reidguard train --data market1501:/data/market1501 --model ide:resnet50.pth --out runs/ide

  a small network, from nothing, on virtual people:
    reidguard train --data virtual:plaza --model ide --model-set backbone=resnet10t \\
        --model-set size=64x32 --image-size 64x32 --steps 40 --lr 1e-3 --out runs/tiny

  AGW by its own recipe:
    reidguard train --data market1501:/data/market1501 --model agw:resnet50.pth --recipe agw

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
model.safetensors, result.json and result.md. The same command goes on after an interruption, and
gives the same weights as if there had been none.
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("train", summary, EXAMPLES)
    common.add_victim(made)
    made.section("learning")
    made.option(
        "--recipe",
        "paper, or agw: the losses, schedule and augmentation of AGW, with 120 epochs, a rate of "
        "3.5e-4 and 16 people of 4 images each unless other options say else",
        _recipe,
        metavar="NAME",
        default="paper",
    )
    common.add_learning(made, lr="3e-4", epochs=85, checkpoint_every=100)
    made.option("--weight-decay", "of Adam", amount, metavar="X", default=5e-4)
    common.add_evaluation(made)
    common.add_machine(made, out="run folder (default: one below runs/, named after the settings)")
    return made


def run(options: Options) -> int:
    """Train, evaluate, save."""
    device = common.set_up_machine(options)
    dataset = load_dataset(options.data)
    model = common.make_model(options, num_classes=dataset.num_train_pids or None)
    known = RECIPES[options.recipe]
    length: dict[str, Any] = {"steps": options.steps}
    if options.steps is None:
        length = {"epochs": options.epochs or known.epochs}
    batch = {
        name: getattr(options if name in options.given else known, name)
        for name in ("identities", "images_per_identity")
    }
    recipe = {
        "recipe": options.recipe,
        **length,
        "lr": options.lr or known.lr,
        "weight_decay": options.weight_decay,
        **batch,
        "image_size": options.image_size,
        "seed": options.seed,
    }
    settings = {
        "command": "train",
        "data": common.data_settings(dataset, "train", "query", "gallery"),
        "model": common.model_settings(model),
        "recipe": recipe,
        "query_every": options.query_every,
        "device": device.type,
    }
    name = options.model.partition(":")[0].rpartition("/")[2].removesuffix(".safetensors")
    out = options.out or default_folder("train", name, settings)
    products = ("model.safetensors", "result.json", "result.md")
    with common.running(out, options, settings, products) as (folder, display):
        target = folder / "model.safetensors"
        if not folder.finished:
            train = partial(train_model, model.to(device), dataset, **recipe)
            learnt, seconds = common.learn_once(options, target, folder, display, load_model, train)
            if not folder.writes:
                return 0
            result = common.measure(options, learnt.to(device), dataset, None, display)
            common.save_result(folder, result, learnt.provenance, seconds)
            folder.finish()
        common.print_result(folder)
        print(f"model: {target}")
    return 0


def _recipe(text: str) -> str:
    if text not in RECIPES:
        raise InputError(
            f"unknown recipe {text!r}: {did_you_mean(text, RECIPES)}known: {', '.join(RECIPES)}"
        )
    return text
