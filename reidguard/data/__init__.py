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
from reidguard.data.images import ImageCache, decode_image, iterate_images
from reidguard.data.join import join_datasets
from reidguard.data.loader import BatchLoader
from reidguard.data.readers.cuhk import read_cuhk01, read_cuhk03_np_detected, read_cuhk03_np_labeled
from reidguard.data.readers.deepchange import read_deepchange
from reidguard.data.readers.dukemtmc import read_dukemtmc_reid
from reidguard.data.readers.folder import read_csv, read_folder
from reidguard.data.readers.market1501 import read_market1501
from reidguard.data.readers.msmt17 import read_msmt17
from reidguard.data.readers.personx import read_personx, read_personx_456
from reidguard.data.readers.synthetic_sets import read_randperson, read_unrealperson
from reidguard.data.readers.viper import read_viper
from reidguard.data.sampler import PKSampler

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
    "join_datasets",
    "load_dataset",
    "read_csv",
    "read_cuhk01",
    "read_cuhk03_np_detected",
    "read_cuhk03_np_labeled",
    "read_deepchange",
    "read_dukemtmc_reid",
    "read_folder",
    "read_market1501",
    "read_msmt17",
    "read_personx",
    "read_personx_456",
    "read_randperson",
    "read_unrealperson",
    "read_viper",
    "register_dataset",
]
