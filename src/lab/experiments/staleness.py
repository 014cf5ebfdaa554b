"""How much newer data buys: trains on what had come by each month, without the oldest, and on shares of all there is.

  python -m src staleness out/arrays out/manifest.parquet out/staleness [--epochs N] [--seeds N] [--points N]

When an image came is read from the history of dvc.lock; with one version of the data there is the learning curve alone.
Everything is scored on the same test images. Writes staleness.md, staleness.csv and staleness.png. A study that was killed
goes on when the same command is run.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError
from src.core.files import check_outputs, sha256
from src.lab.experiments import arrivals, staleness_page
from src.lab.experiments.parts import Outcome, Part, parts
from src.lab.experiments.purchases import bought
from src.lab.experiments.trainings import Training, add_budget, changed, seeds, train_all
from src.system.params import Params, load
from src.training.task import Task, of
from src.training.train_params import Train


def measure(folder: Path, manifest: Path, out: Path, params: Params, count: int, points: int) -> str:
    """Train on every part of the data with `count` seeds each; write the page and return its answer in words.

    Raises:
        UserError: the manifest is not that of the arrays, there is no test image, or a training is not possible.
    """
    data = arrays.load(folder)
    task, test = of(data), data.split("test")
    if not len(test.labels):
        raise UserError("there is no test split to score on: raise prepare.test_share, then run `dvc repro`")
    if not manifest.is_file() or sha256(manifest) != data.manifest_sha256:
        raise UserError(f"{manifest} is missing or not that of {folder}: run `dvc repro prepare`, or `dvc checkout`")
    came = arrivals.read(manifest, out / "manifests", datetime.now(UTC))
    found = arrivals.periods(came.training, points)
    recipes = seeds(params.train, count)
    wanted, small = parts(task.training.labels, came.training, found, [recipe.seed for recipe in recipes])
    outcomes = _outcomes(task, test, wanted, recipes, out)
    result = bought(outcomes, came, found, params)
    staleness_page.write(out, task, result, [*came.notes, *small], params, count)
    return staleness_page.answer(result)


def _outcomes(task: Task, test: Split, wanted: Sequence[Part], recipes: Sequence[Train], out: Path) -> list[Outcome]:
    trainings = [
        Training(f"{part.kind} {part.name}, seed {recipe.seed}", replace(task, training=task.training.subset(rows)), recipe)
        for part in wanted
        for recipe, rows in zip(recipes, part.rows, strict=True)
    ]
    flat = train_all(trainings, "staleness", test, "test", out)
    found = []
    for place, part in enumerate(wanted):
        answers = flat[place * len(recipes) : (place + 1) * len(recipes)]
        right, losses = (np.stack([getattr(one, name) for one in answers]) for name in ("right", "losses"))
        found.append(Outcome(part, right, losses))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell how much newer and more data buy, by training without some of it.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("manifest", type=Path, help="manifest.parquet of the same run, by its path in the repository")
    parser.add_argument("out", type=Path, help="folder for the page, the table, the picture and the kept trainings")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    add_budget(parser)
    parser.add_argument("--points", type=int, default=6, help="months to show at most (default 6); more are joined")
    args = parser.parse_args()
    check_outputs([args.arrays, args.manifest], folders=[args.out])
    params = load(args.params)
    if args.seeds < 1 or args.points < 2 or args.epochs < 0:
        raise UserError(
            "--seeds must be at least 1, --points at least 2, and --epochs at least 0: 0 is what params.yaml says"
        )
    if args.epochs:
        params = params.model_copy(update={"train": changed(params.train, epochs=args.epochs)})
    print(f"\n{measure(args.arrays, args.manifest, args.out, params, args.seeds, args.points)}")
    print(f"\n{args.out}/staleness.md has it all")
