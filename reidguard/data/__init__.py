"""Datasets, readers, samplers and loaders: from files on disk to batches of people."""

from reidguard.data.augment import Augment
from reidguard.data.cuhk import read_cuhk01, read_cuhk03_np_detected, read_cuhk03_np_labeled
from reidguard.data.dataset import (
    DATASETS,
    SPLITS,
    ReIDDataset,
    check_images,
    load_dataset,
    register_dataset,
)
from reidguard.data.deepchange import read_deepchange
from reidguard.data.dukemtmc import read_dukemtmc_reid
from reidguard.data.folder import read_csv, read_folder
from reidguard.data.images import ImageCache, decode_image, iterate_images
from reidguard.data.join import join_datasets
from reidguard.data.loader import BatchLoader
from reidguard.data.market1501 import read_market1501
from reidguard.data.msmt17 import read_msmt17
from reidguard.data.personx import read_personx, read_personx_456
from reidguard.data.sampler import PKSampler
from reidguard.data.synthetic_sets import read_randperson, read_unrealperson
from reidguard.data.viper import read_viper
from reidguard.data.virtual import (
    VIRTUAL_DOMAINS,
    contact_sheet,
    read_virtual,
    render_person,
    write_virtual,
)

__all__ = [
    "DATASETS",
    "SPLITS",
    "VIRTUAL_DOMAINS",
    "Augment",
    "BatchLoader",
    "ImageCache",
    "PKSampler",
    "ReIDDataset",
    "check_images",
    "contact_sheet",
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
    "read_virtual",
    "register_dataset",
    "render_person",
    "write_virtual",
]
