"""``reidguard attack``."""

import hashlib
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import reidguard as rg
from reidguard.cli.options import MACHINE, Flag, Options, command, pathname
from reidguard.cli.sections import EPS, Learning, Machine, MetaTest, Reading, Scoring, Surrogate
from reidguard.errors import InputError
from reidguard.options import AttackOptions, EvaluateOptions
from reidguard.schema import options_of, resolve, settings

if TYPE_CHECKING:
    from reidguard.evaluation import LPIPS

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

  an additive attack that is to harm other networks, too (input diversity, or other copies):
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --diversity 0.7
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --admix 0.2 --scales 3 --shift 8

  meta-learning over networks: learnt on two, tested on the one left out in each step:
    reidguard attack --data market1501:/data/market1501 --model target.safetensors \\
        --surrogate a.safetensors --surrogate b.safetensors --surrogate c.safetensors \\
        --ensemble left_out --learner maml

  UAP-Retrieval with its label-wise loss, which uses the model's classifier:
    reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack uap --objective labelwise

  apply a saved attack to another model:
    reidguard attack --data market1501:/data/market1501 --model osnet_x1_0:other.pth \\
        --load runs/delta/attack.safetensors

  a fixed pattern, which knows neither model nor data:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack pattern --set kind=checkerboard --set period=32

  a universal attack on a black box, with 20,000 queries that show only the order of the gallery:
    reidguard attack --data market1501:/data/market1501 --model net.onnx \\
        --attack universal_square --set queries=20000 --set feedback=ranks

  an instance attack, which optimises each query on the model and learns nothing:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack sma --set steps=15 --set restarts=5 --query-every 8

  the same, made on one model and evaluated on another:
    reidguard attack --data market1501:/data/market1501 --model runs/robust/model.safetensors \\
        --attack fna --surrogate osnet_x0_25:osnet.pth

Attacks learn from training images only, and only queries are attacked. Metrics are given twice: for
the float images, and for the 8-bit images that --save-images writes.

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
attack.safetensors, result.json and result.md; where nothing is learnt, no metrics and no
checkpoint. The same command resumes an interrupted run, and gives the same attack as an
uninterrupted one.
"""


class Which(TypedDict, total=False):
    """Which attack."""

    attack: Annotated[str, Flag("reidguard list attacks", "delta")]
    set: Annotated[dict[str, Any], Flag("option of its constructor, such as resolution=17")]
    eps: Annotated[float, EPS]
    load: Annotated[Path, Flag("apply this saved attack; nothing is learnt")]


class Names(MetaTest, total=False):
    """Options of learning whose names the library also takes as objects."""

    objective: Annotated[str, Flag("reidguard list objectives", shown="misranking, uap pairwise")]
    objective_set: Annotated[dict[str, Any], Flag("option of its constructor: layer=conv3")]
    learner: Annotated[str, Flag("reidguard list learners", shown="plain, meta maml")]
    learner_set: Annotated[dict[str, Any], Flag("option of its constructor: inner_steps=2")]


class Products(TypedDict, total=False):
    """What else is measured and written."""

    lpips: Annotated[
        str,
        Flag(
            "also measure LPIPS: FILE with weights of torchvision's AlexNet or VGG-16, or "
            "FILE:FILE with weights of channels that are not those of the lpips package"
        ),
    ]
    save_images: Annotated[
        Path, Flag("folder for the evaluated adversarial queries, as PNG of equal name")
    ]
    cube: Annotated[Path, Flag("file for the colour table, for image editors (.cube)")]


# Defaults of learning, in words; a test compares them with those of the attacks.
DEFAULTS = {
    "epochs": "10, misrank 40",
    "lr": "eps/10, misrank 2e-4",
    "identities": "8",
    "images_per_identity": "8, misrank 4",
    "momentum": "0.5, uap 1",
    "clip": "yes",
}
# Options of learning: refused where nothing is learnt, except for one that evaluation has, too.
LEARNING = [n for n in (*options_of(Names), *options_of(AttackOptions)) if n != "image_size"]


def run(options: Options) -> None:
    """Learn or load an attack, or build one that learns nothing; evaluate it and save it."""
    from reidguard.cli.run_dir import open_run
    from reidguard.cli.session import Session
    from reidguard.evaluation import LPIPS, save_adversarial

    # Mistakes are found before anything slow.
    attack = _create(options) if options.load is None else rg.load_attack(options.load)
    unlearnt = attack if isinstance(attack, rg.LearnedAttack) and options.load is None else None
    _check(options, attack, learns=unlearnt is not None)
    fit = {} if unlearnt is None else _fit_options(options, unlearnt)
    lpips = None if options.lpips is None else LPIPS(*map(pathname, options.lpips.split(":", 1)))
    own = _settings(options, attack, fit, lpips)
    session = Session.open(options)
    run_settings = session.settings("train", "query", "gallery", **own)
    name = options.attack if options.load is None else options.load.stem
    products = ["attack.safetensors"] if options.load is None else []
    label = f"attack-{name}-{session.dataset.name}"
    with open_run(options, run_settings, (*products, "result.json", "result.md"), label) as folder:
        seconds, source = None, session.surrogate or session.model
        if unlearnt is not None:
            unlearnt = unlearnt.to(session.device)
            learn = partial(unlearnt.fit, source, session.dataset, session.meta_test, **fit)
            attack, seconds = folder.learn(
                products[0], rg.load_attack, learn, trackers=options.of(Learning)
            )
        elif products and folder.writes and not (folder / products[0]).exists():
            attack.save(folder / products[0])
        attack = session.bind(attack.to(session.device), source, folder.display)
        if not folder.finished:
            measure = partial(session.measure, folder.display, session.model, attack)
            on_device = None if lpips is None else lpips.to(session.device)
            folder.finish(*measure(attack.provenance, seconds, on_device))
        folder.print()
        if not folder.writes:
            return
        if options.save_images is not None:
            save_adversarial(
                attack,
                session.dataset,
                options.save_images,
                image_size=options.image_size,
                with_labels=options.with_labels,
                query_every=options.query_every,
                progress=folder.display.phase("saving images"),
            )
            print(f"images: {options.save_images}")
        if options.cube is not None:
            _color_parts(attack)[0].save_cube(options.cube)
            print(f"colour table: {options.cube}")
        print(f"attack: {folder / products[0]}" if products else f"run: {folder.path}")


def _create(options: Options) -> "rg.Attack":
    """Build the attack of ``--attack``, ``--set`` and ``--eps``."""
    from reidguard.cli.options import errors_name
    from reidguard.contexts import seeded

    if taken := {"budget", "eps"} & options.set.keys():
        raise InputError(f"{taken.pop()} is no --set option: write --eps 8/255")
    arguments = dict(options.set)
    # What is added pixel by pixel has the images' size, unless the user says otherwise.
    if "size" in inspect.signature(rg.ATTACKS.get(options.attack)).parameters:
        arguments.setdefault("size", options.image_size)
    with seeded(options.seed), errors_name("--set"):
        return rg.create_attack(options.attack, budget=rg.Budget(options.eps), **arguments)


def _check(options: Options, attack: "rg.Attack", *, learns: bool) -> None:
    """Refuse options that this attack has no use for."""
    is_instance, name = isinstance(attack, rg.InstanceAttack), type(attack).__name__
    if options.load is not None:
        options.refuse(
            ["attack", "set", "eps", *LEARNING],
            "--load applies a saved attack as it is: leave out {flags}, or leave out --load to "
            "learn one",
        )
        if options.surrogate is not None and not is_instance:
            raise InputError(f"{name} is already learnt, so it needs no --surrogate: leave it out")
    elif not learns:
        kind = "is an instance attack and learns" if is_instance else "learns"
        options.refuse(
            LEARNING,
            f"{options.attack} {kind} nothing: leave out {{flags}}; its own options go into --set, "
            "such as --set steps=15 or --set seed=1",
        )
        if options.surrogate is not None and not is_instance:
            raise InputError(f"{name} uses no model, so it needs no --surrogate: leave it out")
    if options.with_labels and not (is_instance and attack.needs_guides):
        raise InputError(f"{name} does not use the identities: leave --with-labels out")
    if options.multi_query and options.save_images is not None:
        raise InputError(
            "--save-images writes one image of each query, and --multi-query attacks several: "
            "leave one of them out"
        )
    if options.cube is not None and not _color_parts(attack):
        raise InputError(f"{name} has no colour table to write: leave --cube out")


def _fit_options(options: Options, attack: "rg.LearnedAttack") -> dict[str, Any]:
    """Return the options of the attack's ``fit``, with its learner built."""
    from reidguard.cli.options import errors_name

    defaults = attack.fit_defaults
    if defaults.learner is None:
        options.refuse(
            ["learner", "learner_set", "meta_data"],
            f"{options.attack} has a search of its own in place of a learner: leave out {{flags}}",
        )
        return _with_objective(options, attack, options.of(AttackOptions, explicit=True))
    name = options.learner or defaults.learner
    arguments = dict(defaults.learner_options) if name == defaults.learner else {}
    arguments |= options.learner_set
    with errors_name("--learner-set"):
        learner = rg.LEARNERS.create(name, **arguments)
    over_networks = options.ensemble == "left_out"
    if learner.needs_meta_test and options.meta_data is None and not over_networks:
        raise InputError(
            f"learner {name!r} needs a second dataset: give it with --meta-data NAME:PATH "
            "(virtual:plaza needs no files), or take --learner plain, or, with two --surrogate or "
            "more, --ensemble left_out"
        )
    fit = {**options.of(AttackOptions, explicit=True), "learner": learner}
    return _with_objective(options, attack, fit)


def _with_objective(
    options: Options, attack: "rg.LearnedAttack", fit: dict[str, Any]
) -> dict[str, Any]:
    """Add the objective of ``--objective``, or the attack's own, with ``--objective-set``."""
    from reidguard.cli.options import errors_name

    name = options.objective or attack.fit_defaults.objective
    if options.objective_set and name is not None:
        with errors_name("--objective-set"):
            fit["objective"] = rg.ATTACK_LOSSES.create(name, **options.objective_set)
    elif options.objective_set:
        raise InputError(f"{options.attack} has an objective of its own: leave --objective-set out")
    elif options.objective is not None:
        rg.ATTACK_LOSSES.get(options.objective)
        fit["objective"] = options.objective
    return fit


def _settings(
    options: Options, attack: "rg.Attack", fit: Mapping[str, Any], lpips: "LPIPS | None"
) -> dict[str, Any]:
    """Return which attack it is, how it learns and how it is evaluated, as JSON values."""
    from reidguard.fingerprint import weights_fingerprint

    own = settings(EvaluateOptions, options.of(EvaluateOptions))
    if lpips is not None:
        own["lpips"] = weights_fingerprint(lpips)
    if options.load is not None:
        return {**own, "attack": hashlib.sha256(options.load.read_bytes()).hexdigest()}
    own |= {"attack": options.attack, "set": attack.config()}
    if fit:
        recipe = resolve(AttackOptions, fit)
        if options.objective_set:
            recipe["objective"] = [
                rg.ATTACK_LOSSES.name_of(type(recipe["objective"])),
                options.objective_set,
            ]
        own["recipe"] = settings(AttackOptions, recipe)
    if (learner := fit.get("learner")) is not None:
        own["learner"] = {"name": rg.LEARNERS.name_of(type(learner)), **learner.config()}
    return own


def _color_parts(attack: "rg.Attack") -> "list[rg.ColorAttack]":
    return [part for part in attack.modules() if isinstance(part, rg.ColorAttack)]


app = command(
    "attack",
    run,
    {
        "data and model": (Surrogate,),
        "attack": (Which,),
        "learning": (Names, AttackOptions),
        "evaluation": (Reading, Scoring, EvaluateOptions, Products),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
    shown=DEFAULTS,
)
