"""Build the image of a release, check it, push it: writes image.json and sbom.json into the folder that verify made.

    python -m src build out/release [--push]
    python -m src build --current

The first takes the service from the released commit and the model from the folder; `--current` (make image) takes the
working tree and out/model as they are, and writes into out/image. The same content is not built twice. Without Docker,
Podman or Buildah the bento is kept under DEPLOY_HOME, and the host runs it as a process.

IMAGE_REGISTRY says where --push goes, such as ghcr.io/owner/repository (the default on GitHub), with REGISTRY_USER and
REGISTRY_TOKEN where it asks for them. BASE_IMAGE names another base, IMAGE_MAX_MB another size limit.
"""

import argparse
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import read_json, sha256, write_bytes, write_json
from src.github.git import GitError, git
from src.judging import lineage
from src.release import bento as bentos
from src.release import containerize, device, reviewed, sbom
from src.release import settings as all_settings
from src.release.bento import Content
from src.release.containerize import Engine, EngineError, Image, biggest
from src.release.outcome import RefusedError, telling
from src.system import dvc_lock
from src.system.locks import locked

IMAGE_BUDGET_MB = 500
_GPU_BUDGET_MB = 6000
BASE_IMAGE = "python:3.11-slim"  # what src/serving/service.py takes where the variable BASE_IMAGE is not set
UNREGISTERED = "unregistered"
_KEY = "ml.build.key"
_TRIES = 3
_NOT_THERE = re.compile(r"not found|manifest unknown|name unknown|does not exist|denied|unauthorized", re.IGNORECASE)
_REFUSED = re.compile(r"denied|unauthorized|forbidden|authentication required", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """How to build."""

    push: bool = False
    rebuild: bool = False
    verbose: bool = False


def build(folder: Path, tree: Path, content: Content, options: Options) -> dict[str, Any]:
    """Build, check and push one image; write image.json and sbom.json.

    Raises:
        UserError: there is nothing to build from, or engine or registry refuse.
        RefusedError: the image is not as it has to be.
    """
    settings = all_settings.read()
    (folder / "image.json").unlink(missing_ok=True)  # what an earlier build left is not this one's
    engine, said = containerize.choose(settings.engine)
    print(said, flush=True)
    registry = _registry() if options.push else None
    if options.push and engine is None:
        raise RefusedError("image", "nothing can be pushed, because no image is built", "start Docker, or leave out --push")
    with bentos.temporary() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        bentos.assemble(tree, content, source)
        base = _base(engine) if engine else None
        job = _Job(content, source, options, bentos.key(content, source, base.digest if base else None), base)
        made = _with_engine(job, engine, registry) if engine else _without_engine(job, settings.home)
        image, found = made
        locked = _locked(source)
    write_bytes(folder / "sbom.json", sbom.write(found, locked, content.identity, job.key).encode())
    write_json(folder / "image.json", image)
    _tell_workflow(image)
    return image


@dataclass(frozen=True)
class _Base:
    """The image that another is built from: the name that was given, the one to build from, and its digest or id."""

    name: str
    pinned: str
    digest: str


@dataclass(frozen=True)
class _Job:
    """One build: what goes in, where it lies, and the key that names it; without an engine there is no base."""

    content: Content
    source: Path
    options: Options
    key: str
    base: _Base | None

    @property
    def tag(self) -> str:
        """Return the name of the image on this machine: no other content ever has it."""
        return f"{self.content.name}:{self.content.version}-{self.key[:12]}"


def _base(engine: Engine) -> _Base:
    """Return the base image by its digest, fetched where it is not here yet; one that no registry gave has only its id."""
    name = os.environ.get("BASE_IMAGE") or BASE_IMAGE
    image = engine.inspect(name)
    if image is None:
        print(f"fetching the base image {name}", flush=True)
        try:
            engine.pull(name)
        except EngineError as error:
            then = "look at network and name, or name another base by BASE_IMAGE"
            raise RefusedError("image", f"the base image {name} cannot be fetched ({_last(error)})", then) from None
        image = engine.inspect(name)
    if image is None:
        raise RefusedError("image", f"the base image {name} is not there after it was fetched", "set another BASE_IMAGE")
    if not image.digests:
        print(f"the base image {name} was made on this machine, so that no registry names its digest", flush=True)
        return _Base(name, name, image.id)
    repository = re.sub(r"[:@][^/]*$", "", name)
    own = [digest for digest in image.digests if digest.partition("@")[0].endswith(repository)]
    pinned = name if "@" in name else min(own or image.digests)
    print(f"base image: {pinned}", flush=True)
    return _Base(name, pinned, pinned.rpartition("@")[2])


# ---------------------------------------------------------------------------------------------------------------------
# With an engine
# ---------------------------------------------------------------------------------------------------------------------


def _with_engine(job: _Job, engine: Engine, registry: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of image.json, and what lies inside of the image."""
    started = time.monotonic()
    remote = f"{registry}/{job.content.name}" if registry else None
    image = None if job.options.rebuild else _built_already(job, engine, remote)
    said = f"already built: {job.tag}"
    if image is None:
        image = _make(job, engine)
        said = f"built {job.tag} in {time.monotonic() - started:.0f} s"
    found = _check(job, engine, image)
    engine.tag(image.id, job.tag)
    print(f"{said}, {(image.size or 0) / 1e6:.0f} MB, {len(found['packages'])} Python packages", flush=True)
    digest = image.id
    name = job.tag
    if remote:
        digest = _push(job, engine, image, remote)
        name = f"{remote}@{digest}"
    return _described(job, name, digest, engine.kind) | {"id": image.id, "size": image.size}, found


def _described(job: _Job, name: str, digest: str, engine: str) -> dict[str, Any]:
    identity = job.content.identity
    return {
        "image": name, "digest": digest, "id": None, "key": job.key, "engine": engine, "bento": None, "size": None,
        "version": identity["version"], "manifest": identity["manifest"], "commit": identity["commit"],
        "base": job.base.pinned if job.base else None,
    }  # fmt: skip


def _built_already(job: _Job, engine: Engine, remote: str | None) -> Image | None:
    """Return the image with this key: that of the registry, whose digest is known, before one of this machine."""
    if remote and (image := _of_registry(job, engine, remote)):
        return image
    for id_ in engine.find(_KEY, job.key):
        return engine.inspect(id_)
    return None


def _of_registry(job: _Job, engine: Engine, remote: str) -> Image | None:
    name = f"{remote}:key-{job.key[:12]}"
    with _signed_in(engine, remote) as login:
        try:
            engine.pull(name, login)
        except EngineError as error:
            if _NOT_THERE.search(str(error)):
                return None
            raise _registry_error(remote, error) from None
    image = engine.inspect(name)
    return image if image and image.labels.get(_KEY) == job.key else None


def _make(job: _Job, engine: Engine) -> Image:
    """Build the bento and the image; another build of the same content does not meet this one."""
    unchecked = f"{job.content.name}:building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="bentoml-") as home:
        bento = bentos.build(job.source, Path(home), job.key[:16], job.base.pinned if job.base else None)
        try:
            containerize.containerize(engine, bento, unchecked, _labels(job), verbose=job.options.verbose)
            image = engine.inspect(unchecked)
        except EngineError as error:
            raise _build_error(engine, error) from None
    if image is None:
        raise RefusedError("image", f"{engine.title} built no image", "run again with --verbose")
    # an image loses its last name, and is gone, if another build takes the shared one between these two
    with locked(Path(tempfile.gettempdir()) / f"images-{os.getuid()}.lock", lambda: "waiting for another build"):
        engine.tag(image.id, job.tag)
        engine.remove(unchecked)
    return image


def _build_error(engine: Engine, error: EngineError) -> RefusedError:
    if "no space left" in str(error).lower():
        then = f"free some space ({Path(engine.command).name} image prune), then run again"
        return RefusedError("image", f"the disk is full: {engine.title} could not build the image", then)
    return RefusedError("image", f"{engine.title} could not build the image:\n{error}\n", "mend this, then run again")


def _labels(job: _Job) -> dict[str, str]:
    """Return the labels of the image; https://github.com/opencontainers/image-spec/blob/main/annotations.md."""
    identity = job.content.identity
    labels = {
        "org.opencontainers.image.revision": identity["commit"],
        "org.opencontainers.image.title": identity["name"],
        "org.opencontainers.image.version": identity["version"],
        "ml.model.name": identity["name"],
        "ml.model.version": identity["version"],
        "ml.model.manifest": identity["manifest"],
        "ml.model.sha256": identity["model_sha256"],
        "ml.model.precision": identity["precision"],
        "ml.model.served.sha256": identity["served_sha256"],
        "org.opencontainers.image.base.name": job.base and job.base.name,
        "org.opencontainers.image.base.digest": job.base and job.base.digest,
        _KEY: job.key,
    }
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        labels["org.opencontainers.image.source"] = f"{server}/{repository}"
    return {name: str(value) for name, value in labels.items() if value is not None}


def _check(job: _Job, engine: Engine, image: Image) -> dict[str, Any]:
    """Look at the image from outside and inside, also at one that was built before.

    Raises:
        RefusedError: it runs as root, is too large, holds what it must not, or another service than this one.
    """
    try:
        found = engine.inside(image.id)
    except EngineError as error:
        then = "run again with --rebuild"
        raise RefusedError("image", f"{job.tag} does not run read-only and without rights ({_last(error)})", then) from None
    wrong = _faults(job.content.files, found, image)
    limit, size = _limit(), (image.size or 0) / 1e6
    if size > limit:
        wrong.append(f"it is {size:.0f} MB, over the limit of {limit:g} MB ({biggest(engine.layers(image.id))})")
    if wrong:
        then = (
            "mend bentofile.yaml, requirements/serving.in or src/serving, or raise IMAGE_MAX_MB, then build with --rebuild"
        )
        raise RefusedError("image", f"the image of {job.tag} must not be used: {'; '.join(wrong)}", then)
    return found


def _limit() -> float:
    """Return how many megabytes an image may have; one for a GPU brings NVIDIA's libraries."""
    text = os.environ.get("IMAGE_MAX_MB") or str(IMAGE_BUDGET_MB if device.read() == "cpu" else _GPU_BUDGET_MB)
    try:
        return float(text)
    except ValueError:
        raise UserError(f"IMAGE_MAX_MB is {text!r}: use a number of megabytes, or leave it unset") from None


def _faults(files: Mapping[str, str], found: Mapping[str, Any], image: Image) -> list[str]:
    """Return what is wrong with an image, each as a sentence."""
    wrong = []
    if found["uid"] == 0 or image.user in ("", "0", "root"):
        wrong.append("it runs as root")
    if found["training"]:
        wrong.append(f"training code is in it: {', '.join(found['training'])}")
    if found.get("uncompiled"):
        wrong.append(f"modules have no bytecode, so every start compiles them: {', '.join(found['uncompiled'])}")
    held = {path: digest for path, digest in found["files"].items() if path != bentos.BENTOFILE}  # BentoML writes it anew
    strange = sorted(set(held) - set(files))
    if strange:
        wrong.append(f"it holds files that bentofile.yaml does not name: {', '.join(strange[:5])}")
    other = sorted(path for path in files if path != bentos.IDENTITY and held.get(path) != files[path])
    if other:
        wrong.append(f"files in it are missing or not those of the release: {', '.join(other[:5])}")
    return wrong


# ---------------------------------------------------------------------------------------------------------------------
# Without an engine
# ---------------------------------------------------------------------------------------------------------------------


def _without_engine(job: _Job, home: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keep the bento where the host runs it from."""
    lasting = home / "bentos" / job.key
    known = {path: digest for path, digest in job.content.files.items() if path != bentos.IDENTITY}
    if not job.options.rebuild and lasting.is_dir() and known.items() <= bentos.files_of(lasting).items():
        print(f"already built: {lasting}", flush=True)
    else:
        with tempfile.TemporaryDirectory(prefix="bentoml-") as store:
            bentos.keep(bentos.build(job.source, Path(store), job.key[:16], None), lasting)
        print(f"built the bento {lasting}", flush=True)
    packages = [{"name": name, "version": version, "licence": ""} for name, version in sorted(_locked(job.source))]
    described = _described(job, job.tag, f"sha256:{job.key}", "none")
    return described | {"bento": str(lasting.resolve())}, {"packages": packages}


def _locked(source: Path) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted((source / "requirements").glob("*.txt")):
        found |= sbom.hashes(path)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The registry
# ---------------------------------------------------------------------------------------------------------------------


def _registry() -> str | None:
    """Return where images are pushed to; None: nowhere.

    Raises:
        UserError: IMAGE_REGISTRY is no address of a registry.
    """
    named = os.environ.get("IMAGE_REGISTRY", "").strip().rstrip("/")
    if not named and os.environ.get("GITHUB_ACTIONS") == "true" and os.environ.get("GITHUB_REPOSITORY"):
        named = f"ghcr.io/{os.environ['GITHUB_REPOSITORY'].lower()}"
    if not named:
        print("the image stays on this machine: set IMAGE_REGISTRY to push it", flush=True)
        return None
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", named):
        raise UserError(
            f"IMAGE_REGISTRY is {named!r}: write it like ghcr.io/owner/repository, small letters, without https://"
        )
    return named


@contextmanager
def _signed_in(engine: Engine, registry: str) -> Iterator[dict[str, str]]:
    """Sign in with REGISTRY_USER and REGISTRY_TOKEN, where they are set, for one command: nothing is built meanwhile."""
    with ExitStack() as stack:
        try:
            login = stack.enter_context(containerize.signed_in(engine, registry))
        except EngineError as error:
            raise _registry_error(registry, error) from None
        yield login


def _push(job: _Job, engine: Engine, image: Image, remote: str) -> str:
    """Push under the commit and under the key; return the digest that the registry gives."""
    digest = ""
    commit = job.content.commit  # a working tree is no commit
    with _signed_in(engine, remote) as login:
        for tag in (*([commit[:12]] if commit else []), f"key-{job.key[:12]}"):
            name = f"{remote}:{tag}"
            engine.tag(image.id, name)
            digest = _push_patiently(engine, name, remote, login)
    print(f"pushed {remote}@{digest}", flush=True)
    return digest


def _push_patiently(engine: Engine, name: str, remote: str, login: Mapping[str, str]) -> str:
    for attempt in range(1, _TRIES + 1):
        try:
            return engine.push(name, login)
        except EngineError as error:
            if attempt == _TRIES or _REFUSED.search(str(error)):
                raise _registry_error(remote, error) from None
            print(f"push {attempt} of {_TRIES} failed: {_last(error)}", flush=True)
            time.sleep(2 * attempt)
    raise AssertionError


def _registry_error(remote: str, error: EngineError) -> RefusedError:
    server = remote.partition("/")[0]
    if _REFUSED.search(str(error)):
        then = "check REGISTRY_USER and REGISTRY_TOKEN, and that they may write packages there"
        return RefusedError("image", f"the registry {server} refuses ({_last(error)})", then)
    return RefusedError(
        "image", f"the registry {server} does not answer as it should ({_last(error)})", "start it, or set IMAGE_REGISTRY"
    )


def _last(error: Exception) -> str:
    """Return the last line of what an engine said, which is not that it has a help, without the token."""
    lines = [line for line in str(error).splitlines() if line.strip() and not re.match(r"(See|Run) '.+ --help'", line)]
    line = (lines or ["no reason given"])[-1][:300]
    token = os.environ.get("REGISTRY_TOKEN")
    return line.replace(token, "***") if token else line


def _tell_workflow(image: Mapping[str, Any]) -> None:
    target = os.environ.get("GITHUB_OUTPUT")
    if target:
        with Path(target).open("a") as file:
            file.write(f"image={image['image']}\ndigest={image['digest']}\n")


# ---------------------------------------------------------------------------------------------------------------------
# What is built
# ---------------------------------------------------------------------------------------------------------------------


def released(folder: Path) -> Content:
    """Return what a folder of verify releases; the version is the one that register noted.

    Raises:
        RefusedError: what register noted is of another release.
    """
    release = reviewed.read(folder)
    name = all_settings.read().name
    version = UNREGISTERED
    if (folder / "registered.json").is_file():
        noted = read_json(folder / "registered.json", made_by="evaluate", keys=("name", "version", "manifest"))
        if (noted["manifest"], noted["name"]) != (release.manifest, name):
            said = f"{folder}/registered.json is of another release or model than {folder}/release.json"
            raise RefusedError("tampered", said, f"run python -m src register {folder} again")
        version = str(noted["version"])
    kept = ("manifest", "model_sha256", "precision", "served_sha256", "commit", "pull_request", "data", "verdict", "metrics")
    identity = {"name": name, "version": version, **{key: getattr(release, key) for key in kept}}
    identity["committed"] = _committed(Path.cwd(), release.commit)
    return Content(release.commit, identity, folder / "model", folder / "manifest.json")


def current(tree: Path) -> Content:
    """Return what the working tree holds: the last model, whoever judged it.

    Raises:
        UserError: there is no model.
    """
    model = tree / lineage.MODEL
    if not model.is_file():
        raise UserError(f"{model} is missing: run make reproduce first, which makes it")
    sha = sha256(model)
    manifest = lineage.read_manifest(tree / "manifest.json")
    known = manifest if manifest and manifest["outputs"].get("model_sha256") == sha else None
    identity = {
        "name": all_settings.read().name,
        "version": UNREGISTERED,
        "manifest": dvc_lock.digest(known) if known else None,
        "model_sha256": sha,
        "precision": "fp32",
        "served_sha256": sha,
        "commit": _commit(tree),
        "committed": _committed(tree, "HEAD"),
        "pull_request": known.get("pull_request") if known else None,
        "data": known["data"]["digest"] if known else None,
        "verdict": known["verdict"]["verdict"] if known else None,
        "metrics": known["metrics"] if known else {},
    }
    return Content(None, identity, model.parent, tree / "manifest.json" if manifest else None)


def _committed(tree: Path, commit: str) -> int | None:
    """Return when a commit was made, in seconds since 1970, from which the service counts the model's age."""
    try:
        return int(git(tree, "show", "--no-patch", "--format=%ct", commit))
    except (GitError, ValueError):  # no repository, or one without this commit
        return None


def _commit(tree: Path) -> str | None:
    """Return the commit of the working tree, marked where files of it were changed."""
    try:
        return git(tree, "describe", "--always", "--abbrev=40", "--exclude", "*", "--dirty")
    except GitError:  # a downloaded archive is no repository
        return None


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build, check and push the image of a release.")
    parser.add_argument("folder", type=Path, nargs="?", help="what verify and register filled, such as out/release")
    parser.add_argument("--current", action="store_true", help="take the working tree and out/model as they are")
    parser.add_argument("--push", action="store_true", help="push to IMAGE_REGISTRY, where one is set")
    parser.add_argument("--rebuild", action="store_true", help="also where the same content was built before")
    parser.add_argument("--verbose", action="store_true", help="show what the builder prints")
    parser.add_argument("--tree", type=Path, default=Path(), help="the repository")
    args = parser.parse_args()
    if (args.folder is None) != args.current:
        parser.error("name a folder, such as out/release, or --current")
    options = Options(args.push, args.rebuild, args.verbose)
    folder = args.folder or args.tree / "out/image"
    with nullcontext() if args.current else telling("build", folder):
        content = current(args.tree) if args.current else released(folder)
        image = build(folder, args.tree, content, options)
    print(f"{image['image']} is described in {folder}/image.json, its content in {folder}/sbom.json")
