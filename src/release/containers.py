"""Versions as containers of Docker or Podman: without rights, without a writable disk, within a memory limit, on loopback.

Used through src/release/hosting.py. They come back after a reboot, but for those that were stopped.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import write_bytes
from src.release import device
from src.release.client import KEYS
from src.release.containerize import EngineError, choose, signed_in
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
        self._label = f"deploy={settings.name}-{settings.environment}"
        self._asked: dict[str, tuple[float, int | None]] = {}

    def pull(self, image: Mapping[str, Any]) -> None:
        """Bring the image onto this machine, by its digest.

        Raises:
            UserError: it is neither here nor in a registry, or the registry does not give it.
        """
        name = _reference(image)
        if self._call("image", "inspect", "--format", "{{.Id}}", name).returncode == 0:
            return
        if "@" not in name:
            raise UserError(
                f"the image {image['image']} ({name}) is not on this machine: run make deploy again, which builds it"
            )
        engine = choose(self.kind)
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
        done = self._call("run", "--detach", *command, environment=environment)
        if done.returncode == 0:
            return
        self.remove(workload.name)
        self._refuse_taken_port(done, f"port {workload.port} of 127.0.0.1")
        raise UserError(
            f"{self.kind} does not run {workload.image['image']} ({_last(done.stderr)}): see {self.kind} info, then run the "
            "same command again"
        )

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
            return [*options, "--log-driver=k8s-file", "--log-opt=max-size=10mb", *_PODMAN_LIMITS]
        return [*options, "--log-driver=json-file", "--log-opt=max-size=10m", "--log-opt=max-file=3"]

    def resume(self, name: str) -> None:
        """Run a stopped container again; one that runs is left alone.

        Raises:
            UserError: there is none of this name, or its port was taken in the meantime.
        """
        done = self._call("start", name)
        if _is_absent(done):
            raise UserError(f"there is no container {name} on this host: run make deploy, which starts it")
        self._refuse_taken_port(done, f"the port of {name}")
        self._require(done, f"start {name}")

    def _refuse_taken_port(self, done: "subprocess.CompletedProcess[str]", port: str) -> None:
        if done.returncode and re.search("port is already allocated|address already in use", done.stderr):
            raise UserError(
                f"{port} is taken by another program (ss -ltnp shows which): stop that, or set another DEPLOY_PORT"
            )

    def stop(self, name: str, *, wait: bool = True) -> None:
        """Let requests in flight end for as long as the settings allow, then stop it; it stays stopped after a reboot."""
        seconds = round(self._settings.drain)
        if not wait:
            _detach([self.kind, "stop", f"--time={seconds}", name])
            return
        done = self._call("stop", f"--time={seconds}", name, patience=seconds + _PATIENCE)
        self._require(done, f"stop {name}", absent=True)

    def remove(self, name: str) -> None:
        """End it at once, with all that it wrote."""
        self._require(self._call("rm", "--force", "--volumes", name), f"remove {name}", absent=True)

    def state(self, name: str) -> State:
        """Return what the engine says; paused, or waiting to be started again, is not running."""
        done = self._call("container", "inspect", name)
        if _is_absent(done):
            return ABSENT
        self._require(done, f"inspect {name}")
        told = json.loads(done.stdout)[0]
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
        memory = memory_of(container, pid)
        if memory is not None:
            return memory
        when, known = self._asked.get(name, (0.0, None))
        if time.monotonic() - when > _SLOW or name not in self._asked:
            known = self.ask_memory(name)
            self._asked[name] = (time.monotonic(), known)
        return known

    def ask_memory(self, name: str) -> int | None:
        """Return the bytes that the engine says a container uses, None when it does not know."""
        done = self._call("stats", "--no-stream", "--format", "{{.MemUsage}}", name)
        found = re.match(r"([\d.]+)\s*([A-Za-z]+)", done.stdout.strip())
        if done.returncode or not found or found[2].lower() not in _UNITS:
            return None
        return round(float(found[1]) * _UNITS[found[2].lower()])

    def names(self) -> list[str]:
        """Return the names of this environment's containers, running or not."""
        done = self._call("ps", "--all", "--filter", f"label={self._label}", "--format", "{{.Names}}")
        self._require(done, "list containers")
        return sorted(done.stdout.split())

    def logs(self, name: str, lines: int = 50) -> str:
        """Return the last lines that it printed, both streams; empty when it is not there."""
        done = self._call("logs", f"--tail={lines}", name)
        return "" if done.returncode else done.stdout + done.stderr

    def _call(
        self, *arguments: str, patience: float | None = None, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        command, env = [self.kind, *arguments], {**os.environ, **(environment or {})}
        patience = _PATIENCE if patience is None else patience
        try:  # elsewhere: Podman leaves a file named oom in the folder it was called from
            return subprocess.run(
                command, env=env, cwd=tempfile.gettempdir(), capture_output=True, stdin=subprocess.DEVNULL, text=True,
                errors="replace", timeout=patience, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{self.kind} {arguments[0]} did not end within {patience:g} s: {self._mend()}, then run the same command "
                "again"
            ) from None
        except FileNotFoundError:
            raise UserError(f"{self.kind} is not on this machine any more: install it, or set DEPLOY_ENGINE") from None

    def _require(self, done: "subprocess.CompletedProcess[str]", what: str, *, absent: bool = False) -> None:
        if done.returncode and not (absent and _is_absent(done)):
            raise UserError(
                f"{self.kind} could not {what} ({_last(done.stderr)}): {self._mend()}, then run the same command again"
            )

    def _mend(self) -> str:
        again = "sudo systemctl restart docker" if self.kind == "docker" else "podman system migrate"
        return f"see {self.kind} info, or restart it ({again})"


_PODMAN_LIMITS = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=10000:10000")


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
    """Return what cannot have changed since it was built: the digest in a registry, or the id on this machine.

    Raises:
        UserError: no image was built, only a bento.
    """
    if image["engine"] == "none":
        raise UserError(
            "this release was built without a container engine: run make deploy again where Docker or Podman answers"
        )
    name = str(image["image"])
    return name if "@" in name else str(image.get("id") or name)


def _is_absent(done: "subprocess.CompletedProcess[str]") -> bool:
    return (
        done.returncode != 0 and re.search("no such (container|object)|no container with", done.stderr.lower()) is not None
    )


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


def memory_of(container: str, pid: int, kernel: Path = Path("/")) -> int | None:
    """Return the bytes that a container's control group uses, as `docker stats` counts: without what is only file cache.

    None where the files cannot be read: the engine runs on another machine, or this is a container beside it. Version 1
    and 2 of control groups: docs.kernel.org/admin-guide/cgroup-v1/memory.html and cgroup-v2.html.
    """
    try:
        lines = (kernel / f"proc/{pid}/cgroup").read_text().splitlines()
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if container not in path:  # the process id is one of another machine
                continue
            place = path.lstrip("/")
            if "memory" in controllers.split(","):
                return _used(kernel / "sys/fs/cgroup/memory" / place, "memory.usage_in_bytes", "total_inactive_file")
            if not controllers and (kernel / "sys/fs/cgroup" / place / "memory.current").is_file():
                return _used(kernel / "sys/fs/cgroup" / place, "memory.current", "inactive_file")
    except (OSError, ValueError):
        return None
    return None


def _used(folder: Path, usage: str, cache: str) -> int:
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(int((folder / usage).read_text()) - int(stat.get(cache, 0)), 0)
