"""The image of a release holds just that release, and is built once: python -m pytest tests/release/test_build.py"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import PATIENCE, ROOT, encode, until
from docker_engine import docker, needs_engine, needs_registry, registry, remove_images, wait_for
from onnx import TensorProto, helper
from PIL import Image as Pictures
from ports import free_port

from src.core.command import UserError
from src.release import bento as bentos
from src.release import build, containerize, inside, reviewed, sbom
from src.release.bento import Content
from src.release.containerize import Engine, EngineError, Image, choose
from src.release.outcome import RefusedError
from src.release.reviewed import Release

NAME = "test-build"
CLASSES = ["red", "green", "blue"]
Command = Callable[..., subprocess.CompletedProcess[str]]


def write_model(folder: Path) -> str:
    """Write a model that answers with the strongest colour, and its card; return its SHA-256."""
    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Softmax", ["mean"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    onnx.save(model, folder / "model.onnx")
    sha = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {"classes": CLASSES, "size": [8, 8], "channels": 3, "fit": "crop", "network": "mean", "width": 1}
    (folder / "card.json").write_text(json.dumps(card | {"model_sha256": sha}))
    (folder / "history.csv").write_text("epoch\n1\n")
    return sha


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this one's code, and one commit."""
    folder = tmp_path_factory.mktemp("build") / "repository"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements", "starter/project"):
        (folder / name).mkdir(parents=True)
    for name in ("bentofile.yaml", bentos.UV, "requirements/serving.txt", "starter/project/manifest.json"):
        shutil.copyfile(ROOT / name, folder / name)
    git(folder.parent, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    """What verify and register leave."""
    folder = repository.parent / "release"
    sha = write_model(folder / "model")
    (folder / "manifest.json").write_text(json.dumps({"outputs": {"model_sha256": sha}}))
    release = Release(
        manifest="a" * 64, model_sha256=sha, commit=git(repository, "rev-parse", "HEAD"), trained_commit="b" * 40,
        pull_request=7, data="c.dir", inputs="d" * 64, verdict="pass", override=None, metrics={"accuracy": 0.9},
        classes=CLASSES,
    )  # fmt: skip
    reviewed.write(folder, release)
    noted = {"name": NAME, "version": "3", "run_id": "r", "uri": "sqlite:///x", "manifest": "a" * 64}
    (folder / "registered.json").write_text(json.dumps(noted))
    return folder


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", NAME)
    for name in ("IMAGE_REGISTRY", "IMAGE_MAX_MB", "GITHUB_ACTIONS", "GITHUB_REPOSITORY", "GITHUB_OUTPUT", "REGISTRY_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def content(folder: Path) -> Content:
    return build.released(folder)


def assembled(repository: Path, content: Content, target: Path) -> str:
    """Assemble a build folder and return the key of the image."""
    target.mkdir(parents=True)
    bentos.assemble(repository, content, target)
    return bentos.key(content, target, "sha256:base")


# ---------------------------------------------------------------------------------------------------------------------
# What gets in
# ---------------------------------------------------------------------------------------------------------------------


def test_only_what_bentofile_names_is_assembled_from_the_commit(repository: Path, content: Content, tmp_path: Path) -> None:
    changed = repository / "src/serving/service.py"
    before = changed.read_bytes()
    try:
        changed.write_text("raise SystemExit('not committed')\n")
        (repository / "src/serving/new.py").write_text("")
        assembled(repository, content, tmp_path / "source")
    finally:
        changed.write_bytes(before)
        (repository / "src/serving/new.py").unlink()
    source = tmp_path / "source"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert found == {*content.files, "bentofile.yaml", "requirements/serving.txt", bentos.UV}
    assert {"out/model/model.onnx", "manifest.json", "src/serving/service.py"} <= found
    assert not [path for path in found if path.startswith(("src/training", "src/model.py", "src/serving/new.py", "starter"))]
    assert (source / "src/serving/service.py").read_bytes() == before
    identity = json.loads((source / "out/release/identity.json").read_text())
    assert (identity["version"], identity["manifest"], identity["pull_request"]) == ("3", "a" * 64, 7)


def test_an_int8_model_gets_in_where_the_release_has_one(repository: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    shutil.copytree(folder, copy)
    for name in ("model.int8.onnx", "quantization.json"):
        (copy / "model" / name).write_text("{}")
    told = {"sha256": "e" * 64, "accuracy_difference": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.0, "speedup": 2.0}
    reviewed.write(copy, replace(reviewed.load(copy), precision="int8", int8=told))
    content = build.released(copy)
    int8, plain = tmp_path / "int8", tmp_path / "plain"
    assert assembled(repository, content, int8) != assembled(repository, build.released(folder), plain)
    assert (int8 / "out/model/model.int8.onnx").exists() > (plain / "out/model/model.int8.onnx").exists()
    identity = json.loads((int8 / bentos.IDENTITY).read_text())
    assert (identity["precision"], identity["served_sha256"]) == ("int8", "e" * 64)
    assert identity["model_sha256"] == content.identity["model_sha256"] != identity["served_sha256"]


def test_a_file_that_bentofile_names_and_the_commit_lacks_is_named(
    repository: Path, content: Content, tmp_path: Path
) -> None:
    text = (repository / "bentofile.yaml").read_text()
    try:
        (repository / "bentofile.yaml").write_text(text.replace("src/__init__.py", "src/lost.py"))
        with pytest.raises(UserError, match="includes src/lost.py, which the working tree does not have: add the file"):
            bentos.assemble(repository, replace(content, commit=None, files={}), tmp_path)
    finally:
        (repository / "bentofile.yaml").write_text(text)


@pytest.mark.parametrize("text", ["include: [", "service: x", "include: []"])
def test_a_bentofile_that_would_take_everything_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not valid YAML|has no list `include`"):
        bentos._named(text)


def test_the_key_names_the_content_and_not_the_commit(repository: Path, content: Content, tmp_path: Path) -> None:
    first = assembled(repository, content, tmp_path / "0")
    identity = dict(content.identity)
    same = replace(content, identity=identity | {"commit": "f" * 40}, files={})
    assert assembled(repository, same, tmp_path / "1") == first
    keys = {first, bentos.key(content, tmp_path / "0", "sha256:other")}
    for number, name in enumerate(("name", "version", "manifest", "verdict")):
        other = replace(content, identity=identity | {name: "other"}, files={})
        keys.add(assembled(repository, other, tmp_path / f"changed{number}"))
    (tmp_path / "0/requirements/serving.txt").write_text("other")
    keys.add(bentos.key(content, tmp_path / "0", "sha256:base"))
    assert len(keys) == 7


def test_what_register_noted_of_another_release_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    shutil.copytree(folder, copy)
    noted = json.loads((copy / "registered.json").read_text())
    (copy / "registered.json").write_text(json.dumps(noted | {"manifest": "e" * 64}))
    with pytest.raises(RefusedError, match="is of another release or model") as caught:
        build.released(copy)
    assert caught.value.kind == "tampered"
    (copy / "registered.json").unlink()
    assert build.released(copy).version == "unregistered"


def test_the_default_base_is_the_services() -> None:
    assert f'os.environ.get("BASE_IMAGE") or "{build.BASE_IMAGE}"' in (ROOT / "src/serving/service.py").read_text()


def test_uv_is_pinned_by_its_hash_and_the_base_by_its_digest(repository: Path, content: Content, tmp_path: Path) -> None:
    """BentoML's own line installs uv only where there is none yet."""
    assembled(repository, content, tmp_path / "source")
    bento = bentos.build(tmp_path / "source", tmp_path / "home", "1", BASE.pinned)
    lines = (bento / "env/docker/Dockerfile").read_text().splitlines()
    assert f"FROM {BASE.pinned} AS base-container" in lines
    ours = next(i for i, line in enumerate(lines) if re.search(r"echo 'uv==\d.+' \| pip install .*--require-hashes", line))
    theirs = next(i for i, line in enumerate(lines) if "command -v uv >/dev/null || pip install uv" in line)
    assert ours < theirs
    assert re.findall(r"--hash=[\w:]+", lines[ours]) == re.findall(r"--hash=[\w:]+", (ROOT / bentos.UV).read_text())
    assert lines[ours].endswith("&& command -v uv")  # an empty list of packages installs nothing, and fails here


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
    base = build._base(Engine("docker", "docker", ""))
    assert (base.name, base.pinned) == (name, pinned)
    assert base.digest == (pinned.rpartition("@")[2] if digests else IMAGE.id)


def test_no_program_that_builds_sees_the_registrys_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_TOKEN", "secret")
    assert "secret" not in containerize.call(["env"], 10)


def test_the_working_tree_is_named_by_its_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run make reproduce first"):
        build.current(tmp_path)
    sha = write_model(tmp_path / "out/model")
    keys = {"inputs": {}, "data": {"digest": "d"}, "commit": "", "metrics": {"accuracy": 1}, "verdict": {"verdict": "pass"}}
    for judged in (sha, "0" * 64):
        (tmp_path / "manifest.json").write_text(json.dumps(keys | {"outputs": {"model_sha256": judged}}))
        identity = build.current(tmp_path).identity
        assert (identity["version"], identity["model_sha256"], identity["commit"]) == ("unregistered", sha, None)
        assert (identity["manifest"] is not None) == (judged == sha) == (identity["verdict"] == "pass")


# ---------------------------------------------------------------------------------------------------------------------
# Which engine
# ---------------------------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, *answers: str) -> None:
    """Write a command that succeeds where its arguments begin as one of `answers`, `arguments=what it prints`."""
    folder.mkdir(exist_ok=True)
    cases = "".join(f'  "{a.partition("=")[0]}"*) echo "{a.partition("=")[2]}"; exit 0;;\n' for a in answers)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\necho "no such thing" >&2\nexit 1\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def at(*folders: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, folders)), **more}


def test_docker_builds_with_buildx_else_with_an_old_clients_buildkit_else_with_its_old_builder(tmp_path: Path) -> None:
    new, old, buildx = tmp_path / "new", tmp_path / "old", tmp_path / "buildx"
    program(new, "docker", "info", "version=28.2.2")
    program(old, "docker", "info", "version=20.10.24+dfsg1")
    program(buildx, "docker", "info", "version=28.2.2", "buildx version=v0.20")
    engine, said = choose(None, at(new, old, buildx))
    assert engine
    assert (engine.command, engine.variables["DOCKER_BUILDKIT"]) == (str(buildx / "docker"), "1")
    assert "buildx" in said
    engine, said = choose(None, at(new, old))
    assert engine
    assert (engine.command, engine.variables["DOCKER_BUILDKIT"]) == (str(old / "docker"), "1")
    assert "20.10.24" in said
    engine, said = choose("docker", at(new))
    assert engine
    assert (engine.command, engine.variables["DOCKER_BUILDKIT"]) == (str(new / "docker"), "0")
    assert "old builder" in said
    engine, _ = choose(None, at(buildx, DOCKER_BUILDKIT="0"))
    assert engine
    assert "DOCKER_BUILDKIT" not in engine.variables


def test_podman_and_buildah_are_next_and_without_any_no_image_is_built(tmp_path: Path) -> None:
    dead, podman, buildah = tmp_path / "dead", tmp_path / "podman", tmp_path / "buildah"
    program(dead, "docker", "version=28.2.2")
    program(podman, "podman", "info")
    program(buildah, "buildah", "version=1.28")
    for folders, kind in (((dead, podman, buildah), "podman"), ((dead, buildah), "buildah")):
        engine, _ = choose(None, at(*folders))
        assert engine
        assert engine.kind == kind
    engine, said = choose(None, at(dead))
    assert engine is None
    assert "Docker is installed and does not answer (no such thing), Podman is not installed" in said
    assert choose("processes", at(podman))[0] is None


def test_an_engine_that_was_named_must_be_there(tmp_path: Path) -> None:
    program(tmp_path, "docker", "info", "version=28")
    with pytest.raises(UserError, match="DEPLOY_ENGINE asks for Podman, but Podman is not installed: start or install it"):
        choose("podman", at(tmp_path))
    for name, words in (
        ("podman", "BENTOML_CONTAINERIZE_BACKEND asks for Podman"),
        ("nerdctl", "use docker, buildx, podman"),
    ):
        with pytest.raises(UserError, match=words):
            choose(None, at(tmp_path, BENTOML_CONTAINERIZE_BACKEND=name))
    engine, _ = choose("processes", at(tmp_path, BENTOML_CONTAINERIZE_BACKEND="buildx"))
    assert engine
    assert engine.kind == "docker"


def test_a_program_that_hangs_fails_or_is_missing_gives_a_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"sleep 5 took over 0\.2 s"):
        containerize.call(["sleep", "5"], 0.2)
    with pytest.raises(EngineError, match="cannot be run"):
        containerize.call([str(tmp_path / "none")], 1)
    with pytest.raises(EngineError, match="^out\nwhy$"):
        containerize.call(["sh", "-c", "echo out; echo why >&2; exit 3"], 5)


# ---------------------------------------------------------------------------------------------------------------------
# What is checked and told
# ---------------------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"uid": 1034, "training": [], "files": {"src/a.py": "1", "bentofile.yaml": "x", bentos.IDENTITY: "2"}}
IMAGE = Image("sha256:1", "bentoml", {}, 1, [], [])
BASE = build._Base("python:3.11-slim", f"python@sha256:{'b' * 64}", f"sha256:{'b' * 64}")
FILES = {"src/a.py": "1", bentos.IDENTITY: "3"}  # the identity tells the commit, which an older build had another of


def test_an_image_as_it_has_to_be_has_no_fault() -> None:
    assert build._faults(FILES, GOOD, IMAGE) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uid": 0}, "it runs as root"),
        ({"training": ["torch"]}, "training code is in it: torch"),
        ({"files": {**GOOD["files"], "data/1.png": "9"}}, "holds files that bentofile.yaml does not name: data/1.png"),
        ({"files": {**GOOD["files"], "src/a.py": "other"}}, "not those of the release: src/a.py"),
        ({"files": {}}, "missing or not those of the release: src/a.py"),
    ],
)
def test_each_fault_of_an_image_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in "; ".join(build._faults(FILES, GOOD | changes, IMAGE))


def test_a_user_that_is_root_by_name_is_a_fault() -> None:
    for user in ("", "root", "0"):
        assert build._faults(FILES, GOOD, replace(IMAGE, user=user)) == ["it runs as root"]


def test_the_labels_say_where_the_image_comes_from(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build._Job(content, tmp_path, build.Options(), "k" * 64, BASE)
    labels = build._labels(job)
    assert labels["org.opencontainers.image.revision"] == content.commit
    assert (labels["ml.model.version"], labels["ml.model.manifest"], labels["ml.build.key"]) == ("3", "a" * 64, "k" * 64)
    assert labels["ml.model.sha256"] == content.identity["model_sha256"]
    assert labels["org.opencontainers.image.base.digest"] == BASE.digest
    assert "org.opencontainers.image.source" not in labels
    monkeypatch.setenv("GITHUB_REPOSITORY", "team/models")
    assert build._labels(job)["org.opencontainers.image.source"] == "https://github.com/team/models"


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


def test_no_message_holds_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_TOKEN", "secret")
    for text in ("denied: secret is wrong", "dial tcp: secret"):
        error = build._registry_error("ghcr.io/x", EngineError(text))
        assert "ghcr.io" in str(error)
        assert "secret" not in str(error)


def test_a_size_limit_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_MAX_MB", "half")
    with pytest.raises(UserError, match="IMAGE_MAX_MB is 'half': use a number"):
        build._limit()


def test_layers_are_named_as_the_dockerfile_says_them() -> None:
    made = "RUN |2 A=1 B=2 /bin/sh -c uv pip  install -r x # buildkit"
    old = "/bin/sh -c #(nop) ADD file:abc in / "
    assert containerize.biggest([(270_000_000, containerize._short(made)), (5, containerize._short(old))], 2) == (
        "270 MB by `uv pip install -r x`; 0 MB by `ADD file:abc in /`"
    )


def test_what_is_inside_is_told_by_the_standard_library_alone(tmp_path: Path) -> None:
    (tmp_path / "src/__pycache__").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("a")
    (tmp_path / "src/__pycache__/a.pyc").write_text("a")
    told = subprocess.run(
        [sys.executable, "-I", "-"], input=Path(inside.__file__).read_text(), capture_output=True, text=True, check=True,
        env={**os.environ, "BENTO_PATH": str(tmp_path)},
    )  # fmt: skip
    found = json.loads(told.stdout)
    assert found["files"] == {"a.py": hashlib.sha256(b"a").hexdigest()}
    assert found["uid"] == os.getuid()
    assert "torch" in found["training"]  # this environment trains
    assert {"name": "onnx", "version": onnx.__version__} in [
        {k: p[k] for k in ("name", "version")} for p in found["packages"]
    ]


def test_debian_packages_are_read_from_dpkgs_list_where_they_are_installed(tmp_path: Path) -> None:
    assert inside.debian_packages(tmp_path / "none") == []
    entry = "Package: {}\nStatus: {}\nArchitecture: amd64\nVersion: 1.2-3\nDescription: x\n two: lines\n"
    status = tmp_path / "status"
    status.write_text(
        "\n".join([entry.format("tzdata", "install ok installed"), entry.format("gone", "deinstall ok config-files")])
    )
    assert inside.debian_packages(status) == [{"name": "tzdata", "version": "1.2-3", "architecture": "amd64"}]


# ---------------------------------------------------------------------------------------------------------------------
# The bill of materials
# ---------------------------------------------------------------------------------------------------------------------

INSIDE = {
    "system": {"name": "debian", "version": "12"},
    "packages": [
        {"name": "ruamel-yaml", "version": "1.0", "licence": "MIT"},
        {"name": "odd", "version": "2+x", "licence": "Some (own) licence"},
        {"name": "both", "version": "2", "licence": "MIT OR Apache-2.0"},
    ],
    "debian": [{"name": "libstdc++6", "version": "12.2.0-14+deb12u1", "architecture": "amd64"}],
}
IDENTITY = {"name": NAME, "version": "3", "model_sha256": "5" * 64, "metrics": {"accuracy": 0.9}, "manifest": "a" * 64}


def bill() -> str:
    return sbom.write(INSIDE, {("ruamel-yaml", "1.0"): ["1" * 64, "2" * 64]}, IDENTITY, "k")


def test_the_bill_names_packages_with_their_hashes_and_the_model() -> None:
    told = json.loads(bill())
    parts = {part["name"]: part for part in told["components"]}
    assert told["specVersion"] == "1.6"
    assert set(parts) == {"ruamel-yaml", "odd", "both", "libstdc++6", f"{NAME}.onnx"}
    assert [entry["content"] for entry in parts["ruamel-yaml"]["hashes"]] == ["1" * 64, "2" * 64]
    assert parts["ruamel-yaml"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert parts["both"]["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert parts["libstdc++6"]["purl"].startswith("pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64")
    model = parts[f"{NAME}.onnx"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": "5" * 64}]
    assert {"name": "metric:accuracy", "value": "0.9"} in model["properties"]


def test_the_bill_is_the_same_but_for_its_time() -> None:
    first, second = json.loads(bill()), json.loads(bill())
    for told in (first, second):
        told["metadata"].pop("timestamp")
    assert first == second


def test_the_bill_keeps_the_schema_of_cyclonedx() -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not in the environment")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bill()) is None
    assert validator.validate_str(bill().replace("machine-learning-model", "fortune-teller")) is not None


def test_hashes_are_read_from_the_lock_by_normal_name(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    one, two = "1" * 64, "2" * 64
    lock.write_text(
        f"Ruamel_YAML==1.0 \\\n    --hash=sha256:{one} \\\n    --hash=sha256:{two}\n    # via x\nb==2 ; x > 1 \\\n"
    )
    assert sbom.hashes(lock) == {("ruamel-yaml", "1.0"): [one, two], ("b", "2"): []}
    assert all(sbom.hashes(ROOT / "requirements/serving.txt").values())


# ---------------------------------------------------------------------------------------------------------------------
# For real
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Build in a folder as a user does."""
    home = tmp_path_factory.mktemp("home")

    def go(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        told = {"PYTHONPATH": str(ROOT), "MODEL_NAME": NAME, "DEPLOY_HOME": str(home), "IMAGE_MAX_MB": "600", **variables}
        line = [sys.executable, "-m", "src", "build", str(folder), "--tree", str(repository), *arguments]
        done = subprocess.run(line, cwd=repository.parent, env={**os.environ, **told}, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return go


def test_only_the_newest_bentos_stay(tmp_path: Path) -> None:
    assert bentos.prune(tmp_path / "none", []) == []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    assert sorted(bentos.prune(tmp_path, ["1"])) == ["0", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "4", "5", "6", "7"]


@pytest.fixture(scope="module")
def image(folder: Path, command: Command) -> Iterator[dict[str, Any]]:
    """The image, built once for the tests here; its layers stay in the builder's cache."""
    remove_images(NAME)  # of a run that was killed, which would be taken for built already
    done = command(folder)
    assert done.returncode == 0, done.stderr
    yield json.loads((folder / "image.json").read_text())
    remove_images(NAME)


@pytest.mark.parametrize("ending", ["", "\nSee 'docker run --help'.", "\n\nRun 'docker run --help' for more information\n"])
def test_the_reason_of_an_engine_is_told_and_not_that_it_has_a_help(ending: str) -> None:
    assert build._last(ValueError(f"Unable to find it\ndocker: No such image: x{ending}")) == "docker: No such image: x"


@pytest.mark.slow
@needs_engine
class TestEngine:
    """With a real Docker engine."""

    def test_the_image_is_labelled_small_and_nobodys_root(self, image: dict[str, Any], folder: Path) -> None:
        told = json.loads(docker("image", "inspect", image["image"]))[0]
        release = reviewed.read(folder)
        labels = told["Config"]["Labels"]
        assert labels["org.opencontainers.image.revision"] == image["commit"] == release.commit
        assert labels["ml.model.manifest"] == image["manifest"] == release.manifest
        assert labels["ml.build.key"] == image["key"]
        assert labels["ml.model.version"] == image["version"] == "3"
        assert told["Id"] == image["id"] == image["digest"]
        assert image["size"] < 550e6
        assert docker("run", "--rm", "--entrypoint", "id", image["image"], "-u") != "0"
        parts = {part["name"] for part in json.loads((folder / "sbom.json").read_text())["components"]}
        assert {"onnxruntime", "bentoml", "tzdata", f"{NAME}.onnx"} <= parts
        assert not {"torch", "mlflow", "dvc"} & parts

    def test_it_answers_on_a_read_only_root_without_rights(self, image: dict[str, Any]) -> None:
        port = free_port()
        hard = ["--read-only", "--tmpfs", "/tmp:rw,size=64m", "--cap-drop", "ALL", "--pids-limit", "256"]
        hard += ["--security-opt", "no-new-privileges"]
        container = docker("run", "--detach", "--memory", "768m", *hard, "-p", f"127.0.0.1:{port}:3000", image["image"])
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz")
            picture = encode(Pictures.new("RGB", (8, 8), (0, 0, 200)))
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", data=picture, headers={"Content-Type": "image/png"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = json.loads(answer.read())
        finally:
            docker("rm", "--force", container)
        assert (said["label"], said["model_version"], said["manifest"]) == ("blue", "3", "a" * 64)

    def test_the_same_content_is_not_built_again(
        self, image: dict[str, Any], folder: Path, repository: Path, command: Command, tmp_path: Path
    ) -> None:
        copy = tmp_path / "release"
        shutil.copytree(folder, copy)
        git(repository, "commit", "--quiet", "--allow-empty", "--message", "nothing of the service")
        release = replace(reviewed.load(copy), commit=git(repository, "rev-parse", "HEAD"))
        reviewed.write(copy, release)
        done = command(copy)
        assert "already built" in done.stdout, done.stderr
        again = json.loads((copy / "image.json").read_text())
        assert (again["id"], again["commit"]) == (image["id"], release.commit)

    def test_an_image_over_the_limit_is_refused_by_its_layers(
        self, image: dict[str, Any], folder: Path, command: Command
    ) -> None:
        done = command(folder, IMAGE_MAX_MB="100")
        assert done.returncode == 1
        assert "over the limit of 100 MB" in done.stderr
        assert "uv==" in done.stderr
        told = json.loads((folder.parent / "release.outcome.json").read_text())
        assert (told["step"], told["ok"], told["kind"]) == ("build", False, "image")
        assert command(folder).returncode == 0  # it is named again

    def test_an_image_with_the_key_and_another_content_is_refused(
        self, image: dict[str, Any], folder: Path, command: Command
    ) -> None:
        more = 'RUN echo "0" > /home/bentoml/bento/src/data.csv'
        forged = docker("build", "--quiet", "-", text=f"FROM {image['image']}\n{more}\n")
        try:
            done = command(folder)
        finally:
            docker("image", "rm", "--force", forged)
        assert done.returncode == 1
        assert "holds files that bentofile.yaml does not name: data.csv" in done.stderr
        assert command(folder).returncode == 0

    def test_builds_at_once_do_not_meet_and_a_killed_one_leaves_nothing_in_the_way(
        self, image: dict[str, Any], folder: Path, repository: Path, tmp_path: Path
    ) -> None:
        told = {"PYTHONPATH": str(ROOT), "DEPLOY_HOME": str(tmp_path / "home"), "IMAGE_MAX_MB": "600"}
        started = []
        for name in ("killed", "first", "second"):
            shutil.copytree(folder, tmp_path / name)
            line = [sys.executable, "-m", "src", "build", str(tmp_path / name), "--tree", str(repository), "--rebuild"]
            started.append(
                subprocess.Popen(line, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            )
        until(lambda: not (tmp_path / "killed/image.json").exists())  # it has begun: what it found is not what it built
        time.sleep(1)
        started[0].kill()
        said = [process.communicate(timeout=PATIENCE)[1].decode() for process in started]
        assert [process.returncode for process in started] == [-9, 0, 0], said
        assert not (tmp_path / "killed/image.json").exists()
        found = [json.loads((tmp_path / name / "image.json").read_text()) for name in ("first", "second")]
        assert [entry["key"] for entry in found] == [image["key"]] * 2
        for entry in found:
            docker("image", "inspect", entry["id"])

    @needs_registry
    def test_it_is_pushed_by_digest_and_found_in_the_registry(
        self, image: dict[str, Any], folder: Path, command: Command, tmp_path: Path
    ) -> None:
        copy, output = tmp_path / "release", tmp_path / "output"
        shutil.copytree(folder, copy)
        with registry(tmp_path) as address:
            told = {"IMAGE_REGISTRY": f"{address}/team", "GITHUB_OUTPUT": str(output)}
            done = command(copy, "--push", **told)
            assert done.returncode == 0, done.stderr
            pushed = json.loads((copy / "image.json").read_text())
            assert pushed["image"] == f"{address}/team/{NAME}@{pushed['digest']}"
            assert output.read_text() == f"image={pushed['image']}\ndigest={pushed['digest']}\n"
            with urllib.request.urlopen(f"http://{address}/v2/team/{NAME}/tags/list") as answer:
                tags = json.loads(answer.read())["tags"]
            assert sorted(tags) == sorted([image["commit"][:12], f"key-{image['key'][:12]}"])
            remove_images(NAME)
            done = command(copy, "--push", **told)  # as on another machine
            assert "already built" in done.stdout, done.stderr
            assert json.loads((copy / "image.json").read_text())["digest"] == pushed["digest"]
            docker("pull", "--quiet", pushed["image"])

    @needs_registry
    def test_the_base_is_the_one_that_its_registry_gave(self, folder: Path, command: Command, tmp_path: Path) -> None:
        copy = tmp_path / "release"
        shutil.copytree(folder, copy)
        with registry(tmp_path) as address:
            base = f"{address}/team/python:3.11-slim"
            docker("tag", build.BASE_IMAGE, base)
            try:
                docker("push", "--quiet", base)
                done = command(copy, BASE_IMAGE=base)
            finally:
                docker("image", "rm", base)
        assert done.returncode == 0, done.stderr
        told = json.loads((copy / "image.json").read_text())
        assert re.fullmatch(rf"{address}/team/python@sha256:[0-9a-f]{{64}}", told["base"])
        labels = json.loads(docker("image", "inspect", told["image"]))[0]["Config"]["Labels"]
        assert labels["org.opencontainers.image.base.name"] == base
        assert labels["org.opencontainers.image.base.digest"] == told["base"].partition("@")[2]

    def test_a_registry_that_is_down_is_one_sentence(self, image: dict[str, Any], folder: Path, command: Command) -> None:
        address = f"127.0.0.1:{free_port()}"
        done = command(folder, "--push", IMAGE_REGISTRY=f"{address}/x")
        assert done.returncode == 1
        assert f"the registry {address} does not answer as it should" in done.stderr
        done = command(folder, "--push", IMAGE_REGISTRY=f"{address}/x", REGISTRY_USER="u", REGISTRY_TOKEN="secret-word")
        assert done.returncode == 1
        assert "secret-word" not in done.stdout + done.stderr

    def test_old_images_go_and_used_ones_stay(self, image: dict[str, Any]) -> None:
        engine, _ = choose("docker")
        assert isinstance(engine, Engine)
        made = []
        for number in range(3):
            label = ["--label", f"ml.model.name={NAME}-old", "--label", f"number={number}"]
            made.append(docker("build", "--quiet", *label, "-", text=f"FROM {image['image']}\n"))
        container = docker("create", made[0])
        try:
            assert containerize.prune(engine, f"{NAME}-old", [made[1]], newest=0) == [made[2]]
            assert set(engine.find("ml.model.name", f"{NAME}-old")) == set(made[:2])
        finally:
            docker("rm", container)
            docker("image", "rm", "--force", *made[:2])
