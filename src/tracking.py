"""Live logging to MLflow: `MLFLOW_TRACKING_URI` names the server or file, empty switches it off, unset is sqlite:///mlflow.db."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from src.command import UserError

DEFAULT_URI = "sqlite:///mlflow.db"
_EXPERIMENT = "image-classifier"


class Run:
    """One MLflow run. Only starting it can fail: a server lost later costs log lines, never hours of training."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._lost = False
        self.id = run_id

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, epoch) for name, value in metrics.items()]
        self._try(lambda: self._client.log_batch(self.id, metrics=values))

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._try(lambda: self._client.set_terminated(self.id, status))

    def _try(self, call: Any) -> None:
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # whatever the network or the server does, training goes on
            self._lost = True
            print(f"MLflow no longer answers ({_first_line(error)}): training goes on without it", file=sys.stderr)


def start(params: Mapping[str, Any], tags: Mapping[str, str], resume: str | None) -> Run | None:
    """Start a run, or go on with the run `resume`; None when tracking is switched off.

    Raises:
        UserError: the server does not answer, or refuses.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)
    if not uri:
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 hang for minutes on a dead server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return _start(uri, params, tags, resume)
    except Exception as error:  # MLflow, its store and its HTTP client raise many classes; each means: not reachable
        reason = _first_line(error)
        raise UserError(
            f"MLflow at {uri} does not take the run ({reason}): start it, correct MLFLOW_TRACKING_URI, or set that "
            "variable to nothing to train without"
        ) from None


def _start(uri: str, params: Mapping[str, Any], tags: Mapping[str, str], resume: str | None) -> Run:
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunTag

    client = MlflowClient(tracking_uri=uri)
    if resume:
        client.update_run(resume, status="RUNNING")
        return Run(client, resume)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run = client.create_run(experiment_id)
    client.log_batch(
        run.info.run_id,
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    return Run(client, run.info.run_id)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
