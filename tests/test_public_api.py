"""No public name, argument or method changes unnoticed: the surface is kept in public_api.json.

After a change that is meant, write it anew and look at the difference::

    python tests/test_public_api.py --write
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import reidguard

SURFACE = Path(__file__).with_name("public_api.json")
UPDATE = "python tests/test_public_api.py --write"


def describe(value: Any) -> Any:
    if isinstance(value, type):
        return _describe_class(value)
    if isinstance(value, reidguard.Registry):
        names = [n for n in value.list() if value.get(n).__module__.startswith("reidguard.")]
        return {"registry of": value.kind, "group": value.group, "names": names}
    if inspect.isfunction(value):
        return {"function": str(inspect.signature(value))}
    raise TypeError(f"{value!r}: say here what of it is public")


def _describe_class(cls: type) -> dict[str, Any]:
    """Constructor, and what it and its bases in this library define without an underscore."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "reidguard"]
    members = {}
    for base in reversed(ours):
        for name in inspect.get_annotations(base):
            members[name] = "attribute"
        for name, member in vars(base).items():
            members[name] = _describe_member(member)
    return {
        "class": "" if issubclass(cls, Exception) else _constructor(cls),
        "bases": [base.__name__ for base in cls.__bases__],
        "abstract": sorted(getattr(cls, "__abstractmethods__", ())),
        "members": {name: members[name] for name in sorted(members) if _is_public(name)},
    }


def _constructor(cls: type) -> str:
    return str(inspect.signature(cls).replace(return_annotation=inspect.Signature.empty))


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def _describe_member(member: Any) -> str:
    if isinstance(member, property):
        return "property"
    for kind in (classmethod, staticmethod):
        if isinstance(member, kind):
            return f"{kind.__name__} {inspect.signature(member.__func__)}"
    return str(inspect.signature(member)) if inspect.isfunction(member) else "attribute"


def surface() -> dict[str, Any]:
    version = "__version__"  # there, but not fixed
    return {
        name: describe(getattr(reidguard, name)) for name in reidguard.__all__ if name != version
    }


def as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def test_the_surface_is_the_one_on_file() -> None:
    before, now = SURFACE.read_text("utf-8"), as_text(surface())
    changes = "\n".join(
        difflib.unified_diff(before.splitlines(), now.splitlines(), "on file", "now", lineterm="")
    )
    assert not changes, (
        f"the public API changed:\n{changes}\nIf that is meant, note it in CHANGELOG.md and run: "
        f"{UPDATE}"
    )


def test_names_are_listed_once_and_sorted() -> None:
    # Constants, classes, the rest: the order that ruff keeps.
    constants = [name for name in reidguard.__all__ if name.isupper()]
    classes = [n for n in reidguard.__all__ if n[0].isupper() and not n.isupper()]
    rest = [name for name in reidguard.__all__ if not name[0].isupper()]
    assert reidguard.__all__ == sorted(constants) + sorted(classes) + sorted(rest)
    assert len(set(reidguard.__all__)) == len(reidguard.__all__)


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(reidguard.__file__).read_text("utf-8"))
    imports = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reidguard.")
        for alias in node.names
    }
    assert sorted(imports) == sorted(set(reidguard.__all__) - {"__version__"})
    for name, module in imports.items():
        there = __import__(str(module), fromlist=[name])
        assert getattr(reidguard, name) is getattr(there, name), name
        assert name in there.__all__, f"{module}.{name} is not public there"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(reidguard, "NoSuchAttack")


def test_dir_lists_the_public_names_alone() -> None:
    packages = {p.stem for p in Path(reidguard.__file__).parent.iterdir()}
    assert set(reidguard.__all__) <= set(dir(reidguard))
    assert set(dir(reidguard)) - set(reidguard.__all__) <= packages - {"cli"}


def test_importing_is_quick_and_silent() -> None:
    code = (
        "import sys, reidguard; reidguard.__version__; "
        "sys.exit(', '.join({'torch', 'timm', 'numpy'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_using_the_library_prints_nothing() -> None:
    code = "import reidguard; [getattr(reidguard, name) for name in reidguard.__all__]"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"to accept the public API as it is now: {UPDATE}")
    SURFACE.write_text(as_text(surface()), "utf-8")
    print(f"{SURFACE}: {len(surface())} names")
