"""Size of the library's code: lines, long functions, long files, long parameter lists.

Run: python benchmarks/structure.py [FOLDER]

FOLDER is a checkout of the repository, by default the one that holds this file. Code lines leave
out docstrings, comments and blank lines. Options passed as `**options: Unpack[...]` count as one
parameter; `self` and `cls` count as none.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

CODE_LINES, FILE_LINES, PARAMETERS = 60, 400, 10
IGNORED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """All functions and methods with their qualified names, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
        inner = f"{prefix}{node.name}." if isinstance(node, Function | ast.ClassDef) else prefix
        yield from functions(node, inner)


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def num_parameters(function: Function) -> int:
    """Parameters of a function, without `self` and `cls`."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    count = sum(arg.arg not in ("self", "cls") for arg in named)
    return count + (args.vararg is not None) + (args.kwarg is not None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    folder = parser.parse_args().folder
    packages: dict[str, int] = {}
    long_files, long_functions, wide_functions = [], [], []
    for path in sorted((folder / "reidguard").rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        source = path.read_text("utf-8")
        tree = ast.parse(source)
        lines = source.count("\n")
        package = "/".join(name.split("/")[:2]) if name.count("/") > 1 else "reidguard/*.py"
        packages[package] = packages.get(package, 0) + lines
        if lines > FILE_LINES:
            long_files.append((lines, name))
        code = code_lines(source, tree)
        for function_name, function in functions(tree):
            label = f"{name}:{function.lineno} {function_name}"
            length = len(code & set(range(function.lineno, function.end_lineno + 1)))
            if length > CODE_LINES:
                long_functions.append((length, label))
            if (count := num_parameters(function)) >= PARAMETERS:
                wide_functions.append((count, label))
    if not packages:
        parser.error(f"{folder} holds no reidguard/*.py")
    print(f"lines of reidguard/**/*.py: {sum(packages.values())}")
    for package, lines in packages.items():
        print(f"  {lines:6} {package}")
    for title, offenders in (
        (f"functions over {CODE_LINES} code lines", long_functions),
        (f"files over {FILE_LINES} lines", long_files),
        (f"functions with {PARAMETERS} or more parameters", wide_functions),
    ):
        print(f"\n{title}: {len(offenders)}")
        for count, label in sorted(offenders, key=lambda entry: (-entry[0], entry[1])):
            print(f"  {count:6} {label}")


if __name__ == "__main__":
    main()
