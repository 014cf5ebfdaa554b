"""What a sweep found, as files: sweep.md and sweep.html, trials.csv, best.json, params.yaml, history.png, importance.png."""

import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from src.core import pictures
from src.core.command import UserError
from src.core.files import replacing, write_json
from src.lab.experiments.sweep_space import Values
from src.reporting import page, render

_ENOUGH = 4  # complete trials, under which there is nothing to learn from
_TEMPLATE = Path(__file__).parent / "sweep.md"


@dataclass(frozen=True)
class Tried:
    """One answered question. `value` is what was minimised; a pruned trial has none."""

    question: int
    values: Values
    value: float | None = None
    accuracy: float | None = None
    log_loss: float | None = None
    epoch: int | None = None
    seconds: float | None = None
    reason: str = ""

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What to sort by, the best first; of equal ones the earlier, so that the present params stay if none is better."""
        return self.value is None, self.value or 0.0, self.question


@dataclass(frozen=True)
class Results:
    """All that was answered, the best first; judged on so many `examples`, of as many trials as were `wanted`."""

    study: str
    objective: str
    wanted: int
    examples: int
    tried: list[Tried]
    importance: dict[str, float]

    @property
    def best(self) -> Tried:
        """The best complete trial."""
        return self.tried[0]

    @property
    def present(self) -> Tried:
        """The params as they were."""
        return next(one for one in self.tried if one.question == 0)

    @property
    def measure(self) -> str:
        """What trials are ranked by, in words."""
        return "log loss" if self.objective == "log_loss" else "accuracy, equal ones by log loss"

    @property
    def gain(self) -> str:
        """How far the best is ahead of the present params, in words."""
        if self.present.accuracy is None or self.best.accuracy is None:
            return "the present params did not train to the end, so there is nothing to compare with"
        more = round((self.best.accuracy - self.present.accuracy) * self.examples)
        return f"{more:+d} of {self.examples:,} validation examples against the present params"


def collect(study: optuna.Study, present: Values, objective: str, wanted: int, examples: int) -> Results:
    """Read the finished trials.

    Raises:
        UserError: none was trained to its end.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    tried = [Tried(value=one.value if one.state == TrialState.COMPLETE else None, **one.user_attrs) for one in finished]
    tried.sort(key=lambda one: one.rank)
    if not tried or tried[0].value is None:
        raise UserError(
            f"not one of {len(tried)} trials was trained to its end: run the same command again, or give it longer"
        )
    if not any(one.question == 0 for one in tried):
        tried.append(Tried(0, present, reason="its workers were killed"))
    importance = {}
    if sum(one.value is not None for one in tried) >= _ENOUGH:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all values alike: the shares are then zero
            # Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (2014)
            importance = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Results(study.study_name, objective, wanted, examples, tried, importance)


def write(folder: Path, results: Results, params: str, study: optuna.Study) -> None:
    """Write the folder anew; `params` is the text of params.yaml with the best params.

    In a workflow sweep.md is shown on the run's page too.
    """
    measure = "log loss" if results.objective == "log_loss" else "share of wrong validation examples"
    mpl.use("agg")  # draws without a screen
    with replacing(folder) as fresh, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's pictures count as experimental
        fresh.mkdir()
        with (fresh / "trials.csv").open("w", newline="") as file:
            names = ["question", "accuracy", "log_loss", "value", "epoch", "seconds", "reason"]
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["state", *names, *results.best.values])
            for tried in sorted(results.tried, key=lambda one: one.question):
                numbers = [getattr(tried, name) for name in names]
                lines.writerow(["pruned" if tried.value is None else "complete", *numbers, *tried.values.values()])
        (fresh / "params.yaml").write_text(params)
        write_json(fresh / "best.json", facts(results))
        axes = [("history", plots.plot_optimization_history(study, target_name=measure))]
        if results.importance:
            evaluator = FanovaImportanceEvaluator(seed=0)
            axes.append(("importance", plots.plot_param_importances(study, evaluator, target_name=measure)))
        for name, one in axes:
            pictures.save(one.figure, fresh / f"{name}.png")  # type: ignore[arg-type]
        text = document(results)
        (fresh / "sweep.md").write_text(text)
        page.write(fresh / "sweep.html", text)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a") as summary:
            summary.write(document(results, pictures=False))


def facts(results: Results) -> dict[str, Any]:
    """Return what a pull request tells: numbers and names only."""
    pair = {"best": results.best, "present": results.present}
    return {
        "examples": results.examples,
        "objective": results.objective,
        "params": results.best.values,
        "study": results.study,
        "trials": len(results.tried),
        **{name: {"accuracy": one.accuracy, "log_loss": one.log_loss, "trial": one.question} for name, one in pair.items()},
    }


def document(results: Results, *, pictures: bool = True) -> str:
    """Return sweep.md."""
    return render.section(_TEMPLATE, found=results, pictures=pictures) + "\n"
