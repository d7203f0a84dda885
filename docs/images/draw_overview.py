"""Draw overview.png, the README's picture, of virtual people: python docs/images/draw_overview.py.

It trains a small network, learns three attacks on it (a minute in all), and shows what they do to
two queries that neither the network nor an attack has seen.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import reidguard as rg
from reidguard.data import decode_image
from reidguard.evaluation import extract_features
from reidguard.metrics import top_k
from reidguard.virtual import read_virtual

SIZE = (128, 64)
GAIN = 8  # changes are shown that many times larger than they are
PEOPLE = 2
EDGE, GAP, LEFT, TOP = 4, 6, 150, 44


def main() -> None:
    torch.manual_seed(0)
    folder = tempfile.TemporaryDirectory()
    people = read_virtual(
        "campus", root=Path(folder.name) / "people", train_identities=16, test_identities=16,
        cameras=3,
    )  # fmt: skip
    classes = people.num_train_pids
    model = rg.create_model("ide", backbone="test_resnet", size=SIZE, num_classes=classes)
    rg.train_model(model, people, steps=40, lr=3e-3, images_per_identity=4, image_size=SIZE)
    model.eval()
    attacks = {
        "delta": rg.DeltaAttack(size=SIZE),
        "colour": rg.ColorAttack(),
        "combinatorial": rg.CombinatorialAttack(size=SIZE),
    }
    for attack in attacks.values():
        attack.fit(model, people, steps=30, image_size=SIZE)
    queries = torch.stack([decode_image(s.path, SIZE) for s in people.query])
    shown = {"no attack": queries}
    for title, attack in attacks.items():
        x = queries / 255
        shown[title] = attack.budget.quantize(attack(x), x)
    found = {title: first_found(model, people, images) for title, images in shown.items()}
    chosen = choose(people, found)
    page = draw(people, shown, found, chosen)
    # A palette keeps the file small; noise compresses badly.
    page.quantize(200, kmeans=2, dither=Image.Dither.NONE).save(
        Path(__file__).with_name("overview.png"), optimize=True
    )


def first_found(
    model: rg.ReIDModel, people: rg.ReIDDataset, queries: torch.Tensor
) -> list[rg.ReIDSample]:
    with torch.no_grad():
        features = model.features(queries / 255)
    _, indices = top_k(
        features,
        extract_features(model, people.gallery, image_size=SIZE),
        1,
        query_pids=[s.pid for s in people.query],
        query_camids=[s.camid for s in people.query],
        gallery_pids=[s.pid for s in people.gallery],
        gallery_camids=[s.camid for s in people.gallery],
        metric=model.metric,
    )
    return [people.gallery[i] for i in indices[:, 0].tolist()]


def choose(people: rg.ReIDDataset, found: dict[str, list[rg.ReIDSample]]) -> list[int]:
    """Return queries of different people that are found only without an attack."""
    chosen: dict[int, int] = {}
    for number, query in enumerate(people.query):
        right = [samples[number].pid == query.pid for samples in found.values()]
        if right == [True] + [False] * (len(right) - 1):
            chosen.setdefault(query.pid, number)
    return list(chosen.values())[:PEOPLE]


def draw(
    people: rg.ReIDDataset,
    shown: dict[str, torch.Tensor],
    found: dict[str, list[rg.ReIDSample]],
    chosen: list[int],
) -> Image.Image:
    font, small = ImageFont.load_default(20), ImageFont.load_default(16)
    width, height = 2 * SIZE[1] + 2 * EDGE + GAP, 2 * SIZE[0] + 2 * EDGE + GAP
    group = PEOPLE * width + 3 * GAP
    page = Image.new("RGB", (LEFT + len(shown) * group, TOP + 3 * height), "white")
    pen = ImageDraw.Draw(page)
    rows = [f"change, x {GAIN}", "query", "found first"]
    for row, title in enumerate(rows):
        pen.text((GAP, TOP + (row + 0.5) * height), title, "black", font, anchor="lm")
    middle = TOP + 2.5 * height
    pen.text((GAP, middle + 28), "green: the person", "green", small, anchor="lm")
    pen.text((GAP, middle + 50), "red: someone else", "red", small, anchor="lm")
    for column, (title, images) in enumerate(shown.items()):
        left = LEFT + column * group
        pen.text((left + PEOPLE * width / 2, TOP / 2), title, "black", font, anchor="mm")
        for place, number in enumerate(chosen):
            original = shown["no attack"][number].float()
            change = (127.5 + GAIN * (images[number] - original)).clamp(0, 255).byte()
            match = found[title][number]
            right = match.pid == people.query[number].pid
            tiles = [
                (change, "white"),
                (images[number], "white"),
                (decode_image(match.path, SIZE), "green" if right else "red"),
            ]
            for row, (pixels, colour) in enumerate(tiles):
                page.paste(tile(pixels, colour), (left + place * width, TOP + row * height))
    return page


def tile(pixels: torch.Tensor, colour: str) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image = image.resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.NEAREST)
    return ImageOps.expand(image, EDGE, colour)


if __name__ == "__main__":
    main()
