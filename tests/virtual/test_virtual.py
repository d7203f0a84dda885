from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reidguard.data import decode_image, load_dataset
from reidguard.errors import DataError, InputError
from reidguard.virtual import (
    VIRTUAL_DOMAINS,
    contact_sheet,
    geometry,
    read_virtual,
    render,
    render_person,
    write_virtual,
)
from reidguard.virtual.dataset import VirtualConfig
from reidguard.virtual.domains import find_domain
from reidguard.virtual.look import make_look
from reidguard.virtual.sensor import DCT, blur, compress, resize
from reidguard.virtual.worker import RenderJob, render_files

TINY = {"train_identities": 1, "test_identities": 1, "cameras": 2, "images_per_camera": 2}


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.png"))
    }


def jobs_of(root: Path, domain: str, **options) -> list[RenderJob]:
    """The jobs of a set, and its empty folders."""
    jobs = VirtualConfig.of(domain, options).jobs()
    jobs = [dataclasses.replace(job, path=str(root / job.path)) for job in jobs]
    for folder in {Path(job.path).parent for job in jobs}:
        folder.mkdir()
    return jobs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_virtual(tmp_path_factory.mktemp("virtual") / "set", "campus", **TINY)


def test_pixels_do_not_depend_on_what_was_rendered_before():
    keys = [("mall", i, c) for i in (1, 2) for c in (1, 2)]
    once = {key: render_person(*key) for key in keys}
    render_person("mall", 9, 2, 40, shot=3, height=256)
    for key in reversed(keys):
        np.testing.assert_array_equal(render_person(*key), once[key])


def test_images_are_full_8_bit_pictures():
    for domain in VIRTUAL_DOMAINS:
        image = render_person(domain, 3, 1)
        assert image.dtype == np.uint8
        assert image.shape == (128, 64, 3)
        assert image.std() > 12
        assert int(image.max()) - int(image.min()) > 80
        assert len(np.unique(image)) > 60
    assert render_person("plaza", 3, 1, height=256).shape == (256, 128, 3)


def test_everything_named_changes_the_picture():
    base = {"domain": "mall", "identity": 1, "camera": 1, "viewpoint": 0, "shot": 0, "seed": 0}
    pictures = [render_person(**base)]
    for name, other in (("domain", "station"), ("identity", 2), ("camera", 2), ("viewpoint", 180),
                        ("shot", 1), ("seed", 1)):  # fmt: skip
        pictures.append(render_person(**{**base, name: other}))
    for one, two in itertools.combinations(pictures, 2):
        assert np.abs(one.astype(int) - two).mean() > 3
    turned = render_person(**{**base, "viewpoint": 360})
    np.testing.assert_array_equal(turned, pictures[0])  # a whole turn


def test_256_lines_show_the_same_scene():
    fine = render_person("campus", 5, 2, 30, height=256).astype(float)
    coarse = render_person("campus", 5, 2, 30).astype(float)
    halved = fine.reshape(128, 2, 64, 2, 3).mean((1, 3))
    assert np.corrcoef(halved.ravel(), coarse.ravel())[0, 1] > 0.97


def test_identities_differ_in_more_than_one_colour():
    names = ("upper", "lower", "shoe", "hair", "skin")
    for domain in VIRTUAL_DOMAINS:
        looks = [make_look(find_domain(domain), np.random.default_rng(i)) for i in range(60)]
        colours = [(k.colours[0], k.lower_colours[0], k.shoe, k.hair, k.skin) for k in looks]
        shown = np.array(colours).clip(0, 1) ** (1 / 2.2)  # (60, 5, 3)
        gap = np.abs(shown[:, None] - shown[None]).max(-1) > 0.06
        differ = gap.sum(-1)[np.triu_indices(60, 1)]
        assert len(names) == shown.shape[1]
        assert (differ >= 2).mean() > 0.97


def test_layout(tiny):
    dataset = load_dataset(f"virtual:{tiny}")
    assert dataset.summary() == {
        "name": "virtual:campus",
        "licence": "rendered by reidguard, free; shows nobody real",
        "train": {"images": 4, "identities": 1, "cameras": 2},
        "query": {"images": 2, "identities": 1, "cameras": 2},
        "gallery": {"images": 2 + 2, "identities": 1, "cameras": 2},
        "distractors": 2,
        "junk": 0,
        "notes": [],
    }
    dataset.check()
    market = load_dataset(f"market1501:{tiny}")
    assert [s.pid for s in market.query] == [s.pid for s in dataset.query]
    for sample in dataset.train:
        shot = int(sample.path.stem.split("_")[2])
        expected = render_person("campus", sample.pid, sample.camid, shot=shot)
        np.testing.assert_array_equal(np.asarray(Image.open(sample.path)), expected)


def test_the_set_that_the_tests_use(studio, studio_root):
    assert studio.summary() == {
        "name": "virtual:studio",
        "licence": "rendered by reidguard, free; shows nobody real",
        "train": {"images": 144, "identities": 16, "cameras": 3},
        "query": {"images": 48, "identities": 16, "cameras": 3},
        "gallery": {"images": 96 + 32, "identities": 16, "cameras": 3},
        "distractors": 32,
        "junk": 0,
        "notes": [],
    }
    test = {s.pid for s in studio.query}
    assert test.isdisjoint(s.pid for s in studio.train)
    assert test == {s.pid for s in studio.gallery} - {0}
    assert len(set(contents(studio_root).values())) == 320  # no image twice
    studio.check()


def test_another_seed_changes_every_image_of_a_set(studio_root, render):
    one, other = contents(studio_root), contents(render(10, seed=5))
    same_names = one.keys() & other.keys()
    assert len(same_names) > 180
    assert all(one[name] != other[name] for name in same_names)


def test_people_in_the_studio_are_told_apart_but_not_by_the_background(studio):
    def pixels(samples) -> torch.Tensor:
        return torch.stack([decode_image(s.path, (16, 8)) for s in samples]).float() / 255

    def first_match(queries: torch.Tensor, gallery: torch.Tensor) -> float:
        hits = 0
        for row, sample in zip(torch.cdist(queries, gallery), studio.query, strict=True):
            allowed = torch.tensor([g.camid != sample.camid for g in studio.gallery])
            best = int(torch.where(allowed, row, torch.inf).argmin())
            hits += studio.gallery[best].pid == sample.pid
        return hits / len(studio.query)

    query, gallery = pixels(studio.query), pixels(studio.gallery)
    person = (slice(None), slice(None), slice(2, 14), slice(3, 5))
    edges = [0, 7]
    chance = 1 / 16
    assert first_match(query[person].flatten(1), gallery[person].flatten(1)) > 6 * chance
    background = first_match(query[..., edges].flatten(1), gallery[..., edges].flatten(1))
    assert background < 4 * chance


def test_last_bits_move_no_grey_level_by_more_than_one(monkeypatch):
    """As another processor would: every distance is off by some 1e-13 of a metre."""
    keys = [("plaza", i, 1) for i in range(1, 9)]
    exact = [render_person(*key).astype(int) for key in keys]
    rng, enter = np.random.default_rng(0), geometry._enter
    monkeypatch.setattr(
        geometry, "_enter", lambda *a: (r := enter(*a)) + 1e-13 * rng.standard_normal(r.shape)
    )
    render._camera.cache_clear()
    other = [render_person(*key).astype(int) for key in keys]
    render._camera.cache_clear()
    assert max(np.abs(a - b).max() for a, b in zip(exact, other, strict=True)) <= 1


def test_a_small_set_is_part_of_a_large_one(tiny, tmp_path):
    large = write_virtual(tmp_path / "large", "campus", **{**TINY, "train_identities": 2,
                                                            "cameras": 3})  # fmt: skip
    small, whole = contents(tiny), contents(large)
    assert len(small) < len(whole)
    people = {name: digest for name, digest in small.items() if "/0000_" not in name}
    assert people.items() <= whole.items()


def test_processes_divide_the_work_and_share_nothing_else(tiny, tmp_path):
    jobs = jobs_of(tmp_path, "campus", **TINY)
    calls = []
    render_files(jobs, processes=2, progress=lambda *call: calls.append(call))
    assert contents(tmp_path) == contents(tiny)
    assert calls == [(i, 10) for i in range(1, 11)]


@pytest.mark.slow
def test_a_process_that_fails_is_an_error(tmp_path):
    jobs = jobs_of(tmp_path, "campus", **TINY)
    shutil.rmtree(tmp_path / "query")
    with pytest.raises(OSError, match="rendering process failed"):
        render_files(jobs, processes=2)


def test_balanced_viewpoints():
    sizes = {"train_identities": 2, "test_identities": 3, "cameras": 2}
    jobs = VirtualConfig.of("plaza", {**sizes, "balanced": True}).jobs()
    people = [job for job in jobs if "/0000_" not in job.path]
    views = Counter((job.identity, job.camera, job.viewpoint) for job in people)
    expected = itertools.product((1, 2, 5001, 5002, 5003), (1, 2), range(0, 360, 10))
    assert views == Counter(expected)
    queries = [job for job in jobs if job.path.startswith("query/")]
    assert len(queries) == 3 * 2
    assert len({job.viewpoint for job in queries}) > 1  # queries are not all from one side


def test_views_of_ordinary_images_are_multiples_of_ten(monkeypatch):
    seen = []

    class Stop(Exception):  # noqa: N818
        pass

    def shot(domain, camera, look, heading, *rest):
        seen.append(np.degrees(heading) / 10)
        raise Stop

    monkeypatch.setattr(render, "_Shot", shot)
    for i in range(30):
        with pytest.raises(Stop):
            render_person("plaza", i, 1)
    np.testing.assert_allclose(seen, np.round(seen), atol=1e-9)
    assert len({round(view) % 36 for view in seen}) > 5


def test_names_with_options(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "virtual:mall?identities=1&cameras=2&images_per_camera=2"
    dataset = load_dataset(name)
    assert (dataset.name, len(dataset.train), len(dataset.query)) == ("virtual:mall", 4, 2)
    assert dataset.root.parent == tmp_path / "reidguard"
    assert load_dataset(name).root == dataset.root
    assert read_virtual("mall", **TINY).root == dataset.root
    few = load_dataset("virtual:mall?identities=9", folder=tmp_path / "few", **TINY)
    assert contents(few.root) == contents(dataset.root)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("virtual:plazza", "unknown virtual domain 'plazza': did you mean 'plaza'"),
        ("virtual:plaza?camera=3", "unknown option 'camera'.*did you mean 'cameras'"),
        ("virtual:plaza?cameras=many", "cameras must be a whole number.*not 'many'"),
        ("virtual:plaza?cameras=1", "cameras must be a whole number, at least 2"),
        ("virtual:plaza?identities=0", "train_identities must be"),
        ("virtual:plaza?height=100", "multiple of 32"),
        ("virtual:plaza?height=32", "height must be .* at least 64"),
        ("virtual:plaza?balanced=2", "balanced must be True or False"),
        ("virtual:/nowhere/at/all", "holds no virtual set; write one with"),
    ],
)
def test_mistakes_are_named(name, message):
    with pytest.raises((InputError, DataError), match=message):
        load_dataset(name)


@pytest.mark.parametrize(
    "wrong",
    [{"identity": -1}, {"camera": 0}, {"shot": -1}, {"seed": -1}, {"height": 100},
     {"viewpoint": float("nan")}, {"domain": "moon"}],
)  # fmt: skip
def test_render_refuses(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        render_person(**{"domain": "plaza", "identity": 1, "camera": 1, **wrong})


def test_a_set_that_is_there_is_reused(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    write_virtual(tiny, "campus", **TINY)
    assert len(read_virtual("campus", root=tiny, **TINY).query) == 2
    assert before == {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    with pytest.raises(DataError, match="other parameters"):
        write_virtual(tiny, "plaza", **TINY)


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="other files"):
        write_virtual(tmp_path / "mine", **TINY)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="other files"):
        write_virtual(tmp_path / "file", **TINY)
    with pytest.raises(DataError, match="cannot write"):
        write_virtual(tmp_path / "file" / "below", **TINY)


def test_an_empty_folder_may_be_there(tmp_path):
    assert len(read_virtual("campus", root=tmp_path, **TINY).query) == 2
    assert [p for p in tmp_path.parent.iterdir() if p.name.startswith(f".{tmp_path.name}")] == []


def test_the_folder_follows_the_umask(tiny, tmp_path):
    (tmp_path / "plain").mkdir()
    assert tiny.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_lost_images_are_noticed(tmp_path):
    root = write_virtual(tmp_path / "set", "campus", **TINY)
    next((root / "query").iterdir()).unlink()
    with pytest.raises(DataError, match="delete that folder"):
        load_dataset(f"virtual:{root}")


@pytest.mark.parametrize("instant", [0, 7])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, instant):
    saved = []
    original = Image.Image.save

    def save(image, path, **options):
        if len(saved) == instant:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        original(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(DataError, match=r"No space left.*choose another folder"):
        write_virtual(tmp_path / "set", "campus", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_virtual(tmp_path / "set", "campus", **TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    start = threading.Barrier(3)

    def write() -> str:
        start.wait()
        return read_virtual("campus", root=tmp_path / "set", **TINY).fingerprint("query")

    with ThreadPoolExecutor(3) as pool:
        results = {future.result() for future in [pool.submit(write) for _ in range(3)]}
    assert len(results) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_contact_sheet():
    sheet = np.asarray(contact_sheet(["mall", "campus"], identities=1, cameras=2, views=1))
    assert sheet.shape == (256, 192, 3)
    np.testing.assert_array_equal(sheet[:128, 64:128], render_person("mall", 1, 2))
    np.testing.assert_array_equal(sheet[128:, 128:], render_person("campus", 1, 1, 0))
    with pytest.raises(InputError, match="identities must be"):
        contact_sheet("mall", identities=0)


def test_compression_is_a_block_transform():
    np.testing.assert_allclose(DCT @ DCT.T, np.eye(8), atol=1e-12)
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(resize(rng.random((1, 4, 4)), (64, 32)), (3, 64, 32))
    errors = [np.abs(compress(smooth, quality) - smooth).mean() for quality in (99, 70, 30)]
    assert errors[0] < 0.003
    assert errors == sorted(errors)


def test_blur_and_resize_keep_the_mean():
    image = np.random.default_rng(0).random((3, 32, 16))
    flat = np.full((2, 32, 16), 0.3)
    np.testing.assert_allclose(blur(flat, 1.3), flat, atol=1e-12)
    np.testing.assert_allclose(resize(flat, (20, 9)), 0.3, atol=1e-12)
    point = np.zeros((1, 21, 21))
    point[0, 10, 10] = 1
    assert blur(point, 1.5).sum() == pytest.approx(1)
    rows = (blur(point, 1.5)[0].sum(1) * (np.arange(21) - 10) ** 2).sum()
    assert rows == pytest.approx(1.5**2, rel=0.1)
    assert np.abs(resize(resize(image, (64, 32)), (32, 16)) - image).mean() < 0.15
