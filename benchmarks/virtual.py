"""The virtual people as a re-ID problem: colour histograms, an IDE, and the gap between domains.

Run: python benchmarks/virtual.py [--domain plaza] [--steps 300] [--folder FOLDER] [--speed-only]
100 held-out identities, 6 cameras. As usual, a query's own images by its own camera are removed;
those of others stay, and a similar backdrop ranks them first. Histograms and the network are
therefore measured a second time with all images by the query's camera removed ("camera removed").
The sets are rendered into FOLDER (default: the user's cache). --speed-only measures rendering anew
and leaves the other results as they are.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, commit, save

from reidguard.data import decode_image
from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.models import create_model
from reidguard.storage import write_json
from reidguard.training import train_model
from reidguard.virtual import VIRTUAL_DOMAINS, read_virtual, render_person, write_virtual

SIZE = (128, 64)
TEST = 100
DOMAINS = [name for name in VIRTUAL_DOMAINS if name != "studio"]  # an easy domain
BATCH = {"identities": 8, "images_per_identity": 4}


def hsv(rgb: np.ndarray) -> np.ndarray:
    """Hue, saturation and value in [0, 1] of (..., 3) floats in [0, 1]."""
    high, low = rgb.max(-1), rgb.min(-1)
    span = np.maximum(high - low, 1e-9)
    r, g, b = np.moveaxis(rgb, -1, 0)
    hue = np.where(high == r, (g - b) / span % 6, (b - r) / span + 2)
    hue = np.where((high == b) & (high != r) & (high != g), (r - g) / span + 4, hue)
    return np.stack([hue / 6 % 1, (high - low) / np.maximum(high, 1e-9), high], -1)


def histogram(image: np.ndarray, space: str, stripes: int, bins: int = 8) -> np.ndarray:
    """Joint histogram of each horizontal stripe; each sums to 1."""
    values = image / 255 if space == "rgb" else hsv(image / 255)
    cells = np.minimum((values * bins).astype(int), bins - 1)
    flat = (cells[..., 0] * bins + cells[..., 1]) * bins + cells[..., 2]
    counts = [
        np.bincount(part.ravel(), minlength=bins**3) for part in np.array_split(flat, stripes)
    ]
    return np.concatenate([c / c.sum() for c in counts]).astype(np.float32)


def rank1(queries, gallery, query, gallery_samples, kind: str, *, strict: bool) -> float:
    """Rank-1 of the queries; strict also removes gallery images of the query's camera."""
    pids = np.array([s.pid for s in gallery_samples])
    camids = np.array([s.camid for s in gallery_samples])
    if kind == "hellinger":
        queries, gallery = np.sqrt(queries), np.sqrt(gallery)
    hits = 0
    for row, sample in zip(queries, query, strict=True):
        gap = gallery - row
        # Half of l1 is 1 - intersection, so it ranks as the intersection does.
        distance = (np.abs(gap) if kind == "l1" else gap**2).sum(1)
        distance[((pids == sample.pid) | strict) & (camids == sample.camid)] = np.inf
        hits += pids[distance.argmin()] == sample.pid
    return round(100 * int(hits) / len(query), 2)


def histograms(dataset) -> dict:
    """Rank-1 of every histogram, in per cent."""

    def pixels(samples):
        return [decode_image(s.path, SIZE).permute(1, 2, 0).numpy() for s in samples]

    query, gallery = pixels(dataset.query), pixels(dataset.gallery)
    out = {}
    for space in ("rgb", "hsv"):
        for stripes in (1, 6):
            q = np.stack([histogram(x, space, stripes) for x in query])
            g = np.stack([histogram(x, space, stripes) for x in gallery])
            for kind in ("l1", "hellinger"):
                name = f"{space}, {'whole' if stripes == 1 else '6 stripes'}, {kind}"
                for strict in (False, True):
                    removed = ", camera removed" if strict else ""
                    out[name + removed] = rank1(
                        q, g, dataset.query, dataset.gallery, kind, strict=strict
                    )
    return out


def ranking(model, dataset) -> dict:
    clean = evaluate(model, dataset, protocol=Protocol(image_size=SIZE)).clean
    store = FeatureStore()
    query, gallery = (
        store.features(model, dataset, split, image_size=SIZE).numpy()
        for split in ("query", "gallery")
    )
    return {
        "mAP": round(100 * clean.mAP, 2),
        "rank1": round(100 * clean.rank_k(1), 2),
        "mINP": round(100 * clean.mINP, 2),
        "rank1_camera_removed": rank1(
            query, gallery, dataset.query, dataset.gallery, "l2", strict=True
        ),
    }


def speed(domain: str, height: int, count: int = 60) -> dict:
    """Of one process: by the wall clock, and by the processor's, which ignores other programs."""
    for camera in range(1, 7):
        render_person(domain, 1, camera, height=height)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        render_person(domain, 2 + number, 1 + number % 6, height=height)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "images_per_second": round(count / wall, 1),
        "images_per_processor_second": round(count / cpu, 1),
    }


def write_speed(domain: str) -> float:
    """Images per second of a whole set, by as many processes as write_virtual starts."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_virtual(Path(folder) / "set", domain, train_identities=50, test_identities=10)
        seconds = time.perf_counter() - began
        return round(len(list(Path(folder).rglob("*.png"))) / seconds, 1)


def speeds() -> dict:
    return {
        domain: {
            **{f"{h}x{h // 2}": speed(domain, h) for h in (128, 256)},
            "set, 128x64, all processors": write_speed(domain),
        }
        for domain in DOMAINS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", default="plaza", choices=DOMAINS)
    parser.add_argument("--train", type=int, default=150, help="training identities")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speed-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    words = [f"--{k} {getattr(options, k)}" for k in ("domain", "train", "steps", "lr", "threads")]
    results: dict = {
        "command": f"python benchmarks/virtual.py {' '.join(words)}",  # wherever the sets lie
        "commit": commit(),  # now: the checkout may have moved on when the run ends
        "speed": speeds(),
    }
    print(results, flush=True)
    if options.speed_only:
        path = RESULTS / "virtual.json"
        known = json.loads(path.read_text("utf-8"))
        write_json(path, {**known, "speed": results["speed"], "speed_commit": commit()})
        return

    def read(name: str, train: int):
        root = options.folder / f"{name}-{train}" if options.folder else None
        return read_virtual(name, train_identities=train, test_identities=TEST, root=root)

    home = read(options.domain, options.train)
    torch.manual_seed(0)
    model = create_model("ide", backbone="resnet18", num_classes=home.num_train_pids, size=SIZE)
    began = time.perf_counter()
    train_model(model, home, steps=options.steps, lr=options.lr, image_size=SIZE, seed=0, **BATCH)
    results["setting"] = {
        "model": "IDE, resnet18, untrained at the start",
        "domain": home.name,
        "train identities": options.train,
        "test identities": TEST,
        "cameras": 6,
        "steps": options.steps,
        "lr": options.lr,
        "batch": BATCH,
        "input": list(SIZE),
        "seconds": round(time.perf_counter() - began),
    }
    results["domains"] = {}
    for name in [options.domain, *(d for d in DOMAINS if d != options.domain)]:
        data = home if name == options.domain else read(name, 2)
        results["domains"][name] = {
            "ide": ranking(model, data),
            "histogram_rank1": histograms(data),
        }
        print(name, results["domains"][name], flush=True)
        save("virtual", results, home)


if __name__ == "__main__":
    main()
