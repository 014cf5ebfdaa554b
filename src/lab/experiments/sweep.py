"""Search better params: `make sweep`. Killed at any time, the same command goes on where it was.

    python -m src sweep out/arrays out/validation.json out/sweep --trials 20 --workers 2

Tries the params as they are, then some at random, then what TPE proposes; the median of the others ends a trial early.
Reads `sweep` and `train` of params.yaml; keeps its trials in sweep.db (or in PostgreSQL, for several machines: run the same
command on each); writes out/sweep (sweep.md, trials.csv, best.json, pictures) and a branch with the best params.
"""

import argparse
import os
import re
import shutil
import time
from pathlib import Path

import optuna

from src.core import arrays
from src.core.command import UserError
from src.core.files import check_outputs
from src.lab.experiments import sweep_branch, sweep_results, sweep_space, sweep_tracking
from src.lab.experiments.sweep_results import Results
from src.lab.experiments.sweep_study import Book, open_book, storage_told
from src.lab.experiments.sweep_worker import Job, work, work_together
from src.system.params import Params, load
from src.training import checkpoint, loop
from src.training.task import of, require_passed

_STORAGE = "sqlite:///sweep.db"
_BY_VARIABLE = ("trials", "minutes", "storage", "branch")  # so that a workflow puts no input of a person into a command
_ELSEWHERE = {"device", "compile", "processes", "folds", "repeats"}  # of train: where and how often, not what


def sweep(args: argparse.Namespace, params: Params) -> None:
    """Search until all trials are done or the time is up; write the results and the branch.

    Raises:
        UserError: the data did not pass validation, the space does not fit the params, the storage does not answer,
            or no trial was trained to its end.
    """
    data = arrays.load(args.arrays, params.prepare)
    require_passed(args.validation, data)
    images = len(of(data).validation.labels)
    if not images:
        raise UserError("there is no validation image to choose by: raise prepare.validation_share, then run `dvc repro`")
    space = sweep_space.of(params)
    name = study_name(data.manifest_sha256, params)
    book = open_book(args.storage, name, space, params.sweep)
    with storage_told(args.storage):
        _say_where(book, params.sweep.trials)
        tracked = book.note("mlflow", lambda known: sweep_tracking.parent(name, space.present, known))
    until = time.time() + 60 * args.minutes if args.minutes else None
    job = Job(args.arrays, args.checkpoints, args.storage, name, params, tracked, until)
    work(job) if args.workers == 1 else work_together(job, args.workers)
    with storage_told(args.storage):
        trials, wanted = book.finished(), params.sweep.trials
        results = sweep_results.collect(book.study, trials, params.sweep.objective, wanted, images)
    if tracked:
        numbers = {"accuracy": results.best.accuracy or 0.0, "log_loss": results.best.log_loss or 0.0}
        sweep_tracking.tell_end(tracked, results.best.values, numbers)
    sweep_results.write(args.out, results, sweep_branch.changed(args.params.read_text(), results.best.values))
    if len(trials) >= wanted:
        shutil.rmtree(args.checkpoints / name, ignore_errors=True)
    _say_end(results, args)


def study_name(manifest_sha256: str, params: Params) -> str:
    """Return a name that changes with the question: the data, `train` (the first trial is made of it), space, code.

    `sweep.trials` and `sweep.random` are no part of it: asking for more of them goes on.
    """
    fixed = params.train.model_dump(exclude=_ELSEWHERE)
    searched = params.sweep.model_dump(include={"objective", "prune_after", "space"})
    return "sweep-" + checkpoint.key([manifest_sha256, fixed, searched], *loop.CODE)[:12]


def _say_where(book: Book, wanted: int) -> None:
    done = len(book.finished())
    if done or book.unfinished():
        print(f"{book.study.study_name}: goes on, {done} of {wanted} trials are done", flush=True)
        return
    names = [name for name in optuna.get_all_study_names(book.study._storage) if name != book.study.study_name]  # noqa: SLF001
    others = f" ({', '.join(names)} of this storage asked for other data, params or code)" if names else ""
    print(f"{book.study.study_name}: {wanted} trials, the first one with the params as they are{others}", flush=True)


def _say_end(results: Results, args: argparse.Namespace) -> None:
    print(f"\n{sweep_results.document(results).partition('## Importance')[0].strip()}\n")
    print(f"results: {args.out} (sweep.md, trials.csv, history.png, importance.png; params.yaml with the best params)")
    if len(results.tried) < results.wanted:
        print(f"{len(results.tried)} of {results.wanted} trials are done: run the same command again for the others")
    if results.best is results.present:
        print("the present params are the best, so there is no branch to make")
    elif args.branch != "none":
        name = args.branch or f"sweep/{results.study.removeprefix('sweep-')}-{len(results.tried)}"
        print(sweep_branch.make(name, args.params, results))


def main() -> None:
    """Parse the command line and search."""
    parser = argparse.ArgumentParser(description="Search better params on the validation split; resumable.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("validation", type=Path, help="validation.json that validate wrote")
    parser.add_argument("out", type=Path, help="folder to write the results into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=_count, metavar="N", help="in all, instead of sweep.trials (SWEEP_TRIALS)")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument("--minutes", type=_minutes, metavar="N", help="train no longer; a later run goes on (SWEEP_MINUTES)")
    parser.add_argument("--storage", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE (SWEEP_STORAGE)")
    parser.add_argument("--checkpoints", type=Path, default=Path("out/checkpoints/sweep"), help="of unfinished trials")
    parser.add_argument(
        "--branch", metavar="NAME", help="the branch to make, or none (SWEEP_BRANCH; else sweep/STUDY-TRIALS)"
    )
    parser.set_defaults(**{name: os.environ.get(f"SWEEP_{name.upper()}") or None for name in _BY_VARIABLE})
    args = parser.parse_args()
    # a runner's machine can keep the trials of its jobs in a place of its own
    args.storage = args.storage or os.environ.get("LOCAL_SWEEP_STORAGE") or _STORAGE
    check_outputs([args.arrays, args.validation, args.params], folders=[args.out])
    params = load(args.params)
    if args.trials:
        params = params.model_copy(update={"sweep": params.sweep.model_copy(update={"trials": args.trials})})
    sweep(args, params)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 99999, not {text!r}")
    return int(text)


def _minutes(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text) or not float(text):
        raise argparse.ArgumentTypeError(f"expected a number of minutes, not {text!r}")
    return float(text)
