"""Pull the data, reproduce the pipeline, and show what came out: `make reproduce`.

    python -m src reproduce [--pull] [--epochs N] [--minutes N] [--run out/run.json] [--params params/cifar10.yaml]

Writes run.json: the machine, how long each stage took, and on a failure which stage it was and what it said last.
"""

import argparse
import math
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

from src.core.command import UserError, table
from src.core.files import write_json
from src.core.metrics_file import MetricsFile
from src.system import dvc_lock, dvc_locks, hardware, recipe
from src.system.addresses import without_secrets
from src.system.params import load
from src.system.params_text import Place, put
from src.system.versioning import dvc, has_unrecorded_changes, watch_dvc
from src.system.worktree import bring

_METRICS = Path("metrics.json")
_LOCK = Path("dvc.lock")
_PARAMS = Path("params.yaml")
_OPEN = {
    "pictures": "out/evaluation/ (confusion, curves, calibration, errors, activation)",
    "data profile": "out/profile/ (profile.png, examples.png)",
    "model": "out/model/ (model.onnx, weights.safetensors, card.json)",
    "metrics": "metrics.json; history in MLflow: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db",
}
_KEPT = 60  # lines of a failing stage


class StageLog:
    """Listens to DVC: which stage runs, since when, and what it said last."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage: str | None = None
        self.said: deque[str] = deque(maxlen=_KEPT)
        self._since = time.monotonic()

    def hear(self, line: str) -> None:
        """Take a line of DVC's output."""
        line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)  # colours, and what a progress bar overwrote
        found = re.match(r"(?:Running stage|Stage) '([\w-]+)'(.*)", line)
        if found or line.startswith(("Updating lock file", "Use `dvc push`")):
            self.close()
        if found and line.startswith("Running"):
            self.stage = found[1]
            self.said.clear()
        elif line.strip():
            self.said.append(without_secrets(line))

    def close(self) -> None:
        """A stage ended, or everything did."""
        now = time.monotonic()
        if self.stage:
            self.seconds[self.stage] = round(now - self._since, 2)
        self.stage, self._since = None, now


def reproduce(pull: bool, epochs: int | None, minutes: float | None, journal_path: Path) -> None:
    """Run `dvc pull` where data are missing, then `dvc repro`; print metrics and what to open.

    Args:
        pull: bring what the store has instead of making it again (`dvc repro --pull`).
        epochs: a small budget: train no more than so many.
        minutes: stop after so many.
        journal_path: run.json to write.

    Raises:
        UserError: the data cannot be fetched, or a stage failed (it has said why itself).
    """
    started = time.monotonic()
    told: dict[str, Any] = {"budget": None, "failed": None, "lane": lane(), "said": "", "seconds": {}}
    told["hardware"] = hardware.describe()
    journal = StageLog()
    try:
        _require_reviewed(told)
        _pull(told)
        told["budget"] = _cut(epochs, told)
        before = _LOCK.read_bytes() if _LOCK.exists() else b""
        left = None if minutes is None else max(1.0, minutes * 60 - (time.monotonic() - started))
        status = watch_dvc("repro", *(["--pull"] if pull else []), heard=journal.hear, seconds=left)
        _require_success(status, journal, told, minutes)
    except UserError as error:
        told["failed"] = told["failed"] or "pipeline"
        told["said"] = told["said"] or without_secrets(str(error))
        raise
    finally:
        told["seconds"] = journal.seconds
        write_json(journal_path, told)
    if _LOCK.read_bytes() == before:
        print("\nThis run made what dvc.lock names already." if journal.seconds else "\nNothing changed since the last run.")
    print(f"\n{_results()}\n")
    print("\n".join(f"{name + ':':14}{path}" for name, path in _OPEN.items()))


def lane() -> dict[str, Any]:
    """Say what kind of machine this is: numbers of a hosted one are not comparable where the hardware matters."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return {"comparable": True, "name": "local"}
    if os.environ.get("TRAIN_RUNNER"):
        return {"comparable": True, "name": "self-hosted"}
    return {"comparable": False, "name": "hosted CPU"}


def _require_reviewed(told: dict[str, Any]) -> None:
    """In a merge queue nothing is trained: what it made could not be pushed, and would be nobody's reviewed model."""
    if os.environ.get("GITHUB_EVENT_NAME") != "merge_group":
        return
    differs = dvc_lock.stale(Path())
    if differs:
        told["failed"] = "review"
        raise UserError(
            f"this merge asks for another model than the one that was reviewed ({', '.join(differs[:8])} differ from "
            "dvc.lock): run make update in the pull request's branch, push, and queue it again when it has been judged"
        )


def _pull(told: dict[str, Any]) -> None:
    """Fetch data/ as data.dvc names it, unless it has changes of the user's own: those are never overwritten."""
    if has_unrecorded_changes(Path("data")):
        print("data/ differs from data.dvc: it is used as it is, and recorded (as by dvc add data)")
    elif dvc("pull", "data.dvc").returncode and (lost := bring(Path(), ["data.dvc"])):
        told["failed"] = "data"
        raise UserError(
            f"the data that data.dvc names are in no store that this machine reaches ({lost}): where they were added, name "
            "a DVC remote for both machines (.venv/bin/dvc remote add --default storage s3://..., commit .dvc/config) and "
            "run .venv/bin/dvc push; the remote `starter` is a folder of one clone, whose content Git ignores"
        )


def _cut(epochs: int | None, told: dict[str, Any]) -> dict[str, int] | None:
    """Lower `train.epochs` of params.yaml to a budget, without folds and further seeds; the report calls it a preview."""
    try:
        params = load(_PARAMS)
        if "kind" not in params.model_fields_set:  # it has a default, but DVC fills dvc.yaml from the file alone
            raise UserError(f"{_PARAMS}: kind is missing: write `kind: {params.kind}`, which dvc.yaml asks for")
    except UserError:
        told["failed"] = "params"
        raise
    train = params.train
    if epochs is None or (train.epochs <= epochs and not train.folds and train.repeats == 1):
        return None
    left = min(epochs, train.epochs)
    values: dict[str, Any] = {"epochs": left, "folds": 0, "repeats": 1}
    if left < train.epochs:
        values["warmup_epochs"] = min(train.warmup_epochs, math.floor(left / 3))
    lowered: dict[Place, Any] = {("train", key): value for key, value in values.items() if value != getattr(train, key)}
    _PARAMS.write_text(put(_PARAMS.read_text(), lowered))
    print(f"small budget: {left} of {train.epochs} epochs, no folds, one seed")
    return {"asked": train.epochs, "epochs": left}


def _require_success(status: int | None, journal: StageLog, told: dict[str, Any], minutes: float | None) -> None:
    if status == 0:
        journal.close()
        return
    told["failed"] = journal.stage or "pipeline"
    told["said"] = "\n".join(journal.said)
    journal.close()
    if status is None:
        told["said"] += f"\nstopped: the budget of {minutes:g} minutes ran out"
        raise UserError(
            f"{told['failed']} was stopped: the budget of {minutes:g} minutes ran out. Lower train.epochs, or name a faster "
            "machine in the variable TRAIN_RUNNER"
        )
    raise UserError("the pipeline stopped; the lines above say why. Mend it and run make reproduce again")


def _results() -> str:
    metrics = MetricsFile.read(_METRICS, made_by="evaluate")
    columns = [one for one in (metrics, metrics.baseline) if one]
    rows = [["accuracy", *(f"{one.accuracy:.2%} ({one.accuracy_low:.2%} to {one.accuracy_high:.2%})" for one in columns)]]
    rows += [[name, *(f"{getattr(one, name):.4f}" for one in columns)] for name in ("macro_f1", "log_loss", "ece")]
    worst, score = min(
        ((name, scores.recall or 0.0) for name, scores in metrics.per_class.items()), key=lambda pair: pair[1]
    )
    rows += [
        ["worst class", f"{worst}: recall {score:.2%}"],
        ["model size", f"{(metrics.model_bytes or 0) / 2**20:.1f} MiB"],
    ]
    header = [f"test, {metrics.examples} examples", "model", "logistic regression"]
    return table(header, [[*row, *[""] * (len(header) - len(row))] for row in rows])


def main() -> None:
    """Parse the command line and reproduce."""
    parser = argparse.ArgumentParser(description="Pull the data, reproduce the pipeline, show the metrics.")
    parser.add_argument("--pull", action="store_true", help="bring from the store what it has instead of making it again")
    parser.add_argument("--epochs", type=int, metavar="N", help="a small budget: train no more than N epochs")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes")
    parser.add_argument("--run", type=Path, default=Path("out/run.json"), help="what to write about the run")
    parser.add_argument("--params", type=Path, metavar="FILE", help="a recipe to put into params.yaml first")
    args = parser.parse_args()
    with dvc_locks.alone():
        dvc_locks.mend()
        if args.params:
            changed = recipe.adopt(args.params, _PARAMS)
            print(f"{_PARAMS} {'now says what' if changed else 'says already what'} {args.params} says")
            print("\n".join(f"  {line}" for line in changed))
        reproduce(args.pull, args.epochs, args.minutes, args.run)
