"""API reference: a page for each public name, made of each package's ``__all__`` at every build.

The pages are written to ``docs/api``, which git ignores. References find a name by any path that
Python imports it by: :class:`reidguard.DeltaAttack` is on the page of ``reidguard.attacks``.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import reidguard
from reidguard.registry import Registry

PAGES = Path(__file__).parent / "api"

# In the order of the reference. A name that two packages list is described with the first whose
# module defines it.
PACKAGES = {
    "reidguard.attacks": "Attacks",
    "reidguard.defenses": "Defenses",
    "reidguard.models": "Models",
    "reidguard.data": "Data",
    "reidguard.evaluation": "Evaluation",
    "reidguard.detection": "Detection",
    "reidguard.objectives": "Objectives",
    "reidguard.learners": "Learners",
    "reidguard.training": "Training",
    "reidguard.metrics": "Metrics",
    "reidguard.report": "Report",
    "reidguard.hub": "Sharing",
    "reidguard.virtual": "Virtual people",
    "reidguard.types": "Values",
    "reidguard.errors": "Errors",
    "reidguard.registry": "Registry",
    "reidguard.options": "Options",
    "reidguard.schema": "Option schemas",
    "reidguard.nn": "Inference views",
    "reidguard.testing": "Testing plugins",
    "reidguard.distributed": "Several processes",
}
# Modules whose members are options of load_dataset and of other functions, on a page of their own.
WHOLE = {
    "reidguard.objectives.reid": "Objectives of re-ID models",
    "reidguard.objectives.defense": "The objective of defenses",
    "reidguard.learners.perturbed": "Weight perturbation",
    "reidguard.nn.auxiliary": "Auxiliary batch norms",
    "reidguard.training.recompute": "Recomputing activations",
    "reidguard.training.averaging": "Averages of weights",
    **{
        f"reidguard.data.readers.{name}": f"Reader: {name}"
        for name in (
            "folder", "csv_file", "flat", "market1501", "dukemtmc", "msmt17", "cuhk", "viper",
            "deepchange", "personx", "randperson", "unrealperson", "clothes", "occluded",
            "vehicles", "infrared", "clonedperson", "cuhk03", "tracklets",
        )
    },
}  # fmt: skip


def public_names() -> dict[str, list[str]]:
    """Return the public names of each package, each with the package that describes it."""
    names: dict[str, list[str]] = {package: [] for package in PACKAGES}
    described: set[int] = set()
    modules = {package: importlib.import_module(package) for package in PACKAGES}
    for own in (True, False):  # first the packages that define a name, then those that pass it on
        for package, module in modules.items():
            for name in exported(module):
                value = getattr(module, name)
                defined = str(getattr(value, "__module__", "")).startswith(package)
                if id(value) not in described and defined >= own:
                    described.add(id(value))
                    names[package].append(name)
    return names


def exported(module: ModuleType) -> list[str]:
    """Return what a package exports: classes, then the rest, by name."""
    names = [name for name in module.__all__ if name != "__version__"]
    return sorted(names, key=lambda name: (not inspect.isclass(getattr(module, name)), name))


def write_pages() -> None:
    """Write the pages; unchanged ones keep their time, so that they are not built again."""
    pages = {"index": index()}
    for package, names in public_names().items():
        pages[package] = package_page(package, names)
        pages |= {page_of(package, name): name_page(package, name) for name in names}
    for module, title in WHOLE.items():
        pages[module] = f"{heading(title)}\n.. automodule:: {module}\n"
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = PAGES / f"{name}.rst"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def index() -> str:
    """Return the page that lists the packages."""
    rows = "".join(f"   * - :doc:`{package}`\n     - {t}\n" for package, t in PACKAGES.items())
    return (
        f"{heading('API reference')}\n"
        "Public are the names of ``import reidguard`` and those that the packages below list; each "
        "has a page. Everything else may change without notice. Images are RGB tensors "
        "``(N, 3, H, W)`` with values in [0, 1], and ε is an L∞ radius in these units "
        "(:doc:`/concepts`, :doc:`/glossary`).\n\n"
        f".. list-table::\n   :widths: 40 60\n\n{rows}\n"
        f".. toctree::\n   :hidden:\n\n" + "".join(f"   {package}\n" for package in PACKAGES)
    )


def package_page(package: str, names: list[str]) -> str:
    """Return the page of a package: what it is for, and a table of its names."""
    module = importlib.import_module(package)
    text = f"{heading(PACKAGES[package])}\n.. automodule:: {package}\n   :no-members:\n\n"
    rows = ""
    for name in names:
        rows += f"   * - :py:obj:`~{package}.{name}`\n     - {summary(getattr(module, name))}\n"
    if rows:
        text += f".. list-table::\n   :widths: 35 65\n\n{rows}\n"
    whole = [part for part in WHOLE if part.startswith(f"{package}.")]
    if whole:
        text += f"Also: {', '.join(f':doc:`{part}`' for part in whole)}.\n\n"
    pages = [*(page_of(package, name) for name in names), *whole]
    return text + ".. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages)


def page_of(package: str, name: str) -> str:
    """Return the file of a name, which differs from others on disks that ignore case, too."""
    value = getattr(importlib.import_module(package), name)
    return f"{package}.{name}{'.function' if inspect.isroutine(value) else ''}"


def name_page(package: str, name: str) -> str:
    """Return the page of a class, function or object."""
    value = getattr(importlib.import_module(package), name)
    text = f"{heading(name)}\n.. currentmodule:: {package}\n\n"
    if hasattr(reidguard, name) and getattr(reidguard, name) is value:
        text += f"``from reidguard import {name}``\n\n"
    if package == "reidguard.options" and name.endswith("Options"):
        return (
            f"{text}.. py:class:: {name}\n\n   {summary(value)}\n\n.. options:: {name}\n\nA "
            "default that is not shown depends on the attack, recipe or defense: the documentation "
            "of each ``fit`` has it.\n"
        )
    if inspect.isclass(value):
        text += f".. autoclass:: {package}.{name}\n"
        if not issubclass(value, Exception):
            text += "   :inherited-members: Module, Optimizer, Generic, Protocol, dict, tuple\n"
        return text
    if isinstance(value, (dict, list, tuple)):
        return f"{text}.. py:data:: {package}.{name}\n\n   A constant.\n"
    kind = "autofunction" if inspect.isroutine(value) else "autodata"
    text += f".. {kind}:: {package}.{name}\n"
    if isinstance(value, Registry):
        text += (
            f"\nEntry-point group of plugins: ``{value.group}`` (:doc:`/extending`). Known names:\n"
        )
        own = [n for n in value.list() if value.get(n).__module__.startswith("reidguard.")]
        text += f"{', '.join(f'``{n}``' for n in own)}.\n"
    return text


def summary(value: Any) -> str:
    """Return the first sentence of a docstring, on one line."""
    if isinstance(value, Registry):
        return f"The registry of {value.kind}s."
    text = inspect.getdoc(value) if inspect.isclass(value) or inspect.isroutine(value) else ""
    return " ".join((text or "").partition("\n\n")[0].split()) or "A type."


def heading(title: str) -> str:
    """Return a title, underlined."""
    return f"{title}\n{'=' * len(title)}\n"


def find(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Resolve a reference to a public name by another path than that of its page.

    A name that exists but is not public, such as a type in a signature, is shown as plain text.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"]).lstrip(".~")
    parts = target.removeprefix("reidguard.").split(".")
    objects = env.domains.python_domain.objects
    for start in range(len(parts)):
        ending = "." + ".".join(parts[start:])
        found = {
            (entry.docname, entry.node_id): name
            for name, entry in objects.items()
            if name.endswith(ending)
        }
        if len(found) == 1:
            (((docname, node_id), name),) = found.items()
            return make_refnode(app.builder, node["refdoc"], docname, node_id, [content], name)
    return content if exists(target) else None


def exists(path: str) -> bool:
    """Return whether a dotted path can be imported."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            value = getattr(value, name, None)
        return value is not None
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", lambda _: write_pages())
    app.connect("missing-reference", find)
    return {"parallel_read_safe": True}
