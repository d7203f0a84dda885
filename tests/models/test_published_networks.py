"""Networks have the parameter names and shapes of their authors' code, so published files load."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.published import FOLDER, read_table
from reidguard.contexts import on_meta
from reidguard.models import create_model
from reidguard.models.weights import match_tensors, misfit


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_tensor_has_its_place(path: Path) -> None:
    network = read_table(path)
    with on_meta():
        model = create_model(network.model, **network.arguments)
    state, report = match_tensors(model, path, network.state())
    assert not misfit(model, state, report)
    assert not report.unexpected
    assert not report.mismatched
    assert len(report.loaded) + len(report.dropped_heads) == len(network.tensors)
