"""Image files of every kind that a collection from the wild holds, good and bad."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ORANGE = (230, 120, 20)
TURNED = (120, 60)
"""Width and height of the pictures of `orientation-*`, as displayed."""
_HUGE = 30_000

Kinds = dict[str, tuple[bytes, str | None]]


def write_poison(folder: Path) -> dict[str, str | None]:
    """Write one file of every kind; its name -> None, or a word of the reason for rejecting it."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = _damaged() | _mislabelled() | _modes() | _animated() | _shapes() | _exif()
    for name, (data, _) in kinds.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in kinds.items()}


def halves(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """A picture whose left half is orange and whose right half is black."""
    image = Image.new("RGB", size)
    image.paste(ORANGE, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


def scene() -> Image.Image:
    """A picture of four quarters: red, green, blue, black, clockwise from the top left."""
    image = Image.new("RGB", TURNED)
    width, height = TURNED[0] // 2, TURNED[1] // 2
    for colour, x, y in (("red", 0, 0), ("lime", width, 0), ("blue", width, height)):
        image.paste(colour, (x, y, x + width, y + height))
    return image


def encoded(image: Image.Image, form: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))


def _damaged() -> Kinds:
    jpeg, png = encoded(_noise(), "JPEG"), encoded(_noise(), "PNG")
    random = np.random.default_rng(1).bytes(4000)
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no image\n" * 20, "not a readable"),
        "random.jpg": (jpeg[:20] + random, "not a readable"),
        "flipped.png": (png[:5000] + b"\xff" * 9 + png[5009:], "damaged"),
    }


def _mislabelled() -> Kinds:
    return {
        "a-png.jpg": (encoded(halves(), "PNG"), None),
        "a-jpeg.png": (encoded(halves(), "JPEG"), None),
    }


def _modes() -> Kinds:
    deep = np.full((60, 80), 32896, np.uint16)
    ramp = np.tile(np.linspace(0.0, 2.5, 80, dtype=np.float32), (60, 1))
    palette = halves(mode="P")
    clear = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
    clear.paste((*ORANGE, 255), (0, 0, 40, 60))
    return {
        "cmyk.jpg": (encoded(halves(mode="CMYK"), "JPEG", quality=95), None),
        "cmyk.tif": (encoded(halves(mode="CMYK"), "TIFF"), None),
        "grey-16.png": (encoded(Image.fromarray(deep), "PNG"), None),
        "grey-16.tif": (encoded(Image.fromarray(deep), "TIFF"), None),
        "rgb-16.png": (_png(80, 60, 16, 2, deep[:, :, None].repeat(3, 2).astype(">u2")), None),
        "grey-alpha-16.png": (_png(80, 60, 16, 4, _with_alpha(deep)), None),
        "float.tif": (encoded(Image.fromarray(ramp), "TIFF"), None),
        "nan.tif": (encoded(Image.fromarray(ramp * np.nan), "TIFF"), "finite"),
        "palette.png": (encoded(palette, "PNG"), None),
        "palette-clear.png": (encoded(clear.quantize(4), "PNG"), None),
        "rgba.png": (encoded(clear, "PNG"), None),
        "grey-alpha.png": (encoded(clear.convert("LA"), "PNG"), None),
        "bits.png": (encoded(halves(mode="1"), "PNG"), None),
        "plain.bmp": (encoded(halves(), "BMP"), None),
    }


def _animated() -> Kinds:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "lime", "blue")]
    more = {"save_all": True, "append_images": frames[1:], "duration": 100}
    return {
        "animated.gif": (encoded(frames[0], "GIF", **more), None),
        "animated.webp": (encoded(frames[0], "WEBP", lossless=True, **more), None),
    }


def _shapes() -> Kinds:
    jpeg = encoded(halves(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    huge = jpeg[:at] + struct.pack(">HH", _HUGE, _HUGE) + jpeg[at + 4 :]
    return {
        "one-pixel.png": (encoded(Image.new("RGB", (1, 1), ORANGE), "PNG"), None),
        "narrow.jpg": (encoded(halves((1, 5000)), "JPEG"), None),
        "wide.png": (encoded(halves((5000, 1)), "PNG"), None),
        "huge.png": (_huge_png(), "pixels"),
        "huge.jpg": (huge, "pixels"),
    }


def _exif() -> Kinds:
    bad = b"Exif\x00\x00MM\x00\x2a" + b"\xff" * 40
    kinds: Kinds = {"bad-exif.jpg": (encoded(halves(), "JPEG", exif=bad), None)}
    for orientation in range(1, 9):
        for suffix, form in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")):
            data = encoded(stored(scene(), orientation), form, exif=exif_of(orientation))
            kinds[f"orientation-{orientation}.{suffix}"] = (data, None)
    return kinds


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it under an EXIF orientation.

    The standard names the sides on which the first stored row and column are displayed.
    """
    rows = {1: "t", 2: "t", 3: "b", 4: "b", 5: "l", 6: "r", 7: "r", 8: "l"}[orientation]
    columns = {1: "l", 2: "r", 3: "r", 4: "l", 5: "t", 6: "t", 7: "b", 8: "b"}[orientation]
    pixels = np.asarray(upright)
    if rows in "lr":
        pixels = pixels.transpose(1, 0, 2)
    if rows in "br":
        pixels = pixels[::-1]
    if columns in "rb":
        pixels = pixels[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _with_alpha(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, np.full_like(grey, 65535)], axis=2).astype(">u2")


def _png(width: int, height: int, bits: int, colours: int, pixels: np.ndarray) -> bytes:
    """A PNG from its definition, for what Pillow cannot write."""
    rows = b"".join(b"\x00" + row.tobytes() for row in pixels)
    return _png_of(width, height, bits, colours, zlib.compress(rows))


def _huge_png() -> bytes:
    """A valid PNG of 900 million black pixels in about 100 KB."""
    packer = zlib.compressobj(1)
    rows = b"\x00" * ((_HUGE // 8 + 1) * 1000)
    data = b"".join(packer.compress(rows) for _ in range(_HUGE // 1000)) + packer.flush()
    return _png_of(_HUGE, _HUGE, 1, 0, data)


def _png_of(width: int, height: int, bits: int, colours: int, packed: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
