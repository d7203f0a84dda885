"""``reidguard defend``."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from reidguard.attacks import ATTACKS, Attack, InstanceAttack, LearnedAttack, load_attack
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, amount, pathname
from reidguard.cli.run_dir import default_folder
from reidguard.data import load_dataset
from reidguard.defenses import DEFENSES, AdversarialTraining
from reidguard.errors import InputError
from reidguard.models import load_model
from reidguard.types import Budget

EXAMPLES = """\
  the paper's defense: harden a model against an attack that was learnt on it, with virtual people
  as the other domain:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack runs/meta/attack.safetensors --meta-data virtual:plaza --out runs/robust

  plain adversarial training, the attack relearnt every 5 epochs:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack runs/meta/attack.safetensors --defense adversarial --set refresh_every=5

  against SMA, made anew for each batch on the model as it hardens:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack sma --attack-set steps=7 --meta-data virtual:plaza

The model is evaluated on clean queries, and on queries perturbed by the same attack: one from a
file as it is (transfer, the paper's protocol), an instance attack on the hardened model itself.

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
model.safetensors, result.json and result.md. The same command goes on after an interruption, and
gives the same weights as if there had been none.
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("defend", summary, EXAMPLES)
    common.add_victim(made)
    made.section("defense")
    made.option("--defense", "reidguard list defenses", metavar="NAME", default="meta")
    made.pairs("--set", "option of the defense, such as batch_norm=separate or learner=joint")
    made.option(
        "--attack",
        "what makes the adversarial images: a saved attack, or the name of an attack that works "
        "on each image by itself, such as sma; goat has its own",
        metavar="FILE|NAME",
    )
    made.pairs("--attack-set", "option of a named attack's constructor, such as steps=7")
    common.add_eps(made, "L∞ budget of a named attack")
    made.section("learning")
    made.option(
        "--meta-data",
        "dataset whose training images are the other domain, for learners that use one",
        metavar="NAME[:PATH]",
    )
    common.add_learning(made, lr="3e-4", epochs=85, checkpoint_every=100)
    made.option("--weight-decay", "of Adam", amount, metavar="X", default=5e-4)
    made.flag(
        "--recompute",
        "work activations out again instead of keeping them: less memory, one more "
        "forward pass for each with gradients; not with the learner maml",
    )
    common.add_evaluation(made)
    common.add_machine(made, out="run folder (default: one below runs/, named after the settings)")
    return made


def run(options: Options) -> int:
    """Harden, evaluate, save."""
    device = common.set_up_machine(options)
    # Mistakes that need no data, before anything slow.
    attack = _attack(options)
    defense = _defense(options, attack)
    if defense.needs_meta_test and options.meta_data is None:
        raise InputError(
            f"the defense {options.defense!r} needs a second dataset: give it with --meta-data "
            "NAME:PATH, or take --defense adversarial"
        )
    if not defense.needs_meta_test and options.meta_data is not None:
        raise InputError(
            f"the defense {options.defense!r} uses no second dataset: leave --meta-data out, or "
            "take --defense meta or mixed"
        )
    dataset = load_dataset(options.data)
    other = None if options.meta_data is None else load_dataset(options.meta_data)
    model = common.make_model(options, num_classes=dataset.num_train_pids or None)
    length: dict[str, Any] = {"steps": options.steps}
    if options.steps is None:
        length = {"epochs": options.epochs or 85}
    recipe = {
        **length,
        "lr": options.lr,
        "weight_decay": options.weight_decay,
        "identities": options.identities,
        "images_per_identity": options.images_per_identity,
        "image_size": options.image_size,
        "seed": options.seed,
    }
    settings = {
        "command": "defend",
        "data": common.data_settings(dataset, "train", "query", "gallery"),
        "meta_data": None if other is None else common.data_settings(other, "train"),
        "model": common.model_settings(model),
        "defense": defense.config(),
        "recipe": recipe,
        "query_every": options.query_every,
        "device": device.type,
    }
    out = options.out or default_folder("defend", f"{options.defense}-{dataset.name}", settings)
    products = ("model.safetensors", "result.json", "result.md")
    with common.running(out, options, settings, products) as (folder, display):
        target = folder / "model.safetensors"
        if not folder.finished:
            defense.attack.to(device)
            recipe["recompute"] = options.recompute  # which changes no result
            fit = partial(defense.fit, model.to(device), dataset, other, **recipe)
            robust, seconds = common.learn_once(options, target, folder, display, load_model, fit)
            if not folder.writes:
                return 0
            robust.to(device)
            against: Attack | None = defense.attack
            if isinstance(against, InstanceAttack) and dataset.gallery:
                against = common.bind(options, against, robust, dataset, display)
            result = common.measure(options, robust, dataset, against, display)
            common.save_result(folder, result, robust.provenance, seconds)
            folder.finish()
        common.print_result(folder)
        print(f"model: {target}")
    return 0


def _attack(options: Options) -> Attack | None:
    spec = options.attack
    chosen = sorted({"attack_set", "eps"} & options.given)
    if spec is not None and spec not in ATTACKS and (spec.endswith(".safetensors") or _file(spec)):
        if chosen:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise InputError(f"{spec} knows how it was built; leave {flags} out")
        return load_attack(pathname(spec))
    if spec is None:
        if "attack_set" in chosen:
            raise InputError("--attack-set belongs to a named attack: give --attack NAME, too")
        return None
    factory = ATTACKS.get(spec)
    if not (isinstance(factory, type) and issubclass(factory, Attack)):
        raise InputError(f"the attack {spec!r} is no class: save one and give its file")
    if issubclass(factory, LearnedAttack):
        raise InputError(
            f"{spec!r} must be learnt first, with: reidguard attack --attack {spec} ...; then give "
            "its file, as in --attack runs/NAME/attack.safetensors"
        )
    made: Attack = common.make(
        "--attack-set", factory, budget=Budget(options.eps), **options.attack_set
    )
    return made


def _file(spec: str) -> bool:
    return Path(spec).expanduser().is_file()


def _defense(options: Options, attack: Attack | None) -> AdversarialTraining:
    factory = DEFENSES.get(options.defense)
    if not (isinstance(factory, type) and issubclass(factory, AdversarialTraining)):
        raise InputError(
            f"the defense {options.defense!r} is none that this command knows how to run: call its "
            "fit() in Python"
        )
    if "attack" in options.set:
        raise InputError("attack is no --set option: write --attack FILE")
    needed = [
        f.name
        for f in dataclasses.fields(factory)
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    if attack is None and "attack" in needed:
        raise InputError(
            f"the defense {options.defense!r} needs an attack: --attack FILE (reidguard attack "
            "learns one), or --attack sma"
        )
    given = {} if attack is None else {"attack": attack}
    made: AdversarialTraining = common.make("--set", factory, **given, **options.set)
    if attack is None and "eps" in options.given:  # goat's own
        ours = type(made.attack)(Budget(options.eps))
        made = dataclasses.replace(made, attack=ours)
    return made
