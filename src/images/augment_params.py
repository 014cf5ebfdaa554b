"""The section `train.augment` of params.yaml, with its defaults."""

from pydantic import Field

from src.core.params import Section


class Augment(Section):
    """Strength of each augmentation; 0 or false switches it off."""

    crop: int = Field(default=1, ge=0, le=128, description="pixels of random shift")
    flip: bool = Field(default=False, description="mirror left-right; true for photographs, wrong for digits")
    rotate: float = Field(default=10.0, ge=0, le=180, description="degrees, either way")
    scale: float = Field(default=0.1, ge=0, lt=1, description="zoom in or out by up to this share")
    brightness: float = Field(default=0.0, ge=0, lt=1, description="lighter or darker by up to this share")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="more or less by up to this share")
    cutout: int = Field(default=0, ge=0, le=512, description="side of an erased square, pixels")
    erase: float = Field(default=0.0, ge=0, le=1, description="probability that a random rectangle is filled with noise")
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="blend pairs of images and their labels; alpha of the Beta distribution, 0.2 for photographs",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="paste a rectangle of another image, its label in proportion; alpha, 1.0 for photographs",
    )
