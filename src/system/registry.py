"""The registered model in MLflow: its versions, its aliases, and the history of every move, of which MLflow keeps none.

    registry = Registry.connect()  # MLFLOW_TRACKING_URI, else sqlite:///mlflow.db
    registry.move("champion", "3", why="deployed", who="ann")

How MLflow is reached, and what is said when it is not, is in src/system/mlflow_client.py.
"""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from src.core.command import UserError
from src.system.addresses import without_secrets
from src.system.mlflow_client import answering, connect, database_of, locked

_LARGEST_TAG = 5000  # characters; MLflow's own columns
_HISTORY = "move."
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Version:
    """One version of the registered model. `created` is in seconds since the epoch, `source` where its files are."""

    number: str
    tags: dict[str, str]
    run_id: str | None
    created: float
    source: str


@dataclass(frozen=True)
class Move:
    """One move of an alias, at a time in UTC, from one version to another; None is no version."""

    at: str
    alias: str
    before: str | None
    after: str | None
    by: str
    why: str


class Registry:
    """The versions of one registered model in one MLflow."""

    def __init__(self, client: Any, uri: str, name: str) -> None:
        self.client = client
        self.uri = uri  # what MLflow is given; it holds no password
        self.name = name

    @classmethod
    def connect(cls, uri: str | None = None, name: str = "image-classifier") -> "Registry":
        """Open `uri`, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db of the working directory.

        User and password in an address are handed to MLflow by its variables and appear nowhere else.

        Raises:
            RegistryError: the server does not answer or refuses the user, or the database is damaged, read-only or locked.
        """
        client, address = connect(uri)
        return cls(client, address, name)

    @property
    def shown(self) -> str:
        """Return the address for a person to read."""
        return without_secrets(self.uri)

    # -----------------------------------------------------------------------------------------------------------------
    # Versions
    # -----------------------------------------------------------------------------------------------------------------

    def alias(self, alias: str) -> Version | None:
        """Return the version at an alias; None where it stands at none."""
        model = self._model()
        number = model.aliases.get(alias) if model else None
        return self.version(str(number)) if number is not None else None

    def version(self, number: str) -> Version:
        """Return a version by its number.

        Raises:
            UserError: there is none.
        """
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                return _version(self.client.get_model_version(self.name, number))
            except MlflowException as error:
                if error.error_code not in _MISSING:
                    raise
                known = ", ".join(found.number for found in self.versions()[:10]) or "none"
                raise UserError(
                    f"{self.name} has no version {number} in MLflow at {self.shown} (the newest: {known}): name one of them"
                ) from None

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        return sorted(self._search(""), key=lambda version: -int(version.number))

    def version_of(self, manifest: str) -> Version | None:
        """Return the oldest version of a manifest digest, for two processes may make one each; None where there is none."""
        # a server that ignores or lacks the filter by tag answers with more: they are filtered here all the same
        found = [version for version in self._search(manifest) if version.tags.get("manifest") == manifest]
        return min(found, key=lambda version: int(version.number), default=None)

    def _search(self, manifest: str) -> list[Version]:
        from mlflow.exceptions import MlflowException

        name = "name = '{}'".format(self.name.replace("'", ""))
        with answering(self.uri):
            if manifest:
                try:
                    return [_version(found) for found in self._pages(f"{name} AND tags.manifest = '{manifest}'")]
                except MlflowException as error:
                    if error.error_code != "INVALID_PARAMETER_VALUE":
                        raise
            return [_version(found) for found in self._pages(name)]

    def _pages(self, query: str) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_model_versions(query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def add(self, source: str, run_id: str, model_id: str, tags: dict[str, str], description: str) -> Version:
        """Make a version of `source` with its tags, all in one request; the registered model is made on the way."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            if self._model() is None:
                try:
                    self.client.create_registered_model(self.name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
            made = self.client.create_model_version(
                self.name, source, run_id=run_id, model_id=model_id, description=description, await_creation_for=None,
                tags={key: value[:_LARGEST_TAG] for key, value in tags.items()},
            )  # fmt: skip
            return _version(made)

    def tag(self, number: str, **tags: str | float | None) -> None:
        """Set tags of a version; None leaves a tag as it is."""
        known = self.version(number).tags
        with answering(self.uri):
            for key, value in tags.items():
                text = str(value)[:_LARGEST_TAG]
                if value is not None and known.get(key) != text:
                    self.client.set_model_version_tag(self.name, number, key, text)

    def _model(self) -> Any:
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                return self.client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code not in _MISSING:
                    raise
                return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time register in a database file; a server has no such lock."""
        database = database_of(self.uri)
        if database is None:
            yield
        else:
            with locked(database):
                yield

    # -----------------------------------------------------------------------------------------------------------------
    # Aliases and their history
    # -----------------------------------------------------------------------------------------------------------------

    def move(self, alias: str, number: str | None, why: str, who: str | None = None) -> None:
        """Move an alias to a version, or remove it with None, and record it; where it stands there already, nothing is done.

        The record is written first, marked as open, and closed after the alias has moved. So a kill in between leaves
        no move without a record; an open record whose alias never came is removed by the next move.

        Raises:
            UserError: there is no such version.
        """
        if number is not None:
            number = self.version(number).number
        model = self._model()
        if model is None:
            return
        with answering(self.uri):
            # records that a killed process left open
            for key, open_move, is_open in _records(model):
                if is_open and _is_done(model, open_move):
                    self._record(open_move, key)
                elif is_open:
                    self.client.delete_registered_model_tag(self.name, key)
            before = model.aliases.get(alias)
            before = None if before is None else str(before)
            if before == number:
                return
            self._tell_of_others(model, alias, before)
            move = Move(_now(), alias, before, number, who or account(), why)
            key = self._record(move, is_open=True)
            if number is None:
                self.client.delete_registered_model_alias(self.name, alias)
            else:
                self.client.set_registered_model_alias(self.name, alias, number)
            self._record(move, key)

    def history(self) -> list[Move]:
        """Return every move, the oldest first."""
        model = self._model()
        if model is None:
            return []
        records = _records(model)
        return [move for _, move, is_open in records if not is_open or _is_done(model, move)]

    def _tell_of_others(self, model: Any, alias: str, now: str | None) -> None:
        """Record that somebody moved the alias without this module, as in MLflow's own pages."""
        moves = [
            move for _, move, is_open in _records(model) if move.alias == alias and (not is_open or _is_done(model, move))
        ]
        last = moves[-1].after if moves else None
        if last != now:
            self._record(
                Move(_now(), alias, last, now, "unknown", "found moved by other means than this project's commands")
            )

    def _record(self, move: Move, key: str | None = None, *, is_open: bool = False) -> str:
        key = key or f"{_HISTORY}{move.at}.{move.alias}"[:250]
        content: dict[str, str | bool | None] = {"at": move.at, "alias": move.alias, "from": move.before, "to": move.after}
        content |= {"by": move.by[:200], "why": move.why[:1000], **({"open": True} if is_open else {})}
        text = json.dumps(content, ensure_ascii=False)
        self.client.set_registered_model_tag(self.name, key, text)
        return key


def _version(found: Any) -> Version:
    created = found.creation_timestamp / 1000
    return Version(str(found.version), dict(found.tags), found.run_id or None, created, found.source)


def _records(model: Any) -> list[tuple[str, Move, bool]]:
    """Return the history of a registered model as key, move and whether it is still open, the oldest first."""
    found = []
    for key, text in sorted(model.tags.items()):
        if key.startswith(_HISTORY):
            try:
                told = json.loads(text)
                move = Move(told["at"], told["alias"], told["from"], told["to"], told["by"], told["why"])
                found.append((key, move, bool(told.get("open"))))
            except (ValueError, KeyError, TypeError):  # somebody edited the tag: no move that can be told
                continue
    return found


def _is_done(model: Any, move: Move) -> bool:
    now = model.aliases.get(move.alias)
    return (None if now is None else str(now)) == move.after


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def account() -> str:
    """Return who does this: the person who started the workflow, else the account."""
    try:
        return os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return f"uid {os.getuid()}"
