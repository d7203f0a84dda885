"""Averages of weights against sums over all steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import Killed, kill_at, noise_datasets, tiny_model
from reidguard.errors import InputError
from reidguard.training import train_model
from reidguard.training.averaging import WeightAverage

RUN = {"image_size": (32, 16), "identities": 3, "images_per_identity": 2, "augment": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noise_datasets(tmp_path_factory.mktemp("sets"), 4, (32, 16))[0]


def steps_of(module, average, values):
    for value in values:
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(10 * value)
            module.num_batches_tracked.fill_(int(value))
        average.update(module)


def test_swa_is_the_mean_from_a_step_on():
    module = nn.BatchNorm1d(2)
    average = WeightAverage(module, first=2)
    steps_of(module, average, [1.0, 2.0, 3.0, 5.0, 10.0])
    assert average.module.weight.tolist() == pytest.approx([6.0] * 2)  # of 3, 5, 10
    assert average.module.running_mean.tolist() == pytest.approx([60.0] * 2)
    assert int(average.module.num_batches_tracked) == 10
    average.copy_to(module)
    assert module.weight.tolist() == pytest.approx([6.0] * 2)


def test_ema_forgets_at_its_decay_and_faster_at_first():
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module, decay=0.5)
    values = [0.0, 4.0, 2.0, 7.0, 1.0, 3.0, 8.0, 2.0, 9.0, 5.0]
    steps_of(module, average, values)
    wanted = 1.0  # the initial weight
    for t, value in enumerate(values, 1):
        d = min(0.5, (1 + t) / (10 + t))
        wanted = d * wanted + (1 - d) * value
    assert average.module.weight.item() == pytest.approx(wanted)


def test_an_average_resumes_from_its_state():
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module)
    steps_of(module, average, [1.0, 2.0])
    other = WeightAverage(nn.BatchNorm1d(1))
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    for each in (average, other):
        steps_of(module, each, [6.0])
    assert other.module.weight.item() == average.module.weight.item() == pytest.approx(3.0)


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"swa": 0.25}])
def test_a_model_is_trained_as_without_and_ends_as_the_average(data, options, tmp_path):
    """The average of the weights of runs that end earlier; resumed to the same bits."""
    states = []
    for steps in (1, 2, 3, 4):
        model = train_model(tiny_model(num_classes=6), data, steps=steps, **RUN)
        states.append(model.state_dict())
    averaged = train_model(tiny_model(num_classes=6), data, steps=4, **options, **RUN).state_dict()
    start = tiny_model(num_classes=6).state_dict()
    for name, found in averaged.items():
        history = [state[name] for state in states]
        if not found.is_floating_point():
            assert torch.equal(found, history[-1])
            continue
        if "swa" in options:
            wanted = torch.stack(history[1:]).mean(0)
        else:
            wanted = start[name]
            for t, value in enumerate(history, 1):
                d = min(0.9, (1 + t) / (10 + t))
                wanted = d * wanted + (1 - d) * value
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    path = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 1}
    with pytest.raises(Killed):
        train_model(
            tiny_model(num_classes=6), data, steps=4, progress=kill_at(3), **path, **options, **RUN
        )
    resumed = train_model(tiny_model(num_classes=6), data, steps=4, **path, **options, **RUN)
    for name, found in resumed.state_dict().items():
        assert torch.equal(found, averaged[name]), name
    assert resumed.provenance["ema" if "ema" in options else "swa"] == next(iter(options.values()))


def test_one_average_at_a_time(data):
    with pytest.raises(InputError, match="exclude"):
        train_model(tiny_model(num_classes=6), data, steps=1, ema=0.9, swa=0.5, **RUN)
