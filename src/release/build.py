"""Build the image of a release, check it, push it: writes image.json and sbom.json into the folder that verify made.

    python -m src build out/release [--push]
    python -m src build --current

The first takes the service from the released commit and the model from the folder; `--current` (make image) takes the
working tree and out/model as they are, and writes into out/image. The same content is not built twice.

IMAGE_REGISTRY says where --push goes, such as ghcr.io/owner/repository (the default on GitHub), with REGISTRY_USER and
REGISTRY_TOKEN where it asks for them. BASE_IMAGE names another base, IMAGE_MAX_MB another size limit.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import sha256, write_bytes, write_json
from src.judging import lineage
from src.release import bento as bentos
from src.release import containerize, device, reviewed, sbom
from src.release import settings as all_settings
from src.release.bento import Content
from src.release.containerize import Engine, EngineError, Image, signed_in
from src.release.outcome import RefusedError, telling
from src.release.reviewed import RegisteredFile
from src.system.git_command import git
from src.system.judged import Lineage
from src.system.worktree import checked_out

IMAGE_BUDGET_MB = 500
_GPU_BUDGET_MB = 6000
BASE_IMAGE = "python:3.11-slim"  # of src/release/Dockerfile where the variable BASE_IMAGE is not set
UNREGISTERED = "unregistered"
_KEY = "ml.build.key"
_NOT_THERE = re.compile(r"not found|manifest unknown|name unknown|does not exist|denied|unauthorized", re.IGNORECASE)
_REFUSED = re.compile(r"denied|unauthorized|forbidden|authentication required", re.IGNORECASE)


@dataclass(frozen=True)
class Base:
    """The image that another is built from: the name that was given, the one to build from, and its digest or id."""

    name: str
    pinned: str
    digest: str


def build(folder: Path, content: Content, *, push: bool = False, rebuild: bool = False) -> dict[str, Any]:
    """Build, check and push one image; write image.json and sbom.json; return what image.json holds.

    Args:
        folder: where both are written.
        content: what gets in.
        push: also to IMAGE_REGISTRY, where one is set.
        rebuild: also where the same content was built before.

    Raises:
        UserError: there is nothing to build from, or engine or registry refuse.
        RefusedError: the image is not as it has to be.
    """
    (folder / "image.json").unlink(missing_ok=True)  # what an earlier build left is not this one's
    engine, identity = containerize.choose(all_settings.read().engine), content.identity
    registry = _registry() if push else None
    remote = f"{registry}/{identity['name']}" if registry else None
    base, started = find_base(engine), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="image-") as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        with checked_out(content.commit) if content.commit else nullcontext(Path()) as tree:
            files = bentos.assemble(tree, content, source)
        key = bentos.key(content, source, base.digest)
        name = f"{identity['name']}:{identity['version']}-{key[:12]}"  # no other content ever has this name
        image = None if rebuild else _built_already(engine, key, remote)
        said = f"already built: {name}"
        if image is None:
            bento = bentos.build(source, Path(temporary, "home"), key[:16])
            arguments = {"BASE_IMAGE": base.pinned, device.VARIABLE: device.read()}
            try:
                image = engine.build(source / bentos.DOCKERFILE, bento, labels_of(content, base, key), arguments)
            except EngineError as error:
                said = f"{engine.kind} could not build the image:\n{error}\n"
                raise RefusedError("image", said, "mend this, then run again") from None
            if image is None:
                raise RefusedError("image", f"{engine.kind} built no image", f"see {engine.kind} info, then run again")
            said = f"built {name} in {time.monotonic() - started:.0f} s"
    found = _check(engine, image, files, name)
    engine.tag(image.id, name)
    print(f"{said}, {image.size / 1e6:.0f} MB, {len(found['packages'])} Python packages", flush=True)
    digest = image.id
    if remote:
        digest = _push(engine, image, remote, content.commit, key)
        name = f"{remote}@{digest}"
    made = {
        "image": name, "digest": digest, "id": image.id, "key": key, "engine": engine.kind, "size": image.size,
        "version": identity["version"], "manifest": identity["manifest"], "commit": identity["commit"], "base": base.pinned,
    }  # fmt: skip
    write_bytes(folder / "sbom.json", sbom.write(found, identity, key).encode())
    write_json(folder / "image.json", made)
    if target := os.environ.get("GITHUB_OUTPUT"):
        with Path(target).open("a") as file:
            file.write(f"image={name}\ndigest={digest}\n")
    return made


def find_base(engine: Engine) -> Base:
    """Return the base image by its digest, fetched where it is not here yet; one that no registry gave has only its id.

    Raises:
        RefusedError: it cannot be fetched.
    """
    name = os.environ.get("BASE_IMAGE") or BASE_IMAGE
    image, why = engine.inspect(name), "it is not there afterwards"
    if image is None:
        print(f"fetching the base image {name}", flush=True)
        try:
            image = engine.pull(name)
        except EngineError as error:
            why = error.reason
    if image is None:
        then = "look at network and name, or name another base by BASE_IMAGE"
        raise RefusedError("image", f"the base image {name} cannot be fetched ({why})", then)
    if not image.digests:
        print(f"the base image {name} was made on this machine, so that no registry names its digest", flush=True)
        return Base(name, name, image.id)
    repository = re.sub(r"[:@][^/]*$", "", name)
    own = [digest for digest in image.digests if digest.partition("@")[0].endswith(repository)]
    pinned = name if "@" in name else min(own or image.digests)
    print(f"base image: {pinned}", flush=True)
    return Base(name, pinned, pinned.rpartition("@")[2])


def _built_already(engine: Engine, key: str, remote: str | None) -> Image | None:
    """Return the image with this key: that of the registry, whose digest is known, before one of this machine."""
    if remote:
        try:
            with signed_in(engine, remote) as login:
                image = engine.pull(f"{remote}:key-{key[:12]}", login)
        except EngineError as error:
            if not _NOT_THERE.search(str(error)):
                raise _registry_error(remote, error) from None
        else:
            if image and image.labels.get(_KEY) == key:
                return image
    return next((engine.inspect(id_) for id_ in engine.find(_KEY, key)), None)


def labels_of(content: Content, base: Base, key: str) -> dict[str, str]:
    """Return the labels of the image; https://github.com/opencontainers/image-spec/blob/main/annotations.md."""
    identity = content.identity
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
        "org.opencontainers.image.base.name": base.name,
        "org.opencontainers.image.base.digest": base.digest,
        _KEY: key,
    }
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        labels["org.opencontainers.image.source"] = f"{server}/{repository}"
    return {name: str(value) for name, value in labels.items() if value is not None}


def _check(engine: Engine, image: Image, files: Mapping[str, str], name: str) -> dict[str, Any]:
    """Look at the image from outside and inside, also at one that was built before; return what inside.py prints there.

    Raises:
        RefusedError: it runs as root, is too large, holds what it must not, or another service than this one.
    """
    try:
        found = engine.inside(image.id)
    except EngineError as error:
        then = "run again with --rebuild"
        raise RefusedError("image", f"{name} does not run read-only and without rights ({error.reason})", then) from None
    wrong, size = faults(files, found, image), image.size / 1e6
    # one for a GPU brings NVIDIA's libraries
    text = os.environ.get("IMAGE_MAX_MB") or str(IMAGE_BUDGET_MB if device.read() == "cpu" else _GPU_BUDGET_MB)
    try:
        limit = float(text)
    except ValueError:
        raise UserError(f"IMAGE_MAX_MB is {text!r}: use a number of megabytes, or leave it unset") from None
    if size > limit:
        layers = f"{engine.kind} history {image.id[:19]} shows which layers are large"
        wrong.append(f"it is {size:.0f} MB, over the limit of {limit:g} MB ({layers})")
    if wrong:
        then = (
            "mend bentofile.yaml, requirements/serving.in or src/serving, or raise IMAGE_MAX_MB, then build with --rebuild"
        )
        raise RefusedError("image", f"the image of {name} must not be used: {'; '.join(wrong)}", then)
    return found


def faults(files: Mapping[str, str], found: Mapping[str, Any], image: Image) -> list[str]:
    """Return what is wrong with an image, each as a sentence.

    Args:
        files: the SHA-256 of each file of the service.
        found: what inside.py prints in the image.
        image: what the engine knows of it.
    """
    wrong = []
    if found["uid"] == 0 or image.user in ("", "0", "root"):
        wrong.append("it runs as root")
    if found["training"]:
        wrong.append(f"training code is in it: {', '.join(found['training'])}")
    held = {path: digest for path, digest in found["files"].items() if path != bentos.BENTOFILE}  # BentoML writes it anew
    if strange := sorted(set(held) - set(files)):
        wrong.append(f"it holds files that bentofile.yaml does not name: {', '.join(strange[:5])}")
    # the identity tells the commit, and an older build of the same content has another
    other = sorted(path for path in files if path != bentos.IDENTITY and held.get(path) != files[path])
    if other:
        wrong.append(f"files in it are missing or not those of the release: {', '.join(other[:5])}")
    return wrong


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


def _push(engine: Engine, image: Image, remote: str, commit: str | None, key: str) -> str:
    """Push under the commit, where there is one, and under the key; return the digest that the registry gives."""
    try:
        with signed_in(engine, remote) as login:
            for tag in (*([commit[:12]] if commit else []), f"key-{key[:12]}"):
                engine.tag(image.id, f"{remote}:{tag}")
                digest = engine.push(f"{remote}:{tag}", login)
    except EngineError as error:
        raise _registry_error(remote, error) from None
    print(f"pushed {remote}@{digest}", flush=True)
    return digest


def _registry_error(remote: str, error: EngineError) -> RefusedError:
    server = remote.partition("/")[0]
    if _REFUSED.search(str(error)):
        then = "check REGISTRY_USER and REGISTRY_TOKEN, and that they may write packages there"
        return RefusedError("image", f"the registry {server} refuses ({error.reason})", then)
    return RefusedError(
        "image", f"the registry {server} does not answer as it should ({error.reason})", "start it, or set IMAGE_REGISTRY"
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is built
# ---------------------------------------------------------------------------------------------------------------------


def released(folder: Path) -> Content:
    """Return what a folder of verify releases; the version is the one that register noted.

    Raises:
        RefusedError: what register noted is of another release.
    """
    release = reviewed.read(folder)
    registered = RegisteredFile.of(folder, release) if (folder / RegisteredFile.NAME).is_file() else None
    name, version = all_settings.read().name, registered.version if registered else UNREGISTERED
    kept = ("manifest", "model_sha256", "precision", "served_sha256", "commit", "pull_request", "data", "verdict", "metrics")
    identity = {"name": name, "version": version, **{key: getattr(release, key) for key in kept}}
    identity["committed"] = _committed(release.commit)
    return Content(release.commit, identity, folder / "model", folder / "manifest.json")


def current() -> Content:
    """Return what the working tree holds: the last model, whoever judged it.

    Raises:
        UserError: there is no model.
    """
    model = Path(lineage.MODEL)
    if not model.is_file():
        raise UserError(f"{model} is missing: run make reproduce first, which makes it")
    sha = sha256(model)
    path = Path(bentos.MANIFEST)
    manifest = Lineage.read(path, made_by="evaluate") if path.is_file() else None
    known = manifest if manifest and manifest.outputs.model_sha256 == sha else None
    identity = {
        "name": all_settings.read().name,
        "version": UNREGISTERED,
        "manifest": known.digest if known else None,
        "model_sha256": sha,
        "precision": "fp32",
        "served_sha256": sha,
        # marked where files were changed; a downloaded archive is no repository
        "commit": git("describe", "--always", "--abbrev=40", "--exclude", "*", "--dirty") or None,
        "committed": _committed("HEAD"),
        "pull_request": known.pull_request if known else None,
        "data": known.data.digest if known else None,
        "verdict": known.verdict.verdict if known else None,
        "metrics": known.metrics if known else {},
    }
    return Content(None, identity, model.parent, path if manifest else None)


def _committed(commit: str) -> int | None:
    """Return when a commit was made, in seconds since 1970, from which the service counts the model's age."""
    shown = git("show", "--no-patch", "--format=%ct", commit)
    return int(shown) if shown.isdecimal() else None  # no repository, or one without this commit


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build, check and push the image of a release.")
    parser.add_argument("folder", type=Path, nargs="?", help="what verify and register filled, such as out/release")
    parser.add_argument("--current", action="store_true", help="take the working tree and out/model as they are")
    parser.add_argument("--push", action="store_true", help="push to IMAGE_REGISTRY, where one is set")
    parser.add_argument("--rebuild", action="store_true", help="also where the same content was built before")
    args = parser.parse_args()
    if (args.folder is None) != args.current:
        parser.error("name a folder, such as out/release, or --current")
    folder = args.folder or Path("out/image")
    with nullcontext() if args.current else telling("build", folder):
        content = current() if args.current else released(folder)
        image = build(folder, content, push=args.push, rebuild=args.rebuild)
    print(f"{image['image']} is described in {folder}/image.json, its content in {folder}/sbom.json")
