"""What a sweep found, as files: sweep.md, trials.csv, best.json, params.yaml, history.png and importance.png."""

import csv
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

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
    """All that was answered, the best first; judged on so many `images`, of as many trials as were `wanted`."""

    study: str
    objective: str
    wanted: int
    images: int
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
        more = round((self.best.accuracy - self.present.accuracy) * self.images)
        return f"{more:+d} of {self.images:,} validation images against the present params"


def collect(study: optuna.Study, trials: Sequence[FrozenTrial], objective: str, wanted: int, images: int) -> Results:
    """Read the answered trials.

    Raises:
        UserError: none was trained to its end.
    """
    tried = sorted((_tried(trial) for trial in trials), key=lambda one: one.rank)
    if not tried or tried[0].value is None:
        raise UserError(
            f"not one of {len(tried)} trials was trained to its end: run the same command again, or give it longer"
        )
    return Results(study.study_name, objective, wanted, images, tried, _importance(study, tried))


def _tried(trial: FrozenTrial) -> Tried:
    told = trial.user_attrs
    value = trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None
    facts = {name: told.get(name) for name in ("accuracy", "log_loss", "epoch", "seconds")}
    return Tried(question=told["question"], values=told["values"], value=value, reason=told.get("reason", ""), **facts)


def _importance(study: optuna.Study, tried: Sequence[Tried]) -> dict[str, float]:
    """Return each key's share of what varies in the results; empty where there are too few.

    Source: Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (2014), fANOVA.
    """
    if sum(one.value is not None for one in tried) < _ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all values alike: the shares are then zero
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write(folder: Path, results: Results, params: str) -> None:
    """Write the folder anew; `params` is the text of params.yaml with the best params.

    In a workflow sweep.md is shown on the run's page too.
    """
    with replacing(folder) as fresh:
        fresh.mkdir()
        _write_csv(fresh / "trials.csv", results)
        (fresh / "sweep.md").write_text(document(results))
        (fresh / "params.yaml").write_text(params)
        write_json(fresh / "best.json", facts(results))
        _draw_history(fresh / "history.png", results)
        if results.importance:
            _draw_importance(fresh / "importance.png", results)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a") as page:
            page.write(re.sub(r"!\[\w+\]\(\w+\.png\)", "", document(results)))


def facts(results: Results) -> dict[str, Any]:
    """Return what a pull request tells: numbers and names only."""
    pair = {"best": results.best, "present": results.present}
    return {
        "images": results.images,
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
    rows = [("present params", present)] if best is present else [("best", best), ("present params", present)]
    curse = (
        f"The best of {len(results.tried)} on one validation split looks better than it is: it was chosen for that number "
        f"(the winner's curse). One image is {1 / results.images:.2%} of accuracy here. The pull request's test images, "
        "which took no part in the choice, are the judge."
    )
    parts = [
        f"# {results.study}: {len(results.tried)} of {results.wanted} trials",
        _verdict(results),
        _table(["", *_HEADER, *best.values], [[name, *_cells(one)] for name, one in rows]),
        curse,
        f"## Importance\n\n{_importance_words(results)}",
        f"## The best {min(_TOP, len(results.tried))} trials",
        _table([*_HEADER, *best.values], [_cells(one) for one in results.tried[:_TOP]]),
        "All trials are in trials.csv. Trial 0 is the params as they were. ![History](history.png)",
    ]
    return "\n\n".join(parts) + "\n"


_HEADER = ["trial", "accuracy", "log loss", "epoch", "ended"]


def _verdict(results: Results) -> str:
    measure = "log loss" if results.objective == "log_loss" else "accuracy, equal ones by log loss"
    if results.best is results.present:
        return f"**No trial beat the present params** (by {measure}, on the validation split)."
    return f"**Trial {results.best.question} is the best** by {measure}, on the validation split: {results.gain}."


def _cells(one: Tried) -> list[str]:
    accuracy = "" if one.accuracy is None else f"{one.accuracy:.2%}"
    log_loss = "" if one.log_loss is None else f"{one.log_loss:.4f}"
    values = [str(value) for value in one.values.values()]
    return [str(one.question), accuracy, log_loss, str(one.epoch or ""), one.reason or "complete", *values]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)


def _importance_words(results: Results) -> str:
    if not results.importance:
        return f"Fewer than {_ENOUGH} trials were trained to the end: which key matters would be chance."
    rows = [[key, f"{share:.0%}"] for key, share in results.importance.items()]
    told = (
        "Share of the difference between complete trials that a key accounts for (fANOVA). Of under 30 trials it is a hint."
    )
    return f"{told}\n\n{_table(['key', 'share'], rows)}\n\n![Importance](importance.png)"


def _draw_history(path: Path, results: Results) -> None:
    """Draw each trial's number, in order, with the best so far; what is far below the complete ones stands at the edge."""
    in_order = sorted(results.tried, key=lambda one: one.question)
    measure = "log_loss" if results.objective == "log_loss" else "accuracy"
    shown = [(one, getattr(one, measure)) for one in in_order if getattr(one, measure) is not None]
    complete = [(one.question, number) for one, number in shown if one.value is not None]
    pruned = [(one.question, number) for one, number in shown if one.value is None]
    numbers = np.array([number for _, number in complete])
    best_so_far = np.minimum.accumulate(numbers) if measure == "log_loss" else np.maximum.accumulate(numbers)
    low, high = _limits(numbers, getattr(results.present, measure), measure)
    made = pictures.figure(8, 3.8)
    axes = made.subplots()
    for points, colour, marker, name in (
        (complete, pictures.BLUE, "o", "complete"),
        (pruned, pictures.GREY, "x", "pruned (at its last epoch)"),
    ):
        if points:
            places, values = np.array(points).T
            axes.scatter(
                places, np.clip(values, low, high), c=colour, marker=marker, s=30, label=name, clip_on=False, zorder=3
            )
    best_so_far, last = np.append(best_so_far, best_so_far[-1]), in_order[-1].question
    axes.step(
        [*(place for place, _ in complete), last], best_so_far, where="post", color=pictures.ORANGE, label="best so far"
    )
    if complete and complete[0][0] == 0:
        axes.axhline(complete[0][1], color=pictures.RED, linestyle="--", linewidth=1, label="present params")
    title = f"{len(results.tried)} trials on {results.images:,} validation images"
    axes.set(title=title, xlabel="trial", ylabel=measure.replace("_", " "), ylim=(low, high))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    made.text(0.01, 0.01, "worse ones at the edge", fontsize=7, color=pictures.GREY)
    pictures.save(made, path)


def _limits(numbers: NDArray[np.float64], present: float | None, measure: str) -> tuple[float, float]:
    """Return ends of an axis that show the better half of the complete trials well, and the present params."""
    best = numbers.min() if measure == "log_loss" else numbers.max()
    room = max(float(4 * abs(np.median(numbers) - best)), 1.1 * abs((best if present is None else present) - best), 0.01)
    if measure == "log_loss":
        return max(0.0, best - 0.1 * room), float(best + room)
    return max(0.0, float(best - room)), min(1.0, float(best + 0.1 * room))


def _draw_importance(path: Path, results: Results) -> None:
    keys = list(results.importance)[::-1]
    made = pictures.figure(6, 1.2 + 0.35 * len(keys))
    axes = made.subplots()
    shares = [results.importance[key] for key in keys]
    axes.barh(keys, shares, color=pictures.BLUE)
    for place, share in enumerate(shares):
        axes.text(share + 0.01, place, f"{share:.0%}", va="center", fontsize=9)
    axes.set(title="Importance (fANOVA)", xlabel="share of the difference between complete trials", xlim=(0, 1.1))
    pictures.save(made, path)
