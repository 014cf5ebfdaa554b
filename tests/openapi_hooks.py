"""What schemathesis sends where the document says that a file is: it would send any bytes, and only images are taken."""

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image

_PIXELS = 8 * 8 * 3  # bytes of an image of the model in test_serving.py


def _image(kind: str, colour: int, side: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(target, kind)
    return target.getvalue()


images = st.builds(_image, st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.integers(0, 2**24 - 1), st.integers(1, 40))
pixels = st.integers(1, 4).flatmap(lambda n: st.binary(min_size=n * _PIXELS, max_size=n * _PIXELS))

schemathesis.openapi.format("binary", images)
schemathesis.openapi.media_type("image/*", images)
schemathesis.openapi.media_type("application/octet-stream", pixels)
