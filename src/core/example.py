"""One example of a data set before it is decoded."""

from typing import NamedTuple


class Example(NamedTuple):
    """One image before decoding. `content` is its bytes, or a path to read them from; `fault` says why there is none."""

    path: str
    row: int
    label: str | None
    group: str | None
    given_split: str | None
    content: bytes | str | None
    fault: str | None
