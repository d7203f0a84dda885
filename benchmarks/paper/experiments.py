"""Experimental setups: the paper's, small stand-ins, and what a value of the paper requires."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reidguard.attacks import ATTACKS
from reidguard.data import Augment
from reidguard.models import MODELS

__all__ = [
    "DATASETS",
    "FAMILIES",
    "PAPER",
    "STAND_IN",
    "DefenseSpec",
    "NetworkSpec",
    "Setup",
    "data_option",
    "missing",
    "parse_defense",
    "requirements",
    "summarize",
]

# The paper's names of the datasets, by the names of the readers.
DATASETS = {
    "market1501": "Market",
    "dukemtmc-reid": "Duke",
    "msmt17": "MSMT",
    "personx-456": "PersonX",
    "personx": "PersonX",
    "randperson": "RandPerson",
    "unrealperson": "UnrealPerson",
    "deepchange": "DeepChange",
}
# Attack and objective of each of the paper's attacks.
FAMILIES = {
    "color": ("color", None),
    "delta": ("delta", None),
    "color+delta": ("combinatorial", None),
    "misrank": ("misrank", None),
    "misrank+personx": ("misrank", None),  # joint training
    "uap": ("uap", None),
    "uap+sma": ("uap", "self_metric"),
    "sma": ("sma", None),
}
COSINE = "sma"  # Table 13 scores this attack with cosine similarity


@dataclass(frozen=True)
class NetworkSpec:
    """A network and its training: the paper's own, or its stand-in.

    Attributes:
        name: In the registry of models.
        options: Of its constructor.
        steps: Training steps; None for 85 epochs.
        lr: Learning rate.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    lr: float = 3e-4


@dataclass(frozen=True)
class Setup:
    """Everything that the results depend on, apart from data and seed.

    Attributes:
        networks: By the paper's names.
        domains: Virtual domains in place of datasets, by the paper's names of these.
        virtual_options: Arguments of :func:`~reidguard.virtual.read_virtual`.
        augment: Of the training of networks and defenses.
        size: Height and width of images in pixels.
        identities: Per batch.
        images_per_identity: Per batch.
        attack_steps: Of each attack; None for 10 epochs.
        attack_options: Of attacks' constructors, by their names in the registry.
        defense_steps: Of each defense; None for 85 epochs.
        query_every: Use every n-th query.
        stand_in: Whether small networks, and virtual people where data is absent, stand in.
    """

    networks: dict[str, NetworkSpec]
    domains: dict[str, str] = field(default_factory=dict)
    virtual_options: dict[str, Any] = field(default_factory=dict)
    augment: Augment = field(default_factory=Augment)
    size: tuple[int, int] = (256, 128)
    identities: int = 8
    images_per_identity: int = 8
    attack_steps: int | None = None
    attack_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    defense_steps: int | None = None
    query_every: int = 1
    stand_in: bool = False


PAPER = Setup({name: NetworkSpec(name.lower()) for name in ("IDE", "PCB", "AGW")})
STAND_IN = Setup(
    networks={
        "IDE": NetworkSpec("ide", {"backbone": "test_efficientnet_gn"}, 520, 1e-3),
        "PCB": NetworkSpec("ide", {"backbone": "test_resnet"}, 440, 1e-3),
    },
    domains={"Market": "plaza", "Duke": "campus", "MSMT": "mall", "PersonX": "station"},
    virtual_options={
        "train_identities": 100,
        "test_identities": 25,
        "cameras": 3,
        "images_per_camera": 4,
        "height": 128,
    },
    augment=Augment(crop="pad", padding=4, erase=0.0),
    size=(128, 64),
    images_per_identity=4,
    attack_steps=100,
    attack_options={"misrank": {"width": 8}},  # 32, MisRank's own, takes six times as long
    defense_steps=100,
    stand_in=True,
)


@dataclass(frozen=True)
class DefenseSpec:
    """A defense of the paper.

    Attributes:
        kind: Name of the defense: "adversarial", "mixed" or "meta".
        attack: The attack that it trains against, in the paper's words.
        extra: The meta-test or additional dataset, or "none".
        losses: Training losses.
    """

    kind: str
    attack: str
    extra: str
    losses: tuple[str, ...] = ("triplet", "identity")


def parse_defense(text: str) -> DefenseSpec | None:
    """Parse a defense such as "M(delta), meta-test MSMT"; None if it is "none" or unknown.

    Example:
        >>> parse_defense("M(color+delta), triplet only").losses
        ('triplet',)
    """
    if text == "adversarial":
        return DefenseSpec("adversarial", "color+delta", "none")
    if text == "mixed":
        return DefenseSpec("mixed", "color+delta", "PersonX")
    match = re.fullmatch(r"M\((color|delta|color\+delta)\)(?:, (.*))?", text)
    if match is None:
        return None
    rest = match[2] or ""
    if rest.endswith(" only"):
        return DefenseSpec("meta", match[1], "PersonX", (rest.removesuffix(" only"),))
    return DefenseSpec("meta", match[1], rest.removeprefix("meta-test ") or "PersonX")


def requirements(conditions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the paper's names of the datasets and networks that an experiment requires."""
    if "data" not in conditions:
        return set(), set()
    datasets, networks = {conditions["data"]}, {conditions["model"]}
    if conditions["attack"] != "none":
        datasets |= {conditions["source_data"], conditions["attack_data"]}
        networks.add(conditions["source_model"])
        if conditions["extra"] != "none":
            datasets.add(conditions["extra"])
    if (defense := parse_defense(conditions["defense"])) is not None:
        datasets |= {"PersonX"} | ({defense.extra} - {"none"})  # the attack's meta-test set, too
    return datasets, networks


def missing(conditions: Mapping[str, Any], setup: Setup, datasets: set[str]) -> list[str]:
    """Return the reasons why an experiment cannot be run.

    Args:
        conditions: Of a value of the paper.
        setup: How it would be run.
        datasets: The paper's names of the available datasets.
    """
    if "data" not in conditions:
        return ["seconds depend on the machine; see docs/results.rst"]
    reasons = []
    attack = conditions["attack"]
    if attack != "none":
        name, _ = FAMILIES.get(attack, (None, None))
        if name is None or name not in ATTACKS:
            reasons.append(f"attack {attack} is not in this library")
    defense = conditions["defense"]
    if defense != "none" and parse_defense(defense) is None:
        reasons.append(f"the paper does not say how {defense} was trained")
    data, networks = requirements(conditions)
    for network in sorted(networks):
        if network not in setup.networks or setup.networks[network].name not in MODELS:
            reasons.append(f"network {network} is missing")
    for name in sorted(data - datasets):
        reason = "has no stand-in" if setup.stand_in else f"is missing (--data {data_option(name)})"
        reasons.append(f"{name} {reason}")
    return reasons


def summarize(reasons: Sequence[Sequence[str]]) -> list[str]:
    """Return each reason once, with the number of cells that it concerns.

    Args:
        reasons: Of each cell.
    """
    flat = [reason for cell in reasons for reason in cell]
    return [f"{r} ({flat.count(r)} of {len(reasons)} cells)" for r in dict.fromkeys(flat)]


def data_option(name: str) -> str:
    """Return the value of ``--data`` for one of the paper's datasets."""
    return next(f"{reader}:PATH" for reader, known in DATASETS.items() if known == name)
