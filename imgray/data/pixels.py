"""Bytes to RGB pixels, safely; the one path that batch jobs, training and serving share."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgray.config import Encoding

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 120_000_000
MAX_BYTES = 256 * 2**20
QUALITY, JPEG_SIDE = 95, 65_500
"""Of a JPEG that is written, and the pixels of a side at which libjpeg ends."""
MAPS = ("L", "P")
"""Pillow's modes of maps of classes."""
_DEPTH = 24
"""The byte of a PNG that says how many bits a value has."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what makes the stored pixels upright."""
_LYING = (5, 6, 7, 8)
"""The orientations under which width and height change places."""

# `decode` refuses by its own, lower cap before any pixel is decoded; odd metadata is no news.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Rejected(Exception):
    """An image that cannot be processed; the message is the reason, for a person to read."""


def decode(data: bytes, shortest: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to upright RGB.

    The format is found from the content, not the name. EXIF orientation is applied, 16-bit values
    are scaled to 8, transparency is laid on white, of an animation the first frame counts.

    Args:
        data: the encoded image.
        shortest: a JPEG may be decoded at a fraction of its size as long as both sides keep at
            least twice this many pixels; 0 keeps full size.
        max_pixels: images of more pixels are refused before they are decoded.

    Raises:
        Rejected: not an image of a known format, damaged, truncated or too large.
    """
    return decode_sized(data, shortest, max_pixels)[0]


def decode_sized(
    data: bytes, shortest: int = 0, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """`decode`, with the width and height in pixels of the whole image as displayed."""
    image = _opened(data, max_pixels)
    width, height = image.size
    try:
        if shortest and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (2 * shortest, 2 * shortest))
        image.load()
        orientation = _orientation(image)
        size = (height, width) if orientation in _LYING else (width, height)
        return _rgb(_upright(image, orientation)), size
    except (MemoryError, Rejected):
        raise
    except Exception as error:
        raise Rejected(f"damaged or truncated: {_line(error)}") from None


def decode_within(data: bytes, longest: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image at its own size, or so that its longer side has `longest` pixels.

    Returns uint8 (H, W, 3), and the width and height of the whole image as displayed. Raises
    `Rejected`.
    """
    image, size = decode_sized(data)
    if max(size) > longest:
        image = image.resize(scaled(size, longest), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image, dtype=np.uint8), size


def scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of what has a longer side of `longest` pixels at most, in proportion."""
    scale = min(1.0, longest / max(size))
    width, height = (max(1, round(scale * side)) for side in size)
    return width, height


def decode_map(data: bytes) -> NDArray[np.uint8]:
    """Decode a map of classes, a PNG of one channel of 8 bits: uint8 (H, W).

    Raises:
        Rejected: what is none.
    """
    _check_length(data)
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise Rejected(f"no PNG: {_line(error)}") from None
    if image.mode not in MAPS:
        raise Rejected(f"{image.mode}; one 8-bit channel is needed")
    if image.mode == "L" and data[_DEPTH] != 8:  # Pillow has scaled the labels to 0 to 255
        raise Rejected(f"grey of {data[_DEPTH]} bits; one 8-bit channel is needed")
    return np.asarray(image, dtype=np.uint8)


def check_header(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The stored width and height, from the header alone, without decoding. Raises `Rejected`."""
    return _opened(data, max_pixels).size


def encode(image: Image.Image | NDArray[Any]) -> bytes:
    """A picture in memory as a PNG that decodes to the pixels `decode` makes of that picture.

    Args:
        image: of Pillow, in any mode, turned upright as its EXIF orientation says; or uint8
            (H, W, 3) or (H, W).

    Raises:
        Rejected: another array, or a picture that cannot be loaded.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    buffer = io.BytesIO()
    try:
        image.load()
        _rgb(_upright(image, _orientation(image))).save(buffer, "PNG", compress_level=1)
    except (MemoryError, Rejected):
        raise
    except Exception as error:
        raise Rejected(f"damaged or truncated: {_line(error)}") from None
    return buffer.getvalue()


def encoded(
    picture: NDArray[np.uint8],
    encoding: Encoding,
    palette: NDArray[np.uint8] | None = None,
) -> bytes:
    """What a model has painted, as a file.

    Args:
        picture: uint8 (H, W) or (H, W, 3).
        encoding: a JPEG has all of the colours, none subsampled.
        palette: colours (n, 3) that a PNG has beside the numbers of classes.

    Raises:
        Rejected: a side is longer than a JPEG's may be.
    """
    if encoding == "jpeg" and max(picture.shape[:2]) > JPEG_SIDE:
        height, width = picture.shape[:2]
        raise Rejected(f"{width} x {height} pixels; a JPEG has {JPEG_SIDE:,} a side, use png")
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if palette is not None:
        image.putpalette(palette.tobytes())
    jpeg = {"quality": QUALITY, "subsampling": 0}
    image.save(buffer, encoding, **(jpeg if encoding == "jpeg" else {}))
    return buffer.getvalue()


def encode_map(image: Image.Image | NDArray[Any]) -> bytes:
    """A map of classes in memory as a PNG of which `decode_map` makes the same labels.

    Args:
        image: of Pillow, in mode L or P; or uint8 (H, W).

    Raises:
        Rejected: another array or mode, or a picture that cannot be loaded.
    """
    try:
        labels = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:
        raise Rejected(f"damaged or truncated: {_line(error)}") from None
    mode = image.mode if isinstance(image, Image.Image) else MAPS[0]
    if mode not in MAPS or labels.dtype != np.uint8 or labels.ndim != 2 or not labels.size:
        shape = " x ".join(map(str, labels.shape))
        raise Rejected(f"{labels.dtype}, {shape}; labels are expected: uint8, H x W, or mode L, P")
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _from_array(values: NDArray[Any]) -> Image.Image:
    whole = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)
    if values.dtype != np.uint8 or not whole or not values.size:
        shape = " x ".join(map(str, values.shape))
        raise Rejected(f"array of {values.dtype}, {shape}; expected uint8, H x W x 3 or H x W")
    return Image.fromarray(values)


def resize(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize to a square of `size` pixels, whatever the shape: uint8 (size, size, 3).

    The whole image is kept: for retrieval what lies at the border counts too.
    """
    square = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(square, dtype=np.uint8)


def _check_length(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise Rejected(f"file of {len(data):,} bytes; at most {MAX_BYTES:,} are read")


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise Rejected("empty file")
    _check_length(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Rejected(f"more than {max_pixels:,} pixels") from None
    except Exception as error:
        raise Rejected(f"not a readable {', '.join(FORMATS)} image: {_line(error)}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected(f"{width} x {height} pixels; at most {max_pixels:,} are decoded")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn the pixels alone: to write the EXIF block anew, as Pillow does, fails on odd ones."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit integers by their high byte; other integers and floats by their range."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise Rejected("pixel values that are not finite")
    low, high = numbers.min(), numbers.max()
    if low >= 0 and high <= 65535 and values.dtype.kind in "iu":
        return (values.astype(np.uint32) >> 8).astype(np.uint8)
    return ((numbers - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if "BytesIO" not in text else "unknown format"
