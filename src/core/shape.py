"""What a network is built for."""

from typing import NamedTuple


class Shape(NamedTuple):
    """What a network is built for: images of `size` (height, width) with `channels`, and so many `classes`."""

    size: tuple[int, int]
    channels: int
    classes: int
