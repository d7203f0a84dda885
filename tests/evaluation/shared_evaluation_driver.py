"""Evaluates by one process or several, and writes what each found. Run through torchrun.

Arguments: folder of the data, folder for the results.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from reidguard.attacks import FNA, SMA, DeltaAttack
from reidguard.data import ReIDDataset, load_dataset
from reidguard.distributed import join
from reidguard.evaluation import (
    FeatureStore,
    Protocol,
    RetrievalAutoAttack,
    audit,
    certify,
    evaluate,
    evaluate_grid,
)
from reidguard.metrics import Reranking
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec

SIZE = (32, 16)


def figures(ranking):
    return [ranking.mAP, ranking.mINP, ranking.cmc.tolist(), ranking.ap.nan_to_num(-1).tolist()]


def embedder(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 2)), nn.Flatten()]
    return wrap_model(nn.Sequential(*layers), input_spec=InputSpec(size=None))


def tracklets(data):
    """Return the data as tracklets of an identity by a camera, their frames far apart."""
    images = [sample for sample in data.query + data.gallery if sample.pid > 0]
    images = sorted(images, key=lambda s: (s.pid, s.camid))
    images = [replace(s, tracklet=10 * s.pid + s.camid) for s in images[::3] + images[1::3]]
    query = [sample for sample in images if sample.camid == 1]
    gallery = [sample for sample in images if sample.camid > 1]
    return ReIDDataset("tracklets", query=query, gallery=gallery)


def main(data_folder, out):
    torch.set_num_threads(1)
    with join() as processes:
        data = load_dataset("virtual", data_folder)
        model, other = embedder(0), embedder(1)
        protocol = Protocol(image_size=SIZE)
        options = {"batch_size": 3}
        found = {}
        result = evaluate(model, data, SMA(steps=2).bind(model), protocol, **options)
        found["sma"] = [*map(figures, (result.clean, result.attacked.ranking))]
        found["8bit"] = [figures(result.attacked_8bit.ranking), result.attacked_8bit.psnr]
        result = evaluate(model, data, DeltaAttack(size=SIZE), protocol, side="gallery", **options)
        found["gallery"] = [figures(result.attacked.ranking), result.attacked.ssim]
        reranked = Protocol(image_size=SIZE, rerank=Reranking(k1=6, k2=3))
        result = evaluate(model, data, DeltaAttack(size=SIZE), reranked, **options)
        found["reranked"] = [*map(figures, (result.clean, result.attacked.ranking))]
        store = FeatureStore(out / "features")
        again = evaluate(model, data, None, protocol, store=store, **options)
        found["stored"] = figures(again.clean)
        clips = evaluate(model, tracklets(data), DeltaAttack(size=SIZE), protocol, **options)
        found["tracklets"] = [*map(figures, (clips.clean, clips.attacked.ranking))]
        found["counts"] = [clips.counts["query"], clips.counts["gallery"]]
        grid = evaluate_grid(
            {"SMA": SMA(steps=2), "FNA": FNA(steps=2)},
            {"a": model, "b": other},
            {"noise": data},
            protocol,
            folder=out / "grid",
            **options,
        )
        found["grid"] = [cell.evaluation["attacked"]["mAP"] for cell in grid.cells]
        suite = RetrievalAutoAttack(Budget(8 / 255), restarts=1, steps=3, squares=3)
        worst = suite.run(
            model,
            data,
            protocol,
            state=out / "state",
            images=out / "images",
            store=store,
            audit_queries=4,
            **options,
        )
        found["suite"] = [worst.worst.mAP, worst.worst_8bit.ap.nan_to_num(-1).tolist()]
        noise = {"sigma": 0.05, "draws": 7, "alpha": 0.1, "query_every": 3}
        certified = certify(
            model, data, protocol=protocol, state=out / "certified", store=store, **noise, **options
        )
        found["certified"] = [certified.hits.tolist(), list(certified.names)]
        report = audit(
            model,
            data,
            surrogate=other,
            protocol=protocol,
            queries=8,
            probes=2,
            attack_steps=2,
            learning_steps=0,
            **options,
        )
        found["audit"] = [finding.measured for finding in report.findings]
        rank = 0 if processes is None else processes.rank
        (out / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(os.fspath(sys.argv[2])))
