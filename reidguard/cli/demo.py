"""``reidguard demo``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from reidguard.cli.options import Options, Parser, pathname, positive
from reidguard.cli.show import table
from reidguard.data import ReIDDataset, decode_image, load_dataset
from reidguard.evaluation import extract_features
from reidguard.models import ReIDModel, load_model
from reidguard.ranking import top_k
from reidguard.storage import atomic_write

EXAMPLES = """\
  reidguard demo
  reidguard demo --out /tmp/demo

It draws a small set of people, trains a small network on half of them, learns three attacks, and
shows what they do to finding the other half. Nothing is downloaded. The folder gets all that the
commands write, the adversarial images, summary.md and picture.png.
"""

SIZE = (128, 64)  # of the drawn people
TRAIN_STEPS, ATTACK_STEPS = 40, 30
ATTACKS = ("delta", "color", "combinatorial")
ROWS, SCALE, GAP, TITLE = 5, 2, 8, 24  # of the picture
GAIN = 8  # by which changes are shown larger than they are


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("demo", summary, EXAMPLES)
    made.option(
        "--out", "where everything goes", pathname, metavar="DIR", default=Path("runs/demo")
    )
    made.option("--threads", "CPU threads", positive, metavar="N", shown="torch's choice")
    return made


def run(options: Options) -> int:
    """Run the other commands, one after the other, and sum up."""
    from reidguard.cli.app import main

    out: Path = options.out
    size = f"{SIZE[0]}x{SIZE[1]}"
    machine = [] if options.threads is None else ["--threads", str(options.threads)]
    data = ["--data", f"synthetic:{out / 'people'}"]
    shared = ["--image-size", size, "--cache", str(out / "features"), *machine]
    network = ["--model", "ide", "--model-set", "backbone=test_resnet", f"--model-set=size={size}"]
    model = out / "model" / "model.safetensors"
    learning = ["--steps", str(TRAIN_STEPS), "--lr", "1e-3", "--images-per-identity", "4"]
    calls = [["train", *data, *network, *learning, *shared, "--out", str(model.parent)]]
    for attack in ATTACKS:
        call = ["attack", *data, "--model", str(model), "--attack", attack]
        call += ["--steps", str(ATTACK_STEPS), *shared]
        call += ["--out", str(out / attack), "--save-images", str(out / "images" / attack)]
        calls.append(call)
    for call in calls:
        print(f"$ {shlex.join(['reidguard', *call])}\n", flush=True)
        if code := main(call):
            return code
        print()
    _sum_up(out, load_dataset("synthetic", out / "people"), load_model(model))
    return 0


def _sum_up(out: Path, dataset: ReIDDataset, model: ReIDModel) -> None:
    rows = [["queries", "budget", "mAP", "rank-1", "L∞ float", "L∞ 8-bit", "PSNR", "SSIM"]]
    for attack in ATTACKS:
        result = json.loads((out / attack / "result.json").read_text("utf-8"))["evaluation"]
        if len(rows) == 1:
            rows.append(["clean", "0", *_shares(result["clean"]), "0", "0", "∞", "1.000"])
        measured, rounded = result["attacked"], result["attacked_8bit"]
        rows.append(
            [
                attack,
                f"{255 * result['attack']['eps']:g}/255",
                *_shares(rounded),
                f"{measured['linf']:.2f}",
                f"{rounded['linf']:.2f}",
                f"{rounded['psnr']:.1f}",
                f"{rounded['ssim']:.3f}",
            ]
        )
    text = (
        f"Who is found, of people that neither the model nor an attack has seen:\n\n{table(rows)}"
    )
    with atomic_write(out / "summary.md") as temporary:
        temporary.write_text(text + "\n", "utf-8")
    with atomic_write(out / "picture.png") as temporary:
        draw_retrieval(model, dataset, {a: out / "images" / a for a in ATTACKS}).save(
            temporary, format="PNG"
        )
    print(text)
    print(f"\nattacks:  {', '.join(str(out / a / 'attack.safetensors') for a in ATTACKS)}")
    print(f"images:   {out / 'images'}")
    print(f"picture:  {out / 'picture.png'}")
    print(f"summary:  {out / 'summary.md'}")


def _shares(figures: dict[str, Any]) -> list[str]:
    return [f"{100 * figures['mAP']:.1f}", f"{100 * figures['cmc'][0]:.1f}"]


def draw_retrieval(
    model: ReIDModel, dataset: ReIDDataset, attacked: dict[str, Path]
) -> Image.Image:
    """Draw some queries, their attacked copies, and whom the model takes for the same person.

    Args:
        model: Finds.
        dataset: Whose queries and gallery.
        attacked: Folder of adversarial queries, by title.
    """
    gallery = extract_features(model, dataset.gallery, image_size=SIZE)
    found = {"query": _first(model, dataset, dataset, gallery)}
    sets = {"query": dataset}
    for title, folder in attacked.items():
        sets[title] = dataset.with_query(folder)
        found[title] = _first(model, sets[title], dataset, gallery)
    right = [
        number
        for number, sample in enumerate(dataset.query)
        if dataset.gallery[int(found["query"][number])].pid == sample.pid
    ]
    chosen = right[:: max(1, len(right) // ROWS)][:ROWS]
    titles = ["query", "found"]
    for title in attacked:
        titles += [title, f"change x{GAIN}", "found"]
    width, height = (SCALE * SIZE[1] + GAP, SCALE * SIZE[0] + GAP)
    page = Image.new("RGB", (GAP + width * len(titles), TITLE + height * len(chosen)), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.text((GAP + column * width, GAP), title, fill="black")
    for row, number in enumerate(chosen):
        original = decode_image(dataset.query[number].path, SIZE)
        cells = []
        for title, people in sets.items():
            pixels = decode_image(people.query[number].path, SIZE)
            cells.append(_tile(pixels))
            if title != "query":
                change = pixels.float() - original.float()
                cells.append(_tile((127.5 + GAIN * change).clamp(0, 255).byte()))
            match = dataset.gallery[int(found[title][number])]
            colour = "green" if match.pid == dataset.query[number].pid else "red"
            cells.append(_framed(_tile(decode_image(match.path, SIZE)), colour))
        for column, cell in enumerate(cells):
            page.paste(cell, (GAP + column * width, TITLE + row * height))
    return page


def _first(model: ReIDModel, people: ReIDDataset, dataset: ReIDDataset, gallery: Tensor) -> Tensor:
    features = extract_features(model, people.query, image_size=SIZE)
    _, indices = top_k(
        features,
        gallery,
        1,
        query_pids=[s.pid for s in people.query],
        query_camids=[s.camid for s in people.query],
        gallery_pids=[s.pid for s in dataset.gallery],
        gallery_camids=[s.camid for s in dataset.gallery],
        metric=model.metric,
    )
    return indices[:, 0]


def _tile(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return image.resize((SCALE * SIZE[1], SCALE * SIZE[0]), Image.Resampling.NEAREST)


def _framed(image: Image.Image, colour: str) -> Image.Image:
    border = 2 * SCALE
    inner = image.crop((border, border, image.width - border, image.height - border))
    return ImageOps.expand(inner, border, colour)
