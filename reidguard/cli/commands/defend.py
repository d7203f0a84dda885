"""``reidguard defend``."""

import dataclasses
from functools import partial
from typing import Annotated, Any, TypedDict

import reidguard as rg
from reidguard.cli.named_attack import attack_from
from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import EPS, Machine, MetaTest, Reading, Target
from reidguard.errors import InputError
from reidguard.options import DEFENSE_DEFAULTS, DefenseOptions, MeasureOptions
from reidguard.schema import options_of

EXAMPLES = """\
  the paper's defense: harden a model against an attack that was learnt on it, with virtual people
  as the other domain:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack runs/meta/attack.safetensors --meta-data virtual:plaza --out runs/robust

  plain adversarial training, the attack relearnt every 5 epochs:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack runs/meta/attack.safetensors --defense adversarial --set refresh_every=5

  against SMA, computed for each batch on the model in training:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack sma --attack-set steps=7 --meta-data virtual:plaza

  TRADES with its own attack, averaged weights, and an ε that rises over the first fifth:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --defense trades --set beta=3 --set warmup=0.2 --ema 0.99

  a blur in front of the model, without training:
    reidguard defend --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --defense blur --set sigma=1.5 --set scale=0.5 --attack sma --attack-set steps=30

The model is evaluated on clean queries, and on queries perturbed by the same attack: one from a
file as it is (transfer, the paper's protocol), an instance attack on the hardened model itself.
Gradients pass through a blur. Without --attack, blur, act, hm and free are measured under SMA.

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
model.safetensors, result.json and result.md. The same command resumes an interrupted run, and
gives the same weights as an uninterrupted one.
"""


class Which(TypedDict, total=False):
    """Which defense, against which attack."""

    defense: Annotated[str, Flag("reidguard list defenses", "meta")]
    set: Annotated[dict[str, Any], Flag("option of the defense: batch_norm=separate")]
    attack: Annotated[
        str,
        Flag(
            "a saved attack, or the name of an instance attack such as sma; goat, trades, mart, "
            "act, hm and free have one of their own, and blur needs none"
        ),
    ]
    attack_set: Annotated[dict[str, Any], Flag("option of the named attack: steps=7")]
    eps: Annotated[float, EPS]


class NoLearning(TypedDict, total=False):
    """Options of a defense that learns nothing: none."""


def run(options: Options) -> None:
    """Harden, evaluate, save."""
    from reidguard.cli.session import Session

    if options.defense == "blur":
        _run_blur(options)
        return
    defense = _defense(options)  # finds mistakes before anything slow
    session = Session.open(options, classifier=True)
    fit = partial(defense.fit, session.model, session.dataset, session.meta_test)
    label = f"defend-{options.defense}-{session.dataset.name}"
    attack = defense.test_attack().to(session.device)
    session.learn_model(label, DefenseOptions, fit, attack, defense=defense.config())


def _run_blur(options: Options) -> None:
    """Put a blur in front of the model, evaluate, save."""
    from reidguard.cli.options import errors_name
    from reidguard.cli.session import Session
    from reidguard.defenses.crafting import attack_provenance

    learning = {*options_of(DefenseOptions), *options_of(MetaTest)} - {"seed", "image_size"}
    options.refuse(sorted(learning), "the defense 'blur' learns nothing: leave {flags} out")
    with errors_name("--set"):
        defense = rg.Blur(**options.set)
    attack = attack_from(options) or rg.SMA(rg.Budget(options.eps))
    session = Session.open(options, classifier=True)

    def fit(**_: Any) -> rg.ReIDModel:
        return defense.fit(session.model, session.dataset)

    own = {**defense.config(), "attack": attack_provenance(attack)}
    label = f"defend-blur-{session.dataset.name}"
    session.learn_model(label, NoLearning, fit, attack.to(session.device), defense=own)


def _defense(options: Options) -> "rg.AdversarialTraining":
    """Build the defense of ``--defense``, ``--set`` and the attack's options."""
    from reidguard.cli.options import errors_name

    name = options.defense
    factory = rg.DEFENSES.get(name)
    if not (isinstance(factory, type) and issubclass(factory, rg.AdversarialTraining)):
        raise InputError(
            f"the defense {name!r} cannot be run by this command: call its fit() in Python"
        )
    if "attack" in options.set:
        raise InputError("attack is no --set option: write --attack FILE")
    attack = attack_from(options)
    fields = {field.name: field for field in dataclasses.fields(factory)}
    own_attack = fields["attack"].default_factory is not dataclasses.MISSING
    if attack is None and not own_attack:
        raise InputError(
            f"the defense {name!r} needs an attack: --attack FILE (reidguard attack learns one), "
            "or --attack sma"
        )
    arguments: dict[str, Any] = options.set if attack is None else {"attack": attack, **options.set}
    with errors_name("--set"):
        defense = factory(**arguments)
    if attack is None and "eps" in options.explicit:
        settings = {**defense.attack.config(), "eps": options.eps}
        own = type(defense.attack).from_config(settings)
        defense = dataclasses.replace(defense, attack=own)
    if defense.needs_meta_test != (options.meta_data is not None):
        cure = "needs a second dataset: give it with --meta-data NAME:PATH, or take adversarial"
        if not defense.needs_meta_test:
            cure = "uses no second dataset: leave --meta-data out, or take meta or mixed"
        raise InputError(f"the defense {name!r} {cure}")
    return defense


app = command(
    "defend",
    run,
    {
        "data and model": (Target,),
        "defense": (Which,),
        "learning": (MetaTest, DefenseOptions),
        "evaluation": (Reading, MeasureOptions),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
    shown=DEFENSE_DEFAULTS,
)
