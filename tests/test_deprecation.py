"""What goes says so, works until then, and is gone when it said it would be."""

from __future__ import annotations

import inspect
import warnings
from importlib import metadata

import pytest

import reidguard
from reidguard.deprecation import DEPRECATIONS, deprecated, renamed_arguments
from reidguard.errors import InputError


@pytest.fixture(autouse=True)
def _forget():
    before = list(DEPRECATIONS)
    yield
    DEPRECATIONS[:] = before


def test_a_function_warns_at_the_place_that_calls_it():
    @deprecated(since="0.2", removal="0.3", instead="evaluate")
    def measure(x: int, *, twice: bool = False) -> int:
        """Return x."""
        return 2 * x if twice else x

    message = r"measure is deprecated since reidguard 0\.2 and goes in 0\.3: use evaluate instead"
    with pytest.warns(DeprecationWarning, match=message) as told:
        assert measure(3, twice=True) == 6
    assert len(told) == 1
    assert told[0].filename == __file__
    assert measure.__doc__ == "Return x."
    assert list(inspect.signature(measure).parameters) == ["x", "twice"]
    assert "use evaluate" in measure.__deprecated__  # what type checkers read
    assert DEPRECATIONS[-1].removal == "0.3"


def test_a_class_warns_when_it_is_made_and_stays_a_class():
    @deprecated(since="0.2", removal="1.0", instead="DeltaAttack")
    class Old:
        def __init__(self, eps: float) -> None:
            self.eps = eps

    with pytest.warns(DeprecationWarning, match="use DeltaAttack"):
        old = Old(0.5)
    assert isinstance(old, Old)
    assert old.eps == 0.5


def test_renamed_arguments_work_under_both_names():
    @renamed_arguments(since="0.2", removal="0.3", epsilon="eps", n="steps")
    def learn(eps: float, *, steps: int = 1) -> tuple[float, int]:
        return eps, steps

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learn(0.5, steps=2) == (0.5, 2)
    with pytest.warns(DeprecationWarning, match=r"learn\(epsilon=\).*use eps= instead") as told:
        assert learn(epsilon=0.5, steps=2) == (0.5, 2)
    assert [w.filename for w in told] == [__file__]
    with pytest.warns(DeprecationWarning, match="learn") as told:
        assert learn(epsilon=0.5, n=2) == (0.5, 2)
    assert len(told) == 2
    with pytest.raises(InputError, match="give steps= alone"):
        learn(0.5, n=1, steps=2)
    assert list(inspect.signature(learn).parameters) == ["eps", "steps"]


def test_mistakes_of_ours():
    with pytest.raises(InputError, match="one minor release"):
        deprecated(since="0.2", removal="0.2.5", instead="x")(lambda: 0)
    with pytest.raises(InputError, match="has no argument eps"):
        renamed_arguments(since="0.2", removal="0.3", epsilon="eps")(lambda size: 0)


def test_nothing_stays_longer_than_it_said():
    for name in reidguard.__all__:
        getattr(reidguard, name)  # imports what registers deprecations
    major, minor = map(int, metadata.version("reidguard").split(".")[:2])
    overdue = [
        d for d in DEPRECATIONS if tuple(map(int, d.removal.split(".")[:2])) <= (major, minor)
    ]
    assert not overdue, f"remove these, as announced: {[d.what for d in overdue]}"
