"""From the bytes of a file to what the model sees. Training and serving both come through here, so they cannot differ."""

import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from src.core.shape import Spec

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
THUMBNAIL = (16, 16)  # height and width, whatever `prepare.image_size` is

Image.MAX_IMAGE_PIXELS = None  # `encode` has a stricter limit, with our message
warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters here is whether pixels come out


class UndecodableError(Exception):
    """An image that cannot become pixels; the text says why, without a path. `area`: the pixels of one that is too large."""

    def __init__(self, reason: str, area: int | None = None) -> None:
        super().__init__(reason)
        self.area = area


class Decoded(NamedTuple):
    """An upright RGB image, as the library that decoded it gives it, and what its file was."""

    picture: Image.Image | Pixels
    mode: str
    format: str

    @property
    def pixels(self) -> Pixels:
        """Return it as uint8 of shape (height, width, 3)."""
        return np.asarray(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        width, height = self.picture.size if isinstance(self.picture, Image.Image) else self.picture.shape[1::-1]
        return height, width


def encode(content: bytes, spec: Spec, max_pixels: int) -> tuple[Pixels, Decoded]:
    """Make an image file what a model takes: an array of the spec's shape; and return what it was made of.

    Raises:
        UndecodableError: as `decode`.
    """
    decoded = decode(content, max_pixels)
    return fit(decoded.picture, spec), decoded


def decode(content: bytes, max_pixels: int) -> Decoded:
    """Decode an image file to upright RGB; of an animation, the first frame.

    Transparent pixels are laid on white. 16-bit values keep their high byte. Colour profiles are not applied.

    Raises:
        UndecodableError: no image, a format outside FORMATS, a damaged file, or over `max_pixels` (then nothing was
            decoded).
    """
    try:
        return _decode_plain_jpeg(content, max_pixels) or _decode_any(content, max_pixels)
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's readers raise almost any class on a damaged file
        raise UndecodableError(_reason(content, error)) from None


def _decode_plain_jpeg(content: bytes, max_pixels: int) -> Decoded | None:
    """Decode a JPEG that needs no rotation and no colour conversion, three times as fast as Pillow and equal to it.

    Both use libjpeg-turbo; a test holds them equal bit for bit. None: leave it to Pillow.
    """
    if content[:2] != b"\xff\xd8" or b"\xff\xe1" in content[:65536]:  # APP1: EXIF or XMP, perhaps a rotation
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(content)
        if colour not in ("YCbCr", "Gray") or width * height > max_pixels:
            return None
        return Decoded(simplejpeg.decode_jpeg(content), "L" if colour == "Gray" else "RGB", "JPEG")
    except ValueError:
        return None


def _decode_any(content: bytes, max_pixels: int) -> Decoded:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            sentence = f"too large: {width}x{height} pixels is over prepare.max_megapixels {max_pixels / 1e6:g}"
            raise UndecodableError(sentence, width * height)
        image.load()
        kind, mode = image.format or "", image.mode
        upright: Image.Image = image
        with suppress(Exception):  # damaged EXIF says nothing of the pixels, which are whole
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                upright = ImageOps.exif_transpose(image)
        return Decoded(_to_rgb(upright), mode, "JPEG" if kind == "MPO" else kind)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: NDArray[Any], mode: str) -> Pixels:
    """Scale 16-bit integers (which Pillow may hold in 32) and floats in 0..1 to uint8; Pillow itself would clip them."""
    low, high = values.min(), values.max()
    if mode == "F":
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise UndecodableError(
                f"floating-point pixels from {low:g} to {high:g}: expected 0 to 1; convert to 8 or 16 bit"
            )
        return np.round(values * 255).astype(np.uint8)
    if mode == "I" and low >= 0 and high <= 255:
        return values.astype(np.uint8)  # 8-bit values in a 32-bit file
    if low < 0 or high > 65535:
        raise UndecodableError(f"32-bit pixels from {low} to {high}: expected 16 bits; convert to 8 or 16 bit")
    return (values >> 8).astype(np.uint8)


def _reason(content: bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        magic = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8")
        if content.startswith(magic) or content[8:12] == b"WEBP":
            return "corrupt image: its header cannot be read"
        return f"not an image of {', '.join(FORMATS)}"
    if isinstance(error, MemoryError):
        return "corrupt image: it asks for more memory than there is"
    text = " ".join(str(error).split())[:120]
    return f"corrupt image: {text or type(error).__name__}"


def fit(picture: Image.Image | Pixels, spec: Spec) -> Pixels:
    """Bring an RGB image to what the model sees: uint8 of the spec's (height, width, channels).

    Resampling is Pillow's bilinear, which averages all pixels under it when it shrinks. The spec's `fit`: `crop` keeps the
    aspect and cuts the centre, `pad` keeps all of it between black bars, `stretch` keeps neither.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape == spec.shape:
            return picture
        picture = Image.fromarray(picture)
    height, width, channels = spec.shape
    if picture.size != (width, height):
        picture = _resize(picture, (width, height), spec.encoding["fit"])
    if channels == 1:
        picture = picture.convert("L")
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(spec.shape)


def _resize(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    if image.width * size[1] == image.height * size[0]:  # nothing to crop or pad
        return image.resize(size, Image.Resampling.BILINEAR)
    if how == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if how == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def size_problem(size: Sequence[int], short_side: float) -> str | None:
    """Say why images of this median short side, in pixels, hardly fit (height, width) of the model's; None: they do."""
    side, problem = min(size), ""
    if side < 32 and short_side > 2 * side:
        problem = "most of what they show is lost"
    elif side >= 4 * short_side:
        problem = "enlarging them costs time and shows no more"
    sizes = f"prepare.image_size is {side}, the images' median short side is {short_side:g} pixels"
    return f"{sizes}: {problem}. Take what `make suggest` names" if problem else None


def thumbnail(picture: Image.Image | Pixels) -> Pixels:
    """Shrink an RGB image of any size to grey, uint8 of shape THUMBNAIL: what near duplicates are compared by."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    small = image.resize(THUMBNAIL[::-1], Image.Resampling.BILINEAR, reducing_gap=2)
    return np.asarray(small.convert("L"))


def digest(picture: Image.Image | Pixels) -> str:
    """Return 128 bits of BLAKE2b over shape and pixels, in hexadecimal: equal images have equal digests in any format."""
    pixels = np.asarray(picture)
    state = blake2b(b"%d %d %d" % pixels.shape, digest_size=16)
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()
