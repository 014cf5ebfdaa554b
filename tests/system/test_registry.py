"""The registry: versions, aliases, the history of moves, and what is said when MLflow is not as it should be."""

import shutil
from pathlib import Path

import pytest
from ports import free_port

from src.system.mlflow_client import RegistryError, connect
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


# Versions


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


# Aliases and their history


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


# The database file


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


# Servers that are not well


def test_a_dead_server_is_told_at_once_and_without_its_password() -> None:
    port = free_port()
    with pytest.raises(
        RegistryError, match=rf"MLflow at http://127.0.0.1:{port}/lab does not answer \(Connection refused\)"
    ) as raised:
        connect(f"http://me:secret@127.0.0.1:{port}/lab/")
    assert "secret" not in str(raised.value)
    assert "MLFLOW_TRACKING_URI" in str(raised.value)
