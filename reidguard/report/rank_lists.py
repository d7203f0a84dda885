"""Pictures of an attack at work: what was learnt, what it does to people, and who is found then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from reidguard.attacks import Attack, ColorAttack, DeltaAttack
from reidguard.data import ReIDDataset, decode_image
from reidguard.evaluation import FeatureStore
from reidguard.evaluation.features import module_device
from reidguard.metrics import top_k
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.report.html import figure, figure_row, rank_list
from reidguard.report.images import amplified, as_image, color_cube
from reidguard.types import ReIDSample

__all__ = [
    "adversarial_examples",
    "attacked_queries",
    "before_and_after",
    "evenly_spaced",
    "perturbation",
    "rank1_correct",
    "rank_lists",
    "thumbnail",
]

GAIN = 8  # by which changes are shown larger than they are
FOUND = 8  # images of a rank list
TALLEST = 128  # pixels of a person in a rank list


def evenly_spaced(numbers: Sequence[int], count: int) -> list[int]:
    """Return some of the numbers, evenly spaced.

    Example:
        >>> evenly_spaced(range(10), 2)
        [2, 7]
    """
    wanted = min(count, len(numbers))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * wanted)] for i in range(wanted)]


def perturbation(attack: Attack, width: int = 128) -> list[str]:
    """Return pictures of what an attack has learnt: its pattern, its colour cube; maybe none.

    Args:
        attack: Its additive and colour parts are looked for, however deep they are.
        width: Of the pattern in the page, in pixels.
    """
    rows = []
    for part in attack.modules():
        if isinstance(part, DeltaAttack):
            rows.append(
                figure_row(
                    figure(
                        amplified(part.delta[0], GAIN),
                        f"the additive pattern, {GAIN} times as strong as it is, on grey",
                        f"δ, the pattern that is added, ×{GAIN}",
                        width=width,
                    )
                )
            )
    for part in attack.modules():
        if isinstance(part, ColorAttack):
            for dark, side in ((False, "white"), (True, "black")):
                tiles = []
                for shown, gain, caption in (
                    (None, None, f"the colour cube from its {side} corner"),
                    (part.lut, None, "after the attack"),
                    (part.lut, GAIN, f"its change ×{GAIN}, on grey"),
                ):
                    alt = f"colour cube seen from its {side} corner: {caption}"
                    drawn = color_cube(shown, gain=gain, dark=dark, size=192)
                    tiles.append(figure(drawn, alt, caption))
                rows.append(figure_row(*tiles))
    return rows


def adversarial_examples(
    attack: Attack,
    dataset: ReIDDataset,
    size: tuple[int, int],
    *,
    count: int = 3,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Return some queries, evenly spaced: clean, the change, and the 8-bit adversarial image."""
    parts = []
    for sample in (dataset.query[i] for i in evenly_spaced(range(len(dataset.query)), count)):
        pixels = decode_image(sample.path, size)
        changed = _attacked(attack, pixels[None].to(device))[0].cpu()
        change = (changed.float() - pixels.float()) / 255
        largest = round(255 * float(change.abs().max()))
        parts.append(
            figure_row(
                *(
                    figure(image, f"{_who(sample)}: {what}", what, width=128)
                    for image, what in (
                        (as_image(pixels), "clean"),
                        (amplified(change, GAIN), f"change ×{GAIN}, on grey"),
                        (as_image(changed), f"adversarial; largest change {largest}/255"),
                    )
                )
            )
        )
    return parts


def rank1_correct(
    model: ReIDModel,
    dataset: ReIDDataset,
    store: FeatureStore,
    size: tuple[int, int],
    images: Tensor | None = None,
    chosen: Sequence[int] | None = None,
) -> list[int]:
    """Return the indices of the queries whose first image is right.

    Args:
        model: Gives the features.
        dataset: Whose queries.
        store: Keeps clean features.
        size: (height, width) of the images.
        images: uint8 images to search with in place of the chosen queries; None for the clean.
        chosen: Indices of the queries to look at; None for all.
    """
    chosen = range(len(dataset.query)) if chosen is None else chosen
    if images is None:
        features = store.features(model, dataset, "query", image_size=size)[list(chosen)]
    else:
        features = _features(model, images)
    first = _ranking(model, dataset, store, size, features, chosen, 1)[:, 0].tolist()
    return [
        number
        for number, place in zip(chosen, first, strict=True)
        if place >= 0 and dataset.gallery[place].pid == dataset.query[number].pid
    ]


def before_and_after(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack,
    chosen: Sequence[int],
    *,
    store: FeatureStore,
    size: tuple[int, int],
    blur: bool = False,
) -> list[str]:
    """Return rank lists of some queries, each before and after the attack (as 8-bit images).

    Args:
        model: Gives the features.
        dataset: Queries and gallery.
        attack: Perturbs the queries, on the model's device.
        chosen: Indices of the queries.
        store: Keeps clean features.
        size: (height, width) of the images.
        blur: Show people as a few blocks of colour.
    """
    _, changed = attacked_queries(model, dataset, attack, chosen, size)
    lists = [
        rank_lists(model, dataset, chosen, images, title=title, store=store, size=size, blur=blur)
        for title, images in (("Before", None), ("After", changed))
    ]
    return [part for one_query in zip(*lists, strict=True) for part in one_query]


def rank_lists(
    model: ReIDModel,
    dataset: ReIDDataset,
    chosen: Sequence[int],
    images: Tensor | None = None,
    *,
    title: str,
    store: FeatureStore,
    size: tuple[int, int],
    blur: bool = False,
) -> list[str]:
    """Return the rank list of each of some queries.

    Args:
        model: Gives the features.
        dataset: Queries and gallery.
        chosen: Indices of the queries.
        images: uint8 images (N, 3, H, W) to search with in place of the chosen queries; None for
            the clean ones.
        title: Stands above each list, before the person's name.
        store: Keeps clean features.
        size: (height, width) of the images.
        blur: Show people as a few blocks of colour.
    """
    if images is None:
        features = store.features(model, dataset, "query", image_size=size)[list(chosen)]
        images = torch.stack([decode_image(dataset.query[number].path, size) for number in chosen])
    else:
        features = _features(model, images)
    parts = []
    found = _ranking(model, dataset, store, size, features, chosen, FOUND)
    for number, query, row in zip(chosen, images, found, strict=True):
        sample = dataset.query[number]
        name = f"{_who(sample)}, camera {sample.camid}"
        results = [
            (
                thumbnail(as_image(decode_image(dataset.gallery[i].path, size)), blur),
                f"{_who(dataset.gallery[i])}, camera {dataset.gallery[i].camid}",
                dataset.gallery[i].pid == sample.pid,
            )
            for i in row.tolist()
            if i >= 0
        ]
        shown = (thumbnail(as_image(query), blur), name)
        parts.append(rank_list(f"{title}: {name}", shown, results))
    return parts


def attacked_queries(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack,
    chosen: Sequence[int],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return uint8 queries (N, 3, H, W) on the CPU, clean and adversarial."""
    device = module_device(model)
    pixels = torch.stack([decode_image(dataset.query[number].path, size) for number in chosen])
    parts = [_attacked(attack, part.to(device)).cpu() for part in torch.split(pixels, 32)]
    return pixels, torch.cat(parts)


def _attacked(attack: Attack, pixels: Tensor) -> Tensor:
    """The 8-bit adversarial images (N, 3, H, W) of 8-bit ones: what a person could save."""
    x = pixels.float() / 255
    with torch.no_grad():
        return attack.budget.quantize(inference_view(attack)(x), x)


def _features(model: ReIDModel, images: Tensor) -> Tensor:
    device = module_device(model)
    view = inference_view(model)
    with torch.no_grad():
        return torch.cat(
            [view.features(part.to(device).float() / 255) for part in torch.split(images, 32)]
        )


def _ranking(
    model: ReIDModel,
    dataset: ReIDDataset,
    store: FeatureStore,
    size: tuple[int, int],
    features: Tensor,
    chosen: Sequence[int],
    count: int,
) -> Tensor:
    samples = [dataset.query[number] for number in chosen]
    _, indices = top_k(
        features,
        store.features(model, dataset, "gallery", image_size=size),
        min(count, len(dataset.gallery)),
        query_pids=[s.pid for s in samples],
        query_camids=[s.camid for s in samples],
        gallery_pids=[s.pid for s in dataset.gallery],
        gallery_camids=[s.camid for s in dataset.gallery],
        metric=model.metric,
    )
    return indices


def _who(sample: ReIDSample) -> str:
    return f"person {sample.pid}" if sample.pid else "a stranger"


def thumbnail(image: Image.Image, blur: bool = False) -> Image.Image:
    """Return an image as rank lists show it, blurred as 4 × 8 blocks of colour."""
    height = min(TALLEST, image.height)
    width = max(1, round(image.width * height / image.height))
    if blur:
        image = image.resize((4, 8), Image.Resampling.BOX)
    return image.resize((width, height), Image.Resampling.BICUBIC)
