"""Image files decoded by Pillow into 8-bit RGB: formats, limits, orientation, checks for damage."""

from __future__ import annotations

import io
import os
import re
import zlib
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError, features

from reidguard.errors import DataError, a_few
from reidguard.records import read_file

__all__ = ["IMAGE_SUFFIXES", "format_names", "list_images", "open_rgb"]

# Pillow knows dozens of formats, some of which start other programs; these suffice.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # depend on Pillow's build
KNOWN = (*features.modules, *features.codecs)  # to an older Pillow as well
READ = [
    name
    for name in FORMATS
    if name not in OPTIONAL or (OPTIONAL[name] in KNOWN and features.check(OPTIONAL[name]))
]
IMAGE_SUFFIXES = tuple(suffix for name in READ for suffix in FORMATS[name])
# Images that are not read: an error, since otherwise they would be missing without a word.
UNREAD_SUFFIXES = (
    *(suffix for name in FORMATS if name not in READ for suffix in FORMATS[name]),
    *(".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico", ".jxl"),
    *(".jxr", ".nef", ".pcx", ".pfm", ".psd", ".qoi", ".raw", ".rgb", ".sgi", ".svg", ".tga"),
)
# A photo of 33 megapixels takes 100 MB once decoded; a small file may claim far more.
MAX_PIXELS = 2**25
MAX_BYTES = 2**28  # of a file: more than as many pixels of 32 bits take uncompressed
SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream, with the sizes of its components
ORIENTATION = 0x0112  # of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Whole(ImageFile.ImageFile):
    """Base whose ``load`` raises an exception for a damaged file, whatever Pillow's global says.

    Where a program sets ``ImageFile.LOAD_TRUNCATED_IMAGES``, Pillow fills what a damaged file lacks
    with black. This is Pillow's own function, which reads another value of that global.
    """

    load = FunctionType(
        ImageFile.ImageFile.load.__code__,
        {**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False},
        closure=ImageFile.ImageFile.load.__closure__,
    )


@cache
def _whole(format_class: Any) -> Any:
    """Return a format's class, with the load of :class:`_Whole` as that of its base."""
    return type("Whole", (format_class, _Whole), {})


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in ``folder``, sorted by name; hidden files do not count.

    Raises:
        DataError: If the folder is missing or cannot be read, or holds images of a format that is
            not read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error
    if unread := [name for name in names if name.lower().endswith(UNREAD_SUFFIXES)]:
        raise DataError(
            f"{folder} holds images of a format that is not read: {a_few(unread)}; convert them to "
            "PNG, or move them away"
        )
    return [folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]


def open_rgb(path: Path) -> Image.Image:
    """Decode a file completely, or raise a DataError that names it.

    The result does not depend on ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``.
    """
    data = read_file(path, error=DataError, limit=MAX_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=READ) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"the image {path} claims {image.width}x{image.height} pixels, over the limit "
                    f"of {MAX_PIXELS:,}; crop or shrink it first"
                )
            if _is_deep(image, data):
                raise DataError(
                    f"the image {path} has more than 8 bits per channel; convert it to 8-bit first"
                )
            _load(image, data)
            return _upright(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"cannot read the image {path}: {error}; crop or shrink it first"
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error...
        reason: Exception = error
        if isinstance(error, UnidentifiedImageError):  # Pillow's names an object in memory
            reason = ValueError("it is damaged, or no image of a known format")
        raise DataError(
            f"cannot read the image {path}: {reason}; replace it with a whole file of format "
            f"{format_names()} (ReIDDataset.check lists every damaged image of a dataset)"
        ) from reason


def format_names() -> str:
    """Return the formats that are read, for messages."""
    return f"{', '.join(READ[:-1])} or {READ[-1]}"


def _load(image: Any, data: bytes) -> None:
    """Decode the pixels; what is damaged raises an exception, whatever Pillow's global says."""
    if image.format == "PNG":
        _check_png(data)
    if image.format in ("JPEG", "MPO"):  # its own would append an end marker to a cut file
        image.load_read = image.fp.read
    if image.format == "JPEG2000":  # its load calls that of ImageFile by name
        if b"\xff\xd9" not in data[data.index(SIZ) :]:  # the decoder needs no end marker
            raise OSError("image file is truncated")
        _Whole.load(image)
    else:
        image.__class__ = _whole(image.__class__)
        image.load()


def _check_png(data: bytes) -> None:
    """Compare the checksum of every chunk, which Pillow does for some only."""
    view, start, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        kind = bytes(view[start + 4 : start + 8])
        if end + 4 > len(data):
            raise OSError("image file is truncated")
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise OSError(f"the checksum of its chunk {kind!r} is wrong")
        start = end + 4


def _is_deep(image: Any, data: bytes) -> bool:
    """Return whether channels have more than 8 bits, which Pillow would cut or saturate."""
    if image.mode[0] in "IF":
        return True
    arguments = image.tile[0][3] if image.tile else ""
    mode, last = (arguments, None) if isinstance(arguments, str) else (arguments[0], arguments[-1])
    if image.format == "PNG":
        return ";16" in str(mode)
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(258, (1,))) > 8)  # BitsPerSample
    if image.format == "PPM":
        return isinstance(last, int) and last > 255  # the value of white
    if image.format == "JPEG2000":
        sizes = data[data.index(SIZ) :]
        return any(
            (bits & 0x7F) + 1 > 8
            for bits in sizes[42 : 42 + 3 * int.from_bytes(sizes[40:42], "big") : 3]
        )
    if image.format == "AVIF":  # high_bitdepth in the configuration of the codec
        return any(data[m.end() + 1] & 0x40 for m in re.finditer(rb"av1C\x81", data))
    return False


def _upright(image: Image.Image) -> Image.Image:
    """Return an image as RGB, turned as its EXIF or XMP orientation says."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # unreadable EXIF has no orientation, for viewers as well
        orientation = None
    is_known = isinstance(orientation, int) and image.format != "TIFF"  # Pillow turns a TIFF
    transpose = UPRIGHT.get(int(orientation or 0)) if is_known else None
    image.info.pop("transparency", None)  # it is dropped; Pillow would warn of some kinds
    rgb = image.convert("RGB")
    return rgb if transpose is None else rgb.transpose(transpose)
