"""Which augmentation earns its cost: trains the recipe of params.yaml with one thing switched at a time, and compares.

    python -m src ablation out/arrays out/ablation [--epochs N] [--seeds N] [--only flip erase=0.5] [--also]

Judged on the validation split; the test split is not looked at. Writes ablation.md, ablation.csv and ablation.png, and
never params.yaml. A study that was killed goes on when the same command is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.core import arrays
from src.core.command import UserError
from src.core.files import check_outputs
from src.lab.experiments import ablation_page, cost, verdicts
from src.lab.experiments.trainings import Answers, Training, add_budget, changed, seeds, train_all
from src.lab.experiments.variants import variants
from src.system.params import Params, load
from src.training.task import Task, of
from src.training.train_params import Train


def ablate(folder: Path, out: Path, params: Params, count: int, only: Sequence[str], also: bool) -> list[verdicts.Finding]:
    """Train the baseline and its variants with `count` seeds each; write the page and return what was found.

    Raises:
        UserError: there is no validation split, a name or strength of `only` is wrong, or a training is not possible.
    """
    data = arrays.load(folder)
    task = of(data)
    if len(task.validation.labels) < 2:
        raise UserError("there is no validation split to judge by: raise prepare.validation_share, then run `dvc repro`")
    tried = variants(params.train, data.size, only, also)
    recipes = {"the recipe": params.train, **{variant.title: variant.params for variant in tried}}
    answers = _answers(task, recipes, count, out)
    costs = cost.relative(task, params.train, {variant.name: variant.params for variant in tried})
    baseline, *others = answers
    found = verdicts.judge(tried, baseline, others, costs, params.evaluate.confidence)
    ablation_page.write(out, found, baseline, task, params, count)
    return found


def _answers(task: Task, recipes: dict[str, Train], count: int, out: Path) -> list[list[Answers]]:
    """Return the answers of each recipe, seed by seed. Seeds are the outer loop: a study cut short has compared all."""
    wanted = [
        Training(f"{title}, seed {seeded.seed}", task, seeded)
        for place in range(count)
        for title, recipe in recipes.items()
        for seeded in [seeds(recipe, count)[place]]
    ]
    flat = train_all(wanted, "ablation", task.validation, "validation", out)
    places = np.arange(len(wanted)).reshape(count, len(recipes)).T
    return [[flat[place] for place in row] for row in places]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Tell which augmentation earns its cost, by training without and with each."
    )
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder for the page, the table, the picture and the kept trainings")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    add_budget(parser)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME[=STRENGTH]", help="vary these alone: flip erase=0.5")
    parser.add_argument("--also", action="store_true", help="vary label smoothing, ema, warm-up, clipping and decay too")
    args = parser.parse_args()
    check_outputs([args.arrays], folders=[args.out])
    params = load(args.params)
    if args.seeds < 1 or args.epochs < 0:
        raise UserError("--seeds must be at least 1, and --epochs at least 0: 0 takes what params.yaml says")
    if args.epochs:
        params = params.model_copy(update={"train": changed(params.train, epochs=args.epochs)})
    found = ablate(args.arrays, args.out, params, args.seeds, args.only, args.also)
    print(f"\n{verdicts.sentence(found)}\n\n{verdicts.text(found)}\n\n{args.out}/ablation.md has it all")
