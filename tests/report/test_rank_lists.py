"""Rank lists of images of one colour each, by a model whose feature is the mean colour."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reidguard.attacks import DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.evaluation import FeatureStore
from reidguard.models import wrap_model
from reidguard.report import Retrieval, adversarial_examples, thumbnail
from reidguard.types import Budget, InputSpec, ReIDSample

SIZE = (16, 8)
QUERIES = [(100, 1, 1), (200, 2, 1), (30, 3, 1)]  # grey level, identity, camera
GALLERY = [
    *((100, 1, 1), (104, 1, 2), (120, 2, 2), (195, 3, 2), (210, 2, 2), (25, 3, 2)),
    *((40, 0, 2), (50, 0, 2), (60, 0, 2), (70, 0, 2)),
]


class MeanColour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def retrieval(tmp_path: Path) -> Retrieval:
    def images(split: str, facts: list[tuple[int, int, int]]) -> list[ReIDSample]:
        samples = []
        for number, (grey, pid, camid) in enumerate(facts):
            path = tmp_path / f"{split}{number}.png"
            Image.new("RGB", (8, 16), (grey, grey, grey)).save(path)
            samples.append(ReIDSample(path, pid, camid))
        return samples

    spec = InputSpec(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = wrap_model(MeanColour(), input_spec=spec, metric="euclidean")
    query, gallery = images("query", QUERIES), images("gallery", GALLERY)
    return Retrieval(
        model, ReIDDataset("greys", query=query, gallery=gallery), FeatureStore(), SIZE
    )


def expected_order(grey: int, pid: int, camid: int) -> list[tuple[int, int, int]]:
    """Gallery images by distance in grey; the query's own identity and camera are junk."""
    others = [fact for fact in GALLERY if fact[1:] != (pid, camid)]
    return sorted(others, key=lambda fact: abs(fact[0] - grey))


def lists_of(html: list[str]) -> list[list[str]]:
    return [re.findall(r'alt="([^"]*)"', part) for part in html]


def test_lists_are_ordered_by_distance_and_say_what_matches(retrieval):
    html = retrieval.rank_lists([0, 2], title="Clean")
    for part, alts, query in zip(html, lists_of(html), (0, 2), strict=True):
        pid = QUERIES[query][1]
        assert f"<p>Clean: person {pid}, camera 1</p>" in part
        assert alts[0] == f"query: person {pid}, camera 1"
        expected = [
            f"rank {rank}, {'correct' if found == pid else 'wrong'}: "
            + (f"person {found}" if found else "a distractor")
            + f", camera {camid}"
            for rank, (_, found, camid) in enumerate(expected_order(*QUERIES[query])[:8], 1)
        ]
        assert alts[1:] == expected


def test_rank1_matches(retrieval):
    assert retrieval.rank1_correct() == [0, 2]  # the closest to 200 is 195, of person 3
    assert retrieval.rank1_correct([1, 2]) == [2]
    images = torch.full((2, 3, *SIZE), 211, dtype=torch.uint8)
    assert retrieval.rank1_correct([0, 1], images) == [1]


def test_a_query_without_any_match_has_an_empty_list(retrieval):
    dataset = retrieval.dataset
    alone = ReIDDataset("alone", query=dataset.query[:1], gallery=dataset.gallery[:1])
    alone = Retrieval(retrieval.model, alone, FeatureStore(), SIZE)
    assert alone.rank1_correct() == []
    assert lists_of(alone.rank_lists([0], title="Clean")) == [["query: person 1, camera 1"]]


@pytest.fixture
def brighter() -> DeltaAttack:
    """Adds 8 grey levels, and a bit less than one in the green channel."""
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    nn.init.constant_(attack.delta, 8 / 255)
    with torch.no_grad():
        attack.delta[:, 1] = 0.6 / 255
    return attack


def test_attacked_queries_are_8_bit_images(retrieval, brighter):
    images = retrieval.attacked(brighter, [2, 1])
    assert images.dtype == torch.uint8
    assert images[:, :, 0, 0].tolist() == [[38, 31, 38], [208, 201, 208]]
    assert lists_of(retrieval.rank_lists([2], images[:1], title="After"))[0][1] == (
        "rank 1, wrong: a distractor, camera 2"  # (38, 31, 38): closer to 40 than to 25
    )


def test_examples_show_the_amplified_change(retrieval, brighter):
    rows = adversarial_examples(brighter, retrieval.dataset, SIZE, count=1)
    assert lists_of(rows) == [
        [
            "person 2: clean",
            "person 2: change ×8, on grey",
            "person 2: adversarial; largest change 8/255",
        ]
    ]
    images = [
        Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0))
        for data in re.findall(r"base64,([^\"]*)", rows[0])
    ]
    # Mid grey is 127.5, rounded to even.
    assert images == [(200, 200, 200), (128 + 64, 128 + 8, 128 + 64), (208, 201, 208)]


def test_thumbnails_are_at_most_128_pixels_high():
    assert thumbnail(Image.new("RGB", (100, 256))).size == (50, 128)
    assert thumbnail(Image.new("RGB", (30, 64))).size == (30, 64)
