"""Networks have the parameter names and shapes of their authors' code, so published files load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.published import FOLDER, read_table
from reidguard.contexts import on_meta
from reidguard.models import create_model
from reidguard.models.nearest import nearest_model
from reidguard.models.transformer_options import transformer_options
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


TRANSFORMERS = [
    p for p in sorted(FOLDER.glob("*.json")) if re.match("transreid|clip|solider", p.stem)
]


@pytest.mark.parametrize("path", TRANSFORMERS, ids=lambda path: path.stem)
def test_tensors_show_the_options_of_transformers(path: Path) -> None:
    network = read_table(path)
    for prefix in ("", "module."):
        state = {prefix + name: tensor for name, tensor in network.state().items()}
        shown = transformer_options(state)
        default = {"backbone": "swin_base"} if network.model == "solider" else {}
        assert {**default, **shown} == {**default, **network.arguments}


STRANGERS = ["transreid_vit_base_stride12_msmt17", "clip_reid_rn50", "solider_swin_tiny"]


@pytest.mark.parametrize("name", STRANGERS)
def test_an_error_names_the_transformer_that_fits(name: str) -> None:
    network = read_table(FOLDER / f"{name}.json")
    with on_meta():
        other = create_model("osnet_x0_25")
    message = nearest_model(other, network.state())
    assert message.startswith(f"It fits create_model({network.model!r}, ")
    assert all(f", {key}={value!r}" in message for key, value in network.arguments.items())
