"""From bytes to pixels, any format and mode: python -m pytest tests/images/test_images.py"""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from src.images import images
from src.images.images import UndecodableError, decode, digest, fit
from src.images.prepare_params import image_spec

LIMIT = 10_000_000


def photograph(random: np.random.Generator, height: int = 40, width: int = 60) -> np.ndarray:
    small = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_equal_pixels_and_digests(random: np.random.Generator, kind: str) -> None:
    pixels = photograph(random)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(pixels, kind, **options), LIMIT)
    assert decoded.format == kind
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert digest(decoded.pixels) == digest(pixels) != digest(pixels.reshape(60, 40, 3))


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(33, 17), (1, 1)])
@pytest.mark.parametrize("grey", [False, True])
def test_the_quick_jpeg_path_equals_pillow_bit_for_bit(
    random: np.random.Generator, quality: int, subsampling: int, size: tuple[int, int], grey: bool
) -> None:
    pixels = photograph(random, *size)
    image = Image.fromarray(pixels).convert("L") if grey else Image.fromarray(pixels)
    content = encode(image, "JPEG", quality=quality, subsampling=subsampling)
    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode(content, LIMIT).pixels, plain)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("size", [(8, 8), (40, 60)])
def test_encode_is_decode_and_fit(random: np.random.Generator, kind: str, size: tuple[int, int]) -> None:
    for shape in ((40, 60), (32, 32)):
        content = encode(Image.fromarray(photograph(random, *shape)), kind)
        for channels in (1, 3):
            spec = image_spec(size, channels, "pad")
            array, decoded = images.encode(content, spec, LIMIT)
            np.testing.assert_array_equal(array, fit(decode(content, LIMIT).pixels, spec))
            assert decoded.size == shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_obeyed(random: np.random.Generator, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photograph(random), kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert upright.shape[:2] == ((60, 40) if orientation > 4 else (40, 60))
    np.testing.assert_array_equal(decode(content, LIMIT).pixels, upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(random: np.random.Generator, mode: str) -> None:
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF"
    image = Image.fromarray(photograph(random)).convert(mode)
    decoded = decode(encode(image, kind), LIMIT)
    assert decoded.pixels.shape == (40, 60, 3)
    assert decoded.pixels.dtype == np.uint8
    if mode in ("L", "LA", "1"):
        assert (decoded.pixels[..., 0] == decoded.pixels[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_the_high_byte(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode(encode(Image.fromarray(values), kind), LIMIT)
    np.testing.assert_array_equal(decoded.pixels[..., 0], (values >> 8).astype(np.uint8))


def test_floats_are_scaled_or_refused() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(
        decode(encode(Image.fromarray(values), "TIFF"), LIMIT).pixels[..., 0], np.round(values * 255)
    )
    for bad in (values * 300, values - 1, values * np.nan):
        with pytest.raises(UndecodableError, match="floating-point pixels"):
            decode(encode(Image.fromarray(bad.astype(np.float32)), "TIFF"), LIMIT)


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    decoded = decode(encode(Image.fromarray(pixels), "PNG"), LIMIT).pixels
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options), LIMIT)
    assert decoded.pixels[4, 4].tolist() == [250, 0, 0]


def bomb(side: int) -> bytes:
    """A PNG that is a few kilobytes and claims side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side // 8 + 1) * 100, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [4_000, 60_000])
def test_a_decompression_bomb_is_refused_before_decoding(random: np.random.Generator, side: int) -> None:
    with pytest.raises(UndecodableError, match=rf"too large: {side}x{side} pixels is over prepare.max_megapixels 10"):
        decode(bomb(side), LIMIT)
    with pytest.raises(UndecodableError, match="too large: 60x40"):
        decode(encode(photograph(random), "JPEG"), 2_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_is_corrupt(random: np.random.Generator, kind: str) -> None:
    content = encode(random.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    with pytest.raises(UndecodableError, match="corrupt image"):
        decode(content[: len(content) // 2], LIMIT)


@pytest.mark.parametrize("content", [b"hello, I am text", b"%PDF-1.7", b"\0" * 100, b"<svg></svg>", b"\xff", b"PAR1"])
def test_what_is_no_image_is_called_so(content: bytes) -> None:
    with pytest.raises(UndecodableError, match="not an image of PNG, JPEG"):
        decode(content, LIMIT)


@pytest.mark.journey
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]))
    content = bytearray(encode(photograph(np.random.default_rng(3)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UndecodableError):
        pixels = decode(bytes(content), LIMIT).pixels
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (32, 32), (24, 16)])
def test_fit_gives_the_asked_shape(random: np.random.Generator, how: str, channels: int, shape: tuple[int, int]) -> None:
    fitted = fit(random.integers(0, 256, (*shape, 3), dtype=np.uint8), image_spec((24, 16), channels, how))
    assert fitted.shape == (24, 16, channels)
    assert fitted.dtype == np.uint8


def test_crop_keeps_the_centre_and_pad_keeps_all() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert fit(wide, image_spec((10, 10))).min() == 255
    padded = fit(wide, image_spec((30, 30), 3, "pad"))
    assert padded[0].max() == 0
    assert padded[15, 15].min() == 255
