"""MLflow's client, opened so that whatever is wrong is told in seconds, in one sentence, with the address and no password.

    client, address = connect()  # MLFLOW_TRACKING_URI, else sqlite:///mlflow.db

A database file keeps its artifacts beside it, in mlartifacts/. A server is asked first whether it answers at all, since
MLflow's client would wait for minutes. Importing MLflow takes two seconds: it is done in `connect`.
"""

import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from src.core import locks
from src.core.command import UserError
from src.system.addresses import without_secrets

DEFAULT_URI = "sqlite:///mlflow.db"
_PATIENCE = 5.0  # seconds until a server or a locked database counts as dead


class RegistryError(UserError):
    """MLflow does not answer, refuses, or its database is damaged. The text is what happened, then what to do next."""

    kind = "registry"

    def __init__(self, sentence: str, then: str) -> None:
        sentence = without_secrets(sentence)
        super().__init__(f"{sentence}: {then}")
        self.sentence, self.then = sentence, then


def connect(uri: str | None = None) -> tuple[Any, str]:
    """Open `uri`, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db of the working directory; return client and address.

    User and password in an address are handed to MLflow by its variables and appear nowhere else.

    Raises:
        RegistryError: the server does not answer or refuses the user, or the database is damaged, read-only or locked.
    """
    address = _address(uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or DEFAULT_URI)
    _set_up(address)
    database = database_of(address)
    if database is None:
        _require_answer(address)
    elif _check(database):  # two processes that make the tables at one time trip over each other
        with locked(database), answering(address):
            return _open(address), address
    with answering(address):
        return _open(address), address


def database_of(uri: str) -> Path | None:
    """Return the file of a sqlite address; None for a server."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def artifacts_of(uri: str) -> Path | None:
    """Return where a sqlite address keeps its artifacts: beside the database, wherever a process runs; None for a server."""
    database = database_of(uri)
    return database.parent / "mlartifacts" if database else None


def _address(uri: str) -> str:
    """Return the address that MLflow is given: a file's path made absolute, user and password taken out of it."""
    if re.fullmatch(r"sqlite:///[^?]+(\?.*)?", uri):
        path, mark, options = uri.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{Path(path).absolute()}{mark}{options}"
    try:
        parts = urlsplit(uri)
        shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    except ValueError:
        parts, shown = urlsplit(""), ""
    # an @ is left of a password with / # or ?; no server of MLflow has a query, in which a token would be shown
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in shown or parts.query:
        raise RegistryError(
            f"MLflow cannot be reached at {uri.rpartition('@')[2]!r}",
            "set MLFLOW_TRACKING_URI to sqlite:///mlflow.db, or to an MLflow server such as https://mlflow.example.org, "
            "its user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    if parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return shown


def _set_up(address: str) -> None:
    """Tell MLflow to be quick and quiet, before it is imported."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 hang for minutes on a dead server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for message in ("The ``noload`` loader strategy", ".*Any type hint is inferred"):  # MLflow's own code, MLflow's to mend
        warnings.filterwarnings("ignore", message=message)
    folder = artifacts_of(address)
    if folder:
        # MLflow's own default is mlruns/ of whatever folder a process runs in; it makes it even when nothing goes there
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(folder)


def _open(address: str) -> Any:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(address)  # a database resolves `models:/` by this alone, whatever its client was given
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    return client


def _check(database: Path) -> bool:
    """Find out whether the database can be read and written; True when MLflow has yet to make its tables.

    Raises:
        RegistryError: it cannot.
    """
    where = f"the database of MLflow, {database},"
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'registered_models'").fetchone()
            connection.execute("CREATE TABLE probe (x)")  # a read-only file takes BEGIN IMMEDIATE, but not this
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        then = "end the process that holds it, or check that its folder exists and may be written by this account"
        raise RegistryError(f"{where} cannot be written ({error})", then) from None
    except sqlite3.DatabaseError as error:
        then = "restore it from a backup, or move it away, and run again: make deploy then registers anew"
        raise RegistryError(f"{where} is damaged ({error})", then) from None
    return not tables[0]


def _require_answer(address: str) -> None:
    """Ask a server whether it is there at all; any answer will do, what it says is MLflow's client's business."""
    import requests

    try:
        requests.get(f"{address}/health", timeout=_PATIENCE, stream=True, allow_redirects=False).close()
    except requests.exceptions.SSLError:  # the client knows MLflow's variables for certificates
        return
    except requests.exceptions.Timeout:
        raise _dead(address, f"no answer within {_PATIENCE:g} s") from None
    except (requests.exceptions.RequestException, ValueError) as error:
        raise _dead(address, _reason(error)) from None


def _dead(address: str, reason: str) -> RegistryError:
    return RegistryError(
        f"MLflow at {address} does not answer ({reason})", "start it, or correct MLFLOW_TRACKING_URI, then run again"
    )


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Turn whatever MLflow, its database and its HTTP client raise into one sentence with the address."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # dozens of classes of four packages
        raise _explained(address, error) from None


def _explained(address: str, error: Exception) -> RegistryError:
    text = str(error)
    status = re.search(r"error code (\d{3})|^(\d{3}) (?:Client|Server) Error", text)
    code = next(filter(None, status.groups()), "") if status else ""
    if code == "401":
        return RegistryError(
            f"MLflow at {address} does not take this user and password, or token",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, then run again",
        )
    if code == "403":
        return RegistryError(
            f"MLflow at {address} does not allow this ({_reason(error)})",
            "give the user of MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_TOKEN the right to write, then run again",
        )
    if re.search(r"Max retries|Connection|timed out|Timeout", text):
        return _dead(address, _reason(error))
    then = "mend that, or correct MLFLOW_TRACKING_URI, then run again: what is already there is not made twice"
    return RegistryError(f"MLflow at {address} failed ({_reason(error)})", then)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong, from the innermost exception of an HTTP client's nest."""
    text = (str(error).splitlines() or [""])[0]
    inner = re.search(
        r"(Connection refused|Name or service not known|timed out|Connection reset by peer|No route to host)", text
    )
    return inner[1] if inner else (text or type(error).__name__)[:200]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a database alone among the processes of this project; MLflow itself does not know this lock.

    Raises:
        UserError: another process did not let go within an hour.
    """
    lock = database.with_name(f"{database.name}.lock")
    with locks.locked(lock, f"process {os.getpid()}", lambda holder: f"waiting until another one has registered: {holder}"):
        yield
