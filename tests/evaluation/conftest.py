"""A small model and a small dataset for evaluation."""

import pytest
import torch
from torch import nn

from reidguard.data import load_dataset
from reidguard.models import wrap_model
from reidguard.types import InputSpec


@pytest.fixture(scope="session")
def people(render):
    """In a place where an untrained network is right about some and wrong about others."""
    return load_dataset("virtual", render(6, domain="plaza"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
    )
    return wrap_model(network, input_spec=InputSpec(size=(48, 24)), metric="euclidean")


@pytest.fixture
def passes(model):
    """The numbers of images in the forward passes of the model so far."""
    sizes = []
    model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes
