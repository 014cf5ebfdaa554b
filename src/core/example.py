"""One example of a data set before it is decoded."""

from typing import NamedTuple


class Example(NamedTuple):
    """One example as it lies under data/: `path` is relative to data/, in the form `folder/file`.

    `group` keeps examples together on one side of the split, and `split` names that side: train, validation or test.
    `content` holds the bytes of an encoded image; None means the file at `path`, which a worker reads. `row` numbers the
    examples of one archive or table; it is -1 for a file of its own. `fault` says why an example cannot be used.
    """

    path: str
    label: str | None
    group: str | None = None
    split: str | None = None
    content: bytes | str | None = None  # text: where a worker reads the bytes; for the engine alone
    row: int = -1
    fault: str | None = None
