"""K-fold cross-validation of the training split: stratified by class, and no group on two sides.

folds = split(labels, groups, k, seed)     # a list of (training rows, held-out rows), every row held out once

The validation split takes no part in it: it goes on choosing each model's best epoch and temperature, so that the images
of a fold are scored by a model that nothing fitted to them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from src.core.arrays import Arrays
from src.core.command import UserError
from src.core.files import sha256
from src.core.manifest import read_manifest

Rows = NDArray[np.int64]


def split(labels: Rows, groups: Sequence[str | None], k: int, seed: int, classes: Sequence[str]) -> list[tuple[Rows, Rows]]:
    """Deal rows into `k` folds; return the training rows and the held-out rows of each, ascending int64.

    Args:
        labels: int64 (n,).
        groups: of each row; None is an image that stands for itself.
        k: how many folds, at least 2.
        seed: of the shuffle.
        classes: their names, for messages.

    Raises:
        UserError: a class or the groups are too few for so many folds.

    Source: StratifiedKFold, and StratifiedGroupKFold where there are groups, of scikit-learn.
    """
    counts = np.bincount(labels, minlength=len(classes))
    rarest = min(np.flatnonzero(counts).tolist(), key=lambda label: counts[label])
    if counts[rarest] < k:
        found = f"class {classes[rarest]} has {counts[rarest]} training example{'s' if counts[rarest] > 1 else ''}"
        raise UserError(f"train.folds is {k}, but {found}: each fold needs one; lower it, set it to 0, or add some")
    nothing = np.zeros(len(labels))
    if all(group is None for group in groups):
        made = StratifiedKFold(k, shuffle=True, random_state=seed).split(nothing, labels)
        return [(training, held) for training, held in made]
    named = {name: number for number, name in enumerate(sorted({group for group in groups if group is not None}))}
    # an example without a group gets a number of its own
    numbers = [len(groups) + i if group is None else named[group] for i, group in enumerate(groups)]
    if (count := len(set(numbers))) < k:
        raise UserError(f"train.folds is {k}, but the training examples make only {count} groups: lower it, or set it to 0")
    dealt = list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(nothing, labels, np.array(numbers)))
    present = set(labels.tolist())
    for training, held in dealt:
        if not len(held):
            raise UserError(f"train.folds is {k}, but the groups are so large that a fold stays empty: lower it")
        if missing := present - set(labels[training].tolist()):
            name = classes[min(missing)]
            raise UserError(
                f"train.folds is {k}, but all training examples of class {name} are in groups that fall into one fold, "
                "whose model would never see it: lower it, set it to 0, or add groups"
            )
    return dealt


def tables(manifest: Path, data: Arrays) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Read the manifest's rows of training, validation and test split, in the order of their arrays.

    Raises:
        UserError: the manifest is missing, damaged or of other data than the arrays.
    """
    rows = read_manifest(manifest)
    if sha256(manifest) != data.manifest_sha256:
        raise UserError(f"{manifest} is of other data than {data.folder}: run `dvc repro prepare`")
    training, validation, test = (
        rows.filter(pc.equal(rows.column("split"), name)).sort_by("index") for name in ("train", "validation", "test")
    )
    return training, validation, test


def examples(rows: pa.Table) -> list[str]:
    """Return the digest and label of each row: by them two models' answers to one example are found."""
    columns = (rows.column("digest").to_pylist(), rows.column("label").to_pylist())
    return [f"{image} {label}" for image, label in zip(*columns, strict=True)]


def digest(rows: pa.Table, places: NDArray[np.int64] | None = None) -> str:
    """Return a SHA-256 of what is scored where: the digest and label of each image, and its fold.

    Two trainings with one digest were scored on the same images in the same folds, and can be compared fold by fold.
    """
    of = np.zeros(len(rows), dtype=np.int64) if places is None else places
    columns = (rows.column("digest").to_pylist(), rows.column("label").to_pylist(), of.tolist())
    lines = sorted(f"{image} {place} {label}\n" for image, label, place in zip(*columns, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
