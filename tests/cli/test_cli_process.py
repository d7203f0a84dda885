"""What is around a command: plugins that fail, closed and full outputs, full disks, Ctrl-C."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from reidguard.attacks import ATTACKS
from reidguard.cli import main
from reidguard.files import is_temporary

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


@pytest.fixture
def bad_plugins(tmp_path, monkeypatch) -> None:
    """Install a package of attacks for which ``reidguard list`` has not looked yet."""
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    entries = [
        "exits = exits_at_import:Attack",
        "fine = few_attacks:Fine",
        "odd = few_attacks",
    ]
    (info / "entry_points.txt").write_text("[reidguard.attacks]\n" + "\n".join(entries) + "\n")
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "few_attacks.py").write_text(
        "import reidguard as rg\nclass Fine(rg.UniversalAttack):\n    'One that works.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ATTACKS, "_plugins_loaded", False)
    monkeypatch.setattr(ATTACKS, "_factories", dict(ATTACKS._factories))


def test_plugins_that_fail_are_named_and_harm_nothing_else(bad_plugins, capsys):
    assert main(["list", "attacks"]) == 0
    output = capsys.readouterr()
    assert re.search(r"^fine +One that works\.$", output.out, re.M)
    assert "\nsma  " in output.out
    first, second = output.err.splitlines()
    assert first == (
        "reidguard: warning: attack plugin 'exits' of bad (exits_at_import:Attack) is left out: it "
        "ends the process when it is imported (exit code 0); update bad, or uninstall it"
    )
    assert "'odd' of bad (few_attacks) is left out: it is of type module" in second


@posix
def test_a_reader_that_went_away(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    for argv in (["list", "learners"], ["list", "--help"]):
        monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(write), "w"))
        assert main(argv) == 141
        sys.stdout.close()  # nothing is left to flush
    os.close(write)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_is_full(monkeypatch, capsys):
    for argv in (["list", "learners"], ["list", "--help"]):
        monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115 (closed below)
        assert main(argv) == 2
        sys.stdout.close()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("reidguard: error: cannot print the output: No space left")


def test_closed_outputs(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert main(["list", "learners"]) == 2
    assert capsys.readouterr().err == (
        "reidguard: error: standard output is closed; send it to a file\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert main(["list", "nonsense"]) == 2
        sys.stderr.close()
    assert capsys.readouterr().out == ""


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Limit the size of files that this process may write, as on a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [400, 20_000])
def test_a_full_disk_is_one_line_and_the_run_is_resumed(
    target, tmp_path, capsys, largest_file, size
):
    """Full at the manifest, or at the cached features."""
    out = tmp_path / "run"
    call = ["attack", *target, "--attack", "sma", "--set", "steps=1", "--query-every", "16"]
    call += ["--cache", str(tmp_path / "features"), "--out", str(out)]
    largest_file(size)
    assert main(call) == 2
    largest_file(-1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("reidguard: error: cannot write ")
    assert "File too large; free some space or choose another folder" in line
    assert not [path for path in tmp_path.rglob("*") if is_temporary(path)]
    assert main(call) == 0


def test_torch_is_asked_for_huge_pages_unless_the_user_says(monkeypatch, capsys):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert main(["--help"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert main(["--help"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
