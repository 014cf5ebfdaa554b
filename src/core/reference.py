"""What earlier data looked like, recorded in reference.json, and how far the present data are from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from src.core import statistics
from src.core.command import UserError
from src.core.statistics import Distribution


class Reference(BaseModel):
    """What `make reference` records: each image statistic's distribution and the share of each class. Empty: no record."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    classes: dict[str, float] = {}
    images: int = 0
    statistics: dict[str, Distribution] = {}


def read(path: Path) -> Reference:
    """Read a recorded reference.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        return Reference.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore it with git checkout, or write {{}} into it for no reference") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{path} is no reference ({where}: {first['msg']}): restore it with git checkout, or write {{}}"
        ) from None


def summarize(manifest: pa.Table) -> Reference:
    """Return the reference that these data would be."""
    measured = statistics.summarize(_measured(manifest))
    return Reference(classes=_class_shares(manifest), images=_images(manifest), statistics=measured)


def drift(manifest: pa.Table, reference: Reference) -> dict[str, float]:
    """Return the population stability index of each image statistic and of the class balance against a reference."""
    distances = statistics.drift(reference.statistics, _measured(manifest))
    if reference.classes:
        now = _class_shares(manifest)
        names = sorted({*reference.classes, *now})
        histograms = [np.array([shares.get(name, 0.0) for name in names]) for shares in (reference.classes, now)]
        sizes = (reference.images, _images(manifest))
        distances["class balance"] = statistics.stability_index(histograms[0], histograms[1], sizes)
    return {name: round(value, 4) for name, value in distances.items()}


def _measured(manifest: pa.Table) -> dict[str, NDArray[Any]]:
    kept = manifest.filter(manifest.column("split").is_valid())
    return {name: kept.column(name).to_numpy() for name in statistics.NAMES}


def _images(manifest: pa.Table) -> int:
    return len(manifest) - int(manifest.column("split").null_count)


def _class_shares(manifest: pa.Table) -> dict[str, float]:
    kept = manifest.filter(manifest.column("split").is_valid())
    labels, counts = np.unique(kept.column("label").to_numpy().astype(str), return_counts=True)
    return {str(label): round(float(n / len(kept)), 6) for label, n in zip(labels, counts, strict=True)}
