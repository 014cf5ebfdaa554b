"""The image of a release holds just that release, and is built once: python -m pytest tests/release/test_build.py"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import ROOT
from docker_engine import docker, needs_engine, needs_registry, registry, remove_images, wait_for
from ports import free_port
from test_serving import CLASSES, picture, write_model

from src.core.command import UserError
from src.core.files import sha256
from src.release import bento as bentos
from src.release import build, containerize, device, inside, reviewed, sbom
from src.release.bento import Content
from src.release.build import Base
from src.release.containerize import Engine, EngineError, Image, choose
from src.release.outcome import RefusedError
from src.release.reviewed import Release

NAME = "test-build"
Command = Callable[..., subprocess.CompletedProcess[str]]


def write_release(folder: Path, commit: str = "f" * 40) -> Path:
    """Write what verify and register leave."""
    sha = sha256(write_model(folder / "model") / "model.onnx")
    (folder / "model/history.csv").write_text("epoch\n1\n")
    (folder / "manifest.json").write_text(json.dumps({"outputs": {"model_sha256": sha}}))
    release = Release(
        manifest="a" * 64, model_sha256=sha, commit=commit, trained_commit="b" * 40, pull_request=7, data="c.dir",
        inputs="d" * 64, verdict="pass", override=None, metrics={"accuracy": 0.9}, classes=CLASSES,
    )  # fmt: skip
    reviewed.write(folder, release)
    noted = {"name": NAME, "version": "3", "run_id": "r", "uri": "sqlite:///x", "manifest": "a" * 64}
    (folder / "registered.json").write_text(json.dumps(noted))
    return folder


def copy_code(folder: Path) -> Path:
    """Copy what an image is built from."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements", "starter/project"):
        (folder / name).mkdir(parents=True)
    for name in ("bentofile.yaml", *device.LOCKS.values(), "starter/project/manifest.json"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", NAME)
    given = ("IMAGE_REGISTRY", "IMAGE_MAX_MB", "SERVE_DEVICE", "REGISTRY_TOKEN")
    for name in (*given, "GITHUB_ACTIONS", "GITHUB_REPOSITORY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("build") / "release")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checked-out commit, of which `listed` says what Git says."""
    return copy_code(tmp_path_factory.mktemp("build") / "tree")


@pytest.fixture
def content(folder: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Content:
    def listed(tree: Path, *_: str) -> str:
        return "\0".join(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())

    monkeypatch.setattr(bentos, "git", listed)
    monkeypatch.setattr(build, "git", lambda *_: "1700000000")
    return build.released(folder)


# What gets in


def test_only_what_bentofile_names_is_assembled(checkout: Path, content: Content, tmp_path: Path) -> None:
    files = bentos.assemble(checkout, content, tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*files, "bentofile.yaml", "requirements/serving.txt", "requirements.txt", bentos.DOCKERFILE}
    assert {"out/model/model.onnx", "manifest.json", "src/serving/service.py"} <= found
    assert not [path for path in found if path.startswith(("src/training", "src/model.py", "starter"))]
    identity = json.loads((tmp_path / bentos.IDENTITY).read_text())
    assert (identity["version"], identity["manifest"], identity["pull_request"]) == ("3", "a" * 64, 7)
    assert identity["committed"] == 1700000000


def test_what_register_noted_of_another_release_is_refused(folder: Path, content: Content, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    shutil.copytree(folder, copy)
    noted = json.loads((copy / "registered.json").read_text())
    (copy / "registered.json").write_text(json.dumps(noted | {"manifest": "e" * 64}))
    with pytest.raises(RefusedError, match="is of another release") as caught:
        build.released(copy)
    assert caught.value.kind == "tampered"
    (copy / "registered.json").unlink()
    assert build.released(copy).identity["version"] == "unregistered"


def test_all_that_an_image_fetches_is_pinned_by_its_hash() -> None:
    """The base is told by its digest; of packages pip takes those of the lock alone."""
    text = (ROOT / bentos.DOCKERFILE).read_text()
    lines = [" ".join(line.split()) for line in re.sub(r"\\\n", "", text).splitlines() if line and line[0] != "#"]
    assert lines[:2] == [f"ARG BASE_IMAGE={build.BASE_IMAGE}", "FROM ${BASE_IMAGE}"]
    assert [line for line in lines if line.startswith("FROM")] == lines[1:2]
    fetching = [line for line in lines if re.search(r"\b(ADD|apt|apt-get|curl|wget|uv|pip|npm|git)\b", line)]
    assert len(fetching) == 1
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(fetching[0].split())
    assert fetching[0].endswith("--requirement /tmp/requirements.txt")
    assert [line for line in lines if line.startswith("USER")] == ["USER bentoml"]
    service = (ROOT / "src/serving/service.py").read_text()
    for name, value in re.findall(r'^    "([A-Z_]+)": "(\w+)",', service, re.MULTILINE):
        assert f" {name}={value}" in text  # of the process that watches, too


@pytest.mark.parametrize(
    ("name", "digests", "pinned"),
    [
        ("python:3.11-slim", ["a/other@sha256:1", "docker.io/library/python@sha256:2"], "docker.io/library/python@sha256:2"),
        ("host:5000/python", ["host:5000/python@sha256:3"], "host:5000/python@sha256:3"),
        ("python:3.11-slim@sha256:4", ["python@sha256:5"], "python:3.11-slim@sha256:4"),
        ("python:3.11-slim", [], "python:3.11-slim"),  # made on this machine
    ],
)
def test_a_tag_is_resolved_to_the_digest_that_its_registry_gave(
    name: str, digests: list[str], pinned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_IMAGE", name)
    monkeypatch.setattr(Engine, "inspect", lambda *_: replace(IMAGE, digests=digests))
    assert build.find_base(Engine("docker")) == Base(name, pinned, pinned.rpartition("@")[2] if digests else IMAGE.id)


# The engine


@pytest.mark.parametrize(
    ("there", "wanted", "kind", "words"),
    [
        ("docker podman", None, "docker", ""),
        ("docker podman", "podman", "podman", ""),
        ("dead podman", None, "podman", ""),
        ("dead", None, None, r"docker is installed and does not answer \(why\) and podman is not installed: start or"),
        ("docker", "podman", None, "DEPLOY_ENGINE asks for podman, but podman is not installed: start or install it"),
    ],
)
def test_the_engine_is_the_wanted_one_else_the_first_that_answers(
    monkeypatch: pytest.MonkeyPatch, there: str, wanted: str | None, kind: str | None, words: str
) -> None:
    def call(command: list[str], _: float) -> str:
        if command[0] == "docker" and "dead" in there:
            raise EngineError("said before\nwhy")
        return ""

    monkeypatch.setattr(shutil, "which", lambda name: name if name in there.replace("dead", "docker") else None)
    monkeypatch.setattr(containerize, "call", call)
    if kind:
        assert choose(wanted) == Engine(kind)
    else:
        with pytest.raises(UserError, match=words):
            choose(wanted)


def done(*_: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 0, json.dumps(options["env"]), "")


def test_no_program_that_builds_sees_the_registrys_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_TOKEN", "secret")
    monkeypatch.setattr(subprocess, "run", done)
    assert "secret" not in containerize.call(["x"], 10, environment={"REGISTRY_TOKEN": "secret"})


# What is checked and told

GOOD: dict[str, Any] = {"uid": 1034, "training": [], "files": {"src/a.py": "1", "bentofile.yaml": "x", bentos.IDENTITY: "2"}}
IMAGE = Image("sha256:1", "bentoml", {}, 1, [])
FILES = {"src/a.py": "1", bentos.IDENTITY: "3"}


def test_each_fault_of_an_image_is_named() -> None:
    held = GOOD["files"]
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "b", ""),
        ({"uid": 0}, "b", "it runs as root"),
        *(({}, user, "it runs as root") for user in ("", "root", "0")),
        ({"training": ["torch"]}, "b", "training code is in it: torch"),
        ({"files": {**held, "data/1.png": "9"}}, "b", "it holds files that bentofile.yaml does not name: data/1.png"),
        ({"files": {**held, "src/a.py": "2"}}, "b", "files in it are missing or not those of the release: src/a.py"),
        ({"files": {}}, "b", "files in it are missing or not those of the release: src/a.py"),
    ]
    for changes, user, words in cases:
        assert build.faults(FILES, GOOD | changes, replace(IMAGE, user=user)) == ([words] if words else []), words


def test_the_registry_is_githubs_there_and_none_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build._registry() is None
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_REPOSITORY", "Team/Models")
    assert build._registry() == "ghcr.io/team/models"
    monkeypatch.setenv("IMAGE_REGISTRY", "127.0.0.1:5000/x/")
    assert build._registry() == "127.0.0.1:5000/x"
    for wrong in ("https://ghcr.io/x", "ghcr.io/Team", "a b", "ghcr.io//x", "ghcr.io/x:tag"):
        monkeypatch.setenv("IMAGE_REGISTRY", wrong)
        with pytest.raises(UserError, match="IMAGE_REGISTRY is"):
            build._registry()


def test_the_reason_of_an_engine_holds_no_token_and_no_hint_at_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_TOKEN", "secret")
    for ending in ("", "\nSee 'docker run --help'.", "\n\nRun 'docker run --help' for more information\n"):
        assert EngineError(f"Unable to find it\ndocker: denied: secret{ending}").reason == "denied: ***"
    assert "the registry ghcr.io refuses (denied: ***)" in str(
        build._registry_error("ghcr.io/x", EngineError("denied: secret"))
    )


def test_what_is_inside_is_listed(tmp_path: Path) -> None:
    (tmp_path / "src/__pycache__").mkdir(parents=True)
    for name in ("src/a.py", "src/__pycache__/a.pyc"):
        (tmp_path / name).write_text("")
    assert inside.files(tmp_path / "src") == {"a.py": hashlib.sha256(b"").hexdigest()}
    assert ("onnx", onnx.__version__) in inside.python_packages()
    assert inside.debian_packages(tmp_path / "none") == []
    entry = "Package: {}\nStatus: {}\nArchitecture: amd64\nVersion: 1.2-3\nDescription: x\n two: lines\n"
    entries = [entry.format("tzdata", "install ok installed"), entry.format("gone", "deinstall ok config-files")]
    (tmp_path / "status").write_text("\n".join(entries))
    assert inside.debian_packages(tmp_path / "status") == [("tzdata", "1.2-3", "amd64")]


def test_the_bill_of_materials_names_packages_and_the_model() -> None:
    found = {
        "system": "debian",
        "packages": [["ruamel-yaml", "1.0"]],
        "debian": [["libstdc++6", "12.2.0-14+deb12u1", "amd64"]],
    }
    identity = {"name": NAME, "version": "3", "model_sha256": "5" * 64, "manifest": "a" * 64, "commit": None, "data": "d"}
    told, again = (json.loads(sbom.write(found, identity, "k")) for _ in range(2))
    parts = {part["name"]: part for part in told["components"]}
    assert (told["specVersion"], set(parts)) == ("1.6", {"ruamel-yaml", "libstdc++6", f"{NAME}.onnx"})
    assert parts["ruamel-yaml"]["purl"] == "pkg:pypi/ruamel-yaml@1.0"
    assert parts["libstdc++6"]["purl"].startswith("pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64")
    model = parts[f"{NAME}.onnx"]
    assert (model["type"], model["hashes"]) == ("machine-learning-model", [{"alg": "SHA-256", "content": "5" * 64}])
    assert model["properties"] == [{"name": "data", "value": "d"}, {"name": "manifest", "value": "a" * 64}]
    for each in (told, again):
        each["metadata"].pop("timestamp")
    assert told == again


# For real


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the one commit of a repository beside it, whose working tree was changed since and would not start."""
    repository = copy_code(tmp_path_factory.mktemp("engine") / "repository")
    git(repository.parent, "init", "--quiet", str(repository))
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "all")
    (repository / "src/serving/service.py").write_text("raise SystemExit('not committed')\n")
    (repository / "src/serving/new.py").write_text("")
    return write_release(repository.parent / "release", git(repository, "rev-parse", "HEAD"))


@pytest.fixture(scope="module")
def command(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Build in a folder as a user does."""
    home = tmp_path_factory.mktemp("home")

    def go(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        told = {"MODEL_NAME": NAME, "DEPLOY_HOME": str(home), "IMAGE_MAX_MB": "600", **variables}
        line = [sys.executable, "-m", "src", "build", str(folder), *arguments]
        done = subprocess.run(
            line, cwd=release.parent / "repository", env={**os.environ, **told}, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return go


@pytest.fixture(scope="module")
def image(release: Path, command: Command) -> Iterator[dict[str, Any]]:
    """The image, built once for the tests here; its layers stay in the builder's cache."""
    remove_images(NAME)  # of a run that was killed, which would be taken for built already
    done = command(release)
    assert done.returncode == 0, done.stderr
    yield json.loads((release / "image.json").read_text())
    remove_images(NAME)


@pytest.mark.journey
@needs_engine
class TestEngine:
    """With a real Docker engine."""

    def test_the_image_is_labelled_small_and_answers_without_rights(self, image: dict[str, Any], release: Path) -> None:
        """It is of the commit, not of the working tree, which would not start."""
        told = json.loads(docker("image", "inspect", image["image"]))[0]
        labels = told["Config"]["Labels"]
        assert labels["org.opencontainers.image.revision"] == image["commit"] == reviewed.read(release).commit
        assert labels["ml.model.manifest"] == image["manifest"] == "a" * 64
        assert (labels["ml.build.key"], labels["ml.model.version"]) == (image["key"], "3")
        assert told["Id"] == image["id"] == image["digest"]
        assert image["size"] < 550e6
        assert docker("run", "--rm", "--entrypoint", "id", image["image"], "-u") != "0"
        parts = {part["name"] for part in json.loads((release / "sbom.json").read_text())["components"]}
        assert {"onnxruntime", "bentoml", "tzdata", f"{NAME}.onnx"} <= parts
        assert not {"torch", "mlflow", "dvc"} & parts
        port = free_port()
        hard = ["--read-only", "--tmpfs", "/tmp:rw,size=64m", "--cap-drop", "ALL", "--pids-limit", "256"]
        hard += ["--security-opt", "no-new-privileges"]
        container = docker("run", "--detach", "--memory", "768m", *hard, "-p", f"127.0.0.1:{port}:3000", image["image"])
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz")
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", data=picture((10, 10, 250)), headers={"Content-Type": "image/png"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = json.loads(answer.read())
        finally:
            docker("rm", "--force", container)
        assert (said["label"], said["model_version"], said["manifest"]) == ("blue", "3", "a" * 64)

    def test_the_same_content_is_not_built_again(
        self, image: dict[str, Any], release: Path, command: Command, tmp_path: Path
    ) -> None:
        copy, repository = tmp_path / "release", release.parent / "repository"
        shutil.copytree(release, copy)
        git(repository, "commit", "--quiet", "--allow-empty", "--message", "nothing of the service")
        reviewed.write(copy, replace(reviewed.load(copy), commit=git(repository, "rev-parse", "HEAD")))
        done = command(copy)
        assert "already built" in done.stdout, done.stderr
        again = json.loads((copy / "image.json").read_text())
        assert (again["id"], again["commit"]) == (image["id"], git(repository, "rev-parse", "HEAD"))

    def test_an_image_over_the_limit_or_of_another_content_is_refused(
        self, image: dict[str, Any], release: Path, command: Command
    ) -> None:
        done = command(release, IMAGE_MAX_MB="100")
        assert (done.returncode, "over the limit of 100 MB (docker history sha256:" in done.stderr) == (1, True), done.stderr
        told = json.loads((release.parent / "release.outcome.json").read_text())
        assert (told["step"], told["ok"], told["kind"]) == ("build", False, "image")
        more = 'RUN echo "0" > /home/bentoml/bento/src/data.csv'
        forged = docker("build", "--quiet", "-", text=f"FROM {image['image']}\n{more}\n")
        try:
            done = command(release)
        finally:
            docker("image", "rm", "--force", forged)
        assert done.returncode == 1
        assert "holds files that bentofile.yaml does not name: data.csv" in done.stderr
        assert command(release).returncode == 0  # it is named again

    @needs_registry
    def test_it_is_pushed_by_digest_and_found_in_the_registry(
        self, image: dict[str, Any], release: Path, command: Command, tmp_path: Path
    ) -> None:
        """Its base is the one that the registry gave."""
        copy, output = tmp_path / "release", tmp_path / "output"
        shutil.copytree(release, copy)
        with registry(tmp_path) as address:
            base = f"{address}/team/python:3.11-slim"
            told = {"IMAGE_REGISTRY": f"{address}/team", "GITHUB_OUTPUT": str(output), "BASE_IMAGE": base}
            docker("tag", build.BASE_IMAGE, base)
            try:
                docker("push", "--quiet", base)
                done = command(copy, "--push", **told)
                assert done.returncode == 0, done.stderr
                pushed = json.loads((copy / "image.json").read_text())
                assert re.fullmatch(rf"{address}/team/python@sha256:[0-9a-f]{{64}}", pushed["base"])
                labels = json.loads(docker("image", "inspect", pushed["image"]))[0]["Config"]["Labels"]
                assert labels["org.opencontainers.image.base.name"] == base
                assert labels["org.opencontainers.image.base.digest"] == pushed["base"].partition("@")[2]
                assert pushed["image"] == f"{address}/team/{NAME}@{pushed['digest']}"
                assert output.read_text() == f"image={pushed['image']}\ndigest={pushed['digest']}\n"
                with urllib.request.urlopen(f"http://{address}/v2/team/{NAME}/tags/list") as answer:
                    tags = json.loads(answer.read())["tags"]
                assert sorted(tags) == sorted([image["commit"][:12], f"key-{pushed['key'][:12]}"])
                docker("image", "rm", "--force", pushed["id"])
                done = command(copy, "--push", **told)  # as on another machine
            finally:
                docker("image", "rm", base)
            assert "already built" in done.stdout, done.stderr
            assert json.loads((copy / "image.json").read_text())["digest"] == pushed["digest"]

    def test_old_images_go_and_used_ones_stay(self, image: dict[str, Any]) -> None:
        engine = Engine("docker")
        made = []
        for number in range(3):
            label = ["--label", f"ml.model.name={NAME}-old", "--label", f"number={number}"]
            made.append(docker("build", "--quiet", *label, "-", text=f"FROM {image['image']}\n"))
        container = docker("create", made[0])
        try:
            assert engine.prune(f"{NAME}-old", [made[1]], newest=0) == [made[2]]
            assert set(engine.find("ml.model.name", f"{NAME}-old")) == set(made[:2])
        finally:
            docker("rm", container)
            docker("image", "rm", "--force", *made[:2])
