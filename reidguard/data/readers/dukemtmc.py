"""DukeMTMC-reID (Zheng et al., ICCV 2017), withdrawn by its authors."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import MARKET_FOLDERS, find_root, read_market_folders
from reidguard.data.readers.statistics import Count, Published, build_dataset

__all__ = ["read_dukemtmc_reid"]

PUBLISHED = Published(
    "dukemtmc-reid",
    "withdrawn by its authors in 2019; was CC BY-NC-SA 4.0: no commercial use",
    Count(16522, 702),
    Count(2228, 702),
    Count(17661, 1110),
)
EXAMPLE = "0005_c2_f0046985.jpg"
NAME = re.compile(r"(?P<pid>[0-9]{1,18})_c(?P<camid>[0-9]{1,9})_f[0-9]+")
LAYOUT = Layout(dict.fromkeys(MARKET_FOLDERS.values(), NAME), ("DukeMTMC-reID", "DukeMTMC", "Duke"))
WITHDRAWN = (
    "withdrawn: its authors took DukeMTMC down in 2019, since people were recorded outside what "
    "their review board had approved; think before using it, and say so where it is reported"
)


@register_dataset("dukemtmc-reid", LAYOUT)
def read_dukemtmc_reid(root: Path | str) -> ReIDDataset:
    """List a copy of DukeMTMC-reID that was made before its withdrawal.

    ``0005_c2_f0046985.jpg`` shows identity 5, seen by camera 2. The 408 gallery identities without
    a query keep their own numbers. The first note says that the dataset is withdrawn.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``,
            or its parent, if there it is called ``DukeMTMC-reID``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    root = find_root(root, LAYOUT)
    splits = read_market_folders(root, NAME, example=EXAMPLE, published=PUBLISHED)
    return build_dataset(PUBLISHED, splits, root=root, notes=[WITHDRAWN])
