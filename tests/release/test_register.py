"""Registering a release: one run and one version for one manifest, the reviewed bytes, whatever happens in between."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from conftest import encode, write_params
from docker_engine import wait_for
from ports import free_port
from test_serving import write_model

from src.core.card import Card
from src.core.command import UserError
from src.core.files import digest, sha256, write_json
from src.core.inference import Model
from src.core.metrics_file import MetricsFile
from src.images.prepare_params import image_spec
from src.release import card, reviewed
from src.release.outcome import RefusedError
from src.release.register import register
from src.release.reviewed import Int8, Release
from src.system.judged import Label, Lineage
from src.system.mlflow_client import RegistryError
from src.system.registry import Registry

CLASSES = ["cat", "dog", "emu"]
SIZE = (8, 8)
EPOCHS = 3


# A release made by hand


def network(folder: Path) -> bytes:
    """Return the bytes of a classifier by colour with its fields in an order in which nobody would write them."""
    model, first = onnx.load(folder / "model.onnx"), onnx.ModelProto()
    first.graph.CopyFrom(model.graph)
    model.ClearField("graph")
    return bytes(first.SerializeToString() + model.SerializeToString())


def make_release(folder: Path, shuffled: bool = False, pull_request: int | None = 7) -> Release:
    """Write what verify would."""
    write_model(folder / "model", classes=CLASSES)
    for name in ("golden", "evaluation", "report/pictures"):
        (folder / name).mkdir(parents=True)
    if shuffled:
        (folder / "model/model.onnx").write_bytes(network(folder / "model"))
    model_sha256 = sha256(folder / "model/model.onnx")
    facts = {"classes": CLASSES, "epoch": 2, "epochs": EPOCHS, "manifest_sha256": "d1"}
    facts |= {
        "model_sha256": model_sha256,
        "network": "toy",
        "parameters": 9,
        "seed": 1,
        "spec": image_spec(SIZE).to_json(),
        "width": 1,
    }
    write_json(folder / "model/card.json", facts)
    with (folder / "model/history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "train_loss", "validation_loss"])
        writer.writeheader()
        writer.writerows(history())
    write_params(folder / "params.yaml", train__epochs=EPOCHS)
    metrics = {
        "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "ece": 0.02, "examples": 60, "log_loss": 0.3,
        "macro_f1": 0.89, "baseline": {"accuracy": 0.7, "macro_f1": 0.7, "log_loss": 0.9, "ece": 0.1, "margin": 0.2},
        "per_class": {name: {"recall": 0.95 - 0.1 * i, "examples": 20 - i} for i, name in enumerate(CLASSES)},
        "slices": {"brightness: low": {"accuracy": 0.7, "examples": 30}, "brightness: high": {"accuracy": 1, "examples": 9}},
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    manifest = {
        "commit": "c" * 40, "data": {"digest": f"{'ab' * 16}.dir"}, "hardware": {"processor": "a slow one"},
        "inputs": {"digest": "e" * 64},
        "verdict": {"verdict": "pass", "reasons": ["all gates"], "override": None}, "metrics": {},
        "outputs": {"model_sha256": model_sha256},
        "pull_request": pull_request,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    (folder / "golden/000001.png").write_bytes(encode(pixels))
    write_json(folder / "golden/golden.json", {"examples": [{"file": "000001.png"}]})
    np.save(folder / "golden/inputs.npy", pixels[None])
    (folder / "evaluation/curves.png").write_bytes(encode(pixels))
    (folder / "report/report.md").write_text("## pass\n")
    (folder / "report/pictures/one.png").write_bytes(encode(pixels))
    release = Release(
        manifest=digest(manifest), model_sha256=model_sha256, commit="d" * 40, trained_commit="c" * 40,
        pull_request=pull_request, data=f"{'ab' * 16}.dir", inputs="e" * 64, verdict="pass", override=None,
        metrics={"accuracy": 0.9}, classes=CLASSES,
    )  # fmt: skip
    reviewed.write(folder, release)
    return release


def history() -> list[dict[str, float]]:
    return [{"epoch": i, "train_loss": round(1 / i, 6), "validation_loss": round(1.5 / i, 6)} for i in range(1, EPOCHS + 1)]


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path) -> Registry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Registry.connect(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_release(tmp_path / "out/release")
    return tmp_path / "out/release"


def runs(registry: Registry) -> list[Any]:
    experiments = [experiment.experiment_id for experiment in registry.client.search_experiments()]
    return list(registry.client.search_runs(experiments))


# What is in MLflow afterwards


def test_a_release_becomes_a_version_that_tells_where_it_came_from(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its artifacts lie beside the database, wherever this runs."""
    release = reviewed.read(folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    registered = register(folder, registry)
    assert [path.stat().st_size > 0 for path in (tmp_path / "mlartifacts").rglob("model.onnx")] == [True]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert registered == json.loads((folder / "registered.json").read_text())
    assert (registered["name"], registered["version"], registered["uri"]) == ("image-classifier", "1", registry.uri)
    version = registry.alias("challenger")
    assert version == registry.version_of(release.manifest)
    assert version.number == "1"
    assert version.run_id == registered["run_id"]
    wanted = {"commit": "d" * 40, "trained_commit": "c" * 40, "pull_request": "7", "data": f"{'ab' * 16}.dir"}
    wanted |= {"manifest": release.manifest, "verdict": "pass", "inputs": "e" * 64, "model_sha256": release.model_sha256}
    assert version.tags == wanted | {"precision": "fp32"}
    described = registry.client.get_model_version("image-classifier", "1").description
    assert "emu, recall 75.00% of 18 examples" in described
    [move] = registry.history()
    assert (move.alias, move.after) == ("challenger", "1")


def test_a_run_made_afterwards_holds_what_training_would_have_logged_and_the_review(
    registry: Registry, folder: Path
) -> None:
    run_id = register(folder, registry)["run_id"]
    run = registry.client.get_run(run_id)
    assert (run.info.status, run.data.params["epochs"]) == ("FINISHED", str(EPOCHS))
    assert (run.data.params["augment.rotate"], run.data.params["gates.min_accuracy"]) == ("10.0", "0.8")
    logged = registry.client.get_metric_history(run_id, "validation_loss")
    assert [(each.step, each.value) for each in logged] == [(row["epoch"], row["validation_loss"]) for row in history()]
    assert (run.data.metrics["test_accuracy"], run.data.metrics["test_baseline.accuracy"]) == (0.9, 0.7)
    tags = run.data.tags
    assert (tags["manifest"], tags["commit"], tags["pull_request"]) == (reviewed.read(folder).manifest, "d" * 40, "7")
    assert "Limits of use" in tags["mlflow.note.content"]
    names = {
        file.path for path in (None, "model", "report/pictures") for file in registry.client.list_artifacts(run_id, path)
    }
    assert {"manifest.json", "metrics.json", "evaluation", "report", "model/history.csv", "report/pictures/one.png"} <= names


def test_plain_mlflow_loads_the_reviewed_bytes_and_answers_alike(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out/release"
    release = make_release(folder, shuffled=True)
    content = (folder / "model/model.onnx").read_bytes()
    assert onnx.load_from_string(content).SerializeToString() != content
    register(folder, registry)
    registry.move("champion", "1", why="a test")
    images = np.random.default_rng(1).integers(0, 256, (300, *SIZE, 3), dtype=np.uint8)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(registry.uri)
    answers = mlflow.pyfunc.load_model("models:/image-classifier@champion").predict(images)["probabilities"]
    got = Path(mlflow.artifacts.download_artifacts("models:/image-classifier@champion", dst_path=str(tmp_path / "got")))
    assert sha256(got / "model.onnx") == release.model_sha256
    np.testing.assert_allclose(answers, Model(folder / "model").probabilities(images), atol=1e-6)
    assert answers.shape == (300, 3)
    assert '"uint8"' in (got / "MLmodel").read_text()
    pins = (got / "requirements.txt").read_text().split()
    assert {pin.partition("==")[0] for pin in pins} == {"mlflow", "numpy", "onnx", "onnxruntime"}
    assert all(pin.count("==") == 1 for pin in pins)


# Again


def test_registering_again_changes_nothing(registry: Registry, folder: Path) -> None:
    first = register(folder, registry)
    before = (registry.versions(), registry.history(), [run.to_dictionary() for run in runs(registry)])
    assert register(folder, registry) == first
    assert (registry.versions(), registry.history(), [run.to_dictionary() for run in runs(registry)]) == before


def test_an_artifact_of_other_bytes_is_refused(registry: Registry, folder: Path, tmp_path: Path) -> None:
    register(folder, registry)
    [stored] = (tmp_path / "mlartifacts").rglob("model.onnx")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    (folder / "registered.json").unlink()
    with pytest.raises(
        RefusedError, match=r"version 1 of image-classifier in MLflow at .* is not the reviewed model"
    ) as raised:
        register(folder, registry)
    assert raised.value.kind == "tampered"
    assert not (folder / "registered.json").exists()


# The model card


def test_a_card_tells_the_weakest_and_who_overrode_and_fits_whatever_there_is_to_say(folder: Path) -> None:
    facts = (
        Card.read(folder / "model/card.json", ""),
        MetricsFile.read(folder / "metrics.json", ""),
        Lineage.read(folder / "manifest.json", ""),
    )
    release = replace(reviewed.read(folder), verdict="fail", override=Label(by="ann", at="today"))
    text = card.write(release, *facts)
    for words in (
        "| accuracy | 90.00% (80.00% to 95.00%) |",
        "Weakest class: emu, recall 75.00% of 18 examples.",
        "Weakest slice: brightness: low, accuracy 70.00% of 30 examples.",
        "Under 20 test examples, so hardly measured: dog, emu.",
        "off by 2.00% on average",
        "fail, overridden by ann at today",
        "pull request #7",
        release.manifest,
    ):
        assert words in text
    facts[2].verdict.reasons[:] = [f"reason {i} " * 6 for i in range(500)]
    text = card.write(replace(release, classes=[f"a|class<b>`{i}`" * 20 for i in range(500)]), *facts)
    assert len(text) <= card.LARGEST
    assert "and 480 more" in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert text.endswith("More is in the report of the run.\n")
    assert "INT8" not in text
    told = Int8(sha256="e" * 64, accuracy_difference=-0.001, accuracy_low=-0.01, accuracy_high=0.0, speedup=2.0)
    assert "Served as INT8: accuracy -0.10% (-1.00% to +0.00%)" in card.write(replace(release, int8=told), *facts)


# The command, kills, and two at once


WRITES = [name for name in dir(mlflow.MlflowClient) if name.startswith(("create_", "log_", "set_", "delete_"))]


def test_killed_before_any_write_and_run_again_it_is_whole_and_single(
    folder: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the disk before a write is what a kill there leaves."""
    killed: list[str] = []
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(empty_database, whole / "mlflow.db")

    def watched(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            shutil.copytree(whole, tmp_path / f"killed{len(killed)}")
            killed.append(name)
            return write(*arguments, **options)

        return call

    registry = Registry.connect(f"sqlite:///{whole}/mlflow.db")
    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(registry.client, name, watched(name, getattr(registry.client, name)))
        register(folder, registry)
    assert killed[:3] == ["create_experiment", "create_run", "log_batch"]
    assert killed[-3:] == ["create_model_version", "set_registered_model_alias", "set_registered_model_tag"]
    for number, name in enumerate(killed):
        place = tmp_path / f"killed{number}"
        with closing(sqlite3.connect(place / "mlflow.db")) as then, closing(sqlite3.connect(whole / "mlflow.db")) as now:
            then.backup(now)
        shutil.rmtree(whole / "mlartifacts", ignore_errors=True)
        if (place / "mlartifacts").exists():
            shutil.copytree(place / "mlartifacts", whole / "mlartifacts")
        register(folder, registry)
        [run], [version], [move], at = runs(registry), registry.versions(), registry.history(), registry.alias("challenger")
        assert (run.info.status, run.data.tags["manifest"]) == ("FINISHED", version.tags["manifest"]), name
        assert (version.number, version, move.after) == ("1", at, "1"), name
        assert len(registry.client.get_metric_history(run.info.run_id, "train_loss")) == EPOCHS, name
        stored = whole / "mlartifacts/image-classifier" / run.info.run_id / "artifacts/registered/model.onnx"
        assert sha256(stored) == version.tags["model_sha256"], name


# Servers


@contextmanager
def mlflow_server(folder: Path, backend: str, *options: str, **variables: str) -> Iterator[str]:
    """Run a real server on a free port; it takes 10 s and more to come up."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--port", str(port)]
    words += ["--host", "127.0.0.1", "--workers", "1", "--artifacts-destination", str(folder / "artifacts"), *options]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {name: value for name, value in environment.items() if not name.startswith(("_MLFLOW", "MLFLOW_TRACKING"))}
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            words, cwd=folder, env=environment | variables, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL of its own; as the account postgres where this is root, which PostgreSQL refuses."""
    tools = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), Path(shutil.which("initdb") or "/nowhere")]
    if not tools[0].exists():
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    account = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        if account:
            shutil.chown(folder, **account)
        port, data = free_port(), f"{folder}/data"

        def tool(name: str, *options: str) -> None:
            subprocess.run(
                [tools[0].parent / name, "-D", data, *options], check=True, cwd=folder, stdout=subprocess.DEVNULL, **account
            )

        tool("initdb", "-A", "trust", "-U", "mlflow")
        tool("pg_ctl", "-w", "-l", f"{folder}/log", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1", "start")
        try:
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            tool("pg_ctl", "-m", "immediate", "stop")


@pytest.mark.journey
def test_a_server_with_users_takes_the_right_one_and_its_end_is_told_in_under_a_minute(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="Flask-WTF, which MLflow's basic-auth needs, is not installed")
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = ann\nadmin_password = a-long-pass-word\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for a test"}
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/server.db", "--app-name", "basic-auth", **variables) as url:
        with pytest.raises(RegistryError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            Registry.connect(url)
        with pytest.raises(RegistryError, match="does not take this user") as raised:
            Registry.connect(url.replace("//", "//ann:wrong-password@"))
        assert "wrong-password" not in str(raised.value)
        registry = Registry.connect(url.replace("//", "//ann:a-long-pass-word@"))
        registered = register(folder, registry)
        assert (registered["version"], registered["uri"]) == ("1", url)
        assert register(folder, registry) == registered
        registry.move("champion", "1", why="ü" * 9000)
        assert [(move.alias, move.after) for move in registry.history()] == [("challenger", "1"), ("champion", "1")]
        assert registry.alias("champion").tags["manifest"] == reviewed.read(folder).manifest
        assert registry.client.list_artifacts(registered["run_id"], "report")
        registry.tag("1", image_digest="sha256:1")
        assert registry.version("1").tags["image_digest"] == "sha256:1"
        with pytest.raises(UserError, match="image-classifier has no version 9"):
            registry.version("9")
        assert registry.alias("previous") is None
        assert Registry.connect(registry.uri, name="nothing").alias("champion") is None
    started = time.monotonic()
    with pytest.raises(RegistryError, match=f"MLflow at {url} does not answer"):
        register(folder, registry)
    assert time.monotonic() - started < 60
