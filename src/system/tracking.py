"""Live logging to MLflow: `MLFLOW_TRACKING_URI` names the server or file, empty switches it off, unset is sqlite:///mlflow.db."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from src.system.mlflow_client import DEFAULT_URI, answering, connect, database_of

_EXPERIMENT = "image-classifier"


class TrackedRun:
    """One MLflow run. A server lost later costs log lines, never hours of training."""

    def __init__(self, client: Any, address: str, run_id: str) -> None:
        self._client = client
        self._address = address
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
            with answering(self._address):
                call()
        except Exception as error:  # whatever the network or the server does, training goes on
            self._lost = True
            _warn(error, "history.csv has all epochs, MLflow those until now")


def start(params: Mapping[str, Any], tags: Mapping[str, str], resume: str | None) -> TrackedRun | None:
    """Start a run, or go on with the run `resume` where MLflow knows it.

    A server that does not take the run costs a warning: the run is then kept in the file sqlite:///mlflow.db.

    Returns:
        None when tracking is switched off, or when not even the file takes the run.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI).strip()
    if not uri:
        return None
    for store in [uri] if database_of(uri) else [uri, DEFAULT_URI]:
        try:
            return _start(store, params, tags, resume)
        except Exception as error:  # MLflow, its store and its HTTP client raise many classes
            _warn(error, "not tracked" if database_of(store) else f"tracked in {DEFAULT_URI}")
    return None


def _start(uri: str, params: Mapping[str, Any], tags: Mapping[str, str], resume: str | None) -> TrackedRun:
    client, address = connect(uri)
    from mlflow.entities import Param

    with answering(address):
        if resume:
            with suppress(Exception):  # another server, or a database that was deleted: a new run is made there
                client.update_run(resume, status="RUNNING")
                return TrackedRun(client, address, resume)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        # with its tags in one request: a process that is killed leaves no run that nobody can place
        run = client.create_run(experiment_id, tags=dict(tags))
        client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return TrackedRun(client, address, run.info.run_id)


def _warn(error: Exception, instead: str) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    tqdm.write(f"warning: {reason}. Training goes on, {instead}", file=sys.stderr)  # beside a progress bar, not into it
