"""Deployments on a host end well whatever happens: python -m pytest tests/release/test_deploy.py

Containers, proxy, registry and time are in memory here, so that each effect on them can be the last one before a kill. The
real service in real containers behind a real nginx is in tests/release/test_release.py.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.core import locks
from src.core.command import UserError
from src.core.files import digest, write_json
from src.release import canary, deploy, journal, probes, reviewed, rollback, settings, site, status
from src.release.canary import Sample
from src.release.containers import State
from src.release.golden import FaultError
from src.release.journal import Journal
from src.release.outcome import RefusedError
from src.release.proxy import Route
from src.release.reviewed import ImageFile, Release
from src.release.settings import Settings
from src.release.site import Site
from src.system.registry import Registry


class KilledError(BaseException):
    """Stands for a signal 9: nothing that comes after it has an effect."""


class World:
    """A host in memory: containers, where the proxy sends traffic, the registry's aliases; and the releases that come."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.containers: dict[str, Container] = {}
        self.routes: dict[int, Route] = {}  # by the port of the proxy
        self.pointed: list[Route] = []
        self.aliases: dict[str, str] = {}
        self.faults: dict[str, str] = {}  # by version: before, or a reason
        self.watching: Callable[[], None] = lambda: None
        self.samples: tuple[list[Sample], list[Sample]] = ([], [])  # of live and candidate
        self.broken: set[str] = set()  # registry, proxy
        self.seconds, self.effects, self.kill_at, self.dead = 0.0, 0, 0, False
        for name in [name for name in os.environ if name.startswith(("GITHUB_", "DEPLOY_", "CANARY_"))]:
            patch.delenv(name)
        patch.setenv("DEPLOY_HOME", str(folder / "home"))
        for name in ("save", "note"):
            patch.setattr(Journal, name, self.effect(getattr(Journal, name)))
        patch.setattr(site, "open_host", lambda _: Host(self))
        patch.setattr(site, "Proxy", lambda given: Proxy(self, given))
        patch.setattr(site, "_is_free", lambda _: True)
        patch.setattr(Site, "prune", lambda _: None)
        patch.setattr(Site, "client", lambda _, running: Client(self, running.port))
        patch.setattr(probes, "wait_ready", self.wait_ready)
        patch.setattr(Registry, "connect", lambda *_, **__: self)
        patch.setattr(probes, "smoke", lambda client, *_: self.probe(client, "before"))
        patch.setattr(probes, "quick", lambda client, *_: self.probe(client, "before"))
        patch.setattr(probes, "watch", lambda _, client, *__: (self.watching(), self.probe(client, "after"))[1])
        patch.setattr(canary, "read", lambda *_: self.samples)
        patch.setattr(deploy, "time", SimpleNamespace(monotonic=lambda: self.seconds, sleep=self.sleep))
        for module in (deploy, status):
            patch.setattr(module, "Client", lambda url, **_: Client(self, int(url.rpartition(":")[2])))

    def effect(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Let a call be the last one before a kill; once killed, none does anything."""

        def act(*arguments: Any, **named: Any) -> Any:
            if self.dead:
                raise KilledError
            result = call(*arguments, **named)
            self.effects += 1
            self.dead = self.effects == self.kill_at
            if self.dead:
                raise KilledError
            return result

        return act

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def wait_ready(self, client: "Client", seconds: float, *_: Any) -> float:
        if not client.ready():
            raise FaultError(f"it was not ready within {seconds:g} s")
        return 0.1

    def probe(self, client: "Client", when: str) -> dict[str, float]:
        version = client.model()["version"]
        if self.faults.get(version) == when:
            raise FaultError(f"golden image 1 is wrong {when} the switch")
        return {}

    # the registry

    shown = "memory"

    def alias(self, name: str) -> SimpleNamespace | None:
        self.require("registry")
        return SimpleNamespace(number=self.aliases[name]) if name in self.aliases else None

    def move(self, alias: str, number: str, **_: Any) -> None:
        self.require("registry")
        self.effect(self.aliases.__setitem__)(alias, number)

    def tag(self, *_: Any, **__: Any) -> None:
        self.require("registry")

    def require(self, what: str) -> None:
        if what in self.broken:
            raise UserError(f"the {what} does not answer: mend it")

    # what tests ask

    def release(self, version: int, build: str = "a") -> Path:
        """Make what verify, register and build make; `build` tells images of one version apart."""
        folder = self.folder / f"release-{version}{build}"
        (folder / "golden").mkdir(parents=True, exist_ok=True)
        manifest = {"version": version}
        write_json(folder / "manifest.json", manifest)
        named = digest(manifest)
        told = Release(
            manifest=named, model_sha256=f"{version:064}", commit="c" * 40, trained_commit="c" * 40, data=None,
            pull_request=10 + version, inputs="d" * 64, verdict="pass", override=None, metrics={"accuracy": 0.9},
            classes=["cat", "dog"],
        )  # fmt: skip
        reviewed.write(folder, told)
        common = {"manifest": named, "version": str(version)}
        image = {"image": "x", "digest": f"sha256:{build * 20}{version}", "id": None, "engine": "docker"}
        write_json(folder / "registered.json", {**common, "name": "image-classifier", "run_id": "r", "uri": "memory"})
        write_json(folder / "image.json", {**common, **image, "key": "k", "size": None, "commit": "c" * 40})
        return folder

    def deploy(self, version: int, build: str = "a") -> dict[str, Any]:
        record: dict[str, Any] = {}
        deploy.deploy(self.release(version, build), record, again=False)
        return record

    def rollback(self, version: str | None = None, reason: str = "a trial") -> dict[str, Any]:
        record: dict[str, Any] = {}
        rollback.rollback(version, reason, record)
        return record

    def recover(self) -> None:
        """Do what the next command does first."""
        self.dead, self.kill_at = False, 0
        given = settings.read()
        Site(given, Journal(given)).recover()

    def serving(self, port: int = 8080) -> str:
        """Return the version that the proxy's clients get; empty when none answers."""
        return str(Client(self, port).model().get("version", ""))

    def now(self) -> tuple[str, str | None, str | None]:
        return self.serving(), self.aliases.get("champion"), self.aliases.get("previous")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "home/production/journal.jsonl").read_text().splitlines()]

    def wrong(self) -> str:
        return "; ".join(status.status(settings.read())[1])


@dataclass
class Container:
    """One container of the host."""

    image: ImageFile
    port: int
    running: bool = True


class Host:
    """An engine whose containers are entries of the world."""

    kind = "docker"

    def __init__(self, world: World) -> None:
        self._all = world.containers
        for name in ("start", "resume", "stop", "remove"):
            setattr(self, name, world.effect(getattr(self, name)))

    def pull(self, image: ImageFile) -> None:
        pass

    def start(self, name: str, image: ImageFile, port: int, _: dict[str, str]) -> None:
        self._all[name] = Container(image, port)

    def resume(self, name: str) -> None:
        self._all[name].running = True

    def stop(self, name: str, *, wait: bool = True) -> None:
        if name in self._all:
            self._all[name].running = False

    def remove(self, name: str) -> None:
        self._all.pop(name, None)

    def state(self, name: str) -> State:
        return State(exists=name in self._all, running=name in self._all and self._all[name].running)

    def names(self) -> list[str]:
        return [name for name in self._all if ("-staging-" in name) is (os.environ.get("DEPLOY_ENVIRONMENT") == "staging")]

    def logs(self, name: str, lines: int = 50) -> str:
        return "as printed"


class Proxy:
    """Where the traffic goes."""

    def __init__(self, world: World, given: Settings) -> None:
        self._world, self._port, self.log = world, given.port, given.home / "requests.log"

    def ensure(self) -> None:
        self._world.require("proxy")
        self._world.routes.setdefault(self._port, Route(None, ""))

    def point(self, route: Route) -> None:
        self._world.pointed.append(route)
        self._world.effect(self._world.routes.__setitem__)(self._port, route)

    def route(self) -> Route | None:
        return self._world.routes.get(self._port)

    def running(self) -> bool:
        return self._port in self._world.routes


class Client:
    """A client of the version behind a port, or of the one that the proxy's traffic goes to."""

    def __init__(self, world: World, port: int) -> None:
        self._world, self._port = world, port

    def ready(self, **_: Any) -> bool:
        return bool(self.model())

    def model(self) -> dict[str, str]:
        route = self._world.routes.get(self._port)
        ports = [route.live, route.backup] if route else [self._port]
        for port in ports:
            for container in self._world.containers.values():
                if container.running and container.port == port:
                    version = container.image.version
                    return {} if self._world.faults.get(version) == "never ready" else {"version": version}
        return {}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    return World(tmp_path, monkeypatch)


def test_a_first_version_goes_live_and_the_same_again_changes_nothing(world: World) -> None:
    assert world.deploy(1)["result"] == "deployed"
    assert world.now() == ("1", "1", None)
    before = deepcopy(world.containers)
    assert world.deploy(1)["why"] == "version 1 is live already"
    record: dict[str, Any] = {}
    deploy.look_after(record)
    assert record["why"] == "unchanged: version 1 is live already"
    assert world.containers == before
    with pytest.raises(RefusedError, match="version 1 is the first one on this host: there is nothing to go back to"):
        world.rollback()
    shown, wrong = status.status(settings.read())
    assert re.search(r"^live +version 1 +serving +since .* #11 +pass$", shown, re.MULTILINE)
    assert wrong == []


def test_a_rollback_is_recorded_and_can_name_an_older_version(world: World) -> None:
    for version in (1, 2, 3):
        world.deploy(version)
    record = world.rollback(version="1", reason="both others are worse")
    assert world.lines()[-1]["record"] == record
    assert (record["version"], record["from"]["version"], record["why"][-21:]) == ("1", "3", "both others are worse")
    assert world.now() == ("1", "1", "3")
    with pytest.raises(RefusedError, match="version 9 was never live on this host: name one of 1, 2, 3"):
        world.rollback(version="9")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("never ready", "version 2 was refused: it was not ready within 45 s"),
        ("before", "version 2 was refused: golden image 1 is wrong before"),
        ("after", "version 2 was taken back after the switch: golden image 1 is wrong after"),
    ],
)
def test_a_version_that_is_not_as_it_should_be_is_taken_back(world: World, fault: str, words: str) -> None:
    world.deploy(1)
    world.faults["2"] = fault
    with pytest.raises(RefusedError, match=f"{words}.*version 1 serves as before.*logs"):
        world.deploy(2)
    assert world.now() == ("1", "1", None)
    assert [container.image.version for container in world.containers.values()] == ["1"]
    assert world.lines()[-1]["record"]["result"] == "returned"
    assert world.wrong() == ""
    assert 2 not in [route.version for route in world.pointed if fault != "after"]


@pytest.mark.parametrize("what", ["deploy", "rollback"])
def test_whatever_is_killed_at_any_step_leaves_one_version_serving_and_ends_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    kill_at, killed = 1, True
    while killed:
        with monkeypatch.context() as patch:
            world = World(tmp_path / str(kill_at), patch)
            world.deploy(2 if what == "rollback" else 1)
            if what == "rollback":
                world.deploy(1)
            change = world.rollback if what == "rollback" else lambda world=world: world.deploy(2)
            world.effects, world.kill_at = 0, kill_at
            try:
                change()
                killed = False
            except KilledError:
                pass
            assert world.serving() in ("1", "2"), kill_at
            world.recover()
            assert world.serving() == world.aliases["champion"], kill_at
            world.deploy(2)
            assert world.now() == ("2", "2", "1"), kill_at
            assert sum(container.running for container in world.containers.values()) == 1
            assert Journal(settings.read()).state.intent is None
        kill_at += 1
    assert kill_at > (20 if what == "deploy" else 12)


@pytest.mark.parametrize("command", ["deploy", "rollback", "look after"])
def test_a_deployment_that_was_killed_in_its_watch_is_told_and_undone_by_the_next_command(
    world: World, command: str
) -> None:
    world.deploy(3)
    world.deploy(1)
    world.watching = lambda: setattr(world, "dead", True)
    with pytest.raises(KilledError):
        world.deploy(2)
    world.dead, world.watching = False, lambda: None
    assert world.serving() == "2"
    assert "a deploy of version 2 is under way, or was cut off while switching" in world.wrong()
    {"deploy": lambda: world.deploy(1), "rollback": world.rollback, "look after": lambda: deploy.look_after({})}[command]()
    assert world.now() == (("3", "3", "1") if command == "rollback" else ("1", "1", "3"))
    assert world.wrong() == ""


def test_of_two_deploys_at_once_one_waits(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.deploy(1)
    capsys.readouterr()
    with ExitStack() as first:
        first.enter_context(journal.locked(settings.read(), "deploy of version 2"))

        class Waiting(locks.FileLock):
            def acquire(self, timeout: float | None = None, **options: Any) -> Any:
                if timeout:  # the first one ends while this one waits
                    first.close()
                return super().acquire(timeout=timeout, **options)

        world.patch.setattr(locks, "FileLock", Waiting)
        world.deploy(3)
    assert capsys.readouterr().out.startswith("waiting for another one to end: deploy of version 2 by ")
    assert world.now() == ("3", "3", "1")


def test_without_its_registry_a_new_version_does_not_stay(world: World) -> None:
    world.deploy(1)
    world.watching = lambda: world.broken.add("registry")
    with pytest.raises(UserError, match="the registry does not answer"):
        world.deploy(2)
    assert world.now() == ("1", "1", None)
    assert "the aliases may be apart" in json.dumps(world.lines())
    world.broken, world.watching = set(), lambda: None
    world.deploy(2)
    assert world.now() == ("2", "2", "1")


def test_a_rollback_brings_the_traffic_back_without_the_registry_and_the_aliases_follow_later(world: World) -> None:
    world.deploy(1)
    world.deploy(2)
    world.broken = {"registry"}
    with pytest.raises(RefusedError, match="traffic is back at version 1, but the aliases could not follow"):
        world.rollback(reason="at night")
    assert world.serving() == "1"
    world.broken = set()
    assert world.deploy(1)["result"] == "unchanged"
    assert world.now() == ("1", "1", "2")


def test_a_push_does_not_bring_back_what_was_rolled_back_but_a_person_does(world: World) -> None:
    world.deploy(1)
    world.deploy(2)
    world.rollback(reason="wrong on dark images")
    world.patch.setenv("GITHUB_EVENT_NAME", "push")
    for build in ("a", "b"):  # the second is the image of another commit
        with pytest.raises(RefusedError, match=r"version 2 was rolled back \(wrong on dark images\)"):
            world.deploy(2, build)
        assert world.serving() == "1"
    world.patch.setenv("GITHUB_EVENT_NAME", "workflow_dispatch")
    world.deploy(2)
    world.patch.setenv("GITHUB_EVENT_NAME", "push")
    assert world.deploy(2)["result"] == "unchanged"
    assert world.serving() == "2"


GOOD, BAD = Sample(200, 20.0, "cat"), Sample(502, 0.0, "")


@pytest.mark.parametrize(
    ("strategy", "candidate", "words"),
    [
        ("canary", [GOOD] * 200, ""),
        ("shadow", [GOOD] * 200, ""),
        ("canary", [BAD] * 200, "version 2 was taken back from its share of the traffic: 200 of 200 requests failed"),
        ("canary", [], "only 0 of 200 requests came in 600 s"),
    ],
)
def test_a_version_is_compared_on_a_share_or_a_copy_of_the_traffic_first(
    world: World, strategy: str, candidate: list[Sample], words: str
) -> None:
    world.deploy(1)
    world.patch.setenv("DEPLOY_STRATEGY", strategy)
    world.samples = [GOOD] * 400, candidate
    with pytest.raises(RefusedError, match=words) if words else nullcontext():
        world.deploy(2)
    assert world.serving() == ("1" if words else "2")
    [exposed] = [route for route in world.pointed if route.candidate]
    assert (exposed.version, exposed.share, exposed.mirror) == (
        "1",
        *((1.0, True) if strategy == "shadow" else (0.1, False)),
    )


def test_a_damaged_state_is_one_sentence_and_takes_nothing_down(world: World) -> None:
    world.deploy(1)
    (world.folder / "home/production/state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json is damaged.*journal.jsonl"):
        world.deploy(1)
    assert world.serving() == "1"


def test_a_release_that_was_changed_after_it_was_verified_is_refused(world: World) -> None:
    folder = world.release(2)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not as verify left it \(manifest.json\)"):
        deploy.deploy(folder, {}, again=False)


def test_staging_is_apart_and_moves_no_alias(world: World) -> None:
    world.deploy(1)
    world.patch.setenv("DEPLOY_ENVIRONMENT", "staging")
    world.deploy(2)
    assert (world.now(), world.serving(8100)) == (("1", "1", None), "2")
