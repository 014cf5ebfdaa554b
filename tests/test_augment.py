"""Augmentation of whole batches keeps shapes, ranges and content: python -m pytest tests/test_augment.py"""

import numpy as np
import pytest
import torch

from src import augment
from src.params import Augment

OFF = {"crop": 0, "flip": False, "rotate": 0, "scale": 0, "brightness": 0, "contrast": 0, "cutout": 0}


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
    crops = augment.crop(padded, rows, margin, generator())
    assert crops.shape == (4, 12, 9, 3)
    for row, taken in zip(rows, crops, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(padded[row].numpy(), (12, 9), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert any((taken.numpy() == window).all() for line in windows for window in line)


def test_the_numpy_and_the_torch_gather_take_the_same_windows() -> None:
    padded = augment.pad(photographs(), 2)
    rows = torch.arange(6)
    on_cpu = augment.crop(padded, rows, 2, generator(3))
    top, left = (torch.randint(5, (6,), generator=g) for g in [generator(3)] for _ in range(2))
    by_hand = torch.stack([padded[i, top[i] : top[i] + 12, left[i] : left[i] + 9] for i in range(6)])
    assert torch.equal(on_cpu, by_hand)


@pytest.mark.parametrize("side", [1, 2])
def test_images_smaller_than_the_margin_can_be_padded(side: int) -> None:
    assert augment.pad(photographs(2, side, side), 4).shape == (2, side + 8, side + 8, 3)


@pytest.mark.parametrize(
    "strength",
    [{"flip": True}, {"rotate": 30}, {"scale": 0.3}, {"brightness": 0.5}, {"contrast": 0.5}, {"cutout": 4}, {"cutout": 50}],
)
def test_each_augmentation_changes_images_within_range(strength: dict) -> None:
    images = photographs(64).permute(0, 3, 1, 2).float()
    changed = augment.apply(images, Augment(**(OFF | strength)), generator())
    assert changed.shape == images.shape
    assert changed.min() >= -1e-3
    assert changed.max() <= 255.001
    assert not torch.equal(changed, images)
    again = augment.apply(images, Augment(**(OFF | strength)), generator())
    assert torch.equal(changed, again)


def test_everything_off_changes_nothing() -> None:
    images = photographs().permute(0, 3, 1, 2).float()
    assert torch.equal(augment.apply(images, Augment(**OFF), generator()), images)


def test_flip_mirrors_about_half() -> None:
    images = photographs(200).permute(0, 3, 1, 2).float()
    flipped = augment.flip(images, generator())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert sum(mirrored) + sum(kept) == 200
    assert 70 < sum(mirrored) < 130


def test_a_quarter_turn_of_an_oblong_image_keeps_circles_round() -> None:
    """Rotated by 90 degrees about the centre, a square mark stays square and moves to its place."""
    image = torch.zeros(1, 1, 21, 41)
    image[0, 0, 9:12, 28:31] = 255  # right of the centre (10, 20) by 9
    # the generator's first draw is what the angle is made of: find a seed that turns by nearly the whole angle
    seed = next(s for s in range(2000) if torch.rand(1, generator=generator(s)) > 0.998)
    turned = augment.turn(image, 90, 0.0, generator(seed))[0, 0]
    turned[:, :10] = turned[:, 31:] = 0  # beyond the image's height its borders are reflected
    rows, columns = torch.nonzero(turned > 128, as_tuple=True)
    assert abs(columns.float().mean() - 20) < 0.6
    assert abs(abs(rows.float().mean() - 10) - 9) < 0.6
    assert 5 <= len(rows) <= 13


def test_cutout_paints_a_square_in_the_mean_colour() -> None:
    images = photographs(30, 16, 16).permute(0, 3, 1, 2).float()
    cut = augment.cutout(images, 4, generator())
    changed = (cut != images).any(dim=1)
    assert changed.sum(dim=(1, 2)).max() == 16
    assert changed.any(dim=(1, 2)).all()
    means = images.mean(dim=(2, 3))
    for image, mask, mean in zip(cut, changed, means, strict=True):
        torch.testing.assert_close(image[:, mask], mean[:, None].expand(-1, int(mask.sum())))
