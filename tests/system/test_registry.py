"""The registry: versions, aliases, the history of moves, and what is said when MLflow is not as it should be."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ports import free_port

from src.system.mlflow_client import RegistryError, artifacts_of, connect
from src.system.registry import Registry


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("GITHUB_ACTOR", "ann")
    return Registry.connect(f"sqlite:///{tmp_path}/mlflow.db", name="digits")


def add(registry: Registry, manifest: str, **tags: str) -> str:
    """Make a version without files."""
    client = registry.client
    experiment = client.get_experiment_by_name("toy")
    number = experiment.experiment_id if experiment else client.create_experiment("toy")
    run = client.create_run(number)
    source = f"{run.info.artifact_uri}/model"
    return registry.add(source, run.info.run_id, {"manifest": manifest, **tags}, "a card").number


# ---------------------------------------------------------------------------------------------------------------------
# Versions
# ---------------------------------------------------------------------------------------------------------------------


def test_a_version_is_found_by_its_number_its_manifest_and_its_alias(registry: Registry) -> None:
    assert registry.alias("champion") is None
    assert registry.version_of("aa") is None
    assert registry.history() == []
    numbers = [add(registry, manifest) for manifest in ("aa", "bb", "bb")]
    assert numbers == ["1", "2", "3"]
    assert registry.alias("champion") is None
    assert registry.version_of("cc") is None
    registry.move("champion", "2", why="deployed")
    # of two versions of one manifest the older counts
    for found in (registry.version("2"), registry.version_of("bb"), registry.alias("champion")):
        assert found is not None
        assert (found.number, found.tags["manifest"]) == ("2", "bb")
        assert 1e11 > found.created > 1.7e9  # seconds, not milliseconds
        assert found.run_id
    assert [version.number for version in registry.versions()] == ["3", "2", "1"]


def test_tags_are_set_and_none_leaves_them(registry: Registry) -> None:
    number = add(registry, "aa", commit="c")
    registry.tag(number, image_digest="sha256:1", commit=None, long="x" * 9000)
    tags = registry.version(number).tags
    assert (tags["image_digest"], tags["commit"], len(tags["long"])) == ("sha256:1", "c", 5000)


# ---------------------------------------------------------------------------------------------------------------------
# Aliases and their history
# ---------------------------------------------------------------------------------------------------------------------


def told(registry: Registry) -> list[tuple[str, str | None, str | None]]:
    return [(move.alias, move.before, move.after) for move in registry.history()]


def test_every_move_is_recorded_in_order_with_who_and_why(registry: Registry) -> None:
    for manifest in ("aa", "bb"):
        add(registry, manifest)
    # a move to where the alias stands already is none
    for why in ("first", "again"):
        registry.move("champion", "1", why=why, who="bob")
    registry.move("previous", None, why="it never was")
    registry.move("previous", "1", why="second")
    registry.move("champion", "2", why="third")
    registry.move("previous", None, why="fourth")
    assert told(registry) == [
        ("champion", None, "1"),
        ("previous", None, "1"),
        ("champion", "1", "2"),
        ("previous", "1", None),
    ]
    moves = registry.history()
    assert [(move.by, move.why) for move in moves[:2]] == [("bob", "first"), ("ann", "second")]
    assert [move.at for move in moves] == sorted(move.at for move in moves)
    assert registry.alias("previous") is None


@pytest.mark.parametrize("number", ["2", None])
def test_a_move_that_was_killed_before_its_record_is_recorded_when_it_is_made_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, number: str | None
) -> None:
    for manifest in ("aa", "bb"):
        add(registry, manifest)
    registry.move("champion", "1", why="first")
    with monkeypatch.context() as patched:
        patched.setattr(registry.client, "set_registered_model_tag", lambda *_: 1 / 0)
        with pytest.raises(RegistryError):
            registry.move("champion", number, why="cut off")
    at = registry.alias("champion")
    assert (at and at.number) == number
    registry.move("champion", number, why="again")
    assert told(registry) == [("champion", None, "1"), ("champion", "1", number)]
    assert [move.why for move in registry.history()] == ["first", "again"]


def test_a_move_by_hand_is_found_and_told(registry: Registry) -> None:
    for manifest in ("aa", "bb", "cc"):
        add(registry, manifest)
    registry.move("champion", "1", why="first")
    registry.client.set_registered_model_alias("digits", "champion", "2")
    registry.move("champion", "3", why="third")
    assert told(registry) == [("champion", None, "1"), ("champion", "1", "2"), ("champion", "2", "3")]
    assert registry.history()[1].by == "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# The database file
# ---------------------------------------------------------------------------------------------------------------------


def test_a_relative_database_is_one_file_wherever_its_users_stand(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    registry = Registry.connect()
    assert registry.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifacts_of(registry.uri) == tmp_path / "mlartifacts"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    add(registry, "aa")
    found = Registry.connect(registry.uri).version_of("aa")
    assert found is not None
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "file:///tmp/mlruns",
        "postgresql://me:secret@host/db",
        "sqlite://",
        "http://",
        "http://me:/secret@host",
        "http://me:#secret@host",
        "http://me:[secret@host",
        "me:secret@host",
        "http://host/lab?token=secret",
        "http://me:pw@host?api_key=secret",
    ],
)
def test_an_address_of_another_kind_is_told_without_its_password(uri: str) -> None:
    with pytest.raises(RegistryError, match="MLflow cannot be reached at .*set MLFLOW_TRACKING_URI to") as raised:
        connect(uri)
    assert "secret" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# Servers that are not well
# ---------------------------------------------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """Healthy, and wants a token or user and password for everything else."""

    wanted = "Bearer right"

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        if self.path == "/health":
            self._answer(200, b"OK")
        elif given is None or given != self.wanted:
            self._answer(401, b"You are not authenticated")
        else:
            self._answer(200, b"{}")

    do_POST = do_GET  # noqa: N815 - http.server's own name

    def _answer(self, status: int, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def test_a_dead_server_is_told_at_once_and_without_its_password() -> None:
    port = free_port()
    with pytest.raises(
        RegistryError, match=rf"MLflow at http://127.0.0.1:{port}/lab does not answer \(Connection refused\)"
    ) as raised:
        connect(f"http://me:secret@127.0.0.1:{port}/lab/")
    assert "secret" not in str(raised.value)
    assert "MLFLOW_TRACKING_URI" in str(raised.value)


@pytest.mark.journey
@pytest.mark.usefixtures("_no_credentials")
def test_a_refused_user_is_told_and_a_token_or_a_user_and_password_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Answers) as port:
        with pytest.raises(RegistryError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            connect(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
        assert connect(f"http://127.0.0.1:{port}")[1] == f"http://127.0.0.1:{port}"
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.setattr(Answers, "wanted", "Basic bWU6c2VAY3JldA==")  # me:se@cret
        assert connect(f"http://me:se%40cret@127.0.0.1:{port}")[1] == f"http://127.0.0.1:{port}"
