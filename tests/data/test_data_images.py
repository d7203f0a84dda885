from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reidguard.data import ImageCache, decode_image, images, iterate_images
from reidguard.errors import DataError, InputError, ReIDGuardError
from reidguard.types import ReIDSample


def save_noise(path: Path, size: tuple[int, int] = (64, 128), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> list[ReIDSample]:
    folder = tmp_path / "images"
    folder.mkdir()
    return [
        ReIDSample(save_noise(folder / f"{i}.png", (40 + i, 90), i), i + 1, 0) for i in range(7)
    ]


def by_pillow(path: Path, height: int, width: int) -> torch.Tensor:
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return torch.tensor(list(resized.tobytes())).view(height, width, 3).permute(2, 0, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("image_size", [(256, 128), (128, 64), (33, 70)])
def test_decoding_is_exactly_pillows_bilinear_resize(tmp_path, suffix, image_size):
    path = save_noise(tmp_path / f"a.{suffix}")
    pixels = decode_image(path, image_size)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, *image_size)
    assert torch.equal(pixels.long(), by_pillow(path, *image_size))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_any_8_bit_colour_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"a.{suffix}"
    save_noise(tmp_path / "rgb.png")
    with Image.open(tmp_path / "rgb.png") as image:
        image.convert(mode).save(path)
    assert torch.equal(decode_image(path, (20, 10)).long(), by_pillow(path, 20, 10))


def truncated(path: Path) -> None:
    save_noise(path)
    path.write_bytes(path.read_bytes()[:900])


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path, format="PNG")


def bomb(path: Path) -> None:
    Image.new("1", (6000, 6000)).save(path, format="PNG")


DAMAGES = {
    "truncated": truncated,
    "html": lambda path: path.write_text("<html>not found</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "sixteen_bit": sixteen_bit,
    "bomb": bomb,
}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_file_is_named(tmp_path, damage, suffix):
    path = tmp_path / f"bad.{suffix}"
    DAMAGES[damage](path)
    with pytest.raises(DataError, match=f"bad.{suffix}"):
        decode_image(path)
    cache = ImageCache([ReIDSample(path, 1, 0)])
    with pytest.raises(DataError, match=f"bad.{suffix}"):
        cache.batch([0])
    with pytest.raises(DataError, match=f"bad.{suffix}"):
        list(iterate_images([ReIDSample(path, 1, 0)]))


def test_every_truncation_of_a_file_is_refused_or_harmless(tmp_path):
    for suffix in ("png", "jpg"):
        whole = save_noise(tmp_path / f"whole.{suffix}", (16, 16)).read_bytes()
        expected = decode_image(tmp_path / f"whole.{suffix}", (16, 16))
        cut = tmp_path / f"cut.{suffix}"
        refused = 0
        for length in range(0, len(whole), 7):
            cut.write_bytes(whole[:length])
            try:
                pixels = decode_image(cut, (16, 16))
            except DataError:
                refused += 1
            else:  # only the end marker is gone
                assert torch.equal(pixels, expected)
                assert len(whole) - length < 40
        assert refused > 0.9 * len(whole) / 7


@pytest.mark.parametrize("image_size", [(0, 5), (5,), (5, 5, 3), (-1, 4)])
def test_a_wrong_image_size_is_refused(samples, image_size):
    with pytest.raises(InputError, match="height, width"):
        decode_image(samples[0].path, image_size)
    with pytest.raises(InputError, match="height, width"):
        ImageCache(samples, image_size)
    with pytest.raises(InputError, match="height, width"):
        iterate_images(samples, image_size)


@pytest.mark.parametrize("memory_limit", [2**30, 0], ids=["memory", "disk"])
def test_the_cache_gives_what_decoding_gives_in_any_order(samples, memory_limit):
    cache = ImageCache(samples, (32, 16), memory_limit=memory_limit)
    assert cache.on_disk == (memory_limit == 0)
    for indices in ([3], [6, 0, 3, 3], [], torch.tensor([1, 5]), np.array([2, 4]), range(7)):
        expected = [decode_image(samples[i].path, (32, 16)) for i in indices]
        batch = cache.batch(indices)
        assert batch.dtype == torch.uint8
        assert batch.shape == (len(indices), 3, 32, 16)
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_each_image_is_decoded_once_and_only_when_asked_for(samples, monkeypatch):
    opened = []
    original = images._open_rgb
    monkeypatch.setattr(images, "_open_rgb", lambda path: opened.append(path) or original(path))
    cache = ImageCache(samples, (8, 8))
    assert not opened
    cache.batch([2, 2, 4])
    cache.batch([4, 2])
    threads = [threading.Thread(target=cache.batch, args=([1, 2, 5],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == [samples[i].path for i in (1, 2, 4, 5)]


def test_changing_a_batch_does_not_change_the_cache(samples):
    cache = ImageCache(samples, (8, 8))
    before = cache.batch([0]).clone()
    cache.batch([0]).zero_()
    assert torch.equal(cache.batch([0]), before)


def test_one_bad_image_does_not_spoil_the_others(samples):
    samples[3].path.write_bytes(b"no image")
    cache = ImageCache(samples, (8, 8))
    with pytest.raises(DataError, match=r"3\.png"):
        cache.batch(range(7))
    save_noise(samples[3].path, seed=9)
    assert torch.equal(cache.batch([3])[0], decode_image(samples[3].path, (8, 8)))


@pytest.mark.parametrize("indices", [[7], [-1], [0, 99]])
def test_positions_outside_the_samples_are_refused(samples, indices):
    with pytest.raises(InputError, match=r"0\.\.6"):
        ImageCache(samples, (8, 8)).batch(indices)


def test_a_disk_without_room_is_a_clear_error(samples):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(ReIDGuardError, match=r"TMPDIR.*memory_limit"):
            ImageCache(samples, (256, 128), memory_limit=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_disk_space_is_reserved_before_anything_is_decoded(samples, monkeypatch):
    # With a sparse file, a disk that fills up later would kill the process by SIGBUS.
    opened = []
    original = tempfile.TemporaryFile

    def record(**options):
        stream = original(**options)
        opened.append(os.dup(stream.fileno()))
        return stream

    monkeypatch.setattr(tempfile, "TemporaryFile", record)
    ImageCache(samples, (256, 128), memory_limit=0)
    (handle,) = opened
    reserved = os.fstat(handle).st_blocks * 512
    os.close(handle)
    assert reserved >= len(samples) * 3 * 256 * 128


def test_kill_9_leaves_nothing_behind(samples, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    script = f"""
        import sys, time
        from pathlib import Path
        from reidguard.data import ImageCache
        from reidguard.types import ReIDSample
        paths = sorted(Path({str(samples[0].path.parent)!r}).iterdir())
        cache = ImageCache([ReIDSample(p, 1, 0) for p in paths], memory_limit=0)
        assert cache.batch(range(len(paths))).float().mean() > 0
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_streaming_gives_every_image_once_in_order(samples, batch_size):
    seen = []
    for place, batch in iterate_images(samples, (16, 8), batch_size):
        assert batch.shape[0] == len(samples[place]) <= batch_size
        seen += list(zip(samples[place], batch, strict=True))
    assert [sample for sample, _ in seen] == samples
    for sample, pixels in seen:
        assert torch.equal(pixels, decode_image(sample.path, (16, 8)))


def test_streaming_reads_one_batch_ahead_and_no_further(samples, monkeypatch):
    opened = []
    original = images._open_rgb
    monkeypatch.setattr(images, "_open_rgb", lambda path: opened.append(path) or original(path))
    stream = iterate_images(samples, (8, 8), 2)
    assert not opened
    next(stream)
    stream.close()
    assert {s.path for s in samples[:2]} <= set(opened) <= {s.path for s in samples[:4]}


def test_while_one_batch_is_used_the_next_is_prepared():
    prepared = [threading.Event() for _ in range(3)]

    def prepare(job: int) -> int:
        prepared[job].set()
        return job

    results = images.prefetch(prepare, range(3))
    assert next(results) == 0
    assert prepared[1].wait(10)
    assert not prepared[2].is_set()
    assert list(results) == [1, 2]


def test_closing_waits_for_the_job_in_progress():
    begun, finished = threading.Event(), []

    def prepare(job: int) -> int:
        if job:
            begun.set()
            time.sleep(0.2)
        finished.append(job)
        return job

    results = images.prefetch(prepare, range(9))
    next(results)
    assert begun.wait(10)
    results.close()
    assert finished == [0, 1]


def test_an_error_ahead_comes_after_the_good_results():
    results = images.prefetch(lambda job: 1 // job, [2, 1, 0, 1])
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_empty_split_streams_nothing_and_a_batch_of_none_is_refused(samples):
    assert list(iterate_images([])) == []
    with pytest.raises(InputError, match="batch_size"):
        iterate_images(samples, batch_size=0)
