"""The section `prepare` of params.yaml, with its defaults."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from src.core.params import Section, Share
from src.core.shape import Spec

Side = Annotated[int, Field(ge=2, le=1024)]


def _pair(value: object) -> object:
    """Accept one side for a square, or [height, width]."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError("should be one side or [height, width]")
        return tuple(value)
    return (value, value)


Size = Annotated[tuple[Side, Side], BeforeValidator(_pair)]


def image_spec(size: Sequence[int], channels: int = 3, fit: str = "crop") -> Spec:
    """Return the spec of images of (height, width): colour by default, where `fit` is how an image gets that shape."""
    return Spec("images", "uint8", (*size, channels), {"fit": fit})


class Prepare(Section):
    """What the model sees of an image, and which side of the split it falls on."""

    image_size: Size = Field(default=(8, 8), description="pixels of a side the model sees; or [height, width]")
    channels: Literal[1, 3] = Field(default=3, description="3: RGB (grey images are replicated); 1: grey")
    fit: Literal["crop", "pad", "stretch"] = Field(
        default="crop", description="how an image gets that shape: crop (centre), pad (black bars), stretch"
    )
    max_megapixels: float = Field(
        default=50.0, gt=0, le=1000, description="a larger picture is a fault and is not decoded (decompression bombs)"
    )
    validation_share: Share = Field(
        default=0.15, description="of the images, chosen by a hash of their content (or of `group`)"
    )
    test_share: Share = Field(default=0.2, description="of the images, chosen likewise")
    use_given_splits: bool = Field(
        default=True, description="obey a `split` column, split folders, or Hugging Face file names (test-0.parquet)"
    )

    @property
    def max_pixels(self) -> int:
        """Return how many pixels a picture may have."""
        return int(self.max_megapixels * 1e6)

    @property
    def spec(self) -> Spec:
        """Return what an example is."""
        return image_spec(self.image_size, self.channels, self.fit)

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_name(cls, values: object) -> object:
        """DVC's run cache leaves every key called `size` or `nfiles` out of its own key: no param may have that name."""
        if isinstance(values, dict) and "size" in values:
            raise ValueError("size was renamed to image_size: write `image_size:` with the same value")
        return values

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> "Prepare":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must leave something to train on (under 1)")
        return self
