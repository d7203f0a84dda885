"""Registered names and the first lines of their documentation, read from sources.

Nothing is imported, which would take seconds: torch and timm come with it. What is understood is a
decorator with a name in quotation marks::

    @register_model("tiny")  # or @MODELS.register("tiny")
    class Tiny(ReIDModel): ...

and a function that registers what it defines under an argument, or under an f-string with it, and
is called with such arguments. Anything else has to be imported to be known; :func:`read_names`
then returns None.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

__all__ = ["read_names"]

Definition = ast.ClassDef | ast.FunctionDef


class _UnclearError(Exception):
    """The sources do not show which names are registered."""


def read_names(package: Path, group: str) -> dict[str, str] | None:
    """Return the names that the modules of a package and entry points register.

    Args:
        package: Folder of the package, with its subpackages.
        group: Entry-point group of other packages.

    Returns:
        The first line of the documentation of each name; None if the sources do not show them all.
    """
    names: dict[str, str] = {}
    try:
        for path in sorted(package.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "regist" in text.lower():
                for name, summary in _registered(ast.parse(text)):
                    _add(names, name, summary)
        for entry in metadata.entry_points(group=group):
            _add(names, entry.name, _summary_at(entry.value))
    except (_UnclearError, OSError, SyntaxError, UnicodeError):
        return None
    return dict(sorted(names.items()))


def _add(names: dict[str, str], name: str, summary: str) -> None:
    if name in names:
        raise _UnclearError
    names[name] = summary


def _registered(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a module registers."""
    understood: set[ast.AST] = set()
    helpers: dict[str, tuple[ast.FunctionDef, ast.Call, Definition]] = {}
    for node in tree.body:
        if isinstance(node, Definition):
            if re.fullmatch(r"register_\w+", node.name):  # it defines the decorator
                understood.update(ast.walk(node))
            for call in _decorators(node):
                understood.add(call)
                yield _text(call.args, {}), _summary(node)
        if isinstance(node, ast.FunctionDef):
            for inner, call in ((i, c) for i in _inner(node) for c in _decorators(i)):
                understood.add(call)
                helpers[node.name] = node, call, inner
        elif isinstance(node, ast.Expr) and _name(called := _function(node.value)) in helpers:
            helper, call, inner = helpers[_name(called)]
            understood.add(called)
            assert isinstance(node.value, ast.Call)
            parameters = [parameter.arg for parameter in helper.args.args]
            arguments = dict(zip(parameters, node.value.args, strict=False))
            yield _text(call.args, arguments), _summary(inner)
    for part in ast.walk(tree):
        if isinstance(part, ast.Call) and _name(part.func) == "Registry":
            yield from _builtin(part)
        elif part not in understood and (
            (isinstance(part, ast.Call) and _registers(part.func))
            or (isinstance(part, ast.Name) and part.id in helpers)
        ):
            raise _UnclearError


def _registers(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return function.attr == "register" and _name(function.value).isupper()
    return re.fullmatch(r"register_(attack|dataset|model)", _name(function)) is not None


def _function(node: ast.expr) -> ast.expr:
    """Return what an expression calls, or itself."""
    return node.func if isinstance(node, ast.Call) else node


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _decorators(node: Definition) -> list[ast.Call]:
    return [d for d in node.decorator_list if isinstance(d, ast.Call) and _registers(d.func)]


def _inner(node: ast.FunctionDef) -> list[Definition]:
    return [inner for inner in node.body if isinstance(inner, Definition)]


def _text(args: list[ast.expr], values: dict[str, ast.expr]) -> str:
    """Return the text that is the first argument of a call.

    Args:
        args: The arguments.
        values: What some names stand for.
    """
    arg = args[0] if args else None
    if isinstance(arg, ast.Name) and arg.id in values:
        return _text([values[arg.id]], {})
    if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
        return arg.value
    if isinstance(arg, ast.FormattedValue) and arg.conversion == -1 and arg.format_spec is None:
        return _text([arg.value], values)
    if isinstance(arg, ast.JoinedStr):
        return "".join(_text([part], values) for part in arg.values)
    raise _UnclearError


def _summary(node: Definition) -> str:
    """Return the first line of a docstring; a class without one inherits it."""
    docstring = ast.get_docstring(node)
    if docstring is None and isinstance(node, ast.ClassDef):
        raise _UnclearError
    return (docstring or "").partition("\n")[0]


def _builtin(registry: ast.Call) -> Iterator[tuple[str, str]]:
    """Yield the names that a registry imports when they are looked up."""
    for keyword in registry.keywords:
        if keyword.arg == "builtin":
            for name, value in ast.literal_eval(keyword.value).items():
                yield name, _summary_at(value)


def _summary_at(value: str) -> str:
    """Return the first line of the docstring of "module:attribute"."""
    module, _, attribute = value.partition(":")
    top, *rest = module.strip().split(".")
    try:
        spec = util.find_spec(top)  # of a package without a dot: nothing is imported
    except (ImportError, ValueError) as error:
        raise _UnclearError from error
    if spec is None or spec.origin is None:
        raise _UnclearError
    path = Path(spec.origin)
    if rest:
        path = path.parent.joinpath(*rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Definition) and node.name == attribute.strip():
            return _summary(node)
    raise _UnclearError
