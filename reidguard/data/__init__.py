"""Datasets, readers, samplers and loaders: from files on disk to training batches."""

from reidguard.data.augment import Augment, NoisyAugment
from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.images import ImageCache, decode_image, iterate_images
from reidguard.data.join import join_datasets
from reidguard.data.layouts import Layout
from reidguard.data.loader import BatchLoader
from reidguard.data.loading import DATASETS, load_dataset, register_dataset
from reidguard.data.sampler import PKSampler
from reidguard.data.torch_dataset import ReIDItem, TorchSplit

__all__ = [
    "DATASETS",
    "SPLITS",
    "Augment",
    "BatchLoader",
    "ImageCache",
    "Layout",
    "NoisyAugment",
    "PKSampler",
    "ReIDDataset",
    "ReIDItem",
    "TorchSplit",
    "decode_image",
    "iterate_images",
    "join_datasets",
    "load_dataset",
    "register_dataset",
]

from reidguard.data import readers  # noqa: F401  they register themselves
