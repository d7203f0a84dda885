import math
import re
import warnings
from types import SimpleNamespace

import pytest

from reidguard import registry as registry_module
from reidguard.errors import RegistryError
from reidguard.registry import Registry


class Animal:
    pass


class Loud(Animal):
    pass


class EntryPoint:
    """What importlib.metadata hands out, as far as the registry looks at it."""

    def __init__(self, name, target):
        self.name, self.value, self._target = name, f"plugin:{name}", target
        self.dist = SimpleNamespace(name="some-package")

    def load(self):
        if isinstance(self._target, BaseException):
            raise self._target
        if self._target is Loud:
            print("\nhello\nworld")
        return self._target


@pytest.fixture
def animals(monkeypatch):
    def broken_or_fine(group):
        assert group == "zoo"
        return [EntryPoint("dog", dict), EntryPoint("unicorn", ImportError("no horn"))]

    monkeypatch.setattr(registry_module.metadata, "entry_points", broken_or_fine)
    return Registry("animal", group="zoo")


def test_a_name_taken_twice_names_both_owners(animals):
    animals.register("cat")(dict)
    with pytest.raises(RegistryError, match=r"builtins\.dict and by builtins\.list"):
        animals.register("cat")(list)


def test_a_near_miss_is_suggested(animals):
    animals.register("giraffe")(dict)
    with (
        pytest.warns(UserWarning, match="unicorn"),
        pytest.raises(RegistryError, match="did you mean 'giraffe'"),
    ):
        animals.create("girafe")


def test_a_broken_plugin_is_a_warning_that_names_it_and_harms_no_other(animals):
    with pytest.warns(UserWarning, match=r"unicorn.*no horn"):
        assert animals.list() == ["dog"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert animals.create("dog", a=1) == {"a": 1}


def test_a_plugin_may_not_take_a_name_of_ours(animals):
    animals.register("dog")(list)
    with pytest.warns(UserWarning, match="left out") as caught:
        animals.list()
    assert any("registered twice" in str(warning.message) for warning in caught)
    assert animals.get("dog") is list


def test_known_names_load_no_plugin(animals):
    animals.register("cat")(dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert animals.get("cat") is dict


def test_listing_takes_patterns_and_a_class_knows_its_name(animals):
    animals.register("cat")(list)
    with pytest.warns(UserWarning, match="unicorn"):
        assert animals.list("c*") == ["cat"]
    assert animals.name_of(list) == "cat"
    with pytest.raises(RegistryError, match="register it first"):
        animals.name_of(set)


KIND = "not a class that derives from .*Animal"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (SystemExit(3), r"left out: it ends the process .*\(exit code 3\)"),
        (SystemExit(), r"left out: it ends the process"),
        (GeneratorExit("odd"), "left out: GeneratorExit: odd"),
        (ValueError("no horn"), "left out: ValueError: no horn"),
        (math, f"left out: .*it is of type module, {KIND}"),
        (7, f"left out: .*it is of type int, {KIND}"),
        (print, f"left out: .*it is of type builtin_function_or_method, {KIND}"),
        (dict, rf"left out: .*builtins\.dict is {KIND}"),
        (Loud, r"prints when it is imported \('hello'\)"),
    ],
)
def test_each_fault_of_a_plugin_is_one_warning(monkeypatch, capsys, target, message):
    """The warning names the plugin, its package and the cure; other plugins are there."""
    entries = [EntryPoint("odd", target), EntryPoint("fine", Animal)]
    monkeypatch.setattr(registry_module.metadata, "entry_points", lambda group: entries)
    animals = Registry("animal", group="zoo", base=Animal, functions=False)
    with pytest.warns(UserWarning, match="animal plugin") as caught:
        assert animals.list() == (["fine", "odd"] if target is Loud else ["fine"])
    (warning,) = caught
    name = r"animal plugin 'odd' of some-package \(plugin:odd\)"
    assert re.fullmatch(
        f"{name} .*{message}.*; update some-package, or uninstall it", str(warning.message)
    )
    assert capsys.readouterr().out == ""


def test_ctrl_c_while_plugins_are_imported_is_no_fault_of_theirs(monkeypatch):
    entries = [EntryPoint("slow", KeyboardInterrupt()), EntryPoint("fine", Animal)]
    monkeypatch.setattr(registry_module.metadata, "entry_points", lambda group: entries)
    animals = Registry("animal", group="zoo", base=Animal)
    with pytest.raises(KeyboardInterrupt):
        animals.list()
    entries[0] = EntryPoint("slow", Loud)
    with pytest.warns(UserWarning, match="prints"):
        assert animals.list() == ["fine", "slow"]


def test_only_what_can_be_built_is_registered():
    animals = Registry("animal", group="zoo", base=Animal)
    with pytest.raises(RegistryError, match=r"'dog' cannot be registered: builtins\.dict is not a"):
        animals.register("dog")(dict)
    animals.register("dog")(lambda: 7)
    with pytest.raises(RegistryError, match=r"'dog': .* returned an object of type int, not"):
        animals.create("dog")
    animals.register("cat")(Loud)
    assert isinstance(animals.create("cat"), Loud)
