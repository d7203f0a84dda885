"""``reidguard attack``."""

from __future__ import annotations

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reidguard.attacks import (
    ATTACKS,
    Attack,
    ColorAttack,
    InstanceAttack,
    LearnedAttack,
    create_attack,
    load_attack,
)
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, pathname, probability
from reidguard.cli.progress import Display
from reidguard.cli.run_dir import RunFolder, default_folder
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import InputError
from reidguard.evaluation import LPIPS, save_adversarial
from reidguard.evaluation.features import module_device
from reidguard.learners import LEARNERS, MetaLearner
from reidguard.models import ReIDModel
from reidguard.objectives import ATTACK_LOSSES
from reidguard.types import Budget

EXAMPLES = """\
  learn an additive attack in 100 steps, look at every 8th query, keep the images:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --eps 8/255 --steps 100 --query-every 8 --out runs/delta \\
        --save-images runs/delta/images

  colours and delta together, each with a budget of its own (so twice the budget in all):
    reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack combinatorial --set stacked=true --set resolution=17

  the paper's attack, with virtual people for the other domain:
    reidguard attack --data market1501:/data/market1501 --meta-data virtual:plaza \\
        --model osnet_x0_25:osnet.pth --attack meta --steps 100

  the same learning for another attack, first order only, two inner steps:
    reidguard attack --data market1501:/data/market1501 --meta-data virtual:plaza \\
        --model osnet_x0_25:osnet.pth --attack delta --learner first_order \\
        --learner-set inner_steps=2

  an additive attack that is to harm other networks, too (input diversity):
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --diversity 0.7

  UAP-Retrieval with its label-wise loss, which asks the model's classifier:
    reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack uap --objective labelwise

  apply a saved attack to another model:
    reidguard attack --data market1501:/data/market1501 --model osnet_x1_0:other.pth \\
        --load runs/delta/attack.safetensors

  an attack that works each query out on the model by itself, and learns nothing:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack sma --set steps=15 --set restarts=5 --query-every 8

  the same, worked out on one model and measured on another:
    reidguard attack --data market1501:/data/market1501 --model runs/robust/model.safetensors \\
        --attack fna --surrogate osnet_x0_25:osnet.pth

Only training images are learnt from; only queries are attacked. Figures are given twice: for the
float images, and for the 8-bit images that --save-images writes.

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
attack.safetensors, result.json and result.md; where nothing is learnt, no metrics and no
checkpoint. The same command goes on after an interruption, and gives the same attack as if there
had been none.
"""

# Options that say which attack it is, and those of learning: none for an attack that is loaded, and
# none of learning for one that learns nothing.
ATTACK = ("attack", "set", "eps")
LEARNING = (
    "objective",
    "diversity",
    "learner",
    "learner_set",
    "meta_data",
    "epochs",
    "steps",
    "lr",
    "identities",
    "images_per_identity",
    "seed",
    "checkpoint_every",
    "tensorboard",
)


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("attack", summary, EXAMPLES)
    common.add_victim(made)
    made.section("attack")
    made.option("--attack", "reidguard list attacks", metavar="NAME", default="delta")
    made.pairs("--set", "option of the attack's constructor, such as resolution=17")
    common.add_eps(made)
    made.option(
        "--load", "apply this saved attack; nothing is learnt", pathname, metavar="ATTACK_FILE"
    )
    common.add_surrogate(
        made, "work the attack out, or learn it, on this model, and measure it on --model"
    )
    made.flag(
        "--with-labels",
        "tell an attack with guides whom each query shows; otherwise it guesses",
    )
    made.section("learning")
    made.option(
        "--objective",
        "reidguard list objectives (default: the attack's own: pairwise for uap, else misranking)",
        metavar="NAME",
    )
    made.option(
        "--diversity",
        "with this probability, let the model see an adversarial image shrunk and shifted: weaker "
        "on this model, stronger on others",
        probability,
        metavar="P",
        default=0.0,
    )
    made.option(
        "--learner",
        "reidguard list learners (default: the attack's own: maml for meta, else plain)",
        metavar="NAME",
    )
    made.pairs("--learner-set", "option of the learner's constructor, such as inner_steps=2")
    made.option(
        "--meta-data",
        "dataset whose training images are the other domain, for learners that use one",
        metavar="NAME[:PATH]",
    )
    common.add_learning(made, lr="eps/10", epochs=10, checkpoint_every=20)
    common.add_evaluation(made)
    made.option(
        "--lpips",
        "measure LPIPS, too, with these weights of torchvision's AlexNet or VGG-16, and the lpips "
        "package's weights of channels (from the installed package unless their file is given)",
        metavar="FILE[:FILE]",
    )
    made.option(
        "--save-images",
        "write the adversarial images of all queries there as PNG, each under its query's name",
        pathname,
        metavar="DIR",
    )
    made.option(
        "--cube",
        "write the colour table as a .cube file, for image editors",
        pathname,
        metavar="FILE",
    )
    common.add_machine(made, out="run folder (default: one below runs/, named after the settings)")
    return made


def run(options: Options) -> int:
    """Learn, work out or load; evaluate, save."""
    device = common.set_up_machine(options)
    if options.load is not None:
        _refuse(
            options,
            (*ATTACK, *LEARNING),
            "--load applies a saved attack as it is: leave out {flags}, or leave out --load to "
            "learn one",
        )
        return _apply(options, device, load_attack(options.load))
    # Mistakes that need no data, before anything slow.
    if options.objective is not None:
        ATTACK_LOSSES.get(options.objective)
    attack = _create(options)
    if isinstance(attack, LearnedAttack):
        return _learn(options, device, attack)
    if not isinstance(attack, InstanceAttack):
        raise InputError(
            f"{options.attack} has nothing to learn, and works no image out on a model: call it in "
            "Python"
        )
    _refuse(
        options,
        LEARNING,
        f"{options.attack} works each image out by itself and learns nothing: leave out {{flags}}; "
        "its own options go into --set, such as --set steps=15 or --set seed=1",
    )
    return _apply(options, device, attack)


def _refuse(options: Options, names: tuple[str, ...], message: str) -> None:
    needless = [name for name in names if name in options.given]
    if needless:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in needless)
        raise InputError(message.format(flags=flags))


def _learn(options: Options, device: torch.device, attack: LearnedAttack) -> int:
    learner_name, learner = _learner(options, attack)
    if learner.needs_meta_test and options.meta_data is None:
        raise InputError(
            f"learner {learner_name!r} needs a second dataset: give it with --meta-data "
            "NAME:PATH (virtual:plaza needs no files), or take --learner plain"
        )
    for name in ("objective", "diversity"):
        if attack.fit_defaults.objective is None and getattr(options, name):
            raise InputError(f"{options.attack} has its own objective: leave {name} out")
    _check_extras(options, attack)
    dataset = load_dataset(options.data)
    other = None if options.meta_data is None else load_dataset(options.meta_data)
    model, surrogate = common.make_model(options), common.make_surrogate(options)
    objective = options.objective or attack.fit_defaults.objective
    recipe: dict[str, Any] = {
        **({"objective": objective} if objective else {}),
        **({"diversity": options.diversity} if options.diversity else {}),
        "identities": options.identities,
        **(
            {"images_per_identity": options.images_per_identity}
            if "images_per_identity" in options.given
            else {}
        ),
        "lr": options.lr,
        "image_size": options.image_size,
        "seed": options.seed,
        **(
            {"steps": options.steps}
            if options.steps
            else {"epochs": options.epochs or attack.fit_defaults.epochs}
        ),
    }
    settings = {
        "command": "attack",
        "attack": options.attack,
        "set": attack.config(),
        "recipe": recipe,
        "learner": {"name": learner_name, **learner.config()},
        "meta_data": None if other is None else common.data_settings(other, "train"),
        **_measured(options, model, surrogate, dataset, device),
    }
    out = options.out or default_folder("attack", f"{options.attack}-{dataset.name}", settings)
    products = ("attack.safetensors", "result.json", "result.md")
    with common.running(out, options, settings, products) as (folder, display):
        target = folder / "attack.safetensors"
        source = (model if surrogate is None else surrogate).to(device)
        fit = partial(attack.to(device).fit, source, dataset, other, learner=learner, **recipe)
        learnt, seconds = common.learn_once(options, target, folder, display, _load, fit)
        if folder.writes:
            model.to(device)
            _conclude(options, folder, model, dataset, learnt.to(device), seconds, display)
            print(f"attack: {target}")
    return 0


def _apply(options: Options, device: torch.device, attack: Attack) -> int:
    """Measure an attack that is loaded, or that has nothing to learn."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("here nothing is learnt, so one process is enough: call without torchrun")
    _check_extras(options, attack)
    by_image = isinstance(attack, InstanceAttack)
    if not by_image and options.surrogate is not None:
        raise InputError(
            f"{options.load} was learnt already, so it needs no --surrogate: leave it out"
        )
    dataset = load_dataset(options.data)
    model, surrogate = common.make_model(options), common.make_surrogate(options)
    if options.load is not None:
        name = options.load.stem
        told: dict[str, Any] = {
            "command": "attack --load",
            "attack": common.file_digest(options.load),
        }
    else:
        name = options.attack
        told = {"command": "attack", "attack": name, "set": attack.config()}
    if options.with_labels:
        told["with_labels"] = True
    settings = {**told, **_measured(options, model, surrogate, dataset, device)}
    out = options.out or default_folder("attack", f"{name}-{dataset.name}", settings)
    recipe = () if options.load is not None else ("attack.safetensors",)
    products = (*recipe, "result.json", "result.md")
    with common.running(out, options, settings, products) as (folder, display):
        for target in recipe:
            if not (folder / target).exists():
                attack.save(folder / target)
        if isinstance(attack, InstanceAttack):
            source = model if surrogate is None else surrogate
            attack = common.bind(options, attack, source.to(device), dataset, display)
        _conclude(options, folder, model.to(device), dataset, attack.to(device), None, display)
        print(f"attack: {folder / recipe[0]}" if recipe else f"run: {out}")
    return 0


def _check_extras(options: Options, attack: Attack) -> None:
    """Refuse what this attack has no use for, and files that are not what they should be."""
    _make_lpips(options)
    if options.cube is not None:
        _colour_table(attack)
    if options.with_labels and not (isinstance(attack, InstanceAttack) and attack.needs_guides):
        raise InputError(
            f"{type(attack).__name__} does not ask whom an image shows: leave --with-labels out"
        )


def _create(options: Options) -> Attack:
    if taken := {"budget", "eps"} & options.set.keys():
        raise InputError(f"{taken.pop()} is no --set option: write --eps 8/255")
    wanted = dict(options.set)
    # What is added pixel by pixel has the images' size, unless the user says otherwise.
    if "size" in inspect.signature(ATTACKS.get(options.attack)).parameters:
        wanted.setdefault("size", options.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        attack: Attack = common.make(
            "--set", create_attack, options.attack, budget=Budget(options.eps), **wanted
        )
    return attack


def _learner(options: Options, attack: LearnedAttack) -> tuple[str, MetaLearner]:
    """The learner that is asked for, or the attack's own with its own options."""
    defaults = attack.fit_defaults
    name = options.learner or defaults.learner
    chosen = dict(defaults.learner_options) if name == defaults.learner else {}
    made: MetaLearner = common.make(
        "--learner-set", LEARNERS.create, name, **{**chosen, **options.learner_set}
    )
    return name, made


def _colour_table(attack: Attack) -> ColorAttack:
    for part in attack.modules():
        if isinstance(part, ColorAttack):
            return part
    raise InputError(f"{type(attack).__name__} has no colour table to write: leave --cube out")


def _load(path: Path) -> LearnedAttack:
    attack = load_attack(path)
    assert isinstance(attack, LearnedAttack)  # _create made it
    return attack


def _measured(
    options: Options,
    model: ReIDModel,
    surrogate: ReIDModel | None,
    dataset: ReIDDataset,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "data": common.data_settings(dataset, "train", "query", "gallery"),
        "model": common.model_settings(model),
        **({} if surrogate is None else {"surrogate": common.model_settings(surrogate)}),
        "image_size": options.image_size,
        "query_every": options.query_every,
        **({"lpips": [*map(common.file_digest, _lpips(options))]} if options.lpips else {}),
        "device": device.type,
    }


def _lpips(options: Options) -> list[Path]:
    return [] if options.lpips is None else [pathname(p) for p in options.lpips.split(":", 1)]


def _make_lpips(options: Options, model: ReIDModel | None = None) -> LPIPS | None:
    if options.lpips is None:
        return None
    made = LPIPS(*_lpips(options))
    return made if model is None else made.to(module_device(model))


def _conclude(
    options: Options,
    folder: RunFolder,
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack,
    seconds: float | None,
    display: Display,
) -> None:
    """Evaluate, unless that is done; write what else is asked for; print."""
    if not folder.finished:
        result = common.measure(
            options,
            model,
            dataset,
            attack,
            display,
            with_labels=options.with_labels,
            lpips=_make_lpips(options, model),
        )
        common.save_result(folder, result, attack.provenance, seconds)
        folder.finish()
    common.print_result(folder)
    if options.save_images is not None:
        save_adversarial(
            attack,
            dataset,
            options.save_images,
            image_size=options.image_size,
            with_labels=options.with_labels,
            progress=display.phase("saving images"),
        )
        print(f"images: {options.save_images}")
    if options.cube is not None:
        _colour_table(attack).save_cube(options.cube)
        print(f"colour table: {options.cube}")
