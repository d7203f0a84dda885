from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import reidguard
from reidguard.data import (
    ImageCache,
    ReIDDataset,
    decode_image,
    decoding,
    images,
    iterate_images,
)
from reidguard.data.decoding import open_rgb
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


# Formats, orientation, depth and damage

# What Pillow writes, and how far lossy formats may be from the image.
FORMATS = {
    "avif": ({"quality": 100, "subsampling": "4:4:4"}, 8),
    "bmp": ({}, 0),
    "gif": ({}, 0),
    "jp2": ({}, 0),
    "jpg": ({"quality": 100, "subsampling": 0}, 8),
    "png": ({}, 0),
    "ppm": ({}, 0),
    "tif": ({}, 0),
    "TIFF": ({"compression": "tiff_lzw"}, 0),
    "WebP": ({"lossless": True}, 0),
}


def blocks(size: tuple[int, int] = (16, 24)) -> Image.Image:
    """Return an image of few colours, which a GIF keeps, and without symmetry."""
    cells = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3))
    return Image.fromarray(np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8))


def written(path: Path, image: Image.Image, **options: Any) -> Path:
    if path.suffix.lower() not in decoding.IMAGE_SUFFIXES:
        pytest.skip(f"this Pillow was built without {path.suffix}")
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path, suffix):
    options, tolerance = FORMATS[suffix]
    path = written(tmp_path / f"a.{suffix}", blocks(), **options)
    pixels = decode_image(path, (24, 16)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels - np.asarray(blocks())).max() <= tolerance


# How a viewer turns a stored image of each EXIF orientation, in terms of rows and columns.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("suffix", ["avif", "jpg", "png", "tif", "TIFF", "WebP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    options, tolerance = FORMATS[suffix]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / f"a.{suffix}", blocks(), exif=exif, **options)
    expected = TURNS[orientation](np.asarray(blocks())).astype(int)
    pixels = decode_image(path, expected.shape[:2]).permute(1, 2, 0).numpy()
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_that_says_nothing_leaves_the_image_as_it_is(tmp_path):
    for exif in (b"Exif\x00\x00garbage", b"", b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x05"):
        path = written(tmp_path / "a.jpg", blocks(), exif=exif, **FORMATS["jpg"][0])
        assert decode_image(path, (24, 16)).shape == (3, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 9
    path = written(tmp_path / "a.png", blocks(), exif=exif)
    assert np.array_equal(np.asarray(open_rgb(path)), np.asarray(blocks()))


def png(bits: int, colour: int, channels: int, *, ancillary: bytes = b"") -> bytes:
    """Write a PNG of zeros of any depth by hand; Pillow writes none of 48 bits."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 8, 4, bits, colour, 0, 0, 0)
    rows = bytes(4 * (1 + bits * channels))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ancillary
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(bits: int) -> bytes:
    """Write a TIFF of 2 × 2 RGB zeros by hand."""
    depths = 8 + 2 + 12 * 9 + 4
    tags = [
        *((256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, depths), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, depths + 6), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 12 * bits // 8)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II\x2a\x00" + struct.pack("<IH", 8, 9) + entries + bytes(4)
    return head + struct.pack("<HHH", bits, bits, bits) + bytes(12 * bits // 8)


def changed(suffix: str, tmp_path: Path) -> bytes:
    """Return an AVIF or JPEG 2000 file whose header states 10 and 12 bits."""
    path = written(tmp_path / f"whole.{suffix}", blocks(), **FORMATS[suffix][0])
    data = bytearray(path.read_bytes())
    if suffix == "avif":
        data[data.index(b"av1C\x81") + 6] |= 0x40
        depths = data.index(b"pixi") + 9
        data[depths : depths + 3] = b"\x0a\x0a\x0a"
    else:
        data[data.index(b"\xff\x4f\xff\x51") + 42] = 11
    return bytes(data)


DEEP = {
    "48-bit.png": lambda _: png(16, 2, 3),
    "64-bit.png": lambda _: png(16, 6, 4),
    "grey-16.png": lambda _: png(16, 0, 1),
    "grey-alpha-16.png": lambda _: png(16, 4, 2),
    "48-bit.tif": lambda _: tiff(16),
    "48-bit.ppm": lambda _: b"P6 2 2 65535\n" + bytes(24),
    "grey-16.pgm": lambda _: b"P5 2 2 65535\n" + bytes(8),
    "10-bit.avif": lambda folder: changed("avif", folder),
    "12-bit.jp2": lambda folder: changed("jp2", folder),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_per_channel_are_refused_and_never_cut(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DEEP[name](tmp_path))
    with pytest.raises(DataError, match=rf"{name} has more than 8 bits per channel.*convert it"):
        decode_image(path)


def test_images_of_at_most_8_bits_per_channel_pass_the_same_checks(tmp_path):
    files = {
        **{
            f"{b}-{c}.png": png(b, c, n) for b, c, n in ((8, 2, 3), (8, 6, 4), (2, 0, 1), (8, 4, 2))
        },
        "a.tif": tiff(8),
        "a.ppm": b"P6 2 2 15\n" + bytes(12),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert not decode_image(tmp_path / name).any()
    (tmp_path / "white.ppm").write_bytes(b"P6 2 2 15\n" + bytes([15] * 12))
    assert decode_image(tmp_path / "white.ppm").eq(255).all()


@pytest.mark.filterwarnings("error")
def test_colours_of_each_mode_follow_their_formula(tmp_path):
    rng = np.random.default_rng(0)
    inks = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (4, 5), inks.tobytes()).save(tmp_path / "cmyk.tif")
    rgb = np.rint((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255)
    assert np.abs(np.asarray(open_rgb(tmp_path / "cmyk.tif")) - rgb).max() <= 1
    palette, index = rng.integers(0, 256, (256, 3)), rng.integers(0, 256, (5, 4), dtype=np.uint8)
    indexed = Image.fromarray(index)
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    for transparency in (3, bytes(range(256))):
        indexed.save(tmp_path / "palette.png", transparency=transparency)
        assert np.array_equal(np.asarray(open_rgb(tmp_path / "palette.png")), palette[index])
    rgba = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "alpha.png")), rgba[..., :3])
    bits = rng.integers(0, 2, (5, 4)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "bits.png"))[..., 0], 255 * bits)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.gif", {}),
        ("a.jpg", {"format": "MPO", "quality": 100, "subsampling": 0}),
        ("a.png", {}),
        ("a.tif", {}),
        ("a.webp", {"lossless": True}),
    ],
)
@pytest.mark.usefixtures("truncated_allowed")
def test_of_several_frames_the_first_is_read(tmp_path, name, options):
    other = Image.new("RGB", (16, 24), (255, 0, 0))
    path = written(tmp_path / name, blocks(), save_all=True, append_images=[other], **options)
    assert np.abs(np.asarray(open_rgb(path)).astype(int) - np.asarray(blocks())).max() <= 8


@pytest.fixture(params=[False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
def truncated_allowed(request, monkeypatch):
    """The global by which a program lets Pillow fill damaged images with black."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    yield
    assert ImageFile.LOAD_TRUNCATED_IMAGES is request.param


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.usefixtures("truncated_allowed")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_truncation_of_a_file_is_refused_or_harmless(tmp_path, suffix):
    path = written(tmp_path / f"whole.{suffix}", blocks(), **FORMATS[suffix][0])
    whole, expected = path.read_bytes(), open_rgb(path).tobytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in [*range(0, len(whole), 1 + len(whole) // 100), len(whole) - 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        try:
            pixels = open_rgb(cut).tobytes()
        except DataError:
            continue
        assert pixels == expected  # only the end marker is gone
        assert len(whole) - length < 4


@pytest.mark.usefixtures("truncated_allowed")
def test_a_changed_byte_of_a_png_is_refused(tmp_path):
    whole = written(tmp_path / "whole.png", blocks()).read_bytes()
    path = tmp_path / "changed.png"
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DataError, match=r"changed\.png"):
            open_rgb(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_what_is_damaged_does_not_depend_on_pillows_global(tmp_path, suffix, monkeypatch):
    path = written(tmp_path / f"a.{suffix}", blocks(), **FORMATS[suffix][0])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(data))
        results = []
        for allowed in (False, True):
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
            try:
                results.append(open_rgb(path).tobytes())
            except DataError as error:
                results.append(str(error))
        assert results[0] == results[1]


def test_threads_decode_the_same_while_the_global_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    whole = [written(tmp_path / f"{n}.{s}", blocks()) for n in range(8) for s in ("png", "tif")]
    cut = [tmp_path / f"{n}.jpg" for n in range(16)]
    for path in cut:
        path.write_bytes(written(path, blocks()).read_bytes()[:-40])
    expected = np.asarray(blocks())

    def read(path: Path) -> bool:
        ImageFile.LOAD_TRUNCATED_IMAGES = not ImageFile.LOAD_TRUNCATED_IMAGES
        try:
            return np.array_equal(np.asarray(open_rgb(path)), expected)
        except DataError:
            return path in cut

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, 4 * [*whole, *cut]))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_refused_and_does_not_hang(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    dataset = ReIDDataset("mine", [ReIDSample(path, 1, 0)])
    for read in (lambda: decode_image(path), dataset.check, lambda: dataset.fingerprint("train")):
        with pytest.raises(DataError, match=r"x\.png is a pipe or a device"):
            read()


def test_no_other_module_decodes_image_files():
    root = Path(reidguard.__file__).parent
    opening = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if opens(p.read_text())}
    assert opening == {"data/decoding.py"}


def opens(source: str) -> bool:
    return "Image.open(" in source or "torchvision.io" in source


def test_a_limit_of_pillow_is_one_clear_error(tmp_path, monkeypatch):
    path = save_noise(tmp_path / "a.png")
    for limit in (1000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if limit is None:
            assert decode_image(path).shape == (3, 256, 128)
            bomb(path)
        with pytest.raises(DataError, match=r"a\.png.*crop or shrink it"):
            decode_image(path)


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
    original = images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path: opened.append(path) or original(path))
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
    original = images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path: opened.append(path) or original(path))
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
