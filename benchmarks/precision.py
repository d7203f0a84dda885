"""bfloat16 autocast and torch.compile on a CPU: seconds beside float32, and the cost in mAP.

Run: python benchmarks/precision.py [--compile] [--query-every 8] [--gallery-every 4]. Needs
REIDGUARD_DATA and REIDGUARD_WEIGHTS. All variants take turns in one process, on the same images;
ratios are medians of CPU seconds beside float32, with the least and the largest.

"features" is a forward pass of the features, "step" a plain step of the delta attack. mAP is of
OSNet x0.25 with its published weights on Market-1501, with every n-th query and gallery image.
torch.compile needs a C++ compiler, and its own seconds stand beside.
"""

import argparse
import os
import statistics
import time

import torch
from common import market, osnet, save

from reidguard.attacks import DeltaAttack
from reidguard.data import iterate_images
from reidguard.evaluation.features import to_float
from reidguard.learners import PlainLearner
from reidguard.metrics import rank
from reidguard.models import create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet, normalized_features
from reidguard.types import ReIDBatch


def autocast(function, enabled: bool):
    def run(*arguments):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return function(*arguments)

    return run


def variants(function, compiled: bool) -> dict:
    """The function in float32 and with autocast, and both compiled."""
    found = {"float32": function, "bfloat16": autocast(function, True)}
    if compiled:
        found["compile"] = torch.compile(function)
        found["compile bfloat16"] = autocast(torch.compile(function), True)
    return found


def in_turns(functions: dict, turns: int) -> dict:
    """Ratios to float32: median, least, largest; and the seconds of the first call."""
    first, times = {}, {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            if turn:
                times[name].append(time.process_time() - cpu)
            else:
                first[name] = round(time.perf_counter() - wall, 1)
    result = {}
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times["float32"], strict=True)]
        result[name] = {
            "cpu_seconds": round(statistics.median(values), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
            "first_call_s": first[name],
        }
    return result


def speed(model, images: int, turns: int, compiled: bool) -> dict:
    """Ratios of extraction and of the attack's step."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 256, 128), generator=g) / 255
    pids = torch.arange(images // 4).repeat_interleave(4)
    index = torch.arange(images)
    with torch.no_grad():
        clean = normalized_features(model, x)
    batch = ReIDBatch(x, pids, index, index, clean)
    attack, learner = DeltaAttack(), PlainLearner()

    def extraction(function):
        def run():
            with torch.no_grad():
                function(x)

        return run

    def step(function):
        class Embedder(type(model)):
            def features(self, images):
                return function(images).float()

        other = inference_view(model)
        other.__class__ = Embedder
        objective = FeatureObjective(other, MisrankingTriplet())
        return lambda: learner.step(attack, objective, batch)

    kinds = variants(model.features, compiled)
    return {
        "images": images,
        "features": in_turns({n: extraction(f) for n, f in kinds.items()}, turns),
        "step": in_turns({n: step(f) for n, f in kinds.items()}, turns),
    }


def cost(query_every: int, gallery_every: int) -> dict:
    """MAP in float32 and with autocast."""
    dataset, model = market(), inference_view(osnet().eval())
    query, gallery = dataset.query[::query_every], dataset.gallery[::gallery_every]
    labels = {
        "query_pids": [s.pid for s in query],
        "query_camids": [s.camid for s in query],
        "gallery_pids": [s.pid for s in gallery],
        "gallery_camids": [s.camid for s in gallery],
    }
    kinds = variants(model.features, False)
    features = {name: [[], []] for name in kinds}
    with torch.no_grad():
        for side, samples in enumerate((query, gallery)):
            for _, pixels in iterate_images(samples):
                for name, function in kinds.items():
                    features[name][side].append(function(to_float(pixels)).float())
    found = {name: [torch.cat(part) for part in parts] for name, parts in features.items()}
    return {
        "query_every": query_every,
        "gallery_every": gallery_every,
        "mAP": {n: round(rank(*p, **labels, metric=model.metric).mAP, 5) for n, p in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--gallery-every", type=int, default=4)
    options = parser.parse_args()
    result = {"load": os.getloadavg(), "cost": cost(options.query_every, options.gallery_every)}
    print(result["cost"], flush=True)
    models = {
        "osnet_x0_25": osnet(),
        "ide resnet50": create_model("ide", backbone="resnet50", num_classes=2),
    }
    result["speed"] = {}
    for name, model in models.items():
        model = inference_view(model.eval())
        figures = speed(model, options.images, options.turns, options.compile)
        result["speed"][name] = figures
        print(name, figures, flush=True)
    save("precision", result, market())


if __name__ == "__main__":
    main()
