"""The attack of ``--attack``: a saved file, or a registered one that needs no learning."""

from typing import Any

import reidguard as rg
from reidguard.cli.options import Options, errors_name
from reidguard.errors import InputError
from reidguard.records import to_path

__all__ = ["attack_from"]


def attack_from(options: Options) -> "rg.Attack | None":
    """Load or build the attack of ``--attack``, ``--attack-set`` and ``--eps``.

    Raises:
        InputError: If the attack must be learnt first, or its options do not fit.
    """
    spec = options.attack
    if spec is None:
        if options.attack_set:
            raise InputError("--attack-set belongs to a named attack: give --attack NAME, too")
        return None
    path = to_path(spec)
    if spec not in rg.ATTACKS and (spec.endswith(".safetensors") or path.is_file()):
        options.refuse(["attack_set", "eps"], f"{spec} contains these options; leave {{flags}} out")
        return rg.load_attack(path)
    factory: Any = rg.ATTACKS.get(spec)
    if issubclass(factory, rg.LearnedAttack):
        raise InputError(
            f"{spec!r} must be learnt first, with: reidguard attack --attack {spec} ...; then give "
            "its file, as in --attack runs/NAME/attack.safetensors"
        )
    with errors_name("--attack-set"):
        attack: rg.Attack = factory(budget=rg.Budget(options.eps), **options.attack_set)
        return attack
