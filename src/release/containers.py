"""Versions as containers of Docker or Podman: without rights, without a writable disk, within a memory limit, on loopback.

They come back after a reboot, but for those that were stopped. Every call may be repeated.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from src.core import cgroups
from src.core.command import UserError
from src.core.files import write_bytes
from src.release import device
from src.release.client import KEYS
from src.release.containerize import ENGINES, Engine, EngineError, call, choose, signed_in
from src.release.reviewed import ImageFile
from src.release.settings import Settings

_PORT = 3000  # that BentoML listens on in the container
_KEYS_INSIDE = "/run/secrets/api-keys"
_PATIENCE = 30  # seconds an engine may take for one answer
_PULL = 900  # seconds


@dataclass(frozen=True)
class State:
    """What the engine knows of a container now. What it cannot know is None."""

    exists: bool = False
    running: bool = False
    restarts: int = 0  # since it was started: a version that cannot start is started again and again
    started: str | None = None  # ISO 8601
    memory: int | None = None  # bytes in use, without what the system would give back
    oom: bool = False  # it was ended because it used more memory than it may
    exit_code: int | None = None  # of one that has ended


class Containers:
    """The containers of one environment, told apart from all others by a label."""

    def __init__(self, settings: Settings, engine: str) -> None:
        self.kind = engine
        self._settings = settings
        self._restart = "sudo systemctl restart docker" if engine == "docker" else "podman system migrate"
        self._label = f"deploy={settings.name}-{settings.environment}"

    def pull(self, image: ImageFile) -> None:
        """Bring the image onto this machine, by its digest.

        Raises:
            UserError: it is neither here nor in a registry, or the registry does not give it.
        """
        name, engine = _reference(image), Engine(self.kind)
        if engine.inspect(name):
            return
        if "@" not in name:
            raise UserError(
                f"the image {image.image} ({name}) is not on this machine: run make deploy again, which builds it"
            )
        try:
            with signed_in(engine, name) as login:
                engine.run("pull", "--quiet", name, seconds=_PULL, more=login)
        except EngineError as error:
            raise UserError(
                f"the image {name} cannot be pulled ({error.reason}): check that the registry answers, and "
                "REGISTRY_USER and REGISTRY_TOKEN where it asks for them, then run the same command again"
            ) from None

    def start(self, name: str, image: ImageFile, port: int, environment: Mapping[str, str]) -> None:
        """Run a container of the image on a loopback port; what is left of an earlier one of this name goes first.

        Raises:
            UserError: the port is taken, the image is not here, the file of API keys is none, or the engine refuses.
        """
        self.remove(name)
        write_bytes(self._settings.home / "engine", f"{self.kind}\n".encode())
        options, told = self.options(name, port, environment), dict(environment)
        if keys := told.get(KEYS):
            source = Path(keys).absolute()
            if not source.is_file():
                raise UserError(f"{KEYS} names {source}, which is no file: docs/service.md says how to make it")
            told[KEYS] = _KEYS_INSIDE
            options.append(f"--mount=type=bind,source={source},target={_KEYS_INSIDE},readonly")
        names = [f"--env={variable}" for variable in told]  # values would show in the list of processes
        try:
            self._call("run", "--detach", *options, *names, _reference(image), environment=told)
        except EngineError as error:
            self.remove(name)
            _refuse_taken_port(error, f"port {port} of 127.0.0.1")
            raise UserError(
                f"{self.kind} does not run {image.image} ({error.reason}): see {self.kind} info, then run the same "
                "command again"
            ) from None

    def options(self, name: str, port: int, environment: Mapping[str, str]) -> list[str]:
        """Return what a container may and may not do, as options of `docker run`."""
        limits = self._settings
        options = [
            f"--name={name}",
            f"--label={self._label}",
            f"--publish=127.0.0.1:{port}:{_PORT}",
            "--pull=never",
            "--restart=unless-stopped",
            f"--stop-timeout={round(limits.drain)}",
            "--read-only",
            "--tmpfs=/tmp:rw,size=64m",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--pids-limit=256",
            f"--memory={limits.memory}b",
            f"--memory-swap={limits.memory}b",  # no swap: a leak is to be seen
            "--no-healthcheck",  # deploy watches, and nothing else would act
            *device.access(self.kind, environment),
        ]
        if limits.cpus:
            options.append(f"--cpus={limits.cpus:g}")
        if self.kind == "podman":
            # its own defaults are above what a plain account may have
            limits_of_podman = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=10000:10000")
            return [*options, "--log-driver=k8s-file", "--log-opt=max-size=10mb", *limits_of_podman]
        return [*options, "--log-driver=json-file", "--log-opt=max-size=10m", "--log-opt=max-file=3"]

    def resume(self, name: str) -> None:
        """Run a stopped container again; one that runs is left alone.

        Raises:
            UserError: there is none of this name, or its port was taken in the meantime.
        """
        with self._trying(f"start {name}"):
            try:
                self._call("start", name)
            except EngineError as error:
                if _is_absent(error):
                    raise UserError(f"there is no container {name} on this host: run make deploy, which starts it") from None
                _refuse_taken_port(error, f"the port of {name}")
                raise

    def stop(self, name: str, *, wait: bool = True) -> None:
        """Let requests in flight end for as long as the settings allow, then stop it; it stays stopped after a reboot."""
        seconds = round(self._settings.drain)
        if not wait:  # it outlives this process, and the job of a runner, which ends what carries its mark
            environment = {variable: value for variable, value in os.environ.items() if variable != "RUNNER_TRACKING_ID"}
            command = ["sh", "-c", '"$@" >/dev/null 2>&1 </dev/null &', "sh", self.kind, "stop", f"--time={seconds}", name]
            subprocess.run(command, cwd="/", env=environment, start_new_session=True, check=True)
            return
        with self._trying(f"stop {name}", absent=True):
            self._call("stop", f"--time={seconds}", name, patience=seconds + _PATIENCE)

    def remove(self, name: str) -> None:
        """End it at once, with all that it wrote."""
        with self._trying(f"remove {name}", absent=True):
            self._call("rm", "--force", "--volumes", name)

    def state(self, name: str) -> State:
        """Return what the engine says; paused, or waiting to be started again, is not running."""
        shown = ""
        with self._trying(f"inspect {name}", absent=True):
            shown = self._call("container", "inspect", name)
        if not shown:
            return State()
        told = json.loads(shown)[0]
        state = told["State"]
        running = state["Status"] == "running"
        return State(
            exists=True,
            running=running,
            restarts=int(told.get("RestartCount", 0)),
            started=state["StartedAt"],
            memory=cgroups.memory_of(int(state["Pid"]), told["Id"]) if running else None,
            oom=bool(state["OOMKilled"]),
            exit_code=None if running else int(state["ExitCode"]),
        )

    def names(self) -> list[str]:
        """Return the names of this environment's containers, running or not."""
        with self._trying("list containers"):
            return sorted(self._call("ps", "--all", "--filter", f"label={self._label}", "--format", "{{.Names}}").split())

    def logs(self, name: str, lines: int = 50) -> str:
        """Return the last lines that it printed, both streams; empty when it is not there."""
        try:
            return call(["sh", "-c", 'exec "$@" 2>&1', "sh", self.kind, "logs", f"--tail={lines}", name], _PATIENCE)
        except EngineError:
            return ""

    def _call(self, *arguments: str, patience: float | None = None, environment: Mapping[str, str] | None = None) -> str:
        # elsewhere: Podman leaves a file named oom in the folder it was called from
        folder = Path(tempfile.gettempdir())
        return call([self.kind, *arguments], patience or _PATIENCE, environment=environment, folder=folder)

    @contextmanager
    def _trying(self, what: str, *, absent: bool = False) -> Iterator[None]:
        """Say what the engine could not do, and how it is mended; `absent`: a container that is not there is no fault."""
        try:
            yield
        except EngineError as error:
            if not (absent and _is_absent(error)):
                raise UserError(
                    f"{self.kind} could not {what} ({error.reason}): see {self.kind} info, or restart it "
                    f"({self._restart}), then run the same command again"
                ) from None


def open_host(settings: Settings) -> Containers:
    """Return the host that DEPLOY_ENGINE names; without it the one that runs versions already, else the first that answers.

    Raises:
        UserError: the engine that is wanted, or that has run versions here, does not answer, or there is none.
    """
    path = settings.home / "engine"
    last = path.read_text().strip() if path.is_file() else ""
    # one that is down must not be taken for one that is absent
    known = last if last in ENGINES and not settings.engine else None
    try:
        return Containers(settings, choose(settings.engine or known).kind)
    except UserError as error:
        if known:
            raise UserError(
                f"{known} does not answer, and the versions of this host run in it: start it, run the same command again, "
                "or set DEPLOY_ENGINE to docker or podman to go on with another"
            ) from None
        raise UserError(f"deploying needs Docker or Podman: {error}; `make serve` serves the model without either") from None


def _refuse_taken_port(error: EngineError, port: str) -> None:
    if re.search("port is already allocated|address already in use", str(error)):
        raise UserError(
            f"{port} is taken by another program (ss -ltnp shows which): stop that, or set another DEPLOY_PORT"
        ) from None


def _reference(image: ImageFile) -> str:
    """Return what cannot have changed since it was built: the digest in a registry, or the id on this machine."""
    return image.image if "@" in image.image else image.id or image.image


def _is_absent(error: EngineError) -> bool:
    return re.search("no such (container|object)|no container with", str(error).lower()) is not None
