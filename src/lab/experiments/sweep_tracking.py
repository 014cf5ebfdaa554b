"""A sweep in MLflow: one run that holds it, and below it one run a trial, which training itself logs to."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from src.lab.experiments.sweep_space import Values
from src.system import mlflow_client, tracking


def parent(name: str, values: Values, known: str | None) -> str | None:
    """Return the id of the sweep's own run: the one of an earlier start, or a new one; None where nothing is tracked."""
    run = tracking.start(
        {f"present.{key}": value for key, value in values.items()}, {"mlflow.runName": name, "sweep.study": name}, known
    )
    return run.id if run else known


def tags(name: str, question: int, parent_id: str | None) -> dict[str, str]:
    """Return the tags of a trial's run."""
    own = {"mlflow.runName": f"{name} trial {question}", "sweep.study": name, "sweep.trial": str(question)}
    return own | ({"mlflow.parentRunId": parent_id} if parent_id else {})


def tell_trial(name: str, question: int, state: str, metrics: Mapping[str, float]) -> None:
    """Write how a trial ended to its run, and end what a worker that was killed left behind of it."""

    def tell(client: Any) -> None:
        runs = _runs(client, f"tags.`sweep.study` = '{name}' and tags.`sweep.trial` = '{question}'")
        for i, run in enumerate(runs):
            client.set_tag(run.info.run_id, "sweep.state", state if i == 0 else "lost")
            client.set_terminated(run.info.run_id, "KILLED" if i else "FINISHED")
        for key, value in metrics.items():
            client.log_metric(runs[0].info.run_id, key, value)

    _try(tell)


def tell_end(parent_id: str, best: Values, metrics: Mapping[str, float]) -> None:
    """Write the winner to the sweep's own run, and end it."""

    def tell(client: Any) -> None:
        for key, value in best.items():
            client.set_tag(parent_id, f"best.{key}", str(value))
        for key, number in metrics.items():
            client.log_metric(parent_id, key, number)
        client.set_terminated(parent_id, "FINISHED")

    _try(tell)


def _runs(client: Any, question: str) -> list[Any]:
    """Return the runs that fit, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, question, order_by=["attributes.start_time DESC"]))


def _try(tell: Callable[[Any], None]) -> None:
    try:
        tell(mlflow_client.connect()[0])
    except (
        Exception
    ) as error:  # whatever MLflow's client raises: the result is in the sweep's storage, and the sweep goes on
        print(f"MLflow did not take how the trial ended ({str(error)[:200]}): the sweep goes on", file=sys.stderr)
