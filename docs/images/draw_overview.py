"""Draw overview.png, the README's picture: python docs/images/draw_overview.py OSNET_FILE.

OSNET_FILE is torchreid's osnet_x0_25_market1501.pth. The published network retrieves virtual
people, which it was not trained on, before and after the self-metric attack. Takes a minute.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import reidguard as rg
from reidguard.data import decode_image
from reidguard.metrics import top_k

SIZE = (256, 128)
TILE = (64, 128)  # width and height of an image in the picture
SHOWN, RANKS = 3, 5
GAIN = 8  # changes are shown that many times larger than they are
EDGE, GAP, TOP, LABEL = 4, 6, 66, 26
RIGHT, WRONG = "#0072b2", "#d55e00"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    model = rg.create_model("osnet_x0_25", weights=parser.parse_args().weights)
    with tempfile.TemporaryDirectory() as folder:
        people = rg.load_dataset(
            "virtual:studio?train_identities=2&test_identities=25&cameras=3&height=256",
            folder=f"{folder}/people",
        )
        attack = rg.SMA(rg.Budget(8 / 255)).bind(model)
        store = rg.FeatureStore()
        result = rg.evaluate(model, people, attack, store=store)
        print(result.to_markdown())
        gallery = store.features(model, people, "gallery", image_size=SIZE)
        clean = torch.stack([decode_image(s.path, SIZE) for s in people.query])
        changed = rg.Budget(8 / 255).quantize(attack(clean / 255), clean / 255)
        before = ranking(model, people, clean, gallery)
        after = ranking(model, people, changed, gallery)
        page = draw(people, clean, changed, before, after, result)
    # A palette keeps the file small; noise compresses badly.
    page.quantize(200, kmeans=2, dither=Image.Dither.NONE).save(
        Path(__file__).with_name("overview.png"), optimize=True
    )


def ranking(
    model: rg.ReIDModel, people: rg.ReIDDataset, images: torch.Tensor, gallery: torch.Tensor
) -> list[list[rg.ReIDSample]]:
    with torch.no_grad():
        features = model.features(images / 255)
    _, indices = top_k(
        features,
        gallery,
        RANKS,
        query_pids=[s.pid for s in people.query],
        query_camids=[s.camid for s in people.query],
        gallery_pids=[s.pid for s in people.gallery],
        gallery_camids=[s.camid for s in people.gallery],
        metric=model.metric,
    )
    return [[people.gallery[i] for i in row] for row in indices.tolist()]


def draw(
    people: rg.ReIDDataset,
    clean: torch.Tensor,
    changed: torch.Tensor,
    before: list[list[rg.ReIDSample]],
    after: list[list[rg.ReIDSample]],
    result: rg.EvaluationResult,
) -> Image.Image:
    """Draw the first query of every eighth person: query and ranks before, change, and after."""
    font, small = ImageFont.load_default(19), ImageFont.load_default(15)
    width, height = TILE[0] + 2 * EDGE + GAP, TILE[1] + 2 * EDGE + GAP
    change_at = (1 + RANKS) * width + 4 * GAP
    after_at = change_at + width + 4 * GAP
    page = Image.new(
        "RGB", (after_at + (1 + RANKS) * width + 2 * GAP, TOP + SHOWN * height + LABEL), "white"
    )
    pen = ImageDraw.Draw(page)
    attacked = result.attacked_8bit
    assert attacked is not None
    for left, title, ranked in (
        (GAP, "before", result.clean),
        (after_at, "after the attack", attacked.ranking),
    ):
        scores = f"rank-1 {100 * ranked.rank_k(1):.1f} %, mAP {100 * ranked.mAP:.1f} %"
        pen.text((left, 8), f"{title}: {scores}", "black", font)
        pen.text((left, 38), "query", "#444", small)
        pen.text((left + width + 2 * GAP, 38), "retrieved, best first", "#444", small)
    pen.text((change_at, 38), f"change x {GAIN}", "#444", small)
    pen.text(
        (GAP, TOP + SHOWN * height + 2),
        "Virtual people. Blue: the right person; orange and dashed: someone else.",
        "#444",
        small,
    )
    for row in range(SHOWN):
        number = next(
            i for i, s in enumerate(people.query) if s.pid == people.query[0].pid + 8 * row
        )
        top, pid = TOP + row * height, people.query[number].pid
        moved = GAIN * (changed[number].float() - clean[number].float())
        page.paste(tile((127.5 + moved).clamp(0, 255).byte(), None), (change_at, top))
        for left, query, matches in (
            (GAP, clean[number], before[number]),
            (after_at, changed[number], after[number]),
        ):
            page.paste(tile(query, None), (left, top))
            for rank, match in enumerate(matches, 1):
                shown = tile(decode_image(match.path, SIZE), match.pid == pid)
                page.paste(shown, (left + rank * width + 2 * GAP, top))
    return page


def tile(pixels: torch.Tensor, right: bool | None) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image = image.resize(TILE, Image.Resampling.LANCZOS)
    if right is None:
        return ImageOps.expand(image, EDGE, "white")
    image = ImageOps.expand(image, EDGE, RIGHT if right else WRONG)
    if not right:  # gaps in the frame, so that nothing depends on colour alone
        pen = ImageDraw.Draw(image)
        for start in range(0, image.height, 12):
            pen.rectangle((0, start, EDGE - 1, start + 4), "white")
            pen.rectangle((image.width - EDGE, start, image.width, start + 4), "white")
        for start in range(0, image.width, 12):
            pen.rectangle((start, 0, start + 4, EDGE - 1), "white")
            pen.rectangle((start, image.height - EDGE, start + 4, image.height), "white")
    return image


if __name__ == "__main__":
    main()
