"""The registered model in MLflow: its versions, its aliases, and the history of every move, of which MLflow keeps none.

    registry = Registry.connect()  # MLFLOW_TRACKING_URI, else sqlite:///mlflow.db
    registry.move("champion", "3", why="deployed", who="ann")

How MLflow is reached, and what is said when it is not, is in src/system/mlflow_client.py.
"""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        return self._search(f"name = '{self.name}'")

    def version_of(self, manifest: str) -> Version | None:
        """Return the oldest version of a manifest digest, for two processes may make one each; None where there is none."""
        return next(reversed(self._search(f"name = '{self.name}' AND tags.manifest = '{manifest}'")), None)

    def _search(self, query: str) -> list[Version]:
        with answering(self.uri):
            page = self.client.search_model_versions(query, max_results=1000)
            found = list(map(_version, page))
            while page.token:
                page = self.client.search_model_versions(query, max_results=1000, page_token=page.token)
                found += map(_version, page)
        return sorted(found, key=lambda version: -int(version.number))

    def add(self, source: str, run_id: str, tags: dict[str, str], description: str) -> Version:
        """Make a version of `source` with its tags, all in one request; the registered model is made on the way."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            if self._model() is None:
                try:
                    self.client.create_registered_model(self.name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
            tags = {key: value[:_LARGEST_TAG] for key, value in tags.items()}
            made = self.client.create_model_version(
                self.name, source, run_id=run_id, tags=tags, description=description, await_creation_for=None
            )
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

        The record comes after the alias: where a kill parted them, the same move made again writes it. A move that somebody
        made by other means, as in MLflow's own pages, is found by the next one here.

        Raises:
            UserError: there is no such version.
        """
        if number is not None:
            number = self.version(number).number
        model = self._model()
        if model is None:
            return
        at = model.aliases.get(alias)
        at = None if at is None else str(at)
        told = next((move.after for move in reversed(_records(model)) if move.alias == alias), None)
        with answering(self.uri):
            if at not in (told, number):
                why_unknown = "found moved by other means than this project's commands"
                self._record(Move(_now(), alias, told, at, "unknown", why_unknown))
                told = at
            if at != number and number is None:
                self.client.delete_registered_model_alias(self.name, alias)
            elif at != number:
                self.client.set_registered_model_alias(self.name, alias, number)
            if told != number:
                self._record(Move(_now(), alias, told, number, who or account(), why))

    def history(self) -> list[Move]:
        """Return every move, the oldest first."""
        model = self._model()
        return _records(model) if model else []

    def _record(self, move: Move) -> None:
        content = {"at": move.at, "alias": move.alias, "from": move.before, "to": move.after}
        content |= {"by": move.by[:200], "why": move.why[:1000]}
        text = json.dumps(content, ensure_ascii=False)
        self.client.set_registered_model_tag(self.name, f"{_HISTORY}{move.at}.{move.alias}"[:250], text)


def _version(found: Any) -> Version:
    created = found.creation_timestamp / 1000
    return Version(str(found.version), dict(found.tags), found.run_id or None, created, found.source)


def _records(model: Any) -> list[Move]:
    """Return the history of a registered model, the oldest first."""
    found = []
    for key, text in sorted(model.tags.items()):
        if key.startswith(_HISTORY):
            with suppress(ValueError, KeyError, TypeError):  # somebody edited the tag: no move that can be told
                told = json.loads(text)
                found.append(Move(told["at"], told["alias"], told["from"], told["to"], told["by"], told["why"]))
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def account() -> str:
    """Return who does this: the person who started the workflow, else the account."""
    try:
        return os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return f"uid {os.getuid()}"
