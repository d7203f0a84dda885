"""Hot loops never wait for a GPU; looked at without one, on the device "meta"."""

import math
import warnings
from unittest import mock

import pytest
import torch

from benchmarks.hot_loops import PEOPLE, TINY, hot_loops, tiny_model
from benchmarks.syncs import SYNCHRONIZING, HostWatch, waits_of
from reidguard.contexts import on_meta
from reidguard.learners import PlainLearner
from reidguard.models import MODELS, create_model
from reidguard.training import learn, loop
from reidguard.types import Budget, ReIDBatch

LOOPS = hot_loops(tiny_model(PEOPLE), TINY)
SLOW = ("joint", "first_order", "hessian_free")  # plain and maml have all that is in these


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name.endswith(SLOW) else []) for name in LOOPS],
)
def test_no_hot_loop_waits_for_the_device(name):
    assert waits_of(LOOPS[name], "cpu") == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS.list())
def test_no_network_waits_for_the_device(name):
    with on_meta():
        model = create_model(name).eval()
    x = torch.empty(2, 3, *(model.input_spec.size or (256, 128)), device="meta")
    with HostWatch() as watch, torch.no_grad():
        watch.start()
        model.features(x)
        watch.stop()
    assert not watch.found


WAITS = {
    "item": lambda x, i: x.sum().item(),
    "float": lambda x, i: float(x.sum()),
    "bool": lambda x, i: bool((x > 0).all()),
    "not finite": lambda x, i: bool(x.isfinite().all()),
    "tolist": lambda x, i: x.tolist(),
    "cpu": lambda x, i: x.cpu(),
    "mask": lambda x, i: x[x > 0],
    "set by mask": lambda x, i: x.__setitem__(x > 0, x),
    "nonzero": lambda x, i: x.nonzero(),
    "repeats": lambda x, i: x.repeat_interleave(i),
    "unique": lambda x, i: torch.unique(x),
    "bincount": lambda x, i: torch.bincount(i),
    "equal": lambda x, i: torch.equal(x, x),
    "numbers": lambda x, i: x.new_tensor([1.0, 2.0]),
    "tensor": lambda x, i: torch.tensor([1.0], device=x.device),
    "to device": lambda x, i: torch.ones(3).to(x.device),
    "copy": lambda x, i: x.copy_(torch.ones(3)),
    "index of the host": lambda x, i: x[torch.arange(2)],
}
FREE = {
    "where": lambda x, i: torch.where(x > 0, x, 0),
    "masked_fill": lambda x, i: x.masked_fill(x > 0, 1),
    "set by mask to one number": lambda x, i: x.__setitem__(x > 0, 1.0),
    "index": lambda x, i: x[i],
    "repeats of known size": lambda x, i: x.repeat_interleave(i, output_size=3),
    "to device, not blocking": lambda x, i: torch.ones(3).to(x.device, non_blocking=True),
    "one_hot": lambda x, i: torch.nn.functional.one_hot(i, 5),
    "topk": lambda x, i: x.topk(2),
    "full": lambda x, i: x.new_full((1,), 3.0),
}


def _found(operation):
    x, index = torch.empty(3, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    with HostWatch() as watch:
        watch.start()
        try:
            operation(x, index)
        except (RuntimeError, NotImplementedError):
            assert watch.found  # "meta" has no such operation; it was noted before
        watch.stop()
    return watch.found


@pytest.mark.parametrize("name", WAITS)
def test_the_watch_notices(name):
    assert sum(_found(WAITS[name]).values()) == 1


@pytest.mark.parametrize("name", FREE)
def test_the_watch_lets_pass(name):
    assert not _found(FREE[name])


def test_waits_of_a_gpu_are_collected(monkeypatch):
    """torch's check is imitated: an operation raises an error or warns, as the mode says."""
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def synchronizing(value, finite=math.isfinite):
        if modes[-1] == "error":
            raise RuntimeError(SYNCHRONIZING)
        if modes[-1] == "warn":
            warnings.warn(SYNCHRONIZING, stacklevel=2)
        return finite(value)

    budget, x = Budget(), torch.ones(1, 3, 2, 2)

    def run(watch):
        assert watch.device == "cuda"
        budget.project(x, x)  # not looked at yet
        watch.start()
        for _ in range(2):
            budget.project(x, x)
        watch.stop()

    assert waits_of(run, "cuda") == {}
    monkeypatch.setattr(math, "isfinite", synchronizing)
    found = waits_of(run, "cuda")
    assert list(found.values()) == [2]
    assert next(iter(found)).startswith("reidguard/types.py:")
    assert modes[-1] == "default"


def test_a_loss_is_read_when_the_next_step_is_on_its_way():
    order = []

    class Event:
        def record(self, stream):
            order.append("copied")

        def synchronize(self):
            order.append("read")

    class Learner(PlainLearner):
        def step(self, *args, **kwargs):
            order.append("step")
            return super().step(*args, **kwargs)

    class Batches:
        def __len__(self):
            return 4

        def epoch(self, number, start=0):
            index = torch.arange(2)
            yield from [ReIDBatch(torch.rand(2, 3, 4, 4), index, index, index)] * (4 - start)

    module = torch.nn.Linear(1, 1)
    with (
        mock.patch.object(loop, "_event", return_value=Event()),
        mock.patch.object(torch.cuda, "current_stream", return_value=None),
    ):
        learn(
            module,
            learner=Learner(),
            objective=lambda module, batch: module.weight.square().sum(),
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            meta_train=Batches(),
            steps=3,
        )
    first, middle, last = ["step", "copied"], ["step", "read", "copied"], ["read"]
    assert order == first + middle + middle + last
