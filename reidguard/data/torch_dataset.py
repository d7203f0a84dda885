"""The splits of a dataset as `torch.utils.data.Dataset`, for a plain DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from reidguard.data.dataset import ReIDDataset
from reidguard.data.decoding import open_rgb
from reidguard.data.images import decode_image
from reidguard.errors import InputError
from reidguard.schema import MAX_SIDE, checked

__all__ = ["ReIDItem", "TorchSplit"]


class ReIDItem(NamedTuple):
    """One image of a split. A DataLoader makes the same tuple of batches.

    Attributes:
        image: What the transform returns; without one a float32 tensor (3, H, W) in [0, 1].
        pid: In training the label 0, 1, ..., which a classifier needs; else the identity.
        camid: Camera.
        position: Place in the split.

    Example:
        >>> ReIDItem(None, pid=0, camid=1, position=7).camid
        1
    """

    image: Any
    pid: int
    camid: int
    position: int


class TorchSplit(Dataset[ReIDItem]):
    """A split as a map-style dataset; images are read and decoded at every access.

    Args:
        dataset: The dataset.
        split: "train", "query" or "gallery".
        transform: Takes a PIL image in RGB, of the file's own size, as torchvision's transforms do.
            None resizes as the library does.
        image_size: (height, width) of the images without a transform.

    Attributes:
        pids: ``pid`` of each item, as :class:`PKSampler` takes them.

    Raises:
        InputError: If there is no such split, or the transform cannot be called.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> from reidguard.data import PKSampler, load_dataset
        >>> few = "virtual:studio?train_identities=4&test_identities=2&cameras=2&height=64"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = load_dataset(few, folder=f"{folder}/set")
        ...     train = TorchSplit(people, "train", image_size=(64, 32))
        ...     sampler = PKSampler(train.pids, identities=2, images_per_identity=3)
        ...     batch = next(iter(DataLoader(train, batch_sampler=sampler)))
        >>> batch.image.shape, batch.pid.unique().numel()
        (torch.Size([6, 3, 64, 32]), 2)
    """

    def __init__(
        self,
        dataset: ReIDDataset,
        split: str = "train",
        *,
        transform: Callable[[Image.Image], Any] | None = None,
        image_size: tuple[int, int] = (256, 128),
    ) -> None:
        if transform is not None and not callable(transform):
            raise InputError(f"transform must be a function of an image, not {transform!r}")
        self.samples = dataset.split(split)
        self.transform = transform
        self.image_size = checked(tuple[int, int], "image_size", image_size, low=1, high=MAX_SIDE)
        labels = dataset.train_labels if split == "train" else {}
        self.pids = [labels.get(sample.pid, sample.pid) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ReIDItem:
        """Return an item.

        Raises:
            DataError: Naming the file, if the image cannot be read.
        """
        sample = self.samples[index]
        if self.transform is None:
            image: Any = decode_image(sample.path, self.image_size).float() / 255
        else:
            image = self.transform(open_rgb(sample.path))
        return ReIDItem(image, self.pids[index], sample.camid, index % len(self.samples))
