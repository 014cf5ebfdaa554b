"""The section `validate` of params.yaml, with its defaults."""

from typing import Literal

from pydantic import Field

from src.core.params import Section

Level = Literal["error", "warn", "off"]


class Checks(Section):
    """How serious each finding of `validate` is: error stops the pipeline, warn only reports, off is silent."""

    labels: Level = Field(default="error", description="a class that was not declared")
    min_images: Level = Field(default="error", description="a class without enough images in a split")
    corrupt: Level = Field(default="error", description="too many unreadable files")
    conflicts: Level = Field(
        default="warn", description="equal images with different labels (they are left out of every split)"
    )
    duplicates: Level = Field(default="warn", description="exact copies (one is kept)")
    leakage: Level = Field(default="error", description="one image given to two splits (kept in the stricter one)")
    near_duplicates: Level = Field(default="warn", description="almost equal images in two splits")
    group_leakage: Level = Field(default="error", description="one group in two splits")
    imbalance: Level = Field(default="warn", description="one class far larger than another")
    image_size: Level = Field(default="warn", description="prepare.image_size far from the images' own size")
    drift: Level = Field(default="warn", description="image statistics against the recorded reference (`make reference`)")


class Validate(Section):
    """The limits of `validate`."""

    labels: list[str] | None = Field(
        default=None, description="the classes you expect, e.g. [cat, dog]; null takes those found"
    )
    min_images: int = Field(
        default=1, ge=1, description="of each class in each split; with 20 and more the numbers begin to mean something"
    )
    max_corrupt: float = Field(default=0.1, ge=0, le=1, description="share of files that are no readable image")
    max_duplicates: float = Field(default=0.25, ge=0, le=1, description="share of images that repeat another one exactly")
    max_imbalance: float = Field(default=20.0, ge=1, description="images of the largest class for one of the smallest")
    max_drift: float = Field(
        default=0.25, gt=0, description="population stability index against reference.json; over 0.25 is a major shift"
    )
    checks: Checks = Checks()
