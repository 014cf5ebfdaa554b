"""What a sweep found, as files: sweep.md, trials.csv, best.json, params.yaml, history.png and importance.png."""

import csv
import os
import re
import warnings
from collections.abc import Sequence
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

_TOP = 10  # trials in sweep.md; trials.csv has all
_ENOUGH = 4  # complete trials, under which there is nothing to learn from


@dataclass(frozen=True)
class Tried:
    """One answered question. `value` is what was minimised; a pruned trial has none."""

    question: int
    values: Values
    value: float | None
    accuracy: float | None
    log_loss: float | None
    epoch: int | None
    seconds: float | None
    reason: str

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
    def gain(self) -> str:
        """How far the best is ahead of the present params, in words."""
        if self.present.accuracy is None or self.best.accuracy is None:
            return "the present params did not train to the end, so there is nothing to compare with"
        more = round((self.best.accuracy - self.present.accuracy) * self.examples)
        return f"{more:+d} of {self.examples:,} validation images against the present params"


def collect(study: optuna.Study, present: Values, objective: str, wanted: int, examples: int) -> Results:
    """Read the finished trials.

    Raises:
        UserError: none was trained to its end.
    """
    tried = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        facts = trial.user_attrs
        value = trial.value if trial.state == TrialState.COMPLETE else None
        known = {name: facts.get(name) for name in ("accuracy", "log_loss", "epoch", "seconds")}
        tried.append(Tried(facts["question"], facts["values"], value, reason=facts.get("reason", ""), **known))
    tried.sort(key=lambda one: one.rank)
    if not tried or tried[0].value is None:
        raise UserError(
            f"not one of {len(tried)} trials was trained to its end: run the same command again, or give it longer"
        )
    if not any(one.question == 0 for one in tried):
        tried.append(Tried(0, present, None, None, None, None, None, "its workers were killed"))
    importance = {}
    if sum(one.value is not None for one in tried) >= _ENOUGH:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all values alike: the shares are then zero
            # Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (2014)
            importance = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Results(study.study_name, objective, wanted, examples, tried, importance)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write(folder: Path, results: Results, params: str, study: optuna.Study) -> None:
    """Write the folder anew; `params` is the text of params.yaml with the best params.

    In a workflow sweep.md is shown on the run's page too.
    """
    measure = "log loss" if results.objective == "log_loss" else "share of wrong validation images"
    mpl.use("agg")  # draws without a screen
    with replacing(folder) as fresh, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's pictures count as experimental
        fresh.mkdir()
        _write_csv(fresh / "trials.csv", results)
        (fresh / "sweep.md").write_text(document(results))
        (fresh / "params.yaml").write_text(params)
        write_json(fresh / "best.json", facts(results))
        axes = [("history", plots.plot_optimization_history(study, target_name=measure))]
        if results.importance:
            evaluator = FanovaImportanceEvaluator(seed=0)
            axes.append(("importance", plots.plot_param_importances(study, evaluator, target_name=measure)))
        for name, one in axes:
            pictures.save(one.figure, fresh / f"{name}.png")  # type: ignore[arg-type]
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a") as page:
            page.write(re.sub(r"!\[\w+\]\(\w+\.png\)", "", document(results)))


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


def _write_csv(path: Path, results: Results) -> None:
    names = ["question", "state", "accuracy", "log_loss", "value", "epoch", "seconds", "reason", *results.best.values]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for one in sorted(results.tried, key=lambda one: one.question):
            state = "pruned" if one.value is None else "complete"
            numbers = [one.accuracy, one.log_loss, one.value, one.epoch, one.seconds, one.reason]
            writer.writerow([one.question, state, *numbers, *one.values.values()])


def document(results: Results) -> str:
    """Return sweep.md."""
    best, present = results.best, results.present
    measure = "log loss" if results.objective == "log_loss" else "accuracy, equal ones by log loss"
    verdict = f"**Trial {best.question} is the best** by {measure}, on the validation split: {results.gain}."
    if best is present:
        verdict = f"**No trial beat the present params** (by {measure}, on the validation split)."
    rows = [("present params", present)] if best is present else [("best", best), ("present params", present)]
    header = ["trial", "accuracy", "log loss", "epoch", "ended", *best.values]
    importance = f"Fewer than {_ENOUGH} trials were trained to the end: which key matters would be chance."
    if results.importance:
        shares = _table(["key", "share"], [[key, f"{share:.0%}"] for key, share in results.importance.items()])
        importance = (
            "Share of the difference between complete trials that a key accounts for (fANOVA). Of under 30 trials it is a "
            f"hint.\n\n{shares}\n\n![Importance](importance.png)"
        )
    curse = (
        f"The best of {len(results.tried)} on one validation split looks better than it is: it was chosen for that number "
        f"(the winner's curse). One image is {1 / results.examples:.2%} of accuracy here. The pull request's test images, "
        "which took no part in the choice, are the judge."
    )
    parts = [
        f"# {results.study}: {len(results.tried)} of {results.wanted} trials",
        verdict,
        _table(["", *header], [[name, *_cells(one)] for name, one in rows]),
        curse,
        f"## Importance\n\n{importance}",
        f"## The best {min(_TOP, len(results.tried))} trials",
        _table(header, [_cells(one) for one in results.tried[:_TOP]]),
        "All trials are in trials.csv. Trial 0 is the params as they were. ![History](history.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _cells(one: Tried) -> list[str]:
    accuracy = "" if one.accuracy is None else f"{one.accuracy:.2%}"
    log_loss = "" if one.log_loss is None else f"{one.log_loss:.4f}"
    values = [str(value) for value in one.values.values()]
    return [str(one.question), accuracy, log_loss, str(one.epoch or ""), one.reason or "complete", *values]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
