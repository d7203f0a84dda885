"""Every number that a public constructor or function takes has a range, and the range is checked.

The callables come from public_api.json; those that need arguments get valid ones below. A new
public callable with numbers fails here until it is in one of the tables.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reidguard as rg
from reidguard.data import Augment, NoisyAugment
from reidguard.data.images import ImageCache, decode_image, iterate_images
from reidguard.data.loader import BatchLoader
from reidguard.data.sampler import PKSampler
from reidguard.data.torch_dataset import TorchSplit
from reidguard.defenses import CollapsePairs, GuideSampling, RaiseHardness
from reidguard.detection.transforms import blur, jpeg, shift
from reidguard.evaluation.autoattack_result import WorstCase
from reidguard.evaluation.features import extract_features
from reidguard.evaluation.smoothing import certified_radius, lower_bound
from reidguard.learners.perturbed import PerturbedLearner
from reidguard.metrics import Reranking, top_k
from reidguard.objectives import InputCopies
from reidguard.objectives.clusters import k_means
from reidguard.objectives.defense import DefenseObjective
from reidguard.objectives.reid import (
    AGWObjective,
    CentreLoss,
    ReIDObjective,
    identity_loss,
    triplet_loss,
)
from reidguard.training import MISGD, learn
from reidguard.training.averaging import WeightAverage
from reidguard.types import InputSpec
from reidguard.virtual import contact_sheet, render_person, write_virtual

SURFACE = json.loads(Path(__file__).with_name("public_api.json").read_text("utf-8"))

HOSTILE: list[object] = [math.nan, math.inf, -math.inf, -3, -0.5, 1e300, 10**400, "x", True, [], {}]

# What the library builds itself, and what is no option: a result, a count, an identity.
RESULTS = {
    "AttackedResult",
    "AuditReport",
    "AutoAttackResult",
    "CertifyResult",
    "DetectionResult",
    "EvaluationResult",
    "GridCell",
    "GridResult",
    "Identification",
    "Progress",
    "RankingResult",
    "StepResult",
    "VerifyReport",
}
# Samples and budgets, which have tests of their own.
DATA = {
    ("ReIDSample", "pid"),
    ("ReIDSample", "camid"),
    ("ReIDSample", "clothes"),
    ("ReIDSample", "tracklet"),
    ("Guides", "pids"),
    ("ReIDDataset", "junk"),
    ("Budget", "eps"),
}
# Methods whose numbers a caller of the library does not choose.
INTERNAL = {
    "uniform",
    "parameter_groups",
    "resized",
    "with_labels",
    "with_cameras",
    "features",
    "build_classifiers",
    "build_part_classifiers",
    "key",
    "config",
}

ATTACKS: dict[str, dict[str, Any]] = {"misrank": {"size": (16, 16), "width": 2}}
MODELS: dict[str, dict[str, Any]] = {
    name: {"size": (32, 16), "backbone": "test_resnet"} for name in ("ide", "pcb", "agw")
}
MODELS |= {
    name: {"size": (64, 32), "backbone": "test_vit", "cameras": 2}
    for name in ("transreid", "clip_reid")
}
MODELS |= {
    name: {"size": (96, 32), "backbone": "test_resnet"}
    for name in SURFACE["MODELS"]["names"]
    if name.startswith(("fastreid_", "layumi_")) or name == "strong_baseline"
}
MODELS["solider"] = {"size": (64, 32), "backbone": "swin_tiny"}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> rg.ReIDDataset:
    from helpers import noise_datasets

    base = noise_datasets(tmp_path_factory.mktemp("few"), 2, (32, 16))[0]
    return rg.ReIDDataset("few", base.train, base.train[:2], base.train[2:])


def flat_model() -> rg.ReIDModel:
    return rg.wrap_model(nn.Flatten(), input_spec=InputSpec(size=(8, 4)))


Case = tuple[str, Callable[..., Any], dict[str, Any]]


def registered() -> Iterator[Case]:
    for name in SURFACE["ATTACKS"]["names"]:
        yield f"attack {name}", rg.ATTACKS.get(name), ATTACKS.get(name, {})
    for name in SURFACE["LEARNERS"]["names"]:
        yield f"learner {name}", rg.LEARNERS.get(name), {}
    for name in SURFACE["ATTACK_LOSSES"]["names"]:
        yield f"objective {name}", rg.ATTACK_LOSSES.get(name), {}
    for name in SURFACE["DEFENSES"]["names"]:
        own = name in ("act", "blur", "free", "hm")
        options = {} if own else {"attack": rg.DeltaAttack(size=(4, 2))}
        yield f"defense {name}", rg.DEFENSES.get(name), options
    for name in SURFACE["DETECTION_SCORES"]["names"]:
        yield f"score {name}", rg.DETECTION_SCORES.get(name), {}
    for name in SURFACE["MODELS"]["names"]:
        yield f"model {name}", rg.MODELS.get(name), MODELS.get(name, {})


def functions(data: rg.ReIDDataset, folder: Path) -> Iterator[Case]:
    """Public callables with numbers that need other arguments, too, and helpers of ours."""
    model, points = flat_model(), torch.rand(4, 3)
    pids = torch.tensor([0, 0, 1, 1])
    labels = {
        f"{side}_{key}": values
        for side in ("query", "gallery")
        for key, values in (("camids", [1, 2, 1, 2]), ("pids", [1, 1, 2, 2]))
    }
    ranking = rg.rank(points, points, **labels)
    worst = WorstCase(torch.ones(1), torch.ones(1), torch.ones(1), 0.0)
    delta = rg.DeltaAttack(size=(16, 8))
    suite = rg.RetrievalAutoAttack(restarts=1, steps=1, squares=1)
    fit = {"model": model, "meta_train": data}
    size = {"image_size": (16, 8)}
    yield "DeltaAttack.fit", delta.fit, fit
    yield "MisRank.fit", rg.MisRank(size=(16, 16), width=1).fit, fit
    yield "UniversalSquare.fit", rg.UniversalSquare(grid=(4, 2)).fit, fit
    yield "MetaAttack.fit", rg.MetaAttack("delta", size=(16, 8)).fit, fit
    yield "AdversarialTraining.fit", rg.AdversarialTraining(rg.SMA()).fit, fit
    yield "train_model", rg.train_model, {"model": model, "dataset": data}
    yield (
        "learn",
        learn,
        dict.fromkeys(("module", "learner", "objective", "optimizer"), model)
        | {"meta_train": data},
    )
    yield "evaluate", rg.evaluate, {"model": model, "dataset": data}
    grid = {"attacks": {"a": rg.SMA()}, "models": {"m": model}, "datasets": {"d": data}}
    yield "evaluate_grid", rg.evaluate_grid, grid
    yield "audit", rg.audit, {"model": model, "dataset": data}
    yield "certify", rg.certify, {"model": model, "dataset": data}
    searched = {"model": model, "dataset": data, "attacks": {"delta": delta}}
    yield "detection_scores", rg.detection_scores, searched
    yield "AdaptiveSMA", rg.AdaptiveSMA, {}
    yield "blur", blur, {"images": torch.rand(1, 3, 8, 4)}
    yield "shift", shift, {"images": torch.rand(1, 3, 8, 4), "down": 0, "right": 0}
    yield "jpeg", jpeg, {"images": torch.rand(1, 3, 8, 4)}
    yield "RetrievalAutoAttack.run", suite.run, {"model": model, "dataset": data}
    yield "verify", rg.verify, {"attack": delta, "images": data}
    saving = {"attack": delta, "dataset": data, "directory": folder / "saved"}
    yield "save_adversarial", rg.save_adversarial, saving
    yield "ReIDDataset.with_query", data.with_query, {"folder": folder}
    yield "extract_features", extract_features, {"model": model, "samples": data.query}
    features = {"model": model, "dataset": data, "split": "query"}
    yield "FeatureStore.features", rg.FeatureStore().features, features
    yield "FeatureStore.shards", rg.FeatureStore().shards, features
    yield "rank", rg.rank, {"query": points, "gallery": points, **labels}
    yield "Reranking", Reranking, {}
    yield "top_k", top_k, {"query": points, "gallery": points, **labels}
    yield "rank_k", ranking.rank_k, {}
    yield "WorstCase.rank_k", worst.rank_k, {}
    yield "PatternAttack.pattern", rg.PatternAttack().pattern, {"height": 4, "width": 4}
    yield "InputSpec", rg.InputSpec, {}
    yield "Protocol", rg.Protocol, {}
    yield "RetrievalAutoAttack", rg.RetrievalAutoAttack, {}
    yield "Augment", Augment, {}
    yield "NoisyAugment", NoisyAugment, {}
    yield "NoisyAugment.after", NoisyAugment.after, {"augment": None}
    yield "lower_bound", lower_bound, {"hits": 1, "draws": 2, "alpha": 0.1}
    yield "certified_radius", certified_radius, {"probability": 0.7, "sigma": 0.1}
    yield "GuideSampling", GuideSampling, {}
    yield "CollapsePairs", CollapsePairs, {}
    yield "RaiseHardness", RaiseHardness, {}
    yield "BlurModel", rg.models.BlurModel, {"model": model}
    yield "PerturbedLearner", PerturbedLearner, {"learner": None, "gamma": 0.1}
    yield "WeightAverage", WeightAverage, {"module": nn.Linear(1, 1)}
    yield "PKSampler", PKSampler, {"pids": [1, 1, 2, 2], "identities": 2}
    yield "PKSampler.epoch", PKSampler([1, 1, 2, 2], 2, 2).epoch, {}
    yield "PKSampler.set_epoch", PKSampler([1, 1, 2, 2], 2, 2).set_epoch, {}
    yield "TorchSplit", TorchSplit, {"dataset": data}
    yield "ReIDDataset.as_torch", data.as_torch, {}
    yield "PKSampler.rows_of", PKSampler([1, 1, 2, 2], 2, 2).rows_of, {"rank": 0, "size": 1}
    loader = BatchLoader(data, identities=2, images_per_identity=2, **size)
    yield "BatchLoader", BatchLoader, {"dataset": data, "identities": 2, **size}
    yield "BatchLoader.epoch", loader.epoch, {"number": 0}
    yield "ImageCache", ImageCache, {"samples": []}
    yield "iterate_images", iterate_images, {"samples": data.query}
    yield "decode_image", decode_image, {"path": data.query[0].path}
    yield "k_means", k_means, {"points": points, "clusters": 2}
    yield "triplet_loss", triplet_loss, {"embeddings": points, "pids": pids}
    yield "identity_loss", identity_loss, {"logits": points, "pids": pids}
    yield "CentreLoss", CentreLoss, {"identities": 2, "width": 3}
    yield "AGWObjective", AGWObjective, {"centres": CentreLoss(2, 3)}
    yield "ReIDObjective", ReIDObjective, {}
    yield "DefenseObjective", DefenseObjective, {}
    yield "InputCopies", InputCopies, {}
    yield "MISGD", MISGD, {"params": [nn.Parameter(points)], "lr": 0.1}
    yield "create_model", partial(rg.create_model, "ide"), MODELS["ide"]
    yield "render_person", render_person, {"domain": "plaza", "identity": 1, "camera": 1}
    yield "contact_sheet", contact_sheet, {"domain": "plaza"}
    yield "write_virtual", write_virtual, {"root": folder / "virtual", "domain": "plaza"}


def numbers(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that take a number or several."""
    return [
        p
        for p in inspect.signature(function).parameters.values()
        if re.search(r"\b(int|float)\b", str(p.annotation)) and "Callable" not in str(p.annotation)
    ]


def hostile(parameter: inspect.Parameter) -> Iterator[object]:
    """Yield values that no parameter of this kind takes."""
    kind = str(parameter.annotation)
    for value in HOSTILE:
        pair = "tuple" in kind or "Sequence" in kind
        if pair and isinstance(value, (int, float)):
            yield (value, value)
            yield (value, value, value)
        yield value
    if not re.search(r"\bfloat\b", kind):
        yield 1.5
    yield object()


def refused(function: Callable[..., Any], arguments: dict[str, Any], name: str, value: Any) -> str:
    """Return "" if the value is refused as it should be, and what happens otherwise."""
    try:
        result = function(**{**arguments, name: value})
        if isinstance(result, Iterator):
            next(result, None)
    except rg.ReIDGuardError:
        return ""
    except Exception as error:
        return f"{name}={value!r:.60} raises {type(error).__name__}: {error}"
    return f"{name}={value!r:.60} is accepted"


def check(case: Case, allowed: dict[str, list[object]] | None = None) -> None:
    title, function, arguments = case
    failures = []
    for parameter in numbers(function):
        if parameter.name in ("num_classes",) and "Mapping" in str(parameter.annotation):
            fine: list[object] = [{}]  # no classifier
        else:
            fine = (allowed or {}).get(parameter.name, [])
        for value in hostile(parameter):
            if not any(value is f or (value == f and type(value) is type(f)) for f in fine):
                failures.append(refused(function, arguments, parameter.name, value))
    assert not any(failures), f"{title}: " + "\n".join(filter(None, failures))


# Numbers that are no mistake: the docstring says what they mean.
ALLOWED: dict[str, dict[str, list[object]]] = {
    "shift": {"down": [-3], "right": [-3]},
    "render_person": {"viewpoint": [-3, -0.5]},
    "attack pattern": {
        "phase": [(-3, -3), (-0.5, -0.5)],
        "angle": [-3, -0.5],
        "color": [(-0.5, -0.5, -0.5)],
    },
    "RaiseHardness": {"hardness": [-3, -0.5]},
    "InputSpec": {
        "mean": [(-3, -3, -3), (-0.5, -0.5, -0.5)],
    },
}


@pytest.mark.parametrize("case", [pytest.param(c, id=c[0].replace(" ", "-")) for c in registered()])
def test_constructors_refuse_numbers_out_of_range(case: Case) -> None:
    check(case, ALLOWED.get(case[0]))


def test_functions_refuse_numbers_out_of_range(few: rg.ReIDDataset, tmp_path: Path) -> None:
    for case in functions(few, tmp_path):
        check(case, ALLOWED.get(case[0]))


def test_every_public_callable_with_numbers_is_tried(few: rg.ReIDDataset, tmp_path: Path) -> None:
    tried = {name for name, _, _ in functions(few, tmp_path)}
    tried |= {getattr(f, "__name__", "") for _, f, _ in registered()}
    bases = {"UniversalAttack": "DeltaAttack", "Defense": "AdversarialTraining"}
    for name, entry in SURFACE.items():
        value = getattr(rg, name)
        if name in RESULTS or not callable(value) or inspect.isabstract(value):
            continue
        if any((name, p.name) not in DATA for p in _numbers(value)):
            assert name in tried, f"{name} has numbers: add it to functions()"
        for method in entry.get("members", {}):
            function = inspect.getattr_static(value, method, None)
            if inspect.isfunction(function) and method not in INTERNAL and _numbers(function):
                owner = function.__qualname__.split(".")[0]
                full = f"{bases.get(owner, owner)}.{method}"
                assert {full, f"{name}.{method}", method} & tried, f"{full} has numbers: add it"


def _numbers(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return numbers(function)
    except (TypeError, ValueError):  # a class without a signature
        return []


def test_lists_and_numpy_numbers_are_taken() -> None:
    import numpy as np

    assert rg.DeltaAttack(size=[8, 4]).size == (8, 4)  # type: ignore[arg-type]
    assert rg.SMA(steps=np.int64(3), step_size=np.float32(0.5)).steps == 3
    assert rg.Protocol(image_size=[8, 4]).image_size == (8, 4)  # type: ignore[arg-type]
    assert rg.InputSpec(size=[8, 4], mean=[0, 0, 0]).mean == (0.0, 0.0, 0.0)  # type: ignore[arg-type]
    assert rg.MetricIFGSM(momentum=None, steps=None).steps == 10


def test_adams_first_beta_is_below_one(few: rg.ReIDDataset) -> None:
    from helpers import TinyNet

    attack = rg.MisRank(size=(32, 16), width=1)
    options: dict[str, Any] = {"identities": 2, "images_per_identity": 2, "image_size": (32, 16)}
    with pytest.raises(rg.InputError, match="momentum is beta 1 of Adam"):
        attack.fit(TinyNet(), few, steps=1, momentum=1.0, **options)
    with pytest.raises(rg.InputError, match="inner_momentum is beta 1 of Adam"):
        rg.LEARNERS.create("maml", inner="adam", inner_momentum=1.0)


@pytest.mark.parametrize("name", SURFACE["ATTACKS"]["names"])
def test_a_number_is_no_budget(name: str) -> None:
    with pytest.raises(rg.InputError, match=r"must be a Budget, such as Budget\(8 / 255\), not 8"):
        rg.create_attack(name, budget=8)
