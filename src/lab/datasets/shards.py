"""Write one Parquet shard in the Hugging Face image layout: `image` {bytes, path}, `label`, class names in the metadata."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from src.core.files import replacing

_ROWS = 1024  # a row group, the unit a reader holds in memory


def write(path: Path, examples: Iterable[tuple[NDArray[np.uint8], int]], classes: Sequence[str]) -> None:
    """Write (image, label) pairs as PNG, losslessly; images are uint8 (height, width) or (height, width, 3)."""
    with replacing(path) as fresh, pq.ParquetWriter(fresh, _schema(classes), compression="none") as writer:
        held: list[dict[str, object]] = []
        for number, (image, label) in enumerate(examples):
            target = io.BytesIO()
            Image.fromarray(image).save(target, "PNG", compress_level=6)
            held.append({"image": {"bytes": target.getvalue(), "path": f"{number:05d}.png"}, "label": label})
            if len(held) == _ROWS:
                writer.write_table(pa.Table.from_pylist(held, _schema(classes)))
                held = []
        if held:
            writer.write_table(pa.Table.from_pylist(held, _schema(classes)))


def _schema(classes: Sequence[str]) -> pa.Schema:
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([pa.field("image", image), pa.field("label", pa.int64())], metadata=metadata)
