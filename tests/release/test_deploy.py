"""Deployments on a host end well whatever happens: python -m pytest tests/release/test_deploy.py

nginx, MLflow on SQLite, locks, signals and processes are real; the versions are small servers that keep the contract.
The real service in real containers is in tests/release/test_release.py.
"""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, encode
from deploying import Command, SmallProcesses
from ports import free_ports

from src.core.files import write_json
from src.release import reviewed, settings
from src.release.client import Client
from src.release.journal import now
from src.release.proxy import Proxy
from src.release.reviewed import Release
from src.system import dvc_lock
from src.system.registry import Registry

CLASSES = ["cat", "dog", "fox"]
STEPS = 13  # lines of the journal of one deployment; a test holds this number
KILLED = (1, 4, 5, 6, 8, 9, 10, 11)  # those after which something else is to be done than after the one before
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)")]


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with versions 1 to 4."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    client = Registry.connect(f"sqlite:///{path}").client
    client.create_registered_model("image-classifier")
    for _ in range(4):
        client.create_model_version("image-classifier", source="/nowhere")
    return path


class World:
    """A host of its own: folder, ports, registry, and releases of small versions."""

    def __init__(self, folder: Path, registry: Path) -> None:
        self.folder, self.home = folder, folder / "home" / "production"
        self.port = free_ports()
        self.database = folder / "mlflow.db"
        shutil.copyfile(registry, self.database)
        self.uri = f"sqlite:///{self.database}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "DEPLOY_", "CANARY_"))},
            "DEPLOY_HOME": str(folder / "home"), "DEPLOY_PORT": str(self.port), "DEPLOY_WATCH_SECONDS": "1.5",
            "DEPLOY_DRAIN_SECONDS": "2", "MLFLOW_TRACKING_URI": self.uri,
            "DEPLOY_LATENCY_MS": "10000", "DEPLOY_READY_SECONDS": str(PATIENCE),  # other tests run beside these
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        }  # fmt: skip

    def release(self, version: int, *faults: str, build: str = "a") -> Path:
        """Make what verify, register and build make; `build` tells images of one version apart."""
        folder = self.folder / f"release-{version}{build}"
        golden = folder / "golden"
        golden.mkdir(parents=True)
        random, examples = np.random.default_rng(version), []
        for i in range(4):
            values = np.roll([0.97, 0.02, 0.01], i + version).tolist()
            (golden / f"{i}.png").write_bytes(encode(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
            best = CLASSES[int(np.argmax(values))]
            examples.append({"file": f"{i}.png", "label": best, "prediction": best, "probabilities": values})
        write_json(golden / "golden.json", {"classes": CLASSES, "examples": examples, "tolerance": 0.001})
        manifest = {"version": version}
        write_json(folder / "manifest.json", manifest)
        digest = dvc_lock.digest(manifest)
        told = Release(
            manifest=digest, model_sha256=f"{version:064}", commit="c" * 40, trained_commit="c" * 40, data=None,
            pull_request=10 + version, inputs="d" * 64, verdict="pass", override=None, metrics={"accuracy": 0.9},
            classes=CLASSES,
        )  # fmt: skip
        reviewed.write(folder, told)
        bento = self.folder / f"bento-{version}{build}"
        shutil.copytree(folder, bento)
        (bento / "bento.yaml").write_text("envs: []\n")
        (bento / "version").write_text(str(version))
        (bento / "faults").write_text("\n".join(faults))
        common = {"manifest": digest, "version": str(version)}
        image = {
            "image": str(bento),
            "digest": f"sha256:{build * 20}{version}",
            "id": None,
            "engine": "none",
            "bento": str(bento),
        }
        write_json(folder / "registered.json", {**common, "name": "image-classifier", "run_id": "r", "uri": self.uri})
        write_json(folder / "image.json", {**common, **image, "key": "k", "size": None, "commit": "c" * 40})
        return folder

    def spoil(self, version: int, *faults: str) -> None:
        (self.folder / f"bento-{version}a" / "faults").write_text("\n".join(faults))

    def start(self, command: str, *arguments: str, **environment: str) -> Command:
        return Command(command, arguments, {**self.environment, **environment}, self.folder)

    def run(self, command: str, *arguments: str, **environment: str) -> tuple[int | None, str]:
        process = self.start(command, *arguments, **environment)
        printed = process.wait(PATIENCE)
        return process.returncode, printed

    def deploy(self, version: int, *faults: str, **environment: str) -> tuple[int | None, str]:
        folder = self.folder / f"release-{version}a"
        return self.run("deploy", str(folder if folder.is_dir() else self.release(version, *faults)), **environment)

    def serving(self) -> str:
        """Return the version that a new connection to the proxy gets; empty when none answers."""
        return str(Client(f"http://127.0.0.1:{self.port}", 20).model().get("version", ""))

    def alias(self, name: str) -> str | None:
        found = Registry.connect(self.uri).alias(name)
        return found.number if found else None

    def lines(self) -> list[dict[str, Any]]:
        path = self.home / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def await_step(self, step: str, count: int = 1) -> None:
        until = time.monotonic() + PATIENCE
        while sum(line["step"] == step for line in self.lines()) < count:
            assert time.monotonic() < until, f"never {step}"
            time.sleep(0.01)

    def await_guard(self) -> None:
        """Wait until nobody holds the lock."""
        subprocess.run(["flock", str(self.home / "lock"), "true"], check=True, timeout=PATIENCE)

    def end(self) -> None:
        told = settings.read(self.environment)
        for name in SmallProcesses(told).names():
            SmallProcesses(told).remove(name)
        Proxy(told).stop()


@pytest.fixture
def world(tmp_path: Path, registered: Path) -> Iterator[World]:
    world = World(tmp_path, registered)
    yield world
    world.end()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> Iterator[World]:
    """A host on which versions 1 and 2 have been live, in one order or the other."""
    world = World(tmp_path_factory.mktemp("used"), registered)
    for version in (1, 2):
        code, printed = world.deploy(version)
        assert code == 0, printed
    yield world
    world.end()


@dataclass(frozen=True)
class Asked:
    """One request: when it was begun, and how it was answered."""

    at: str
    status: int
    version: str


@contextmanager
def load(world: World) -> Iterator[list[Asked]]:
    """Ask all the time, by new connections; yield the answers."""
    answers: list[Asked] = []
    over = threading.Event()
    image = (world.folder / "release-1a" / "golden" / "0.png").read_bytes()

    def ask() -> None:
        client = Client(f"http://127.0.0.1:{world.port}", 10)
        while not over.wait(0.01):  # the processor is left to the versions, whose latency counts
            at = now("milliseconds")
            answer = client.predict(image)
            # each version knows its own images only: another one refuses them, and says who it is
            answers.append(Asked(at, 200 if answer.status == 400 else answer.status, answer.version or ""))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_first_version_goes_live_and_the_same_again_changes_nothing(world: World) -> None:
    code, printed = world.deploy(1)
    assert code == 0, printed
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", None)
    before = [path.read_text() for path in (world.home / "processes").glob("*.json")]
    code, printed = world.deploy(1)
    assert (code, printed.strip()) == (0, "version 1 is live already")
    assert [path.read_text() for path in (world.home / "processes").glob("*.json")] == before
    code, printed = world.run("deploy", "nowhere", "--unchanged")
    assert (code, printed.strip()) == (0, "unchanged: version 1 is live already")
    code, printed = world.run("rollback")
    assert code == 1
    assert "version 1 is the first one on this host: there is nothing to go back to" in printed
    code, printed = world.run("status")
    assert code == 0, printed
    assert "#11" in printed
    assert "serving" in printed


def test_no_request_fails_while_versions_change_and_each_is_answered_by_one_of_them_in_turn(world: World) -> None:
    world.deploy(1)
    with load(world) as answers:
        code, printed = world.deploy(2)
        assert code == 0, printed
        code, printed = world.run("rollback", "--reason", "a trial")
        assert code == 0, printed
    assert {answer.status for answer in answers} == {200}
    steps = [(line["step"], line["at"]) for line in world.lines()]
    begins = [at for step, at in steps if step == "switching"]
    ends = [at for step, at in steps if step == "switched"]
    for version, since, until in (("1", ends[0], begins[1]), ("2", ends[1], begins[2]), ("1", ends[2], "9")):
        # one that began before a switch may be answered after it
        settled = [answer for answer in answers if since < answer.at < until]
        late = [answer.at for answer in settled if answer.version != version]
        assert settled
        assert all(at > before(until) for at in late), (version, since, until, late)
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", "2")


def before(at: str) -> str:
    """Return a moment in which a request may have begun that is answered at `at`."""
    if at == "9":
        return at
    moment = datetime.fromisoformat(at) - timedelta(seconds=1)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_a_rollback_is_recorded_and_can_name_an_older_version(world: World) -> None:
    for version in (1, 2, 3):
        code, printed = world.deploy(version)
        assert code == 0, printed
    code, printed = world.run("rollback", "--version", "1", "--reason", "both others are worse")
    assert code == 0, printed
    record = world.lines()[-1]["record"]
    assert (record["version"], record["from"]["version"], record["why"][-21:]) == ("1", "3", "both others are worse")
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", "3")
    moves = [(move.alias, move.after) for move in Registry.connect(world.uri).history()]
    assert moves[-2:] == [("previous", "3"), ("champion", "1")]
    code, printed = world.run("rollback", "--version", "9")
    assert code == 1
    assert "version 9 was never live on this host: name one of 1, 2, 3" in printed


BEFORE = {
    "cannot start": "it ended by itself",
    "starts slowly": "it was not ready within",
    "wrong label": "golden image",
    "fails on garbage": "500",
}


@pytest.mark.parametrize("fault", BEFORE)
def test_a_version_that_is_not_as_it_should_be_gets_no_traffic(world: World, fault: str) -> None:
    world.deploy(1)
    patience = {"DEPLOY_READY_SECONDS": "4"} if fault == "starts slowly" else {}
    code, printed = world.deploy(2, fault, **patience)
    assert code == 1
    assert "version 2 was refused" in printed
    assert BEFORE[fault] in printed
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", None)
    assert len(list((world.home / "processes").glob("*.json"))) == 1
    assert world.lines()[-1]["record"]["result"] == "returned"


AFTER = {"dies": "it ended by itself", "wrong label": "golden image", "leaks": "memory"}


@pytest.mark.parametrize("fault", AFTER)
def test_a_version_that_fails_after_the_switch_is_taken_back(world: World, fault: str) -> None:
    world.deploy(1)
    process = world.start("deploy", str(world.release(2)), DEPLOY_WATCH_SECONDS="30")
    world.await_step("switched", 2)
    world.spoil(2, fault)
    printed = process.wait(PATIENCE)
    assert process.returncode == 1, printed
    assert "version 2 was taken back after the switch" in printed
    assert AFTER[fault] in printed
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", None)
    code, printed = world.run("status")
    assert code == 0, printed


@pytest.mark.parametrize("line", KILLED)
def test_a_deploy_that_is_killed_leaves_one_version_serving_and_ends_whole_when_run_again(used: World, line: int) -> None:
    old = used.serving()
    new = "1" if old == "2" else "2"
    seen: list[str] = []
    with watching(used, seen):
        code, printed = used.deploy(int(new), KILL_AT=str(line))
        assert code == -9, printed
        used.await_guard()
        assert used.serving() == used.alias("champion")
        code, printed = used.deploy(int(new))
        assert code == 0, printed
    assert "" not in seen
    assert (used.serving(), used.alias("champion"), used.alias("previous")) == (new, new, old)
    host = SmallProcesses(settings.read(used.environment))
    assert sum(host.state(name).running for name in host.names()) == 1
    assert json.loads((used.home / "state.json").read_text())["intent"] is None


def test_the_number_of_steps_that_can_be_killed_is_known(used: World) -> None:
    before = len(used.lines())
    used.deploy(1 if used.serving() == "2" else 2)
    assert len(used.lines()) - before == STEPS


@contextmanager
def watching(world: World, seen: list[str]) -> Iterator[None]:
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            seen.append(world.serving())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_deploy_and_guard_both_killed_is_mended_by_the_next_one(world: World) -> None:
    world.deploy(1)
    process = world.start("deploy", str(world.release(2)), DEPLOY_WATCH_SECONDS="60")
    world.await_step("switched", 2)
    guards = subprocess.run(["pgrep", "-f", "guard"], capture_output=True, text=True).stdout.split()
    mine = [pid for pid in guards if str(world.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    process.kill()
    subprocess.run(["kill", "-9", *mine], check=False)
    process.wait(PATIENCE)
    code, printed = world.run("status")
    assert code == 1
    assert "a deploy of version 2 is under way, or was cut off while switching" in printed
    code, printed = world.deploy(2)
    assert code == 0, printed
    assert (world.serving(), world.alias("champion")) == ("2", "2")


def test_of_two_deploys_at_once_one_waits(world: World) -> None:
    world.deploy(1)
    first = world.start("deploy", str(world.release(2)), DEPLOY_WATCH_SECONDS="10")  # it is there until the second has begun
    world.await_step("starting", 2)
    second = world.start("deploy", str(world.release(3)))
    said = second.wait(PATIENCE)
    first.wait(PATIENCE)
    assert (first.returncode, second.returncode) == (0, 0), said
    assert said.startswith("waiting for another one to end: deploy of version 2 by ")
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("3", "3", "2")


def test_without_its_registry_a_new_version_does_not_stay(world: World) -> None:
    world.deploy(1)
    process = world.start("deploy", str(world.release(2)), DEPLOY_WATCH_SECONDS="5")
    world.await_step("switched", 2)
    world.database.rename(world.folder / "away.db")
    world.database.write_text("no database")
    printed = process.wait(PATIENCE)
    assert process.returncode == 1
    assert str(world.database) in printed
    world.database.unlink()
    (world.folder / "away.db").rename(world.database)
    assert (world.serving(), world.alias("champion")) == ("1", "1")
    code, printed = world.deploy(2)
    assert code == 0, printed


def test_a_rollback_brings_the_traffic_back_without_the_registry_and_the_aliases_follow_later(world: World) -> None:
    world.deploy(1)
    world.deploy(2)
    world.database.rename(world.folder / "away.db")
    world.database.write_text("no database")
    code, printed = world.run("rollback", "--reason", "at night")
    assert code == 1
    assert "traffic is back at version 1, but the aliases could not follow" in printed
    assert world.serving() == "1"
    world.database.unlink()
    (world.folder / "away.db").rename(world.database)
    code, printed = world.deploy(1)
    assert code == 0, printed
    assert (world.serving(), world.alias("champion"), world.alias("previous")) == ("1", "1", "2")


def test_a_push_does_not_bring_back_what_was_rolled_back_but_a_person_does(world: World) -> None:
    world.deploy(1)
    world.deploy(2)
    world.run("rollback", "--reason", "wrong on dark images")
    code, printed = world.deploy(2, GITHUB_EVENT_NAME="push")
    assert code == 1
    assert "version 2 was rolled back (wrong on dark images)" in printed
    image_of_another_commit = world.release(2, build="b")
    code, printed = world.run("deploy", str(image_of_another_commit), GITHUB_EVENT_NAME="push")
    assert (code, world.serving()) == (1, "1"), printed
    assert "version 2 was rolled back (wrong on dark images)" in printed
    code, printed = world.deploy(2, GITHUB_EVENT_NAME="workflow_dispatch")
    assert code == 0, printed
    code, printed = world.deploy(2, GITHUB_EVENT_NAME="push")
    assert code == 0, printed
    assert world.serving() == "2"


CANARY = {"CANARY_SHARE": "0.5", "CANARY_REQUESTS": "100", "CANARY_SECONDS": str(PATIENCE)}


@pytest.mark.parametrize(("strategy", "fault"), [("canary", ""), ("canary", "every other"), ("shadow", "")])
def test_a_version_is_compared_on_a_share_or_a_copy_of_the_traffic_first(world: World, strategy: str, fault: str) -> None:
    world.deploy(1)
    folder = world.release(2)
    for name in ("golden",):  # both know the same images here, so that only faults differ
        shutil.copytree(world.folder / "release-1a" / name, world.folder / "bento-2a" / name, dirs_exist_ok=True)
        shutil.copytree(world.folder / "release-1a" / name, folder / name, dirs_exist_ok=True)
    reviewed.write(folder, reviewed.load(folder))
    with load(world) as answers:
        process = world.start("deploy", str(folder), DEPLOY_STRATEGY=strategy, **CANARY)
        world.await_step("exposed")
        world.spoil(2, fault)
        printed = process.wait(PATIENCE)
    assert {answer.status for answer in answers} == {200}
    assert (process.returncode, world.serving()) == ((1, "1") if fault else (0, "2")), printed
    if fault:
        assert "version 2 was taken back from its share of the traffic" in printed
    if strategy == "shadow":
        until = world.lines()
        assert [line["step"] for line in until].count("exposed") == 1


def test_a_canary_without_traffic_leaves_the_old_version(world: World) -> None:
    world.deploy(1)
    code, printed = world.deploy(2, DEPLOY_STRATEGY="canary", CANARY_SECONDS="1")
    assert code == 1
    assert "0 of 200 requests" in printed
    assert world.serving() == "1"


def test_a_port_that_a_stranger_has_is_named_and_nothing_is_left_behind(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.port)):
        code, printed = world.deploy(1)
    assert code == 1
    assert str(world.port) in printed
    assert "DEPLOY_PORT" in printed
    assert list((world.home / "processes").glob("*.json")) == []
    code, printed = world.deploy(1)
    assert code == 0, printed


def test_a_damaged_state_is_one_sentence_and_takes_nothing_down(world: World) -> None:
    world.deploy(1)
    (world.home / "state.json").write_text("{")
    code, printed = world.deploy(1)
    assert code == 1
    assert "state.json is damaged" in printed
    assert "journal.jsonl" in printed
    assert world.serving() == "1"


def test_a_release_that_was_changed_after_it_was_verified_is_refused(world: World) -> None:
    world.deploy(1)
    folder = world.release(2)
    (folder / "manifest.json").write_text("{}")
    code, printed = world.run("deploy", str(folder))
    assert code == 1
    assert "is not as verify left it (manifest.json)" in printed


def test_staging_is_apart_and_moves_no_alias(world: World) -> None:
    world.deploy(1)
    code, printed = world.deploy(2, DEPLOY_ENVIRONMENT="staging")
    assert code == 0, printed
    assert (world.serving(), world.alias("champion")) == ("1", "1")
    assert Client(f"http://127.0.0.1:{world.port + 20}").model()["version"] == "2"
    world.environment["DEPLOY_ENVIRONMENT"] = "staging"
    world.end()
    world.environment.pop("DEPLOY_ENVIRONMENT")


def test_a_dead_live_version_is_brought_up_again(world: World) -> None:
    world.deploy(1)
    record = json.loads(next((world.home / "processes").glob("*.json")).read_text())
    os.kill(record["pid"], 9)
    code, printed = world.run("status")
    assert code == 1
    assert "does not run: make deploy starts it" in printed
    code, printed = world.run("deploy", "nowhere", "--unchanged")
    assert code == 0, printed
    assert world.serving() == "1"
