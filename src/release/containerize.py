"""Docker, Podman or Buildah behind one face: which of them builds here, and what the release asks of it.

Nothing is read or written but the engine's own store. BENTOML_CONTAINERIZE_BACKEND names an engine; without it the first of
Docker, Podman and Buildah that answers is taken.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.core.command import UserError

_TITLES = {"docker": "Docker", "podman": "Podman", "buildah": "Buildah"}
_LONG = 3600  # seconds; a first build loads the base and all packages over a slow line
_SHORT = 60
_INSIDE = Path(__file__).with_name("inside.py")
# what the service runs under in production: what fails under it must not get there
_HARDENED = (
    *("--rm", "-i", "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,size=64m"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--entrypoint", "python"),
)


class EngineError(UserError):
    """The engine refused; the text is the reason it gave."""


@dataclass(frozen=True)
class Image:
    """An image in the engine's store."""

    id: str  # "sha256:..."
    user: str
    labels: Mapping[str, str]
    size: int | None  # bytes
    names: list[str]
    digests: list[str]  # "registry/name@sha256:..." of every registry it came from or went to


@dataclass(frozen=True)
class Engine:
    """One engine, and how it builds here."""

    kind: str  # docker, podman or buildah
    command: str  # path of its command line
    how: str  # for a person
    variables: Mapping[str, str] = field(default_factory=dict)  # that its builder needs

    @property
    def title(self) -> str:
        """Return its name as its makers write it."""
        return _TITLES[self.kind]

    def run(
        self, *arguments: str, seconds: float = _SHORT, text: str | None = None, more: Mapping[str, str] | None = None
    ) -> str:
        """Run a command of the engine and return what it prints, stripped.

        Raises:
            EngineError: it failed or took too long.
        """
        return call([self.command, *arguments], seconds, text=text, environment={**self.variables, **(more or {})})

    def find(self, label: str, value: str) -> list[str]:
        """Return the ids of the images with a label, the newest first."""
        ids = self.run("images", "--no-trunc", "--quiet", "--filter", f"label={label}={value}").split()
        return list(dict.fromkeys(map(_with_algorithm, ids)))

    def inspect(self, name: str) -> Image | None:
        """Return an image by name or id; None when the store has none.

        Raises:
            EngineError: the engine does not answer.
        """
        words = ["inspect", "--type", "image", name] if self.kind == "buildah" else ["image", "inspect", name]
        try:
            found = json.loads(self.run(*words))
        except EngineError as error:
            if re.search(r"no such|not known|not found|no such image", str(error), re.IGNORECASE):
                return None
            raise
        return self._buildah_image(found, name) if self.kind == "buildah" else _image(found[0])

    def _buildah_image(self, found: dict[str, Any], name: str) -> Image:
        """Read Buildah's own form; the size is only in its list."""
        config = found["OCIv1"].get("config", {})
        id_ = _with_algorithm(found["FromImageID"])
        listed = json.loads(self.run("images", "--json", name))
        size = _bytes(listed[0]["size"]) if listed else None
        return Image(id_, config.get("User", ""), config.get("Labels") or {}, size, listed[0].get("names") or [], [])

    def layers(self, name: str) -> list[tuple[int, str]]:
        """Return size in bytes and making of each layer, the largest first; empty where the engine does not tell."""
        if self.kind == "buildah":
            return []
        lines = self.run(
            "history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", name
        ).splitlines()
        return sorted(
            ((int(size), _short(made)) for size, _, made in (line.partition("\t") for line in lines)), reverse=True
        )

    def inside(self, name: str) -> dict[str, Any]:
        """Return what src/release/inside.py says from inside of an image, run read-only and without any right.

        Raises:
            EngineError: it does not run.
        """
        program = _INSIDE.read_text()
        if self.kind == "buildah":
            return self._inside_by_buildah(name, program)
        # Podman asks for more open files than some machines allow it
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"] if self.kind == "podman" else []
        found: dict[str, Any] = json.loads(self.run("run", *_HARDENED, *limits, name, "-", text=program, seconds=300))
        return found

    def _inside_by_buildah(self, name: str, program: str) -> dict[str, Any]:
        container = self.run("from", "--pull-never", name)
        try:
            found: dict[str, Any] = json.loads(self.run("run", container, "--", "python", "-c", program, seconds=300))
            return found
        finally:
            self.run("rm", container)

    def tag(self, name: str, new: str) -> None:
        """Give an image one more name."""
        self.run("tag", name, new)

    def remove(self, *names: str, force: bool = False) -> bool:
        """Remove names, and images whose last name that was; False when the engine keeps one that is in use."""
        words = ["rmi"] if self.kind == "buildah" else ["image", "rm"]
        try:
            self.run(*words, *(["--force"] if force else []), *names, seconds=300)
        except EngineError:
            return False
        return True

    def pull(self, name: str, more: Mapping[str, str] | None = None) -> None:
        """Fetch an image from its registry."""
        self.run("pull", *self._plain(name), name, seconds=_LONG, more=more)

    def push(self, name: str, more: Mapping[str, str] | None = None) -> str:
        """Push a name that the image has; return the digest under which the registry keeps it.

        Raises:
            EngineError: the registry refused or did not answer.
        """
        if self.kind == "docker":
            said = self.run("push", name, seconds=_LONG, more=more)
            found = re.findall(r"digest: (sha256:[0-9a-f]{64})", said)
        else:
            with tempfile.NamedTemporaryFile("r") as file:
                self.run("push", *self._plain(name), "--digestfile", file.name, name, seconds=_LONG, more=more)
                found = file.read().split()
        if not found:
            raise EngineError(f"{self.title} does not say under which digest it pushed {name}")
        return str(found[-1])

    def _plain(self, name: str) -> list[str]:
        """A registry on this very machine speaks HTTP; Docker knows that by itself."""
        local = re.match(r"(127\.\d+\.\d+\.\d+|localhost)(:\d+)?/", name)
        return ["--tls-verify=false"] if local and self.kind != "docker" else []

    def login(self, server: str, user: str, token: str, folder: Path) -> dict[str, str]:
        """Sign in to a registry for the variables that are returned; the credential lies in `folder` only."""
        more = {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(folder / "config.json")}
        self.run("login", *self._plain(f"{server}/"), "--username", user, "--password-stdin", server, text=token, more=more)
        return more

    def used(self) -> set[str]:
        """Return the ids of the images that a container has, be it stopped."""
        if self.kind == "buildah":
            return set()
        containers = self.run("ps", "--all", "--quiet", "--no-trunc").split()
        if not containers:
            return set()
        found = self.run("inspect", "--type", "container", "--format", "{{.Image}}", *containers)
        return {_with_algorithm(id_) for id_ in found.split()}


def _image(found: Mapping[str, Any]) -> Image:
    config = found.get("Config") or {}
    labels = config.get("Labels") or {}
    names, digests = found.get("RepoTags") or [], found.get("RepoDigests") or []
    return Image(_with_algorithm(found["Id"]), config.get("User", ""), labels, found.get("Size"), names, digests)


def _with_algorithm(id_: str) -> str:
    return id_ if id_.startswith("sha256:") else f"sha256:{id_}"


def _bytes(text: str) -> int | None:
    """Read a size as Buildah lists it, such as "523 MB"."""
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
    number, _, unit = text.partition(" ")
    return int(float(number) * units[unit.upper()]) if unit.upper() in units else None


def _short(made: str) -> str:
    """Cut what an engine puts before and after a command of the Dockerfile."""
    command = re.sub(r"^.*?/bin/sh -c (#\(nop\) )?", "", made).removesuffix("# buildkit")
    return " ".join(command.split())[:80]


# ---------------------------------------------------------------------------------------------------------------------
# Which engine, and how it builds
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def signed_in(engine: Engine, image: str) -> Iterator[dict[str, str]]:
    """Sign in to an image's registry with REGISTRY_USER and REGISTRY_TOKEN, where they are set; nothing of it stays here.

    Raises:
        EngineError: the registry refuses.
    """
    user, token = os.environ.get("REGISTRY_USER", ""), os.environ.get("REGISTRY_TOKEN", "")
    if not token:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="login-") as folder:
        yield engine.login(image.partition("/")[0], user or "token", token, Path(folder))


def choose(wanted: str | None, environment: Mapping[str, str] = os.environ) -> tuple[Engine | None, str]:
    """Return the engine that builds here, or None, and a sentence on the choice.

    Args:
        wanted: docker, podman, processes (none) or None (whatever there is).
        environment: where PATH and BENTOML_CONTAINERIZE_BACKEND are looked up.

    Raises:
        UserError: an engine was named, and it is not there or does not answer.
    """
    named = environment.get("BENTOML_CONTAINERIZE_BACKEND", "").strip()
    kind = {"buildx": "docker"}.get(named, named)
    if kind and kind not in _TITLES:
        raise UserError(
            f"BENTOML_CONTAINERIZE_BACKEND is {named!r}: use docker, buildx, podman or buildah, or leave it unset"
        )
    if not kind and wanted == "processes":
        return None, "no image is built: this host runs the service as a process"
    only = kind or wanted
    why_not = []
    for candidate in [only] if only else _TITLES:
        engine, reason = _open(candidate, environment)
        if engine:
            return engine, f"builder: {engine.how}"
        why_not.append(reason)
    if only:
        variable = "BENTOML_CONTAINERIZE_BACKEND" if kind else "DEPLOY_ENGINE"
        raise UserError(f"{variable} asks for {_TITLES[only]}, but {why_not[0]}: start or install it, or unset {variable}")
    return None, f"no image is built: {', '.join(why_not)}"


def _open(kind: str, environment: Mapping[str, str]) -> tuple[Engine | None, str]:
    """Return the engine, or None and why not."""
    commands = _commands(kind, environment.get("PATH", os.defpath))
    if not commands:
        return None, f"{_TITLES[kind]} is not installed"
    try:
        call([commands[0], "version" if kind == "buildah" else "info"], 20, environment=environment)
    except EngineError as error:
        return None, f"{_TITLES[kind]} is installed and does not answer ({str(error).splitlines()[-1][:200]})"
    if kind == "docker":
        return _docker(commands, environment), ""
    return Engine(kind, commands[0], _TITLES[kind]), ""


def _commands(name: str, path: str) -> list[str]:
    """Return every command of that name on PATH: of several Docker clients not each can build."""
    found = [shutil.which(name, path=folder) for folder in path.split(os.pathsep) if folder]
    return list({os.path.realpath(command): command for command in reversed(found) if command}.values())[::-1]


def _docker(commands: list[str], environment: Mapping[str, str]) -> Engine:
    """Choose Docker's builder: buildx, else the BuildKit inside an old client, else the engine's old builder."""
    quiet = {"DOCKER_SCAN_SUGGEST": "false", "DOCKER_CLI_HINTS": "false"}
    if environment.get("DOCKER_BUILDKIT") == "0":
        return Engine("docker", commands[0], "Docker's old builder, as DOCKER_BUILDKIT=0 asks for", quiet)
    for command in commands:
        if _answers(command, environment, "buildx", "version"):
            # the builder named default is the engine itself, so that the image is there afterwards
            more = {"BUILDX_BUILDER": environment.get("BUILDX_BUILDER", "default"), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
            return Engine("docker", command, "Docker and buildx", quiet | more | {"DOCKER_BUILDKIT": "1"})
    for command in commands:
        version = _answers(command, environment, "version", "--format", "{{.Client.Version}}")
        if version and int(version.split(".")[0]) < 23:  # from 23 on BuildKit is a plugin of its own
            how = f"Docker and the BuildKit of its client {version} (there is no buildx)"
            return Engine("docker", command, how, quiet | {"DOCKER_BUILDKIT": "1"})
    return Engine("docker", commands[0], "Docker's old builder (there is no buildx)", quiet | {"DOCKER_BUILDKIT": "0"})


def _answers(command: str, environment: Mapping[str, str], *arguments: str) -> str:
    try:
        return call([command, *arguments], 20, environment=environment)
    except EngineError:
        return ""


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


# ---------------------------------------------------------------------------------------------------------------------
# Build, and clear away
# ---------------------------------------------------------------------------------------------------------------------


def containerize(engine: Engine, bento: Path, name: str, labels: Mapping[str, str], *, verbose: bool = False) -> None:
    """Make an image of a built bento, which lies in the store `bento.parents[2]`.

    BentoML's own command does it; where that cannot drive Docker, Docker builds the Dockerfile that lies in the bento.

    Raises:
        EngineError: it failed; the text is the end of what the builder printed.
    """
    options = [part for key, value in labels.items() for part in ("--opt", f"label={key}={value}")]
    command = [sys.executable, "-P", "-m", "bentoml", "containerize", f"{bento.parent.name}:{bento.name}"]
    command += ["--backend", engine.kind, "--image-tag", name, *options]
    # BentoML takes the first client on PATH
    path = f"{Path(engine.command).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**engine.variables, **bentoml_environment(bento.parents[2]), "PATH": path}
    try:
        said = call(command, _LONG, environment=environment)
    except EngineError:
        if engine.kind != "docker":
            raise
        print("bentoml containerize failed: trying docker build on the bento's own Dockerfile", flush=True)
        options = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
        arguments = ["build", "--file", str(bento / "env/docker/Dockerfile"), "--tag", name, *options, str(bento)]
        said = engine.run(*arguments, seconds=_LONG, more={"DOCKER_BUILDKIT": "0"})
    if verbose:
        print(said)


def bentoml_environment(home: Path) -> dict[str, str]:
    """Return the variables under which BentoML works in a store of its own and tells nobody."""
    return {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONWARNINGS": "ignore::UserWarning:click"}


def prune(engine: Engine, name: str, keep: Collection[str], newest: int = 5) -> list[str]:
    """Remove images of a model: all but the newest, those to keep (ids), and those that a container has.

    Returns:
        The ids of what was removed.
    """
    ours = engine.find("ml.model.name", name)
    used = engine.used() | set(keep)
    return [id_ for id_ in ours[newest:] if id_ not in used and engine.remove(id_, force=True)]


def biggest(layers: Iterable[tuple[int, str]], count: int = 3) -> str:
    """Name the largest layers, for a person."""
    return "; ".join(f"{size / 1e6:.0f} MB by `{made}`" for size, made in list(layers)[:count])
