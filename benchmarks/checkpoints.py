"""A table of checkpoints: what each file is, how it ranks people, and how it stands an attack.

Run: python benchmarks/checkpoints.py osnet.pth net.onnx net.xml ...
     python benchmarks/checkpoints.py osnet.pth=owner/name@commit ...
Needs REIDGUARD_DATA with market1501/. Each file is loaded as ``identify_weights`` says and measured
on the full Market-1501 protocol without an attack. Then every ``--query-every``-th query is
attacked at ε = 8/255 and ranked in the whole gallery as an 8-bit image: by SMA where gradients pass
(ONNX and OpenVINO's IR are translated to torch), else by Square, which only queries features.
After "=" stands where a file is from. Of files that results/checkpoints.json has already (by their
SHA-256), only what they are is found out again; ``--again`` measures them anew.
"""

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path

import torch
from common import RESULTS, commit, market, save

from reidguard import SMA, Budget, SquareAttack, create_model, evaluate, identify_weights
from reidguard.errors import InputError
from reidguard.evaluation import FeatureStore
from reidguard.models import (
    Identification,
    ReIDModel,
    load_module,
    load_onnx,
    load_openvino,
)

EIGHT = Budget(8 / 255)
LOADERS = {
    "ONNX": load_onnx,
    "OpenVINO IR": load_openvino,
    "TorchScript": load_module,
    "torch.export": load_module,
}


def load(result: Identification) -> tuple[ReIDModel, bool]:
    """The model of a file, and whether gradients pass."""
    if result.format not in LOADERS:
        return create_model(result.architecture, weights=result.path, **result.options), True
    settings = {} if result.input_spec is None else {"input_spec": result.input_spec}
    if result.format in ("TorchScript", "torch.export"):
        return load_module(result.path, **settings), True
    loader = LOADERS[result.format]
    try:
        return loader(result.path, differentiable=True, **settings), True
    except InputError as error:
        if "has no translation" not in str(error):
            raise
        return loader(result.path, **settings), False


def percents(ranking) -> list[float]:
    return [round(100 * ranking.mAP, 2), round(100 * ranking.rank_k(1), 2)]


def identify(path: Path) -> tuple[Identification, dict]:
    began = time.process_time()
    result = identify_weights(path)
    seconds = round(time.process_time() - began, 2)
    return result, {"identified": result.to_dict(), "processor_seconds_to_identify": seconds}


def measure(path: Path, source: str, options, data) -> dict:
    result, found = identify(path)
    row = {"file": path.name, "source": source, "sha256": digest(path), **found}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, differentiable = load(result)
    row["warnings"] = sorted({str(w.message)[:120] for w in caught if w.category is UserWarning})
    attack = SMA(EIGHT) if differentiable else SquareAttack(EIGHT, steps=options.square_steps)
    store, began = FeatureStore(), time.process_time()
    row["clean"] = percents(evaluate(model, data, store=store).clean)
    row["attack"] = "SMA" if differentiable else f"Square, {options.square_steps} steps"
    some = evaluate(model, data, attack.bind(model), store=store, query_every=options.query_every)
    row |= {
        "query_every": options.query_every,
        "clean_of_attacked_queries": percents(some.clean),
        "attacked": percents(some.attacked_8bit.ranking),
        "linf_255": round(255 * some.attacked_8bit.linf, 3),
        "processor_seconds": round(time.process_time() - began),
        "commit": commit(),
    }
    return row


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="FILE, or FILE=SOURCE")
    parser.add_argument("--query-every", type=int, default=32)
    parser.add_argument("--square-steps", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="measure files anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, target = market(), RESULTS / "checkpoints.json"
    rows = json.loads(target.read_text("utf-8"))["rows"] if target.exists() else []
    for text in options.files:
        name, _, source = text.partition("=")
        path = Path(name)
        known = [row for row in rows if row["sha256"] == digest(path)]
        if known and not options.again:
            row = {**known[0], **identify(path)[1], "source": source or known[0]["source"]}
        else:
            row = measure(path, source, options, data)
        print(json.dumps(row), flush=True)
        rows = [old for old in rows if old not in known] + [row]
        save(
            "checkpoints", {"command": "python benchmarks/checkpoints.py FILES", "rows": rows}, data
        )


if __name__ == "__main__":
    main()
