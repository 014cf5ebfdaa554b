"""Parquet that batch inference writes: rows with what the model says.

The image of the service has no pyarrow, so this module is imported only where Parquet is written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.serving.batch_rows import Scored, Signature
from src.serving.batch_tables import renamed

_ROW_GROUP = 65_536  # rows of the output
_RANKED = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())]))
_WHERE = {"path": pa.string(), "shard": pa.string(), "row": pa.int64()}
_OURS = {
    "label": pa.string(),
    "probability": pa.float64(),
    "probabilities": _RANKED,
    "model_version": pa.string(),
    "manifest": pa.string(),
    "error": pa.string(),
}


class Parquet:
    """Rows as Parquet: path or shard and row, carried columns, then what the model says."""

    ending = ".parquet"

    def __init__(self, signature: Signature, schema: Any = None) -> None:
        """Take what signs each row; `schema` is that of carried columns."""
        where = ["path"] if schema is None else ["shard", "row"]
        fields = [pa.field(name, _WHERE[name]) for name in where]
        for field in schema or ():
            fields.append(field.with_name(renamed([field.name])[0]))
        self._schema = pa.schema([*fields, *(pa.field(name, kind) for name, kind in _OURS.items())])
        self._signature = signature

    def encode(self, scored: Scored) -> Any:
        """Return rows as a record batch."""
        rows = len(scored.errors)
        leading = [ranked[0] if ranked else (None, None) for ranked in scored.ranked]
        columns = [
            *scored.piece.columns.values(),
            *(scored.piece.carried.columns if scored.piece.carried is not None else ()),
            [label for label, _ in leading],
            [probability for _, probability in leading],
            _nested(scored.ranked),
            [self._signature.version] * rows,
            [self._signature.manifest] * rows,
            scored.errors,
        ]
        arrays = [column if isinstance(column, pa.Array) else pa.array(column, field.type)
                  for column, field in zip(columns, self._schema, strict=True)]  # fmt: skip
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def save(self, encoded: list[Any], path: Path) -> None:
        """Write some rows as a file of their own."""
        with path.open("wb") as file, pq.ParquetWriter(file, self._schema, compression="zstd") as writer:
            writer.write_table(pa.Table.from_batches(encoded, schema=self._schema))

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Write the rows of all parts as one file, in row groups that do not depend on how parts were cut."""
        waiting = self._schema.empty_table()
        with target.open("wb") as file, pq.ParquetWriter(file, self._schema, compression="zstd") as writer:
            for path in parts:
                with pq.ParquetFile(path) as part:
                    waiting = pa.concat_tables([waiting, part.read()])
                while len(waiting) >= _ROW_GROUP:
                    writer.write_table(waiting.slice(0, _ROW_GROUP).combine_chunks())
                    waiting = waiting.slice(_ROW_GROUP)
            if len(waiting):
                writer.write_table(waiting.combine_chunks())


def _nested(ranked: Sequence[Sequence[tuple[str, float]]]) -> Any:
    """Return a list of label and probability for each row, null where there is none."""
    flat = [pair for row in ranked for pair in row]
    values = pa.StructArray.from_arrays(
        [pa.array([label for label, _ in flat], pa.string()), pa.array([value for _, value in flat], pa.float64())],
        fields=list(_RANKED.value_type),
    )
    lengths = np.array([len(row) for row in ranked])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    nulls = pa.array(lengths == 0)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=_RANKED, mask=nulls)
