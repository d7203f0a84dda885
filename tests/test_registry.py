import warnings

import pytest

from reidguard import registry as registry_module
from reidguard.errors import RegistryError
from reidguard.registry import Registry


class EntryPoint:
    """What importlib.metadata hands out, as far as the registry looks at it."""

    def __init__(self, name, target):
        self.name, self.value, self.dist, self._target = name, f"plugin:{name}", None, target

    def load(self):
        if isinstance(self._target, Exception):
            raise self._target
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
