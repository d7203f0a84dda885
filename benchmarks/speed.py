"""What a step costs in forward passes, and the colour look-up beside plain gather code.

Run: python benchmarks/speed.py. Needs REIDGUARD_WEIGHTS. Both sides of a ratio take turns in one
process; the ratio is that of the medians.
"""

import argparse
import statistics
import time

import torch
from common import osnet, save

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.attacks.universal.color import interpolate_colors
from reidguard.learners import PlainLearner
from reidguard.models import create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet, normalized_features
from reidguard.training import MISGD
from reidguard.types import ReIDBatch


def alternate(functions: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each function, called in turn."""
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def step_cost(name: str, model, repeats: int) -> dict:
    """Seconds of one plain step of each family, in forward passes of the same 32 images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 256, 128), generator=generator) / 255
    pids = torch.arange(8).repeat_interleave(4)
    index = torch.arange(32)
    model = inference_view(model)
    with torch.no_grad():
        clean = normalized_features(model, images)
    batch = ReIDBatch(images, pids, index, index, clean)
    learner, objective = PlainLearner(), FeatureObjective(model, MisrankingTriplet())

    def step(attack):
        optimizer = MISGD(attack.parameters(), lr=1e-3)

        def run():
            learner.step(attack, objective, batch)
            optimizer.step()
            attack.clip_parameters()

        return run

    def forward():
        with torch.no_grad():
            model.features(images)

    families = {"delta": DeltaAttack(), "color": ColorAttack(), "joint": CombinatorialAttack()}
    seconds = alternate({"forward": forward, **{k: step(a) for k, a in families.items()}}, repeats)
    return {
        "model": name,
        "forward_s": round(seconds["forward"], 4),
        "forward_passes_per_step": {k: round(seconds[k] / seconds["forward"], 2) for k in families},
    }


def gather_corners(table, x):
    """The look-up as one would write it first: eight gathers, weighted and summed."""
    top = table.shape[-1] - 1
    u = x * top
    low = u.floor().clamp(max=top - 1).long()
    part = u - low
    out = 0
    for corner in range(8):
        bits = [corner >> 2 & 1, corner >> 1 & 1, corner & 1]
        r, g, b = (low[:, c] + bit for c, bit in enumerate(bits))
        weight = 1
        for c, bit in enumerate(bits):
            weight = weight * (part[:, c] if bit else 1 - part[:, c])
        out = out + table[:, r, g, b] * weight
    return out.transpose(0, 1)


def color_cost(repeats: int) -> dict:
    """Forward and backward of 64×3×256×128 images through a 25³ table."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 256, 128, generator=generator)
    table = (torch.randn(3, 25, 25, 25, generator=generator) * 4 / 255).requires_grad_()
    weight = torch.randn(x.shape, generator=generator)

    def both(look_up):
        def run():
            table.grad = None
            (look_up(table, x) * weight).sum().backward()

        return run

    with torch.no_grad():
        difference = (interpolate_colors(table, x) - gather_corners(table, x)).abs().max()
    assert 255 * float(difference) < 0.01, "the two look-ups differ"
    seconds = alternate({"ours": both(interpolate_colors), "gather": both(gather_corners)}, repeats)
    return {
        "ours_s": round(seconds["ours"], 4),
        "gather_s": round(seconds["gather"], 4),
        "ratio": round(seconds["ours"] / seconds["gather"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = {"color_lookup": color_cost(options.repeats), "plain_step": []}
    print("colour look-up", figures["color_lookup"], flush=True)
    models = {
        "osnet_x0_25": osnet(),
        "ide resnet18": create_model("ide", backbone="resnet18", num_classes=2),
    }
    for name, model in models.items():
        figures["plain_step"].append(step_cost(name, model, options.repeats))
        print("plain step", figures["plain_step"][-1], flush=True)
    save("speed", figures)


if __name__ == "__main__":
    main()
