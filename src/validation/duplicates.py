"""Almost equal images in different splits: what the model learns by heart must not be what it is tested on."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NEAR_BITS = 5  # of 64: what a re-encoded or resized copy differs by at most
NEAR_RMS = 10.0  # grey levels of 255, apart from overall brightness; above it two pictures only share a layout
_WINDOW = 64  # neighbours looked at in each sorted band: bounds the work when thousands of images are alike


def near(manifest: pa.Table, thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find pairs of almost equal images in different splits.

    Two 64-bit hashes within NEAR_BITS are equal in one of NEAR_BITS + 1 bands (pigeonhole), so only neighbours in each
    sorted band are compared; a candidate counts when its thumbnails differ by at most NEAR_RMS.

    Args:
        manifest: rows of `data.MANIFEST`.
        thumbnails: of each manifest row, grey, uint8 of shape (rows, height, width), the same for any `prepare.image_size`.

    Returns:
        Pairs of manifest rows, int64 of shape (n, 2), each once, in order.
    """
    rows = np.flatnonzero(manifest.column("split").is_valid().to_numpy())
    kept = manifest.take(rows)
    hashes = kept.column("perceptual_hash").to_numpy()
    sides = kept.column("split").combine_chunks().dictionary_encode().indices.to_numpy()
    pairs = [_band_pairs(hashes, sides, band) for band in range(NEAR_BITS + 1)]
    candidates = rows[np.unique(np.concatenate(pairs), axis=0)]
    close = [_pixels_close(candidates[i : i + 1024], thumbnails) for i in range(0, len(candidates), 1024)]
    return candidates[np.concatenate(close)] if close else candidates


def _band_pairs(hashes: NDArray[np.uint64], sides: NDArray[Any], band: int) -> NDArray[np.int64]:
    width = 64 // (NEAR_BITS + 1)
    keys = (hashes >> np.uint64(width * band)) & np.uint64(2**width - 1)
    order = np.lexsort((hashes, keys))
    found = [np.empty((0, 2), dtype=np.int64)]
    for step in range(1, min(_WINDOW, len(order))):
        a, b = order[:-step], order[step:]
        alike = (keys[a] == keys[b]) & (sides[a] != sides[b])
        alike[alike] = np.bitwise_count(hashes[a[alike]] ^ hashes[b[alike]]) <= NEAR_BITS
        found.append(np.sort(np.stack([a[alike], b[alike]], axis=1), axis=1))
    return np.concatenate(found)


def _pixels_close(pairs: NDArray[np.int64], thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    first, second = (thumbnails[pairs[:, side]].astype(np.float32) for side in (0, 1))
    close: NDArray[np.bool_] = (first - second).std(axis=(1, 2)) <= NEAR_RMS
    return close
