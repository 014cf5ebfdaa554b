"""When each image came: the date of the first commit whose dvc.lock names a manifest that has it.

Nothing is asked of the data but the history that DVC and Git keep of it: no column, no file date.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.core.command import UserError
from src.core.yaml_files import parse_yaml
from src.system.versioning import dvc
from src.system.worktree import git

_DAYS_OF_A_MONTH = 365.25 / 12
_SHORTEST = 7.0  # days of history from which on a rate by the month says something
Seconds = NDArray[np.int64]


@dataclass(frozen=True)
class Version:
    """A manifest that dvc.lock named: since which commit, when that was made (UTC), and its MD5."""

    commit: str
    date: datetime
    md5: str


@dataclass(frozen=True)
class Arrivals:
    """Seconds since 1970 at which each image of the training and the test split came, int64, in the arrays' order.

    `versions` counts the manifests they were read from; `notes` say what could not be read.
    """

    training: Seconds
    test: Seconds
    versions: int
    notes: list[str]


def versions(manifest: Path) -> list[Version]:
    """Return every manifest that the history of dvc.lock names, each at its earliest commit, the oldest first."""
    found: dict[str, Version] = {}
    for line in git("log", "--format=%H %ct", "--", "dvc.lock").splitlines():
        commit, seconds = line.split()
        md5 = _recorded(git("show", f"{commit}:./dvc.lock"), manifest.as_posix())
        version = Version(commit, datetime.fromtimestamp(int(seconds), UTC), md5)
        if md5 and (md5 not in found or version.date < found[md5].date):
            found[md5] = version
    return sorted(found.values(), key=lambda version: version.date)


def _recorded(lock: str, path: str) -> str:
    """Return the MD5 that a dvc.lock records of an output, or nothing."""
    try:
        stages = (parse_yaml(lock, "dvc.lock") or {}).get("stages", {}).values()
        outs = [out for stage in stages for out in stage.get("outs", [])]
        return next((str(out["md5"]) for out in outs if out["path"] == path), "")
    except (UserError, AttributeError, KeyError, TypeError):  # an early commit's, or one with conflict marks
        return ""


def read(manifest: Path, keep: Path, now: datetime) -> Arrivals:
    """Find out when each image of the current manifest came; one that no commit has yet counts as come now.

    Args:
        manifest: the current one, by its path in the repository.
        keep: a folder for manifests of earlier commits, so that each is fetched once.
        now: UTC.

    Raises:
        UserError: the current manifest is missing or damaged.
    """
    current = _columns(manifest, ["digest", "split", "index"])
    known, notes, count = versions(manifest), [], 0
    first: dict[str, int] = {}
    for version in known:
        path = _fetched(version, manifest, keep)
        if path is None:
            continue
        count += 1
        for digest in _columns(path, ["digest"])["digest"].to_pylist():
            first.setdefault(digest, int(version.date.timestamp()))
    if count < len(known):
        notes.append(
            f"{len(known) - count} of {len(known)} versions of the data are no longer in the DVC remote: their images count "
            "as come with the next version that has them"
        )
    if git("rev-parse", "--is-shallow-repository") == "true":
        notes.append("the clone is shallow, so older versions of the data are unknown: run git fetch --unshallow")
    training, test = (_dates(current, split, first, int(now.timestamp())) for split in ("train", "test"))
    return Arrivals(training, test, count, notes)


def _fetched(version: Version, manifest: Path, keep: Path) -> Path | None:
    """Return the file of an earlier manifest, from DVC's cache or remote; None where neither has it."""
    path = keep / f"{version.md5}.parquet"
    if not path.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        # DVC moves it there whole
        dvc("get", ".", manifest.as_posix(), "--rev", version.commit, "-o", str(path), "--quiet", capture=True)
    return path if path.is_file() else None


def _columns(path: Path, names: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path} cannot be read ({str(error)[:200]}): run `dvc repro prepare`, or delete it") from None


def _dates(table: pa.Table, split: str, first: dict[str, int], now: int) -> Seconds:
    """Return arrivals in the order of the arrays' rows."""
    rows = [row for row in table.to_pylist() if row["split"] == split and row["index"] is not None]
    dates = np.full(len(rows), now, dtype=np.int64)
    for row in rows:
        dates[row["index"]] = first.get(row["digest"], now)
    return dates


# ---------------------------------------------------------------------------------------------------------------------
# Periods
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Period:
    """A stretch of time in which images came: its name, and the second of its last arrival."""

    name: str
    last: int


def periods(dates: Seconds, most: int) -> list[Period]:
    """Return the months in which images came, oldest first; the moments, where all came within one month.

    More than `most` are joined, as evenly as can be; the last ones stay the last.
    """
    moments = [int(moment) for moment in np.unique(dates)]
    months: dict[str, int] = {_utc(moment).strftime("%Y-%m"): moment for moment in moments}
    if len(months) < 2:
        months = {_utc(moment).strftime("%Y-%m-%d %H:%M:%S"): moment for moment in moments}
    every = [Period(name, last) for name, last in months.items()]
    if len(every) <= most:
        return every
    return [every[place] for place in sorted({round(i) for i in np.linspace(0, len(every) - 1, most)})]


def monthly(dates: Seconds) -> float | None:
    """Return how many images came in a month, without the first delivery; None where the history is too short to say."""
    days = (int(dates.max()) - int(dates.min())) / 86_400
    if days < _SHORTEST:
        return None
    return float((dates > dates.min()).sum() / (days / _DAYS_OF_A_MONTH))


def _utc(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
