"""Devices, environment variables, files and paths that cannot be used: one line that says why."""

from __future__ import annotations

import pytest
import torch

from reidguard.cli.app import parse
from reidguard.cli.session import use_device
from reidguard.errors import InputError


@pytest.mark.parametrize("name", ["cuda:99", "mps", "nonsense", "meta", "cuda:-1", "cuda:x", "xla"])
def test_devices_that_are_not_there(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here .*; try cpu"):
        use_device(name)


@pytest.mark.parametrize("text", ["two", "-1", "", "1.5"])
def test_the_number_of_processes(text, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", text)
    line = refused("evaluate", "--data", "nosuch:x", "--model", "ide")
    assert "the environment variable WORLD_SIZE must be a whole number" in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("data: &a x\nmodel: *a", "aliases are not read"),
        ("a: &a {x: 1}\nb: &b {<<: [*a, *a]}", "aliases are not read"),
        ("steps: 0x" + "f" * 5000, "steps is not valid"),
        ("steps: 2026-01-01", "steps is not valid"),
        ("5: x", "key"),
        ("[" * 1000, "c.yaml is not YAML"),
        ("- a", "expected object, got array"),
        ("model-set: {x: {y: 1}}", "model-set is not valid"),
        ("\0", "c.yaml is not YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_no_configuration(content, reason, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=reason):
        parse(["train", "--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 5000, "/dev/null/x"])
@pytest.mark.parametrize(
    "call", [["report"], ["attack", "--data", "virtual:plaza", "--model", "ide", "--load"]], ids=str
)
def test_paths(call, path, refused):
    assert path[:20] in refused(*call, path)
