"""May this data be trained on? Every rule over the manifest, evaluated at once by pandera; what fails becomes a finding."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
from numpy.typing import NDArray

from src.core import statistics
from src.core.manifest import MANIFEST, SPLITS, class_order
from src.core.reference import Reference, drift
from src.images.images import FORMATS, size_problem
from src.validation.validate_params import Checks, Level, Validate

_LABEL_LENGTH = 80
_LABEL_SIGNS = " _.+-()'&"  # beside letters, marks and digits of any script: a label names files, pictures, metrics
_SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """One rule that does not hold: how serious, in how many rows, and the first of them."""

    check: str
    level: Level
    message: str
    count: int
    files: list[str]


class Rule(NamedTuple):
    """`offends` marks rows, or is one answer for the whole set; `message` tells what the numbers were."""

    name: str
    offends: "pd.Series[bool] | bool"
    message: str


def inspect(
    manifest: pa.Table, params: Validate, reference: Reference, near: NDArray[np.int64], image_size: Sequence[int]
) -> tuple[list[Finding], dict[str, float]]:
    """Check a manifest against its schema and every rule that is not off.

    Args:
        manifest: rows of `data.MANIFEST`.
        params: limits and levels.
        reference: statistics recorded by an earlier run.
        near: pairs of manifest rows, shape (n, 2), that are almost equal and stand in different splits.
        image_size: (height, width) that the model sees.

    Returns:
        The findings, the most serious first, and the drift of each statistic.
    """
    frame = manifest.to_pandas(types_mapper=pd.ArrowDtype)
    distances = drift(manifest, reference)
    found = _failures(frame, _rules(frame, params, near, distances, image_size), params.checks)
    return sorted(found, key=lambda finding: (finding.level != "error", finding.check)), distances


def _failures(frame: pd.DataFrame, rules: Sequence[Rule], levels: Checks) -> list[Finding]:
    active = {rule.name: rule for rule in rules if getattr(levels, rule.name) != "off"}
    try:
        _schema(active.values()).validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
    else:
        return []
    findings, names = [], _names(frame)
    for (column, check), rows in cases.groupby(["column", "check"], dropna=False, sort=False):
        offenders = [int(row) for row in rows["index"] if pd.notna(row)]
        files = names.iloc[sorted(offenders)[:_SHOWN]].tolist()
        rule = active.get(check)
        if rule:
            findings.append(Finding(rule.name, getattr(levels, check), rule.message, len(offenders), files))
        else:
            message = f"column {column} of the manifest breaks its rule: {check}"
            findings.append(Finding("schema", "error", message, len(rows), files))
    return findings


def _schema(rules: Any) -> pandera.DataFrameSchema:
    """Build the manifest's schema; rules hang on `path`, so that a failure case is one row, not one per column."""
    check = pandera.Check
    values = {
        "path": [check(_holds(rule.offends), name=rule.name) for rule in rules],
        "label": [check(_spelt_well, name="a label is 1 to 80 letters, digits, spaces or .+-_()'& (no slash, no emoji)")],
        "given_split": [check.isin(SPLITS)],
        "split": [check.isin(SPLITS)],
        "width": [check.ge(1)],
        "height": [check.ge(1)],
        "format": [check.isin(FORMATS)],
        **{name: [check.in_range(0, 1)] for name in statistics.NAMES},
    }
    columns = {
        field.name: pandera.Column(pd.ArrowDtype(field.type), nullable=field.nullable, checks=values.get(field.name))
        for field in MANIFEST
    }
    return pandera.DataFrameSchema(columns, strict=True)


def _holds(offends: "pd.Series[bool] | bool") -> Callable[[Any], Any]:
    return lambda _: ~offends if isinstance(offends, pd.Series) else not offends


def _spelt_well(labels: "pd.Series[str]") -> "pd.Series[bool]":
    good = {label: _is_label(label) for label in labels.unique()}
    return labels.map(good).astype(bool)


def _is_label(label: str) -> bool:
    kinds = [unicodedata.category(character)[0] for character in label]
    fits = all(kind in "LMN" or character in _LABEL_SIGNS for kind, character in zip(kinds, label, strict=True))
    return fits and 0 < len(label) <= _LABEL_LENGTH and (kinds[0] in "LN" or label[0] == "_")


def _names(frame: pd.DataFrame) -> "pd.Series[str]":
    """How a person finds each row: the file's path, or shard#row."""
    rows = frame["row"].astype(str)
    return frame["path"].astype(str).where(frame["row"] < 0, frame["path"].astype(str) + "#" + rows)


# ---------------------------------------------------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------------------------------------------------


def _rules(
    frame: pd.DataFrame,
    params: Validate,
    near: NDArray[np.int64],
    distances: Mapping[str, float],
    image_size: Sequence[int],
) -> list[Rule]:
    kept, broken, copies = frame["split"].notna(), frame["fault"].notna(), frame["duplicate_of"].notna().astype(bool)
    known = frame["digest"].notna()
    unknown = frame["label"].notna() & ~frame["label"].isin(params.labels or []) & (params.labels is not None)
    strange = ", ".join(map(repr, frame["label"][unknown].unique()[:5]))
    unreadable = (broken & ~known).astype(bool)
    given = frame["given_split"].groupby(frame["digest"]).transform("nunique")
    names, marked = _names(frame), pd.Series(False, index=frame.index)
    marked.iloc[near[:, 0]] = True
    pairs = "; ".join(f"{names.iloc[a]} and {names.iloc[b]}" for a, b in near[:3])
    short_side = frame.loc[kept, ["width", "height"]].min(axis=1).median()
    far = size_problem(image_size, float(short_side)) if kept.any() else None
    moved = [f"{name} {value:.2f}" for name, value in distances.items() if value > params.max_drift]
    return [
        Rule("labels", unknown.astype(bool), f"not among validate.labels: {strange}; declare them or correct the data"),
        _min_images(frame, kept, params),
        Rule(
            "corrupt",
            unreadable & (unreadable.mean() > params.max_corrupt),
            f"{unreadable.mean():.1%} of the files are no readable image, over validate.max_corrupt "
            f"{params.max_corrupt:.1%}; repair or remove them",
        ),
        Rule(
            "conflicts",
            (broken & known).astype(bool),
            "equal images carry different labels and are left out; keep the right copy of each",
        ),
        Rule(
            "duplicates",
            copies & ((share := copies.sum() / max(1, int(known.sum()))) > params.max_duplicates),
            f"{share:.1%} of the images repeat another exactly, over validate.max_duplicates {params.max_duplicates:.1%}; "
            "one of each is kept",
        ),
        Rule(
            "leakage",
            (known & (given.fillna(0) > 1)).astype(bool),
            "one image is given to several splits; it is kept in the stricter one. Remove the others",
        ),
        Rule("near_duplicates", marked, f"{len(near)} pairs of almost equal images in two splits: {pairs}"),
        _group_leakage(frame, kept),
        _imbalance(frame, kept, params.max_imbalance),
        Rule("image_size", bool(far), far or ""),
        Rule(
            "drift",
            bool(moved),
            f"far from reference.json, over validate.max_drift {params.max_drift:g}: {', '.join(moved)}. "
            "If this is the data you mean to have, record it: make reference",
        ),
    ]


def _min_images(frame: pd.DataFrame, kept: "pd.Series[bool]", params: Validate) -> Rule:
    """Every class needs its images in every split, and one class is nothing to tell apart."""
    labels = sorted({*frame["label"].dropna(), *(params.labels or [])}, key=class_order)
    if len(labels) < 2:
        return Rule("min_images", True, f"{len(labels)} class found ({', '.join(labels)}); a classifier needs at least 2")
    counts = frame[kept].groupby(["label", "split"]).size()
    cells = [(label, split, int(counts.get((label, split), 0))) for label in labels for split in SPLITS]
    poor = [cell for cell in cells if cell[2] < params.min_images]
    poor.sort(key=lambda cell: (cell[1] != "train" or cell[2] > 0, cell[2]))  # what cannot be learnt comes first
    shown = "; ".join(f"{label} has {count} in {split}" for label, split, count in poor[:5])
    more = f" and {len(poor) - 5} more" if len(poor) > 5 else ""
    message = (
        f"{len(poor)} of {len(cells)} pairs of class and split are under validate.min_images {params.min_images}: "
        f"{shown}{more}. Add images of these classes, or remove the classes; where only validation or test lack them, raise "
        "prepare.validation_share and prepare.test_share, or accept it by validate.checks.min_images: warn"
    )
    return Rule("min_images", bool(poor), message)


def _group_leakage(frame: pd.DataFrame, kept: "pd.Series[bool]") -> Rule:
    """A group stands in two splits when its rows were given to both, or when an image belongs to two groups."""
    copied_from = frame.loc[kept].drop_duplicates("digest").set_index("digest")["split"]
    side = frame["digest"].map(copied_from)
    sides = side.groupby(frame["group"]).transform("nunique")
    leaked = (frame["group"].notna() & (sides.fillna(0) > 1)).astype(bool)
    groups = ", ".join(map(repr, frame["group"][leaked].unique()[:5]))
    return Rule("group_leakage", leaked, f"groups with images in several splits: {groups}; give each group one split")


def _imbalance(frame: pd.DataFrame, kept: "pd.Series[bool]", limit: float) -> Rule:
    counts = frame.loc[kept, "label"].value_counts()
    ratio = counts.max() / counts.min() if len(counts) else 1.0
    message = (
        f"{counts.index[0]} has {ratio:.1f} times the images of {counts.index[-1]}, over validate.max_imbalance {limit:g}"
    )
    return Rule("imbalance", bool(ratio > limit), message + "; train.class_weights makes rare classes count more")
