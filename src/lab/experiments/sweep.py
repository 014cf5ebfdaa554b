"""Search better params: `make sweep`. Killed at any time, the same command goes on where it was.

    python -m src sweep out/arrays out/validation.json out/sweep --trials 20

Tries the params as they are, then some at random, then what TPE proposes, or every combination of lists of choices where
they are no more than the trials; the median of the others ends a trial early.
Reads `sweep` and `train` of params.yaml; keeps its trials in sweep.db (or in PostgreSQL, for several machines). To use more
processors, GPUs (CUDA_VISIBLE_DEVICES=1) or machines, run the same command again beside the first. Writes out/sweep
(sweep.html, sweep.md, trials.csv, best.json, pictures, params.yaml with the best params).
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
from src.lab.experiments import sweep_results, sweep_space
from src.lab.experiments.sweep_results import Results
from src.lab.experiments.sweep_worker import FINISHED, Job, open_study, storage_errors, work
from src.system import tracking
from src.system.params import Params, load
from src.system.params_text import put
from src.training import checkpoint, loop
from src.training.task import of, require_passed

_STORAGE = "sqlite:///sweep.db"
_BY_VARIABLE = ("trials", "minutes", "storage")  # so that a workflow puts no input of a person into a command
_ELSEWHERE = {"device", "compile", "processes", "folds", "repeats"}  # of train: where and how often, not what


def sweep(args: argparse.Namespace, params: Params) -> None:
    """Search until all trials are done or the time is up; write the results.

    Raises:
        UserError: the data did not pass validation, the space does not fit the params, the storage does not answer,
            or no trial was trained to its end.
    """
    data = arrays.load(args.arrays, params.prepare.spec)
    require_passed(args.validation, data)
    images = len(of(data).validation.labels)
    if not images:
        raise UserError("there is no validation image to choose by: raise prepare.validation_share, then run `dvc repro`")
    space = sweep_space.of(params)
    name = study_name(data.manifest_sha256, params)
    study = open_study(args.storage, name, space, params)
    with storage_errors(args.storage):
        _print_start(study, space.grid_size(params.sweep.trials) or params.sweep.trials)
        present = {f"present.{key}": value for key, value in space.present.items()}
        tags = {"mlflow.runName": name, "sweep.study": name}
        run = tracking.start(present, tags, study.user_attrs.get("mlflow"))
        if run:
            study.set_user_attr("mlflow", run.id)
    until = time.time() + 60 * args.minutes if args.minutes else None
    job = Job(args.arrays, args.checkpoints, args.storage, name, params, run.id if run else None, until)
    work(job)
    work(job, lost=True)
    with storage_errors(args.storage):
        results = sweep_results.collect(study, space.present, params.sweep.objective, job.wanted, images)
    if run:
        run.log(0, {"accuracy": results.best.accuracy or 0.0, "log_loss": results.best.log_loss or 0.0})
        run.finish("FINISHED")
    best = {("train", *key.split(".")): value for key, value in results.best.values.items()}
    sweep_results.write(args.out, results, put(args.params.read_text(), best), study)
    if len(results.tried) >= results.wanted:
        shutil.rmtree(args.checkpoints / name, ignore_errors=True)
    _print_end(results, args)


def study_name(manifest_sha256: str, params: Params) -> str:
    """Return a name that changes with the question: the data, `train` (the first trial is made of it), space, code.

    `sweep.trials` and `sweep.random` are no part of it: asking for more of them goes on.
    """
    fixed = params.train.model_dump(exclude=_ELSEWHERE)
    searched = params.sweep.model_dump(include={"objective", "prune_after", "space"})
    return "sweep-" + checkpoint.key([manifest_sha256, fixed, searched], *loop.CODE)[:12]


def _print_start(study: optuna.Study, wanted: int) -> None:
    trials, name = study.get_trials(deepcopy=False), study.study_name
    if len(trials) > 1 or trials[0].datetime_start:
        done = sum(trial.state in FINISHED for trial in trials)
        print(f"{name}: goes on, {done} of {wanted} trials are done", flush=True)
    else:
        print(f"{name}: {wanted} trials, the first one with the params as they are", flush=True)


def _print_end(results: Results, args: argparse.Namespace) -> None:
    print(f"\n{sweep_results.document(results).partition('## Importance')[0].strip()}\n")
    print(f"results: {args.out} (sweep.html, sweep.md, trials.csv, pictures; params.yaml with the best params)")
    if len(results.tried) < results.wanted:
        print(f"{len(results.tried)} of {results.wanted} trials are done: run the same command again for the others")
    if results.best is not results.present:
        print(f"take them over: cp {args.out / 'params.yaml'} {args.params}")


def main() -> None:
    """Parse the command line and search."""
    parser = argparse.ArgumentParser(description="Search better params on the validation split; resumable.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("validation", type=Path, help="validation.json that validate wrote")
    parser.add_argument("out", type=Path, help="folder to write the results into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=_count, metavar="N", help="in all, instead of sweep.trials (SWEEP_TRIALS)")
    parser.add_argument("--minutes", type=float, metavar="N", help="train no longer; a later run goes on (SWEEP_MINUTES)")
    parser.add_argument("--storage", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE (SWEEP_STORAGE)")
    parser.add_argument("--checkpoints", type=Path, default=Path("out/checkpoints/sweep"), help="of unfinished trials")
    parser.set_defaults(**{name: os.environ.get(f"SWEEP_{name.upper()}") or None for name in _BY_VARIABLE})
    args = parser.parse_args()
    if args.minutes is not None and not 0 < args.minutes < 1e6:
        parser.error(f"argument --minutes: expected a number of minutes over 0, not {args.minutes}")
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
