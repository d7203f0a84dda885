"""Every option of every group: its range is held, its default lies in it, its sentence is there."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest

import reidguard.options
from reidguard.data import Augment
from reidguard.errors import InputError
from reidguard.options import AttackOptions, FitOptions, ModelOptions, TrainOptions
from reidguard.schema import Option, documented, options_of, resolve, settings

NAMES = [name for name in reidguard.options.__all__ if name.endswith("Options")]
GROUPS = [getattr(reidguard.options, name) for name in NAMES]
OPTIONS = [
    pytest.param(group, name, option, id=f"{group.__name__}.{name}")
    for group in GROUPS
    for name, option in options_of(group).items()
]


def outside(option: Option) -> list[object]:
    """Values of the right type out of the range, and values of another type."""
    numbers: list[object] = []
    if option.low is not None:
        numbers.append(option.low - 1)
    if option.above is not None:
        numbers += [option.above, option.above - 1]
    if option.high is not None:
        numbers.append(2 * option.high)
    types = option.types
    if any(t in (int, float) or get_origin(t) is tuple for t in types):
        numbers += [math.nan, math.inf, -math.inf, "1", True]
    if int in types or tuple[int, int] in types:
        numbers.append(1.5)
    tuples = [t for t in types if get_origin(t) is tuple]
    if tuples:
        lengths: list[object] = (
            [()] if tuples[0] in (tuple[float, ...], tuple[int, ...]) else [(), (3,), (3, 3, 3)]
        )
        return [(3, n) for n in numbers] + [(n, 3) for n in numbers] + [*lengths, 3, "32"]
    if bool in types:
        return [1, "true"]
    if option.choices:
        return [option.choices[0] + "x", 3]
    return numbers or [object()]


@pytest.mark.parametrize(("group", "name", "option"), OPTIONS)
def test_every_option_refuses_what_is_out_of_its_range(group, name, option):
    if not option.types or isinstance(option.type, str) or "ForwardRef" in repr(option.type):
        return  # an object, which its own class checks
    values = outside(option)
    assert values
    for value in values:
        with pytest.raises(InputError) as error:
            resolve(group, {name: value})
        assert name in str(error.value)
        assert repr(value) in str(error.value)
        assert option.values in str(error.value)


@pytest.mark.parametrize(("group", "name", "option"), OPTIONS)
def test_every_option_has_a_sentence_and_a_default_in_its_range(group, name, option):
    assert option.help[0].islower() or option.help[0] in "Lε"
    assert not option.help.endswith(".")
    resolved = resolve(group, {} if option.default is None else {name: option.default})
    assert resolved[name] == option.default


def test_bounds_are_inclusive_or_exclusive_as_declared():
    assert resolve(AttackOptions, {"diversity": 0})["diversity"] == 0.0
    assert resolve(AttackOptions, {"diversity": 1})["diversity"] == 1.0
    assert resolve(FitOptions, {"steps": 1})["steps"] == 1
    assert resolve(FitOptions, {"lr": 5e-324})["lr"] == 5e-324
    assert resolve(FitOptions, {"image_size": [1, 2]})["image_size"] == (1, 2)


def test_defaults_of_a_family_fill_what_none_leaves_open():
    family = {"epochs": 85, "lr": 3e-4}
    assert resolve(FitOptions, {"lr": None}, **family)["lr"] == 3e-4
    assert resolve(FitOptions, {"lr": 0.1}, **family)["lr"] == 0.1
    assert resolve(FitOptions, {}, **family)["epochs"] == 85
    by_steps = resolve(FitOptions, {"steps": 3}, **family)
    assert (by_steps["steps"], by_steps["epochs"]) == (3, None)
    resolved = resolve(ModelOptions, {"augment": None}, augment="recipe")  # a value of its own
    assert resolved["augment"] is None
    assert settings(ModelOptions, resolved)["augment"] is None
    assert "lr" not in settings(ModelOptions, resolved)
    assert resolve(ModelOptions, {})["augment"] == "recipe"


def test_unknown_and_exclusive_options_are_refused():
    with pytest.raises(InputError, match="'epoch': did you mean 'epochs'"):
        resolve(FitOptions, {"epoch": 3})
    with pytest.raises(InputError, match="epochs=2 and steps=3 exclude"):
        resolve(FitOptions, {"epochs": 2, "steps": 3})
    with pytest.raises(InputError, match="'paper' or 'agw', not 'agv': did you mean 'agw'"):
        resolve(TrainOptions, {"recipe": "agv"})


def test_settings_are_json_values_of_what_the_result_depends_on():
    values = resolve(TrainOptions, {"steps": 2, "augment": Augment(), "checkpoint": "file"})
    recorded = settings(TrainOptions, values)
    assert recorded == {
        "steps": 2,
        "image_size": [256, 128],
        "seed": 0,
        "weight_decay": 5e-4,
        "augment": dataclasses.asdict(Augment()),
        "recipe": "paper",
    }


def test_a_documented_function_shows_every_option():
    @documented(FitOptions, lr="ε/10")
    def fit(model, **options):
        """Fit.

        Args:
            model: A model.
            **options: As follows.

        Returns:
            Nothing.
        """

    for name, option in options_of(FitOptions).items():
        assert f"            {name}: {option.help[0].upper()}" in fit.__doc__
    assert "above 0 and at most 1,000,000; ε/10 by default" in " ".join(fit.__doc__.split())
    assert fit.__doc__.index("progress:") < fit.__doc__.index("Returns:")
    assert list(fit.__signature__.parameters) == ["model", *options_of(FitOptions)]


def test_importing_the_options_imports_no_torch():
    code = "import sys, reidguard.options; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_the_tables_of_the_documentation_are_the_definition(group, monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs"))
    tables = importlib.import_module("option_tables")
    text = tables.table(group.__name__)
    entries = list(csv.reader(line[3:] for line in text.splitlines()[5:]))
    assert [entry[0] for entry in entries] == [f"``{name}``" for name in options_of(group)]
    for entry, option in zip(entries, options_of(group).values(), strict=True):
        default = "" if option.default is None else f"``{option.default!r}``"
        assert entry[1:] == [option.values, default, option.help]
    page = importlib.import_module("reference").name_page("reidguard.options", group.__name__)
    assert f".. options:: {group.__name__}\n" in page


@pytest.mark.slow
def test_mypy_knows_the_options_of_every_fit(tmp_path):
    """Names and types, and nothing else is accepted."""
    api = pytest.importorskip("mypy.api")
    good = """
import reidguard as rg
def f(model: rg.ReIDModel, data: rg.ReIDDataset, attack: rg.DeltaAttack, mis: rg.MisRank) -> None:
    attack.fit(model, data, steps=2, lr=0.1, diversity=0.5, learner="plain", image_size=(64, 32))
    mis.fit(model, data, epochs=2, momentum=0.5)
    rg.MetaAttack().fit(model, data, data, clip=False)
    rg.train_model(model, data, recipe="agw", augment=None, weight_decay=0.0)
    rg.AdversarialTraining(attack).fit(model, data, recompute=True, checkpoint="file")
"""
    bad = """
import reidguard as rg
def f(model: rg.ReIDModel, data: rg.ReIDDataset, attack: rg.DeltaAttack) -> None:
    attack.fit(model, data, step=2)
    attack.fit(model, data, steps="two")
    rg.train_model(model, data, recipe="agv")
    rg.AdversarialTraining(attack).fit(model, data, momentum=0.5)
"""
    for name, source in (("good", good), ("bad", bad)):
        (tmp_path / f"{name}.py").write_text(source)
    root = str(Path(__file__).parent.parent)
    config = ["--config-file", f"{root}/pyproject.toml", "--follow-imports", "silent"]
    files = [str(tmp_path / "good.py"), str(tmp_path / "bad.py")]
    shown, _, _ = api.run(
        [*config, "--no-error-summary", "--cache-dir", f"{root}/.mypy_cache", *files]
    )
    errors = [line for line in shown.splitlines() if ": error:" in line]
    assert [line.partition("bad.py:")[2].split(":")[0] for line in errors] == ["4", "5", "6", "7"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_size", "did you mean 'identities' and 'images_per_identity'?"),
        ("learning_rate", "did you mean 'lr'?"),
        ("num_epochs", "did you mean 'epochs'?"),
        ("max_iter", "did you mean 'steps'?"),
        ("image_sise", "did you mean 'image_size'?"),
    ],
)
def test_an_unknown_option_suggests_the_one_that_is_meant(name, said):
    with pytest.raises(InputError, match=re.escape(said)):
        resolve(FitOptions, {name: 8})


def test_aliases_are_no_options():
    for group in GROUPS:
        options = options_of(group)
        aliases = {alias for option in options.values() for alias in option.aliases}
        assert not aliases & options.keys(), group.__name__
