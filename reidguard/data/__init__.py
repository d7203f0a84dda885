"""Datasets, readers, samplers and loaders: from files on disk to batches of people."""

from reidguard.data.augment import Augment
from reidguard.data.dataset import (
    DATASETS,
    SPLITS,
    ReIDDataset,
    check_images,
    load_dataset,
    register_dataset,
)
from reidguard.data.folder import read_csv, read_folder
from reidguard.data.images import ImageCache, decode_image, iterate_images
from reidguard.data.loader import BatchLoader
from reidguard.data.market1501 import read_market1501
from reidguard.data.sampler import PKSampler
from reidguard.data.synthetic import read_synthetic, write_synthetic

__all__ = [
    "DATASETS",
    "SPLITS",
    "Augment",
    "BatchLoader",
    "ImageCache",
    "PKSampler",
    "ReIDDataset",
    "check_images",
    "decode_image",
    "iterate_images",
    "load_dataset",
    "read_csv",
    "read_folder",
    "read_market1501",
    "read_synthetic",
    "register_dataset",
    "write_synthetic",
]
