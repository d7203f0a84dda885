"""Names read from sources, beside the registries."""

import subprocess
import sys
from importlib import metadata

import pytest

import reidguard
from reidguard.cli import names
from reidguard.cli.commands import list as command
from reidguard.cli.names import read_names


@pytest.mark.parametrize("kind", command.REGISTRIES)
def test_equals_the_registry(kind):
    registry = getattr(reidguard, command.REGISTRIES[kind])
    own = {
        name: summary
        for name, summary in command.imported(kind).items()
        if registry.get(name).__module__.startswith("reidguard.")  # other tests register things
    }
    assert command.summaries(kind) == own


def test_listing_imports_neither_torch_nor_timm():
    """Where this fails, a module registers a name in a way that its source does not show.

    The list is then right, but takes seconds: write the name in quotation marks into the decorator,
    or pass it to a function that registers what it defines.
    """
    code = (
        "import sys; from reidguard.cli.app import main; code = main(['list']); "
        "sys.exit(code or ', '.join({'torch', 'timm', 'numpy'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "osnet_x0_25" in ended.stdout


HELPER = """
def _register(width, name, **options):
    @register_model(name)
    def build():
        '''Builds it.'''
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@register_model('tiny')\nclass Tiny:\n    '''A net.\n\n    More.'''", {"tiny": "A net."}),
        ("@register_dataset('d', *LAYOUTS)\ndef f(): pass", {"d": ""}),
        ("@MODELS.register('f')\n@other(3)\ndef f(): pass", {"f": ""}),
        (HELPER + "_register(1, 'a')\n_register(2, 'b', c=1)", dict.fromkeys("ab", "Builds it.")),
        (
            HELPER.replace("(name)", "(f'net_{name}')") + "_register(1, 'a')",
            {"net_a": "Builds it."},
        ),
        ("def register_model(name):\n    return MODELS.register(name)", {}),
        ("module.register_buffer('running', None)", {}),
        # what has to be imported
        ("@register_model(NAME)\nclass Tiny:\n    '''A net.'''", None),
        ("@register_model('tiny')\nclass Tiny(Net): pass", None),  # an inherited docstring
        ("register_model('tiny')(Tiny)", None),
        (HELPER + "for name in NAMES:\n    _register(1, name)", None),
        (HELPER + "_register(1, name='a')", None),
        ("@register_model('a')\ndef f(): pass\n@register_model('a')\ndef g(): pass", None),
        ("def broken(:  # register", None),
    ],
)
def test_what_sources_show(source, expected, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text(source)
    assert read_names(tmp_path, "nobody") == expected


def test_plugins_are_read_as_well(tmp_path, monkeypatch):
    package = tmp_path / "zoo_of_tests"
    (package / "wild").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "wild" / "cats.py").write_text("class Cat:\n    '''A cat.'''")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = {"cat": "zoo_of_tests.wild.cats:Cat"}

    def entry_points(group):
        return [metadata.EntryPoint(name, value, group) for name, value in entries.items()]

    monkeypatch.setattr(names.metadata, "entry_points", entry_points)
    assert read_names(package, "zoo") == {"cat": "A cat."}
    for missing in ("zoo_of_tests.wild.cats:Dog", "zoo_of_tests.tame:Cat", "no_such_zoo:Cat"):
        entries["other"] = missing
        assert read_names(package, "zoo") is None
