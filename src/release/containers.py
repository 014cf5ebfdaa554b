"""Versions as containers of Docker or Podman: without rights, without a writable disk, within a memory limit, on loopback.

They come back after a reboot, but for those that were stopped. Every call may be repeated.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core import cgroups
from src.core.command import UserError
from src.core.files import write_bytes
from src.release import device
from src.release.client import KEYS
from src.release.containerize import ENGINES, Engine, EngineError, call, choose, signed_in
from src.release.settings import Settings
from src.release.workload import ABSENT, State, Workload

_PORT = 3000  # that BentoML listens on in the container
_KEYS_INSIDE = "/run/secrets/api-keys"
_PATIENCE = 30  # seconds an engine may take for one answer
_PULL = 900  # seconds
_SLOW = 5.0  # seconds between two questions that take the engine a second or two
_UNITS = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Containers:
    """The containers of one environment, told apart from all others by a label."""

    def __init__(self, settings: Settings, engine: str) -> None:
        self.kind = engine
        self._settings = settings
        self._restart = "sudo systemctl restart docker" if engine == "docker" else "podman system migrate"
        self._label = f"deploy={settings.name}-{settings.environment}"
        self._asked: dict[str, tuple[float, int | None]] = {}

    def pull(self, image: Mapping[str, Any]) -> None:
        """Bring the image onto this machine, by its digest.

        Raises:
            UserError: it is neither here nor in a registry, or the registry does not give it.
        """
        name, engine = _reference(image), Engine(self.kind)
        if engine.inspect(name):
            return
        if "@" not in name:
            raise UserError(
                f"the image {image['image']} ({name}) is not on this machine: run make deploy again, which builds it"
            )
        try:
            with signed_in(engine, name) as login:
                engine.run("pull", "--quiet", name, seconds=_PULL, more=login)
        except EngineError as error:
            raise UserError(
                f"the image {name} cannot be pulled ({_last(str(error))}): check that the registry answers, and "
                "REGISTRY_USER and REGISTRY_TOKEN where it asks for them, then run the same command again"
            ) from None

    def start(self, workload: Workload) -> None:
        """Run a container of the image; what is left of an earlier one of this name goes first.

        Raises:
            UserError: its port is taken, the image is not here, or the engine refuses.
        """
        self.remove(workload.name)
        write_bytes(self._settings.home / "engine", f"{self.kind}\n".encode())
        environment, mounts = _with_keys(workload.environment)
        names = [f"--env={name}" for name in environment]  # values would show in the list of processes
        command = [*self._options(workload), *mounts, *names, _reference(workload.image)]
        try:
            self._call("run", "--detach", *command, environment=environment)
        except EngineError as error:
            self.remove(workload.name)
            _refuse_taken_port(error, f"port {workload.port} of 127.0.0.1")
            raise UserError(
                f"{self.kind} does not run {workload.image['image']} ({_last(str(error))}): see {self.kind} info, then run "
                "the same command again"
            ) from None

    def _options(self, workload: Workload) -> list[str]:
        limits = self._settings
        options = [
            f"--name={workload.name}",
            f"--label={self._label}",
            f"--publish=127.0.0.1:{workload.port}:{_PORT}",
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
            *device.access(self.kind, workload.environment),
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
        if not wait:
            _detach([self.kind, "stop", f"--time={seconds}", name])
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
            return ABSENT
        told = json.loads(shown)[0]
        state = told["State"]
        running = state["Status"] == "running"
        return State(
            exists=True,
            running=running,
            restarts=int(told.get("RestartCount", 0)),
            started=state["StartedAt"],
            memory=self._memory(name, told["Id"], int(state["Pid"])) if running else None,
            oom=bool(state["OOMKilled"]),
            exit_code=None if running else int(state["ExitCode"]),
        )

    def _memory(self, name: str, container: str, pid: int) -> int | None:
        """Read the memory from the kernel; the engine itself takes a second or two, so it is asked seldom."""
        memory = cgroups.memory_of(pid, container)
        if memory is not None:
            return memory
        when, known = self._asked.get(name, (0.0, None))
        if time.monotonic() - when > _SLOW or name not in self._asked:
            known = self.ask_memory(name)
            self._asked[name] = (time.monotonic(), known)
        return known

    def ask_memory(self, name: str) -> int | None:
        """Return the bytes that the engine says a container uses, None when it does not know."""
        try:
            shown = self._call("stats", "--no-stream", "--format", "{{.MemUsage}}", name)
        except EngineError:
            return None
        found = re.match(r"([\d.]+)\s*([A-Za-z]+)", shown)
        if not found or found[2].lower() not in _UNITS:
            return None
        return round(float(found[1]) * _UNITS[found[2].lower()])

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
                    f"{self.kind} could not {what} ({_last(str(error))}): see {self.kind} info, or restart it "
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


def _with_keys(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what a container is told, with the file of API keys at its place in there, and the option that mounts it."""
    keys = environment.get(KEYS)
    if not keys:
        return dict(environment), []
    source = Path(keys).absolute()
    if not source.is_file():
        raise UserError(f"{KEYS} names {source}, which is no file: docs/service.md says how to make it")
    return {**environment, KEYS: _KEYS_INSIDE}, [f"--mount=type=bind,source={source},target={_KEYS_INSIDE},readonly"]


def _reference(image: Mapping[str, Any]) -> str:
    """Return what cannot have changed since it was built: the digest in a registry, or the id on this machine."""
    name = str(image["image"])
    return name if "@" in name else str(image.get("id") or name)


def _is_absent(error: EngineError) -> bool:
    return re.search("no such (container|object)|no container with", str(error).lower()) is not None


def _last(text: str) -> str:
    """Return the last line that says something; `docker run` ends with a hint at its own help."""
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("See 'docker", "Run 'docker"))
    ]
    return (
        lines[-1].removeprefix("docker: ").removeprefix("Error response from daemon: ")[:300] if lines else "no reason given"
    )


def _detach(command: list[str]) -> None:
    """Run a command that outlives this process, and the job of a runner, which ends what carries its mark."""
    environment = {name: value for name, value in os.environ.items() if name != "RUNNER_TRACKING_ID"}
    subprocess.run(
        ["sh", "-c", '"$@" >/dev/null 2>&1 </dev/null &', "sh", *command],
        cwd="/", env=environment, start_new_session=True, check=True,
    )  # fmt: skip
