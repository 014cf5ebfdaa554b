"""The command line of Docker or Podman, which take the same arguments: build, inspect, tag, push, pull and remove images.

DEPLOY_ENGINE names one of them; without it the first that answers is taken.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.command import UserError

ENGINES = ("docker", "podman")
_LONG = 3600  # seconds; a first build loads the base and all packages over a slow line
_SHORT = 60
_INSIDE = Path(__file__).with_name("inside.py")
# the builder named default is the engine itself, so that the image is there afterwards; one image, and no index of several
_BUILDX = {"BUILDX_BUILDER": "default", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
# what the service runs under in production: what fails under it must not get there
_HARDENED = (
    *("--rm", "-i", "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,size=64m"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--entrypoint", "python"),
)


class EngineError(UserError):
    """The engine refused; the text is the end of what it printed."""

    @property
    def reason(self) -> str:
        """Return its last line that is no hint at a help, without the registry's token."""
        lines = [line for line in str(self).splitlines() if line.strip() and not re.match(r"(See|Run) '.+ --help'", line)]
        line = (lines or ["no reason given"])[-1].strip()
        for start in ("docker: ", "Error response from daemon: "):
            line = line.removeprefix(start)
        token = os.environ.get("REGISTRY_TOKEN")
        return (line.replace(token, "***") if token else line)[:300]


@dataclass(frozen=True)
class Image:
    """An image in the engine's store."""

    id: str  # "sha256:..."
    user: str
    labels: Mapping[str, str]
    size: int  # bytes
    digests: list[str]  # "registry/name@sha256:..." of every registry it came from or went to


@dataclass(frozen=True)
class Engine:
    """Docker or Podman, as the command of that name on PATH."""

    kind: str

    def run(
        self, *arguments: str, seconds: float = _SHORT, text: str | None = None, more: Mapping[str, str] | None = None
    ) -> str:
        """Run a command of the engine and return what it prints, stripped.

        Raises:
            EngineError: it failed or took too long.
        """
        return call([self.kind, *arguments], seconds, text=text, environment=more)

    def build(
        self, dockerfile: Path, context: Path, labels: Mapping[str, str], arguments: Mapping[str, str]
    ) -> Image | None:
        """Build an image of what lies in a folder.

        Raises:
            EngineError: it could not.
        """
        options = [f"--label={key}={value}" for key, value in labels.items()]
        options += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            options += [f"--iidfile={folder}/id", f"--file={dockerfile}"]
            self.run("build", *options, str(context), seconds=_LONG, more={**_BUILDX, **os.environ})
            return self.inspect(Path(folder, "id").read_text().strip())

    def find(self, label: str, value: str) -> list[str]:
        """Return the ids of the images with a label, the newest first."""
        ids = self.run("images", "--no-trunc", "--quiet", "--filter", f"label={label}={value}").split()
        return list(dict.fromkeys(map(_with_algorithm, ids)))

    def inspect(self, name: str) -> Image | None:
        """Return an image by name or id; None when the store has none.

        Raises:
            EngineError: the engine does not answer.
        """
        try:
            (found,) = json.loads(self.run("image", "inspect", name))
        except EngineError as error:
            if re.search(r"no such|not known|not found", str(error), re.IGNORECASE):
                return None
            raise
        config = found.get("Config") or {}
        id_, digests = _with_algorithm(found["Id"]), found.get("RepoDigests") or []
        return Image(id_, config.get("User", ""), config.get("Labels") or {}, found.get("Size") or 0, digests)

    def inside(self, name: str) -> dict[str, Any]:
        """Return what src/release/inside.py says from inside of an image, run read-only and without any right.

        Raises:
            EngineError: it does not run.
        """
        # Podman asks for more open files than some machines allow it
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"] if self.kind == "podman" else []
        program = _INSIDE.read_text()
        found: dict[str, Any] = json.loads(self.run("run", *_HARDENED, *limits, name, "-", text=program, seconds=300))
        return found

    def tag(self, name: str, new: str) -> None:
        """Give an image one more name."""
        self.run("tag", name, new)

    def pull(self, name: str, more: Mapping[str, str] | None = None) -> Image | None:
        """Fetch an image from its registry."""
        self.run("pull", name, seconds=_LONG, more=more)
        return self.inspect(name)

    def push(self, name: str, more: Mapping[str, str] | None = None) -> str:
        """Push a name that the image has; return the digest under which the registry keeps it.

        Raises:
            EngineError: the registry refused or did not answer.
        """
        if self.kind == "docker":
            found = re.findall(r"digest: (sha256:[0-9a-f]{64})", self.run("push", name, seconds=_LONG, more=more))
        else:
            with tempfile.NamedTemporaryFile("r") as file:
                self.run("push", "--digestfile", file.name, name, seconds=_LONG, more=more)
                found = file.read().split()
        if not found:
            raise EngineError(f"{self.kind} does not say under which digest it pushed {name}")
        return str(found[-1])

    def prune(self, name: str, keep: Collection[str], newest: int = 5) -> list[str]:
        """Remove images of a model: all but the newest, those to keep (ids), and those that a container has.

        Returns:
            The ids of what was removed.
        """
        gone = []
        for image in self.find("ml.model.name", name)[newest:]:
            if image in keep or self.run("ps", "--all", "--quiet", "--filter", f"ancestor={image}"):
                continue
            with suppress(EngineError):  # one that is in use all the same stays
                self.run("image", "rm", "--force", image, seconds=300)
                gone.append(image)
        return gone


def _with_algorithm(id_: str) -> str:
    return id_ if id_.startswith("sha256:") else f"sha256:{id_}"


@contextmanager
def signed_in(engine: Engine, image: str) -> Iterator[dict[str, str]]:
    """Sign in to an image's registry with REGISTRY_USER and REGISTRY_TOKEN, where they are set, for the variables yielded.

    Nothing of it stays on this machine.

    Raises:
        EngineError: the registry refuses.
    """
    server, token = image.partition("/")[0], os.environ.get("REGISTRY_TOKEN", "")
    if not token:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="login-") as folder:
        more = {"DOCKER_CONFIG": folder, "REGISTRY_AUTH_FILE": f"{folder}/config.json"}
        user = os.environ.get("REGISTRY_USER") or "token"
        engine.run("login", "--username", user, "--password-stdin", server, text=token, more=more)
        yield more


def choose(wanted: str | None) -> Engine:
    """Return the engine that DEPLOY_ENGINE asks for (`wanted`); without it the first that answers.

    Raises:
        UserError: none is there, or none answers.
    """
    why_not = []
    for kind in [wanted] if wanted else ENGINES:
        if shutil.which(kind) is None:
            why_not.append(f"{kind} is not installed")
            continue
        try:
            call([kind, "info"], 20)
        except EngineError as error:
            why_not.append(f"{kind} is installed and does not answer ({str(error).splitlines()[-1][:200]})")
        else:
            return Engine(kind)
    if wanted:
        raise UserError(f"DEPLOY_ENGINE asks for {wanted}, but {why_not[0]}: start or install it, or unset DEPLOY_ENGINE")
    raise UserError(f"an image needs Docker or Podman, but {' and '.join(why_not)}: start or install one of them")


def call(
    command: list[str],
    seconds: float,
    *,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program, which does not see REGISTRY_TOKEN, and return what it prints to stdout, stripped.

    Raises:
        EngineError: it failed, took too long, or cannot be run; the text is the end of what it printed.
    """
    variables = {**os.environ, **(environment or {})}
    variables.pop("REGISTRY_TOKEN", None)
    try:
        done = subprocess.run(
            command, input=text, env=variables, cwd=folder, timeout=seconds, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL if text is None else None, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineError(f"{Path(command[0]).name} {command[1]} took over {seconds:g} s") from None
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        said = [line.rstrip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise EngineError("\n".join(said[-30:]) or f"{Path(command[0]).name} ended with {done.returncode}")
    return done.stdout.strip()
