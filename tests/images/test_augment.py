"""Augmentation of whole batches keeps shapes, ranges and content: python -m pytest tests/images/test_augment.py"""

import numpy as np
import pytest
import torch

from src.images import augment
from src.images.augment_params import Augment

OFF = {"crop": 0, "flip": False, "rotate": 0, "scale": 0, "brightness": 0, "contrast": 0, "cutout": 0, "erase": 0}
OFF |= {"mixup": 0, "cutmix": 0}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(n: int = 6, height: int = 12, width: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("margin", [1, 3, 20])
def test_every_crop_is_a_window_of_its_own_padded_image(margin: int) -> None:
    images = photographs()
    padded = augment.pad(images, margin)
    expected = np.pad(images.numpy(), ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)
    rows = torch.tensor([3, 0, 3, 5])
    crops = augment.crop(padded, rows, Augment(**(OFF | {"crop": margin})), False, generator())
    assert crops.shape == (4, 12, 9, 3)
    for row, taken in zip(rows, crops, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(padded[row].numpy(), (12, 9), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert any((taken.numpy() == window).all() for line in windows for window in line)


@pytest.mark.parametrize(
    "strength", [{}, {"rotate": 30}, {"scale": 0.3}, {"brightness": 0.5}, {"contrast": 0.5}, {"cutout": 50}, {"erase": 0.9}]
)
def test_each_augmentation_changes_images_within_range_and_none_does_not(strength: dict) -> None:
    images = photographs(64).permute(0, 3, 1, 2).float()
    changed = augment.apply(images, Augment(**(OFF | strength)), generator())
    assert changed.shape == images.shape
    assert changed.min() >= -1e-3
    assert changed.max() <= 255.001
    assert torch.equal(changed, images) == (not strength)
    again = augment.apply(images, Augment(**(OFF | strength)), generator())
    assert torch.equal(changed, again)


@pytest.mark.parametrize("margin", [0, 2])
def test_flip_mirrors_about_half_and_a_mirrored_copy_changes_nothing(margin: int) -> None:
    images, rows = photographs(200), torch.arange(200)
    padded = augment.pad(images, margin)
    twice = torch.cat([padded, padded.flip(2)])
    kept, flipped, from_copy = (
        augment.crop(bank, rows, Augment(**(OFF | {"crop": margin, "flip": flip})), both, generator())
        for bank, flip, both in ((padded, False, False), (padded, True, False), (twice, True, True))
    )
    assert torch.equal(flipped, from_copy)
    same = [torch.equal(a, b) for a, b in zip(flipped, kept, strict=True)]
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(flipped, kept, strict=True)]
    assert sum(same) + sum(mirrored) == 200
    assert 70 < sum(mirrored) < 130


def test_cutout_paints_a_square_in_the_mean_colour() -> None:
    images = photographs(30, 16, 16).permute(0, 3, 1, 2).float()
    cut = augment.cutout(images, 4, generator())
    changed = (cut != images).any(dim=1)
    assert changed.sum(dim=(1, 2)).max() == 16
    assert changed.any(dim=(1, 2)).all()
    means = images.mean(dim=(2, 3))
    for image, mask, mean in zip(cut, changed, means, strict=True):
        torch.testing.assert_close(image[:, mask], mean[:, None].expand(-1, int(mask.sum())))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 60), (4, 400), (1, 1)])
def test_erasing_fills_a_rectangle_of_the_promised_size_with_noise(height: int, width: int) -> None:
    images = torch.full((2000, 3, height, width), 300.0)  # no noise is so bright
    erased = (augment.erase(images, 0.5, generator()) != 300).all(dim=1)
    high, wide = erased.any(dim=2).sum(dim=1), erased.any(dim=1).sum(dim=1)
    assert torch.equal(high * wide, erased.sum(dim=(1, 2)))  # a full rectangle, or nothing
    assert height != width or erased.any(dim=0).all()
    hit = high > 0
    assert 0.45 < hit.float().mean() < 0.55
    share = (high * wide)[hit] / (height * width)
    assert share.max() <= 0.33 + 0.5 / min(height, width) + 1 / max(height, width) + (height * width == 1)
    if height == width == 32:
        assert 0.15 < share.mean() < 0.2
        assert share.min() > 0.01
        ratio = (high / wide)[hit]
        assert 0.2 < ratio.min() < 0.4
        assert 2.5 < ratio.max() < 4.5
        assert abs(ratio.log().mean()) < 0.1


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("strength", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_mixing_keeps_labels_in_step_with_pixels(kind: torch.dtype, strength: dict) -> None:
    """One class is black and one white, so the mean of an image is the share of the white one."""
    labels = torch.arange(60) % 2
    images = (255 * labels)[:, None, None, None].expand(60, 3, 10, 7).to(kind)
    mixed, targets = augment.mix(images, labels, 2, Augment(**(OFF | strength)), generator())
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(60))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)) / 255, targets[:, 1])
    assert ((targets > 0.01) & (targets < 0.99)).any()
