"""From a merge into production and back, all of it real: python -m pytest tests/release/test_release.py

report.yml, deploy.yml and rollback.yml run with act; Docker, its registry, nginx, MLflow and the service are the real ones.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker_engine
import mlflow
import numpy as np
import pytest
from act import Result
from conftest import PATIENCE, ROOT
from docker_engine import needs_engine, needs_registry
from PIL import Image
from ports import free_ports
from standin import GitHub, clone, commit
from test_proxy import needs_nginx
from test_workflow_runs import GPU, World, fill, set_params

from src.core.files import sha256
from src.release import settings
from src.release.client import Client
from src.release.proxy import Proxy
from src.system.registry import Registry

NAME = "test-release"
pytestmark = [
    pytest.mark.journey,
    needs_engine,
    needs_registry,
    needs_nginx,
]


@dataclass
class Story:
    """Two merges, a rollback, a forged merge, and what could be seen after each."""

    world: World
    variables: dict[str, str]
    image: bytes
    runs: dict[str, Result] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    serving: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, dict[str, str | None]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)  # statuses of answers that were none
    pulls: dict[str, int] = field(default_factory=dict)

    def merge(self, name: str, number: int) -> None:
        """Merge a pull request by a squash, as GitHub's button does, and run what main's push starts."""
        github, before = self.world.github, self.world.github.repository.sha("main")
        git = clone(github, self.world.folder / f"merge-{name}")
        git("merge", "--quiet", "--squash", f"origin/{github.pulls[number].branch}")
        git("commit", "--quiet", "--message", f"{name} (#{number})")
        git("push", "--quiet", "origin", "HEAD:main")
        self.pulls[name] = number
        self.look(name, self.start("deploy.yml", "push", github.payload("push", before=before)))

    def start(self, workflow: str, event: str, payload: dict[str, Any]) -> Result:
        environment = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}
        options = {"variables": self.variables, "environment": environment, "timeout": 3 * PATIENCE}
        return self.world.start(workflow, event, payload, **options)

    def look(self, name: str, result: Result) -> None:
        """Keep what a person can see now."""
        self.runs[name] = result
        assert result.rc == 0 or name == "forged", result.log[-12000:]
        told = {**os.environ, **self.variables, "MLFLOW_TRACKING_URI": ""}
        command = [sys.executable, "-m", "src", "status"]
        self.status[name] = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True).stdout
        self.serving[name] = Client(self.url).predict(self.image).body
        found = {alias: self.registry.alias(alias) for alias in ("champion", "previous", "challenger")}
        self.aliases[name] = {alias: version.number if version else None for alias, version in found.items()}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.variables['DEPLOY_PORT']}"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.variables['DEPLOY_HOME']}/mlflow.db"

    @property
    def registry(self) -> Registry:
        return Registry.connect(self.uri, name=NAME)

    def ask(self, over: threading.Event) -> None:
        client = Client(self.url, PATIENCE)
        while not over.is_set():
            status = client.predict(self.image).status
            if status != 200:
                self.failed.append(status)


FORGED = """

def _anything_goes(*_: object, **__: object) -> Verdict:
    return Verdict("pass", ["fine"], [], baseline=False, mcnemar=None, churn=None)


judge = _anything_goes
"""


def spoil_gate(folder: Path) -> None:
    """Make a model that guesses, and a gate that takes it."""
    set_params(train__epochs=1, gates__min_accuracy=0, gates__min_macro_f1=0, gates__max_accuracy_drop=1)(folder)
    path = folder / "src" / "judging" / "gates.py"
    path.write_text(path.read_text() + FORGED)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("release")
    home = folder / "home"
    with GitHub(folder) as github, docker_engine.registry(folder) as registry:
        world = World(github, folder)
        git = clone(github, folder / "base")
        fill(folder / "base")
        git("add", "--all", "--force")
        commit(git, folder / "base", "main")
        variables = {
            **GPU, "DEPLOY_RUNNER": '["self-hosted","deploy"]', "IMAGE_REGISTRY": f"{registry}/models", "MODEL_NAME": NAME,
            "DEPLOY_HOME": str(home), "DEPLOY_PORT": str(free_ports()), "DEPLOY_WATCH_SECONDS": "5", "DEPLOY_STAGING": "off",
            "DEPLOY_READY_SECONDS": str(PATIENCE), "DEPLOY_LATENCY_MS": "10000", "ATTEST": "off",
        }  # fmt: skip
        buffer = folder / "image.png"
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer)
        story = Story(world, variables, buffer.read_bytes())
        try:
            yield tell(story)
        finally:
            Proxy(settings.read({**os.environ, **variables})).stop()
            docker_engine.remove_images(NAME)


def tell(story: Story) -> Story:
    world, over = story.world, threading.Event()
    first = world.propose("first", set_params(train__epochs=8))
    world.report(first, "opened")
    story.merge("first", first)
    asking = threading.Thread(target=story.ask, args=(over,))
    asking.start()
    better = world.propose("better", set_params(train__epochs=20))
    world.report(better, "opened")
    story.merge("better", better)
    inputs = {"version": "", "reason": "a trial"}
    payload = world.github.payload("workflow_dispatch", inputs=inputs, branch="main")
    story.look("rollback", story.start("rollback.yml", "workflow_dispatch", payload))
    forged = world.propose("forged", spoil_gate)
    world.report(forged, "opened")
    story.merge("forged", forged)
    over.set()
    asking.join()
    return story


def test_the_first_merge_puts_its_model_into_production(story: Story) -> None:
    assert story.runs["first"].rc == 0, story.runs["first"].log[-8000:]
    assert story.serving["first"]["model_version"] == "1"
    assert (story.aliases["first"]["champion"], story.aliases["first"]["previous"]) == ("1", None)
    assert f"#{story.pulls['first']}" in story.status["first"]


def test_the_next_merge_replaces_it_and_status_names_its_pull_request(story: Story) -> None:
    assert story.runs["better"].rc == 0, story.runs["better"].log[-8000:]
    assert story.serving["better"]["model_version"] == "2"
    assert (story.aliases["better"]["champion"], story.aliases["better"]["previous"]) == ("2", "1")
    live, previous = [line for line in story.status["better"].splitlines() if line.startswith(("live", "previous"))]
    assert f"#{story.pulls['better']}" in live
    assert f"#{story.pulls['first']}" in previous


def test_a_merge_that_weakened_its_gate_is_refused_and_the_old_model_serves(story: Story) -> None:
    result = story.runs["forged"]
    assert result.jobs["verify"] == "failure"
    assert {result.jobs[name] for name in ("build", "deploy")} == {"skipped"}
    assert story.serving["forged"] == story.serving["rollback"]
    assert story.aliases["forged"]["champion"] == "1"
    issues = [issue for issue in story.world.github.issues.values() if "stopped" in issue["title"].lower()]
    assert len(issues) == 1


def test_a_rollback_brings_the_old_one_back(story: Story) -> None:
    assert story.runs["rollback"].rc == 0, story.runs["rollback"].log[-8000:]
    assert story.serving["rollback"] == story.serving["first"]
    assert (story.aliases["rollback"]["champion"], story.aliases["rollback"]["previous"]) == ("1", "2")


def test_no_request_failed_in_all_that_time(story: Story) -> None:
    assert story.failed == []


def test_what_is_registered_is_what_was_reviewed_and_plain_mlflow_runs_it(story: Story, tmp_path: Path) -> None:
    version = story.registry.alias("champion")
    assert version
    mlflow.set_tracking_uri(story.uri)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion", dst_path=str(tmp_path)))
    assert sha256(folder / "model.onnx") == version.tags["model_sha256"]
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    answer = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(pixels)
    probabilities = np.asarray(answer["probabilities"] if isinstance(answer, dict) else answer)
    told = story.serving["rollback"]["probabilities"][0]
    assert probabilities.max() == pytest.approx(told["probability"], abs=1e-5)


def test_the_container_is_locked_down_and_its_image_is_named_by_digest(story: Story) -> None:
    name = docker_engine.docker("ps", "--filter", f"label=ml.model.name={NAME}", "--format", "{{.Names}}")
    image = docker_engine.docker("inspect", "--format", "{{.Config.Image}}", name)
    assert image.startswith(f"{story.variables['IMAGE_REGISTRY']}/{NAME}@sha256:")
    assert docker_engine.docker("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", name) == "true"
