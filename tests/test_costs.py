"""``benchmarks/check.py`` notices what costs more."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import costs
from benchmarks.costs import Cost
from reidguard.learners import PlainLearner

ROOT = Path(__file__).parents[1]
LIMITS = json.loads((ROOT / "benchmarks/results/limits.json").read_text("utf-8"))["limits"]


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import check

    yield check
    del sys.modules["check"], sys.modules["common"]


@pytest.fixture(scope="module")
def passes():
    return costs.passes()


def test_passes_are_those_that_were_counted(passes, check):
    assert check.compare(passes, LIMITS)[1] == []
    assert passes.keys() <= LIMITS.keys()
    assert {name: cost.value for name, cost in passes.items()} == {
        name: pytest.approx(LIMITS[name]["value"]) for name in passes
    }


def test_passes_are_those_of_the_algorithms(passes):
    counted = {
        name: tuple(passes[f"passes, attack step, {name}, {kind}"].value for kind in KINDS)
        for name in costs.NAMES
    }
    assert counted["plain"] == (1, 1)
    assert counted["joint"] == counted["first_order"] == (2, 2)
    assert counted["hessian_free"] == (3, 3)  # one more gradient
    assert counted["maml"] == (3, 3)  # the pass back through the inner gradient
    assert [passes[f"passes, sma, {kind}"].value for kind in KINDS] == [16, 15]


KINDS = ("forward", "backward")


def test_one_more_pass_fails(check, monkeypatch, capsys):
    step = PlainLearner.step

    def wasteful(self, module, objective, batch, *others, **options):
        objective(module, batch)
        return step(self, module, objective, batch, *others, **options)

    monkeypatch.setattr(PlainLearner, "step", wasteful)
    monkeypatch.setattr(check, "all_costs", costs.passes)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert said.count("EXCEEDED") == 4  # plain and joint, of an attack and of a defense
    assert "passes, attack step, plain, forward" in said.split("above the limits")[1]


@pytest.mark.parametrize(
    ("cost", "wrong"),
    [
        (Cost(2.29, 0.0, 0.15), False),
        (Cost(2.31, 0.0, 0.15), True),
        (Cost(2.31, 0.02, 0.15), False),  # within the spread of the run
        (Cost(1.0, 0.0, 0.15), False),
        (Cost(2.001), True),  # counts have no margin
    ],
)
def test_margin_and_spread(check, cost, wrong):
    limits = {"cost": {"value": 2.0}}
    assert check.compare({"cost": cost}, limits)[1] == (["cost"] if wrong else [])


def test_a_cost_without_a_limit_fails(check):
    assert check.compare({"new": Cost(1.0)}, {})[1] == ["new"]
