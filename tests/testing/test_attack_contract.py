import pytest
import torch

from reidguard.attacks import ATTACKS, Attack, InstanceAttack, create_attack
from reidguard.errors import InputError
from reidguard.testing import ATTACK_CHECKS, check_identity
from reidguard.types import Budget

# Small grids are as hostile as large ones, and much faster.
SMALL = {"color": {"resolution": 3}, "delta": {"size": (9, 5)}}
VARIANTS = {
    "tint": ("color", {"resolution": 1}),
    "blocks": ("delta", {"basis": "blocks", "grid": (4, 3)}),
    "tint and dct": ("combinatorial", {"resolution": 1, "basis": "dct", "grid": (2, 2)}),
    "meta, bilinear": ("meta", {"perturbation": "delta", "basis": "bilinear", "grid": (3, 2)}),
    "gabor": ("pattern", {"kind": "gabor"}),
    "perlin": ("pattern", {"kind": "perlin"}),
}
SMALL["misrank"] = {"size": (16, 16), "width": 1, "pixels": 9}
SMALL["uap"] = SMALL["delta"]
SMALL["combinatorial"] = SMALL["meta"] = {**SMALL["color"], **SMALL["delta"]}
# Those that need a target model are checked with one in tests/attacks/test_instance.py.
NAMES = [name for name in ATTACKS.list() if not issubclass(ATTACKS.get(name), InstanceAttack)]


def factory(name):
    return lambda budget: create_attack(name, budget=budget, **SMALL.get(name, {}))


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_registered_attack_keeps_the_contract(name, check):
    check(factory(name))


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("name", "options"), VARIANTS.values(), ids=VARIANTS)
def test_every_basis_and_pattern_keeps_the_contract(name, options, check):
    check(lambda budget: create_attack(name, budget=budget, **options))


@pytest.mark.parametrize("name", ["color", "delta", "combinatorial", "meta", "uap"])
def test_nothing_learnt_changes_nothing(name):
    check_identity(factory(name))


class Cheater(Attack):
    """Tries to leave the ball, and is random: the checks must notice what the base can't mend."""

    def __init__(self, budget=None, mode="far"):
        super().__init__(budget)
        self.mode = mode

    def perturb(self, x):
        if self.mode == "far":
            return x + 7
        if self.mode == "random":
            return x + torch.randn_like(x)
        x += 0.001
        return x


def test_the_base_class_holds_a_cheater_inside():
    for check in ATTACK_CHECKS:
        check(Cheater)


@pytest.mark.parametrize("mode", ["random", "in place"])
def test_checks_notice_randomness_and_writing_to_the_input(mode):
    def failures():
        for check in ATTACK_CHECKS:
            try:
                check(lambda budget: Cheater(budget, mode))
            except Exception:  # a group of them, if several examples fail
                yield check

    assert list(failures())


def test_a_subclass_cannot_take_the_projection_away():
    with pytest.raises(TypeError, match="perturb"):
        type("Escapee", (Attack,), {"forward": lambda self, x: x + 1})


@pytest.mark.parametrize("x", [torch.rand(1, 3, 4, 4) * 255, torch.full((1, 3, 2, 2), torch.nan)])
def test_images_out_of_range_are_refused(x):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        create_attack("delta")(x)


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(InputError, match="resolution"):
        create_attack("color", resolutoin=3)


def test_a_budget_that_is_exceeded_by_a_float_would_be_noticed():
    class Outside(Budget):
        def project(self, x_adv, x):
            return (x + self.eps + 1e-4).clamp(0, 1)

    with pytest.raises(AssertionError, match="moved by"):
        ATTACK_CHECKS[0](lambda budget: Cheater(Outside(budget.eps / 2)))
