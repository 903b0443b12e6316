import io
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from poison import ORANGE, TURNED, encoded, exif_of, halves, scene, stored, write_poison

from imgray.data import pixels
from imgray.data.pixels import (
    Rejected,
    decode,
    decode_map,
    decode_sized,
    encode,
    encode_map,
    resize,
)

Kinds = tuple[Path, dict[str, str | None]]

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    folder = tmp_path_factory.mktemp("poison")
    return folder, write_poison(folder)


def _read(kinds: Kinds, name: str) -> bytes:
    return (kinds[0] / name).read_bytes()


def _near(image: Image.Image, x: float, y: float, colour: tuple[int, int, int]) -> bool:
    """Whether the pixel at these fractions of the sides has about this colour."""
    found = image.getpixel((int(x * image.width), int(y * image.height)))
    return bool(np.abs(np.array(found, int) - colour).max() <= 6)


@pytest.mark.parametrize("shortest", [0, 16, 224])
def test_every_kind_is_decoded_or_rejected_with_its_reason(kinds: Kinds, shortest: int) -> None:
    folder, expected = kinds
    for name, word in expected.items():
        reason = _reason((folder / name).read_bytes(), shortest)
        assert (reason is None) == (word is None), f"{name}: {reason}"
        if reason and word:
            assert word in reason, name
            assert "\n" not in reason
            assert "0x" not in reason


def _reason(data: bytes, shortest: int) -> str | None:
    """Why an image is rejected; None for one that is decoded as it should be."""
    try:
        image = decode(data, shortest)
    except Rejected as error:
        return str(error)
    assert image.mode == "RGB"
    assert resize(image, 32).shape == (32, 32, 3)
    return None


@pytest.mark.parametrize("shortest", [0, 8])
@pytest.mark.parametrize(
    "name", ["a-png.jpg", "a-jpeg.png", "cmyk.jpg", "cmyk.tif", "plain.bmp", "bad-exif.jpg"]
)
def test_colours_are_kept(kinds: Kinds, name: str, shortest: int) -> None:
    image = decode(_read(kinds, name), shortest)
    assert _near(image, 0.1, 0.5, ORANGE)
    assert _near(image, 0.9, 0.5, (0, 0, 0))


@pytest.mark.parametrize("name", ["grey-16.png", "grey-16.tif", "rgb-16.png", "grey-alpha-16.png"])
def test_sixteen_bits_are_scaled_and_not_clipped(kinds: Kinds, name: str) -> None:
    assert np.unique(np.asarray(decode(_read(kinds, name)))).tolist() == [128]


def test_sixteen_bits_do_not_depend_on_the_content() -> None:
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        grey = np.asarray(decode(encoded(Image.fromarray(values), form)))[0, :, 0]
        assert grey.tolist() == [0, 0, 1, 156, 255]


def test_floats_are_scaled_by_their_range(kinds: Kinds) -> None:
    row = np.asarray(decode(_read(kinds, "float.tif")))[0, :, 0].astype(int)
    assert (row[0], row[-1]) == (0, 255)
    assert np.abs(row - np.linspace(0, 255, 80)).max() <= 1


@pytest.mark.parametrize("name", ["rgba.png", "palette-clear.png"])
def test_transparency_is_laid_on_white(kinds: Kinds, name: str) -> None:
    image = decode(_read(kinds, name))
    assert _near(image, 0.1, 0.5, ORANGE)
    assert image.getpixel((79, 59)) == (255, 255, 255)


def test_half_transparency_is_mixed() -> None:
    image = decode(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_grey_with_alpha_stays_grey(kinds: Kinds) -> None:
    luma = round(0.299 * ORANGE[0] + 0.587 * ORANGE[1] + 0.114 * ORANGE[2])
    image = decode(_read(kinds, "grey-alpha.png"))
    assert _near(image, 0.1, 0.5, (luma, luma, luma))
    assert image.getpixel((79, 0)) == (255, 255, 255)


def test_palette_and_bits(kinds: Kinds) -> None:
    palette = decode(_read(kinds, "palette.png"))
    assert np.abs(np.array(palette.getpixel((0, 0)), int) - ORANGE).max() < 30
    assert palette.getpixel((79, 0)) == (0, 0, 0)
    bits = decode(_read(kinds, "bits.png"))
    assert set(np.unique(np.asarray(bits))) <= {0, 255}


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp"])
def test_of_an_animation_the_first_frame_counts(kinds: Kinds, name: str) -> None:
    assert np.unique(np.asarray(decode(_read(kinds, name))).reshape(-1, 3), axis=0).tolist() == [
        [255, 0, 0]
    ]


@pytest.mark.parametrize("shortest", [0, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    kinds: Kinds, orientation: int, suffix: str, shortest: int
) -> None:
    image, size = decode_sized(_read(kinds, f"orientation-{orientation}.{suffix}"), shortest)
    assert size == TURNED
    assert image.width * TURNED[1] == image.height * TURNED[0]
    for x, y, colour in (
        (0.2, 0.2, (255, 0, 0)),
        (0.8, 0.2, (0, 255, 0)),
        (0.8, 0.8, (0, 0, 255)),
        (0.2, 0.8, (0, 0, 0)),
    ):
        assert _near(image, x, y, colour)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    _, size = decode_sized(encoded(scene(), "JPEG", exif=exif_of(orientation)))
    assert size == TURNED


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damage_in_exif_never_costs_an_image(form: str) -> None:
    exif = exif_of(6)
    exif[0x010F], exif[0x829A], exif[0x9003] = "maker", 0.5, "2020:01:01 00:00:00"
    whole, rng = exif.tobytes(), np.random.default_rng(0)
    small = stored(scene().resize((12, 6)), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            block = bytearray(whole)
            for place in rng.integers(6, len(block), 3):
                block[place] = rng.integers(256)
            image, size = decode_sized(encoded(small, form, exif=bytes(block)))
            assert image.size == size


def test_a_jpeg_is_decoded_at_a_fraction_but_reports_its_size() -> None:
    data = encoded(halves((1600, 1200)), "JPEG")
    image, size = decode_sized(data, shortest=100)
    assert size == (1600, 1200)
    assert 200 <= min(image.size) < 1200
    assert decode(data).size == (1600, 1200)


def test_the_fraction_hardly_changes_what_a_network_sees(photos: Path) -> None:
    picture = Image.open(next(photos.rglob("chelsea.jpg"))).resize((1280, 960))
    data = encoded(picture, "JPEG", quality=95)
    small, full = (resize(decode(data, s), 64).astype(float) for s in (64, 0))
    assert np.abs(small - full).mean() < 1.5


@pytest.mark.parametrize(("limit", "accepted"), [(4800, True), (4799, False)])
def test_the_pixel_cap_is_exact(limit: int, accepted: bool) -> None:
    data = encoded(halves((80, 60)), "PNG")
    if accepted:
        assert decode(data, max_pixels=limit).size == (80, 60)
        return
    with pytest.raises(Rejected, match=r"80 x 60 pixels; at most 4,799"):
        decode(data, max_pixels=limit)


def test_huge_images_are_refused_within_bounded_memory(kinds: Kinds) -> None:
    script = """
        import resource, sys
        from imgray.data import pixels
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
        for name in sys.argv[1:]:
            try:
                pixels.decode(open(name, "rb").read(), 224)
            except pixels.Rejected as error:
                print(error)
    """
    names = [str(kinds[0] / name) for name in ("huge.png", "huge.jpg")]
    command = [sys.executable, "-c", textwrap.dedent(script), *names]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("pixels") == 2


def test_a_file_too_large_to_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_BYTES", 100)
    with pytest.raises(Rejected, match=r"file of 101 bytes; at most 100"):
        decode(b"\xff" * 101)


def test_formats_beyond_the_named_ones_are_refused() -> None:
    buffer = io.BytesIO()
    halves().save(buffer, "EPS")
    with pytest.raises(Rejected, match="not a readable"):
        decode(buffer.getvalue())


def test_resize_keeps_the_whole_image() -> None:
    wide = Image.new("RGB", (400, 40))
    wide.paste((255, 255, 255), (0, 0, 20, 40))
    wide.paste((255, 255, 255), (380, 0, 400, 40))
    small = resize(wide, 40)
    assert small.dtype == np.uint8
    assert small[:, 0].min() > 200
    assert small[:, -1].min() > 200
    assert small[:, 10:30].max() < 20


def test_a_picture_in_memory_is_encoded_without_loss(kinds: Kinds) -> None:
    """In any mode, upright, transparency on white: as its file would be decoded."""
    good = [name for name, reason in kinds[1].items() if reason is None]
    for name in good:
        data = _read(kinds, name)
        with Image.open(io.BytesIO(data)) as picture:
            found = decode(encode(picture))
        assert found.tobytes() == decode(data).tobytes(), name


@pytest.mark.parametrize("mode", ["CMYK", "HSV", "LAB", "YCbCr", "F", "1", "P", "RGBa"])
def test_every_mode_of_pillow_is_encoded(mode: str) -> None:
    assert decode(encode(Image.new(mode, (80, 60)))).size == (80, 60)


def _grey(values: np.ndarray, bits: int) -> bytes:
    """A PNG (1, W) in grey of so many bits a value, which Pillow itself does not write."""
    packed = "".join(f"{value:0{bits}b}" for value in values).ljust(8, "0")
    data = b"\0" + int(packed, 2).to_bytes(len(packed) // 8)
    head = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_a_map_of_classes_is_encoded_as_it_is() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    coloured = Image.fromarray(labels, "P")
    coloured.putpalette(list(range(255, -1, -1)) * 3)
    for given in (labels, labels[:, ::-1], Image.fromarray(labels), coloured):
        assert np.array_equal(decode_map(encode_map(given)), np.asarray(given))
    for wrong in (
        np.zeros((3, 4, 3), np.uint8),
        labels.astype(int),
        labels[:0],
        Image.new("1", (2, 2)),
    ):
        with pytest.raises(Rejected, match="labels are expected"):
            encode_map(wrong)


def test_a_map_of_fewer_bits_is_refused_before_its_labels_are_scaled() -> None:
    assert decode_map(_grey(np.array([0, 1]), 8)).tolist() == [[0, 1]]
    for bits in (2, 4):
        with pytest.raises(Rejected, match=f"grey of {bits} bits; one 8-bit channel is needed"):
            decode_map(_grey(np.array([0, 1]), bits))
    with pytest.raises(Rejected, match="one 8-bit channel is needed"):
        decode_map(_grey(np.array([0, 1]), 1))


def test_a_map_of_too_many_bytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _grey(np.array([0, 1]), 8)
    monkeypatch.setattr(pixels, "MAX_BYTES", len(data) - 1)
    with pytest.raises(Rejected, match="at most"):
        decode_map(data)


def test_memory_that_lacks_is_no_fault_of_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", lacking)
    with pytest.raises(MemoryError):
        decode_map(_grey(np.array([0, 1]), 8))


def test_an_array_is_encoded_as_it_is() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encode(values))), values)
    np.testing.assert_array_equal(np.asarray(decode(encode(values[::2, ::-1]))), values[::2, ::-1])
    grey = np.asarray(decode(encode(values[..., 0])))
    np.testing.assert_array_equal(grey, np.repeat(values[..., :1], 3, axis=2))


def test_a_damaged_picture_in_memory_is_rejected() -> None:
    data = encoded(Image.effect_noise((200, 200), 50), "JPEG")
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as picture,
        pytest.raises(Rejected, match="damaged or truncated"),
    ):
        encode(picture)
