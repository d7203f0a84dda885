"""The model keeps reidguard's contract."""

from __future__ import annotations

import pytest
from reidguard_example_model import ExampleCNN

from reidguard import create_model
from reidguard.testing import MODEL_CHECKS


@pytest.mark.parametrize("check", MODEL_CHECKS)
def test_contract(check):
    def make(num_classes):
        model = create_model("example_cnn", num_classes=num_classes, width=4, size=(32, 16))
        assert isinstance(model, ExampleCNN)
        return model

    check(make)
