"""Quantized, scripted, frozen, exported and odd modules are evaluated as the plain network is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.evaluation import Protocol, evaluate
from reidguard.models import wrap_model
from reidguard.models.fingerprint import model_key
from reidguard.nn import inference_view
from reidguard.testing import small_dataset
from reidguard.types import InputSpec

SPEC = InputSpec(size=(32, 16))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class WithExtraState(Net):
    def get_extra_state(self):
        return {"a": [1, "b"]}

    def set_extra_state(self, state):
        pass


class WithSparseBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.eye(6).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.mix, super().forward(x).T).T


def net(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind().eval()


def exported_for_two() -> nn.Module:
    return torch.export.export(net(), (torch.rand(2, 3, 32, 16),)).module()


def exported() -> nn.Module:
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    return torch.export.export(net(), (torch.rand(2, 3, 32, 16),), dynamic_shapes=shapes).module()


KINDS = {
    "extra state": lambda: net(WithExtraState),
    "sparse buffer": lambda: net(WithSparseBuffer),
    "quantized": lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}),
    "scripted": lambda: torch.jit.script(net()),
    "traced": lambda: torch.jit.trace(net(), torch.rand(2, 3, 32, 16)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(net())),
    "exported": exported,
    "exported for two images": exported_for_two,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_evaluated(kind):
    model = wrap_model(KINDS[kind](), input_spec=SPEC)
    x = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    wanted = wrap_model(net(), input_spec=SPEC).features(x).detach()
    tolerance = 0.02 if kind == "quantized" else 1e-5
    for view in (model, inference_view(model), inference_view(model, fold=False)):
        torch.testing.assert_close(view.features(x).detach(), wanted, rtol=0, atol=tolerance)
    assert model_key(model) == model_key(model)
    with small_dataset() as people:
        assert evaluate(model, people, None, Protocol(image_size=(32, 16))).clean.mAP > 0.5


def test_an_exported_module_for_another_size_is_one_error():
    model = wrap_model(exported_for_two(), input_spec=InputSpec(size=(48, 16)))
    with pytest.raises(InputError, match="size"):
        model.features(torch.rand(2, 3, 48, 16))
