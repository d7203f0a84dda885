"""Any text and any values, by hypothesis: parsers of options, records, paths and the API."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reidguard as rg
from reidguard.attacks.base import AttackCard
from reidguard.cli.app import parse
from reidguard.cli.model_option import model_from
from reidguard.cli.options import fraction, image_size, integer, key_value, pathname
from reidguard.cli.session import use_device
from reidguard.errors import ReIDGuardError
from reidguard.evaluation.audit_report import AuditReport
from reidguard.evaluation.grid import CachedCell, Provenance
from reidguard.models import load_onnx, load_openvino, load_weights
from reidguard.models.factory import ModelCard
from reidguard.records import convert, environment_number, parse_json, to_path
from reidguard.report import read_run
from reidguard.report.records import AuditRecord, Manifest, ResultRecord, SuiteRecord
from reidguard.storage import Card
from reidguard.training.checkpoints import TrainingCard
from reidguard.training.metrics import Step
from reidguard.virtual.dataset import Marker, parse_name
from reidguard.virtual.domains import Domain

RECORDS = [
    AttackCard, AuditRecord, AuditReport, CachedCell, Card, Domain, Manifest, Marker, ModelCard,
    Provenance, ResultRecord, Step, SuiteRecord, TrainingCard,
]  # fmt: skip
quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = st.integers() | st.floats() | st.booleans() | st.none()
texts = st.text(st.characters()) | st.sampled_from(
    ["1e9x1", "-1x5", "0x0", "9" * 30 + "x1", "8/0", "1/" + "9" * 400, "cuda:99", "mps", "meta",
     "nonsense", "cuda:-1", "~nosuchuser", "a\0b", "x" * 5000, "NaN", "[" * 3000, "ε", "a=[1"]
)  # fmt: skip
values = st.recursive(
    numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def objects(draw: Any, kind: type) -> dict[str, Any]:
    """Objects with some of the fields of a record."""
    names = draw(st.lists(st.sampled_from(list(kind.__dataclass_fields__)), unique=True))
    return {**draw(st.dictionaries(texts, values, max_size=2)), **{n: draw(values) for n in names}}


def refused_or_returned(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a function; any exception but a :class:`ReIDGuardError` fails the test."""
    with contextlib.suppress(ReIDGuardError):
        function(*args, **kwargs)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@quick
@given(data=st.data())
def test_records(kind, data):
    refused_or_returned(convert, data.draw(values | objects(kind)), kind, "here")


@quick
@given(st.binary() | texts | st.builds(str, values))
def test_json_text(text):
    refused_or_returned(parse_json, text, dict[str, Any], "here")


@quick
@given(texts)
def test_values_of_options(text):
    for read in (fraction, integer, image_size, pathname, key_value, parse_name):
        refused_or_returned(read, text)
    refused_or_returned(use_device, text or None)
    refused_or_returned(key_value, f"key={text}")


@quick
@given(
    texts, st.sampled_from(["--data", "--model-set", "--image-size", "--device", "--out", "--lr"])
)
def test_command_lines(text, name):
    refused_or_returned(parse, ["train", "--data", "virtual:plaza", "--model", "ide", name, text])
    refused_or_returned(parse, ["attack", text, name])


@quick
@given(texts | values | st.binary())
def test_paths(value):
    refused_or_returned(to_path, value)


@quick
@given(texts.filter(lambda text: "\0" not in text))
def test_environment(text):
    previous = os.environ.get("REIDGUARD_FUZZ")
    try:
        with contextlib.suppress(UnicodeEncodeError):
            os.environ["REIDGUARD_FUZZ"] = text
        refused_or_returned(environment_number, "REIDGUARD_FUZZ", 1)
    finally:
        os.environ.pop("REIDGUARD_FUZZ", None)
        if previous is not None:
            os.environ["REIDGUARD_FUZZ"] = previous


@quick
@given(texts)
def test_names_of_models_and_datasets(text):
    refused_or_returned(model_from, text, {})
    refused_or_returned(rg.load_dataset, text)
    refused_or_returned(rg.load_dataset, f"virtual:{text.replace('/', '')}?identities=x")


WRONG: list[Any] = [
    None, 5, -1, 1.5, True, b"bytes", "", "\0", "x" * 5000, "~nosuchuser/x", [], {}, object(),
    torch.zeros(2), Path("/"), Path("/dev/null"), float("nan"),
]  # fmt: skip


MODEL = rg.create_model("osnet_x0_25", size=(64, 32))
CALLS: dict[str, Callable[[Any], Any]] = {
    "load_attack": rg.load_attack,
    "load_model": rg.load_model,
    "load_dataset": rg.load_dataset,
    "create_model": rg.create_model,
    "create_attack": rg.create_attack,
    "from_pretrained": rg.from_pretrained,
    "load_onnx": load_onnx,
    "load_openvino": load_openvino,
    "Budget": rg.Budget,
    "load_weights": lambda v: load_weights(MODEL, v),
    "csv": lambda v: rg.load_dataset("csv", v),
    "folder": lambda v: rg.load_dataset("folder", v),
    "market1501": lambda v: rg.load_dataset("market1501", v),
    "num_classes": lambda v: rg.create_model("osnet_x0_25", num_classes=v),
    "weights": lambda v: rg.create_model("osnet_x0_25", weights=v),
    "size": lambda v: rg.create_model("osnet_x0_25", size=v),
    "evaluate": lambda v: rg.evaluate(v, v),
    "evaluate on": lambda v: rg.evaluate(MODEL, v),
    "evaluate_grid": lambda v: rg.evaluate_grid({"a": v}, {"m": MODEL}, {"d": v}),
    "verify": lambda v: rg.verify(v, torch.zeros(1, 3, 8, 4)),
    "verify on": lambda v: rg.verify(rg.create_attack("delta", size=(8, 4)), v),
    "save_pretrained": lambda v: rg.save_pretrained(v, "/dev/null/x"),
    "save_pretrained in": lambda v: rg.save_pretrained(MODEL, v),
    "read_run": read_run,
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_of_the_api(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    failures = {}
    for value in WRONG:
        try:
            refused_or_returned(CALLS[name], value)
        except Exception as error:
            failures[repr(value)[:20]] = f"{type(error).__name__}: {error}"
    assert failures == {}
