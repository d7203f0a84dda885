"""Extraction of features from cold JPEG files beside pure forward passes of the same images.

Run: python benchmarks/extraction.py [--images 512] [--turns 5] [--threads 2]. Needs REIDGUARD_DATA
and REIDGUARD_WEIGHTS. Both take turns in one process. Before each turn of files the kernel is asked
to drop them from its cache. Forward passes take decoded images from memory, in the same batches;
what extraction does beyond them is reading, decoding, resizing, and conversion to floats.
"""

import argparse
import os
import statistics
import time

import torch
from common import market, osnet, save

from reidguard.data import iterate_images
from reidguard.evaluation import extract_features
from reidguard.evaluation.features import to_float
from reidguard.models import create_model
from reidguard.nn import inference_view

BATCH = 64


def forget(samples) -> None:
    """Ask the kernel to drop the files' pages."""
    for sample in samples:
        handle = os.open(sample.path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(model, samples, turns: int) -> dict:
    """Seconds of both, and their ratio in each turn."""
    view = inference_view(model)
    batches = [to_float(pixels) for _, pixels in iterate_images(samples, batch_size=BATCH)]
    seconds = {"forward": [], "extraction": []}
    for turn in range(turns + 1):
        began = time.perf_counter()
        with torch.no_grad():
            expected = torch.cat([view.features(batch) for batch in batches])
        middle = time.perf_counter()
        forget(samples)
        start = time.perf_counter()
        found = extract_features(model, samples, batch_size=BATCH)
        ended = time.perf_counter()
        assert torch.equal(found, expected)
        if turn:  # the first is a warm-up
            seconds["forward"].append(middle - began)
            seconds["extraction"].append(ended - start)
    pairs = zip(seconds["extraction"], seconds["forward"], strict=True)
    ratios = [extraction / forward for extraction, forward in pairs]
    return {
        **{name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = market()
    samples = data.gallery[:: len(data.gallery) // options.images][: options.images]
    result = {"images": len(samples), "threads": options.threads, "rows": {}}
    models = {
        "osnet_x0_25": osnet(),
        "osnet_x1_0": create_model("osnet_x1_0"),
        "ide resnet50": create_model("ide", backbone="resnet50"),
    }
    for name, model in models.items():
        result["rows"][name] = measure(model.eval(), samples, options.turns)
        print(name, result["rows"][name], flush=True)
    save("extraction", result, data)


if __name__ == "__main__":
    main()
