"""The slices that a model is judged on beside the whole: thirds of image statistics and of size, and the groups."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from src.core import metrics


def members(rows: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Return for each slice which of the manifest rows belong to it: a mask of shape (n,)."""
    sides = np.maximum(rows.column("width").to_numpy(), rows.column("height").to_numpy())
    return {
        **metrics.thirds("brightness", rows.column("brightness").to_numpy()),
        **metrics.thirds("contrast", rows.column("contrast").to_numpy()),
        **metrics.thirds("original size", sides),
        **metrics.groups(rows.column("group").to_pylist()),
    }
