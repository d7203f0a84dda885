"""What a figure of the paper takes, and what stands for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reidguard.attacks import ATTACKS
from reidguard.data import Augment
from reidguard.models import MODELS

__all__ = [
    "FAMILIES",
    "PAPER",
    "READERS",
    "STAND_IN",
    "DefenseSpec",
    "Network",
    "Plan",
    "data_option",
    "hardening",
    "missing",
    "needs",
    "reasons",
]

# The paper's names, and ours.
READERS = {
    "market1501": "Market",
    "dukemtmc-reid": "Duke",
    "msmt17": "MSMT",
    "personx-456": "PersonX",
    "personx": "PersonX",
    "randperson": "RandPerson",
    "unrealperson": "UnrealPerson",
    "deepchange": "DeepChange",
}
FAMILIES = {
    "color": ("color", None),
    "delta": ("delta", None),
    "color+delta": ("combinatorial", None),
    "misrank": ("misrank", None),
    "misrank+personx": ("misrank", None),  # learnt jointly
    "uap": ("uap", None),
    "uap+sma": ("uap", "self_metric"),  # with this objective
    "sma": ("sma", None),
}
COSINE = "sma"  # Table 13 scores this attack with cosine similarity


@dataclass(frozen=True)
class Network:
    """What stands for one of the paper's networks, and how long it learns."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None  # None: 85 epochs
    lr: float = 3e-4


@dataclass(frozen=True)
class Plan:
    """All that the figures depend on, but for data and seed."""

    networks: dict[str, Network]
    domains: dict[str, str] = field(default_factory=dict)  # virtual ones, in place of datasets
    people: dict[str, Any] = field(default_factory=dict)  # arguments of read_virtual
    augment: Augment = field(default_factory=Augment)
    size: tuple[int, int] = (256, 128)
    identities: int = 8
    images_per_identity: int = 8
    attack_steps: int | None = None  # None: 10 epochs
    attack_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name in ATTACKS
    defense_steps: int | None = None  # None: 85 epochs
    query_every: int = 1
    stand_in: bool = False  # small networks, and virtual people where data is absent


PAPER = Plan({name: Network(name.lower()) for name in ("IDE", "PCB", "AGW")})
STAND_IN = Plan(
    networks={
        "IDE": Network("ide", {"backbone": "test_efficientnet_gn"}, 520, 1e-3),
        "PCB": Network("ide", {"backbone": "test_resnet"}, 440, 1e-3),
    },
    domains={"Market": "plaza", "Duke": "campus", "MSMT": "mall", "PersonX": "station"},
    people={
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
    """How the paper hardened a network.

    Attributes:
        kind: Name of the defense: "adversarial", "mixed" or "meta".
        attack: What it was shown, in the paper's words.
        extra: The other dataset, or "none".
        losses: What it learnt by.
    """

    kind: str
    attack: str
    extra: str
    losses: tuple[str, ...] = ("triplet", "identity")


def hardening(text: str) -> DefenseSpec | None:
    """Read a defense such as "M(delta), meta-test MSMT"; None where it is "none" or unknown.

    Example:
        >>> hardening("M(color+delta), triplet only").losses
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


def needs(conditions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the paper's names of all datasets and networks that a figure takes."""
    if "data" not in conditions:
        return set(), set()
    datasets, networks = {conditions["data"]}, {conditions["model"]}
    if conditions["attack"] != "none":
        datasets |= {conditions["source_data"], conditions["attack_data"]}
        networks.add(conditions["source_model"])
        if conditions["extra"] != "none":
            datasets.add(conditions["extra"])
    if (made := hardening(conditions["defense"])) is not None:
        datasets |= {"PersonX"} | ({made.extra} - {"none"})  # the attack's meta-test set, too
    return datasets, networks


def missing(conditions: Mapping[str, Any], plan: Plan, datasets: set[str]) -> list[str]:
    """Return the reasons why a figure cannot be measured with these datasets.

    Args:
        conditions: Of the figure.
        plan: How it would be measured.
        datasets: The paper's names of those at hand.
    """
    if "data" not in conditions:
        return ["seconds depend on the machine; the results page has ours"]
    found = []
    attack = conditions["attack"]
    if attack != "none":
        name, _ = FAMILIES.get(attack, (None, None))
        if name is None or name not in ATTACKS:
            found.append(f"attack {attack} is not in this library")
    defense = conditions["defense"]
    if defense != "none" and hardening(defense) is None:
        found.append(f"the paper does not say how {defense} was trained")
    data, networks = needs(conditions)
    for network in sorted(networks):
        if network not in plan.networks or plan.networks[network].name not in MODELS:
            found.append(f"network {network} is not there")
    for name in sorted(data - datasets):
        instead = (
            "has no stand-in" if plan.stand_in else f"is not given (--data {data_option(name)})"
        )
        found.append(f"{name} {instead}")
    return found


def reasons(every: Sequence[Sequence[str]]) -> list[str]:
    """Return all reasons once, each with the number of cells that it concerns."""
    flat = [reason for found in every for reason in found]
    return [f"{r} ({flat.count(r)} of {len(every)} cells)" for r in dict.fromkeys(flat)]


def data_option(name: str) -> str:
    """Return what to write behind ``--data`` for one of the paper's datasets."""
    return next(f"{reader}:PATH" for reader, known in READERS.items() if known == name)
