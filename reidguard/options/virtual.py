"""Options of the virtual data sets."""

from typing import Annotated, TypedDict

from reidguard.schema import MAX_SEED, Option

__all__ = [
    "VirtualOptions",
]


class VirtualOptions(TypedDict, total=False):
    """Options of :func:`read_virtual <reidguard.virtual.read_virtual>`.

    Example:
        >>> few: VirtualOptions = {"train_identities": 10, "height": 64}
        >>> data = load_dataset("virtual:plaza", **few)  # doctest: +SKIP
    """

    train_identities: Annotated[int, Option("training identities", 100, low=1, high=5000)]
    test_identities: Annotated[
        int,
        Option(
            "test identities; the gallery has twice as many images of distractors",
            75,
            low=1,
            high=4998,
        ),
    ]
    cameras: Annotated[int, Option("cameras of the domain", 6, low=2, high=99)]
    images_per_camera: Annotated[
        int,
        Option(
            "images of each identity by each camera; in the test one is the query",
            4,
            low=2,
            high=999,
        ),
    ]
    height: Annotated[
        int,
        Option("image height, a multiple of 32; the width is half of it", 128, low=64, high=1024),
    ]
    seed: Annotated[
        int, Option("other identities and cameras of the domain", 0, low=0, high=MAX_SEED)
    ]
    balanced: Annotated[
        bool,
        Option(
            "show each identity to each camera once every 10 degrees: 36 images, whatever "
            "images_per_camera is",
            False,
        ),
    ]
