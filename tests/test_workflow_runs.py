"""The workflows, run with act against a stand-in for GitHub, on pull requests of every kind: make workflows

One small repository serves them all. Its `main` gets its model from the first pull request, of which there is nothing to
compare with; the others branch off from there.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from act import Result, run_workflow
from conftest import ROOT, encode, write_params
from ruamel.yaml import YAML
from standin import BOT, GitHub, clone, commit

from src.files import read_json, sha256

pytestmark = [pytest.mark.slow, pytest.mark.act]

GPU = {"TRAIN_RUNNER": '["self-hosted","gpu"]'}
MARKER = "<!-- model-report -->"
GATE = "model-gate"
OVERRIDE = "model-gate: override"
# no store on the machine: as on GitHub's own, where each starts empty
HOSTED = {"variables": {}, "environment": {"LOCAL_DVC_REMOTE": ""}}
OUTSIDE = {"environment": {"LOCAL_DVC_REMOTE": ""}}
Edit = Callable[[Path], object]


@dataclass
class World:
    """The stand-in, the store of data and models on the machine of the runner, and short words for what tests do."""

    github: GitHub
    folder: Path
    store: Path
    count: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def branch(self, name: str, edit: Edit, start: str = "main", to: Path | None = None) -> Path:
        """Push a branch with a change, or a further change to it; returns the clone it was made in."""
        place = self.folder / f"clone-{next(self.count)}"
        git = clone(self.github, place)
        git("checkout", "--quiet", "--detach", f"origin/{start}")
        edit(place)
        if to:
            git("remote", "set-url", "origin", str(to))
        commit(git, place, name)
        return place

    def propose(self, name: str, edit: Edit, start: str = "main", **options: Any) -> int:
        """Open a pull request with a change."""
        self.branch(name, edit, start)
        return self.github.open_pull_request(name, **options)

    def report(self, number: int, action: str = "synchronize", **options: Any) -> Result:
        """Run report.yml for a pull request, on the machine that TRAIN_RUNNER names, and see it end."""
        told = {name: options.pop(name) for name in ("label", "sender") if name in options}
        payload = self.github.payload("pull_request", number=number, action=action, **told)
        return self.start("report.yml", "pull_request", payload, **options)

    def start(self, workflow: str, event: str, payload: dict[str, Any], **options: Any) -> Result:
        environment = {
            "LOCAL_DVC_REMOTE": str(self.store),
            "CML_REPOSITORY": str(self.folder / "gone"),  # no network here; how CML posts is tested in test_github_comment
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),  # its list of fonts takes seconds to make
            **options.pop("environment", {}),
        }
        options = {"variables": GPU, "folder": self.folder, "environment": environment, **options}
        return run_workflow(self.github, workflow, event, payload, **options)

    def comment(self, number: int) -> str:
        """Return the one comment of ours."""
        mine = [comment["body"] for comment in self.github.comments(number) if comment["user"]["login"] == BOT]
        assert len(mine) == 1, mine
        assert mine[0].startswith(MARKER + "\n")
        return mine[0]

    def first_line(self, number: int) -> str:
        return next(line for line in self.comment(number).splitlines()[1:] if line.strip())

    def gate(self, sha: str) -> tuple[str, str]:
        """Return state and description of `model-gate` as a branch rule sees it: the newest."""
        newest = self.github.statuses(sha, GATE)[0]
        return newest["state"], newest["description"]

    def changed_by(self, sha: str) -> set[str]:
        return set(self.github.repository.git("diff", "--name-only", f"{sha}^", sha).split())

    def dvc(self, folder: Path, *arguments: str) -> str:
        """Run DVC in a clone, as a person would."""
        own = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.folder / "site"), "MLFLOW_TRACKING_URI": ""}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "dvc", *arguments]
        environment = {**os.environ, **own, "PATH": path}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def follow(self, result: Result) -> Result:
        """Run what starts by itself when a run has ended."""
        return self.start("report-comment.yml", "workflow_run", self.github.payload("workflow_run", run_id=result.run_id))

    def imitate(self, number: int, artifact: bytes) -> Result:
        """Record a run of a fork's pull request that has left an artifact."""
        pull, run_id = self.github.pulls[number], 7_000 + len(self.github.runs)
        head = {"head_sha": self.github.head(number), "head_branch": pull.branch, "head_repository": pull.head.full_name}
        self.github.add_run(run_id, name="Report", **head)
        self.github.upload_artifact(run_id, "report", artifact)
        return Result(run_id)

    def dispatch(self, **inputs: str) -> Result:
        return self.start("report.yml", "workflow_dispatch", self.github.payload("workflow_dispatch", inputs=inputs))

    def verdict(self, result: Result) -> Any:
        """Return verdict.json out of the artifact of a run."""
        return json.loads(self.reviewed(result, "out/report/verdict.json"))

    def reviewed(self, result: Result, name: str) -> bytes:
        with zipfile.ZipFile(io.BytesIO(self.github.artifacts(result.run_id)["reviewed"])) as archive:
            return archive.read(name)


def set_params(**changes: Any) -> Edit:
    """Return an edit of params.yaml such as `train__epochs=2`, from what it holds."""

    def edit(folder: Path) -> None:
        yaml = YAML()
        content = yaml.load((folder / "params.yaml").read_text())
        for name, value in changes.items():
            *sections, key = name.split("__")
            place = content
            for section in sections:
                place = place[section]
            place[key] = value
        with (folder / "params.yaml").open("w") as file:
            yaml.dump(content, file)

    return edit


def append(name: str, text: str) -> Edit:
    def edit(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return edit


def fill(folder: Path) -> None:
    """Write this repository's files, with a small and hasty network and without a model."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file() and name not in ("dvc.lock", "metrics.json", "manifest.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    floors = {"min_accuracy": 0.5, "min_macro_f1": 0.3, "min_class_recall": 0, "min_slice_accuracy": 0}
    hasty = {"epochs": 9, "width": 16, "warmup_epochs": 1}
    changes = {f"gates__{key}": value for key, value in floors.items()} | {f"train__{k}": v for k, v in hasty.items()}
    write_params(folder / "params.yaml", gates__levels__baseline_margin="off", **changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with GitHub(folder) as github:
        made = World(github, folder, folder / "store")
        made.store.mkdir()
        git = clone(github, folder / "base")
        fill(folder / "base")
        git("add", "--all", "--force")
        commit(git, folder / "base", "main")
        yield made


@pytest.fixture(scope="module")
def first(world: World) -> Result:
    """The run of the first pull request: main has no model yet. Afterwards it is merged, and main has one."""
    number = world.propose("first", set_params(train__epochs=8))
    result = world.report(number, "opened", **HOSTED)
    git = clone(world.github, world.folder / "merge")
    git("checkout", "--quiet", "first")
    git("push", "--quiet", "origin", "first:main")
    world.github.pulls[number].state = "closed"
    for name, blob in world.github.artifacts(result.run_id).items():
        if name.startswith("dvc-store-"):  # the machine of TRAIN_RUNNER comes later, and gets what there is
            zipfile.ZipFile(io.BytesIO(blob)).extractall(world.store)
    return result


@pytest.fixture(scope="module")
def better(world: World, first: Result) -> tuple[int, Result]:
    """The pull request of a model that learns for longer, which people talk about a lot, and its run."""
    number = world.propose("better", set_params(train__epochs=20))
    for i in range(40):
        world.github.add_comment(number, f"remark {i}", login="reviewer")
    world.github.add_check(world.github.head(number), "all-green", "success")
    return number, world.report(number, "opened")


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------------------------------


def test_without_a_model_on_main_only_the_floors_count_and_the_report_says_so(world: World, first: Result) -> None:
    assert first.jobs == {"plan": "success", "train": "success", "fork": "skipped", "publish": "success"}, first.log[-8000:]
    assert "pass" in world.first_line(1)
    assert "no model of main" in world.comment(1)
    assert "hosted CPU" in world.comment(1)
    assert (world.verdict(first)["verdict"], world.verdict(first)["baseline"]) == ("pass", False)
    pushed = world.github.head(1)
    assert world.gate(pushed)[0] == "success"
    assert world.changed_by(pushed) == {"dvc.lock", "metrics.json", "manifest.json"}
    assert world.github.repository.git("log", "-1", "--format=%an", pushed) == BOT
    assert [request["workflow"] for request in world.github.dispatches] == ["ci.yml"]  # nothing was known of all-green


def test_a_better_model_passes_with_pictures_and_makes_the_pushed_commit_mergeable(
    world: World, better: tuple[int, Result]
) -> None:
    number, result = better
    assert result.jobs == {"plan": "success", "train": "success", "fork": "skipped", "publish": "success"}, result.log[
        -8000:
    ]
    assert "pass" in world.first_line(number)
    assert "CML cannot be installed" in result.logs["publish"]
    verdict = world.verdict(result)
    compared = next(gate for gate in verdict["gates"] if gate["name"] == "no_worse_than_main")
    assert (compared["outcome"], compared["difference"] > 0.03, compared["low"] > 0) == ("pass", True, True)
    shown = re.findall(r"^!\[.+\]\((.+)\)$", world.comment(number), re.MULTILINE)
    assert shown
    for address in shown:
        path = re.fullmatch(rf"{world.github.server_url}/team/models/blob/reports/(.+\.png)\?raw=true", address)
        assert path, address
        assert world.github.repository.git("cat-file", "-t", f"reports:{path[1]}") == "blob"
    pushed = world.github.head(number)
    assert world.changed_by(pushed) == {"dvc.lock", "metrics.json", "manifest.json"}
    combined = {status["context"]: status["state"] for status in reversed(world.github.statuses(pushed))}
    assert combined == {GATE: "success", "all-green": "success"}
    assert world.gate(world.github.repository.sha(f"{pushed}^"))[0] == "success"
    assert "## " in result.summaries["publish"]


def test_what_was_reviewed_comes_back_without_training_in_a_fresh_clone(
    world: World, better: tuple[int, Result], tmp_path: Path
) -> None:
    git = clone(world.github, tmp_path / "fresh")
    git("checkout", "--quiet", "better")
    world.dvc(tmp_path / "fresh", "remote", "add", "--local", "--default", "store", str(world.store))
    said = world.dvc(tmp_path / "fresh", "repro", "--pull")
    assert "Running stage" not in said
    manifest = read_json(tmp_path / "fresh" / "manifest.json", "")
    assert sha256(tmp_path / "fresh" / "out" / "model" / "model.onnx") == manifest["outputs"]["model_sha256"]
    assert git("status", "--porcelain") == ""


def test_a_second_push_trains_nothing_anew_and_updates_the_same_comment(world: World, better: tuple[int, Result]) -> None:
    number, _ = better
    before = [comment["id"] for comment in world.github.comments(number) if comment["user"]["login"] == BOT]
    world.branch("better", append("README.md", "\nA remark.\n"), start="better")
    world.github.add_comment(number, f"{MARKER}\nnot ours", login="stranger")
    result = world.report(number)
    assert result.jobs["publish"] == "success", result.log[-8000:]
    assert "Running stage 'train'" not in result.logs["train"]
    assert [comment["id"] for comment in world.github.comments(number) if comment["user"]["login"] == BOT] == before
    assert len(world.github.comments(number)) == 42
    assert "pass" in world.first_line(number)
    assert world.gate(world.github.head(number))[0] == "success"


def test_a_merge_queue_gets_the_verdict_on_its_own_commit(world: World, better: tuple[int, Result]) -> None:
    payload = world.github.payload("merge_group", number=better[0])
    result = world.start("report.yml", "merge_group", payload)
    assert result.jobs == {"plan": "success", "train": "success", "fork": "skipped", "publish": "success"}, result.log[
        -8000:
    ]
    assert "Running stage 'train'" not in result.logs["train"]
    assert world.gate(payload["merge_group"]["head_sha"])[0] == "success"
    assert world.github.repository.sha(payload["merge_group"]["head_ref"]) == payload["merge_group"]["head_sha"]


@pytest.fixture(scope="module")
def worse(world: World, first: Result) -> tuple[int, Result]:
    """A pull request that hardly trains, on GitHub's own machine; the branch of pictures is protected by mistake."""
    number = world.propose("worse", set_params(train__epochs=1))
    world.github.refuse_push("reports")
    result = world.report(number, "opened", **HOSTED)
    world.github.accept_push("reports")
    return number, result


def test_a_worse_model_fails_and_the_comment_names_gate_numbers_and_classes(world: World, worse: tuple[int, Result]) -> None:
    number, result = worse
    assert result.jobs["publish"] == "success", result.log[-8000:]
    verdict, text = world.verdict(result), world.comment(number)
    assert verdict["verdict"] == "fail"
    assert "fail" in world.first_line(number)
    failed = [gate for gate in verdict["gates"] if gate["outcome"] == "fail"]
    assert "no_worse_than_main" in {gate["name"] for gate in failed}
    for gate in failed:
        assert gate["name"] in text
    assert re.search(r"main.*\d\d\.\d+ ?%", text)
    recalls = json.loads(world.reviewed(result, "metrics.json"))["per_class"]
    worst = min(recalls, key=lambda name: recalls[name]["recall"])
    assert re.search(rf"^\|.*\b{worst}\b.*\|", text, re.MULTILINE)
    assert world.gate(world.github.head(number))[0] == "failure"
    assert "not comparable" in text


def test_a_report_whose_pictures_are_refused_is_posted_without_them(world: World, worse: tuple[int, Result]) -> None:
    assert "GH013" in worse[1].logs["publish"]
    assert "pictures are missing" in world.comment(worse[0])
    assert "![" not in re.sub(r"!\[\]\(https://cml", "", world.comment(worse[0]))


def test_the_artifact_store_alone_is_enough_not_to_train_twice(world: World, worse: tuple[int, Result]) -> None:
    number, earlier = worse
    assert [name for name in world.github.artifacts(earlier.run_id) if name.startswith("dvc-store-")]
    world.branch("worse", append("README.md", "\nA remark.\n"), start="worse")
    result = world.report(number, **HOSTED)
    assert "Running stage 'train'" not in result.logs["train"]
    assert world.verdict(result)["verdict"] == "fail"
    assert world.gate(world.github.head(number))[0] == "failure"


@pytest.fixture(scope="module")
def alike(world: World, first: Result) -> tuple[int, Result]:
    """A pull request that changes next to nothing."""
    number = world.propose("alike", set_params(train__weight_decay=0.00051))
    return number, world.report(number, "opened")


def test_a_model_within_noise_never_fails(world: World, alike: tuple[int, Result]) -> None:
    number, result = alike
    assert result.jobs["publish"] == "success", result.log[-8000:]
    word = world.verdict(result)["verdict"]
    assert word in ("pass", "investigate")
    assert word in world.first_line(number)
    assert world.gate(world.github.head(number))[0] == {"pass": "success", "investigate": "pending"}[word]


def test_a_base_that_moved_on_asks_for_a_look_until_a_person_with_a_name_decides(
    world: World, alike: tuple[int, Result]
) -> None:
    github = world.github
    world.branch("release", lambda folder: None)
    number = world.propose("stale", append("README.md", "\nStale.\n"), start="alike", base="release")
    world.branch("release", set_params(train__label_smoothing=0.2))
    result = world.report(number, "opened")
    assert result.jobs["publish"] == "success", result.log[-8000:]
    assert world.verdict(result)["verdict"] == "investigate"
    assert "params.yaml: train" in world.comment(number)
    assert world.gate(github.head(number))[0] == "pending"
    github.add_label(number, OVERRIDE, by="passer-by")
    world.report(number, "labeled", label=OVERRIDE, sender="passer-by")
    assert world.gate(github.head(number))[0] == "pending"
    github.remove_label(number, OVERRIDE)
    github.collaborators["alice"] = "maintain"
    github.add_label(number, OVERRIDE, by="alice")
    decided = world.report(number, "labeled", label=OVERRIDE, sender="alice")
    assert world.verdict(decided)["override"]["by"] == "alice"
    assert "alice" in world.comment(number)
    assert world.gate(github.head(number))[0] == "success"
    assert "alice" in github.repository.git("show", "stale:manifest.json")
    assert world.report(number, "labeled", label="bug").jobs["train"] == "skipped"


def test_a_change_that_the_model_does_not_depend_on_trains_nothing_and_says_so(world: World, first: Result) -> None:
    number = world.propose("docs", append("README.md", "\nDocs.\n"))
    result = world.report(number, "opened")
    assert result.jobs == {"plan": "success", "train": "skipped", "fork": "skipped", "publish": "success"}, result.log[
        -8000:
    ]
    assert "nothing was trained" in world.first_line(number)
    assert world.gate(world.github.head(number))[0] == "success"


# ---------------------------------------------------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------------------------------------------------


def test_of_bad_data_the_faults_are_the_report(world: World, first: Result) -> None:
    def spoil(folder: Path) -> None:
        world.dvc(folder, "pull", "--quiet", "data.dvc")
        (folder / "data" / "cat").mkdir()
        (folder / "data" / "cat" / "one.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
        (folder / "data" / "cat" / "broken.png").write_text("no picture")
        world.dvc(folder, "add", "--quiet", "data")
        world.dvc(folder, "remote", "add", "--local", "store", str(world.store))
        world.dvc(folder, "push", "--quiet", "--remote", "store", "data.dvc")

    number = world.propose("spoilt", spoil)
    result = world.report(number, "opened")
    assert (result.jobs["train"], result.jobs["publish"]) == ("failure", "success"), result.log[-8000:]
    assert "Running stage 'train'" not in result.logs["train"]
    assert "fail" in world.first_line(number)
    for word in ("min_images", "cat", "broken.png"):
        assert word in world.comment(number)
    assert world.gate(world.github.head(number))[0] == "failure"
    assert world.changed_by(world.github.head(number)) == {"data.dvc"}  # nothing was pushed on top


def test_a_crash_in_training_is_told_with_its_last_words(world: World, first: Result) -> None:
    def crash(folder: Path) -> None:
        path = folder / "src" / "stages" / "train.py"
        path.write_text(
            path.read_text().replace("def main() -> None:", 'def main() -> None:\n    raise RuntimeError("boom")', 1)
        )

    number = world.propose("crash", crash)
    result = world.report(number, "opened")
    assert (result.jobs["train"], result.jobs["publish"]) == ("failure", "success"), result.log[-8000:]
    assert "fail" in world.first_line(number)
    assert "RuntimeError: boom" in world.comment(number)
    state, description = world.gate(world.github.head(number))
    assert state == "failure"
    assert "train" in description


BROKEN = {
    "plan": ("src/github/plan.py", "failure", "skipped"),
    "publish": ("src/github/publish.py", "success", "skipped"),
    "report": ("src/report/judge.py", "success", "failure"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_gate_that_crashes_has_not_passed(world: World, first: Result, what: str) -> None:
    path, plan, train = BROKEN[what]
    number = world.propose(f"broken-{what}", append(path, '\nraise SystemExit("out of order")\n'))
    result = world.report(number, "opened")
    assert (result.jobs["plan"], result.jobs["train"]) == (plan, train), result.log[-8000:]
    assert world.gate(world.github.head(number))[0] == "failure"


# ---------------------------------------------------------------------------------------------------------------------
# Forks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(world: World, first: Result) -> tuple[int, Result]:
    """A fork's pull request and its run, in a repository that has variables and secrets."""
    fork = world.github.fork("stranger/models")
    world.branch("theirs", set_params(train__epochs=1), to=fork)
    number = world.github.open_pull_request("theirs", fork="stranger/models", author="stranger")
    return number, world.report(number, "opened", secrets={"DVC_REMOTE_CONFIG": "password = hunter2"}, **OUTSIDE)


def test_a_fork_runs_on_a_hosted_machine_with_a_token_that_only_reads(world: World, foreign: tuple[int, Result]) -> None:
    number, result = foreign
    assert result.jobs == {"plan": "success", "train": "skipped", "fork": "success", "publish": "skipped"}, result.log[
        -8000:
    ]
    assert "hunter2" not in result.log
    assert world.github.comments(number) == []
    assert world.github.statuses(world.github.head(number)) == []
    assert list(world.github.artifacts(result.run_id)) == ["report"]
    assert "## " in result.summaries["fork"]


def test_the_numbers_of_a_fork_are_posted_as_its_own(world: World, foreign: tuple[int, Result]) -> None:
    number, result = foreign
    posted = world.follow(result)
    assert posted.jobs == {"comment": "success"}, posted.log[-8000:]
    text = world.comment(number)
    sha = world.github.head(number)
    assert sha in text
    assert f"gh workflow run report.yml -f pull_request={number} -f sha={sha}" in text
    assert "params.yaml" in text
    assert world.gate(sha)[0] == "pending"
    world.follow(result)
    assert world.comment(number)


def archive(*entries: tuple[str, bytes, int]) -> bytes:
    """Zip entries of name, content and file mode."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            made.writestr(info, content)
    return target.getvalue()


def numbers(change: Callable[[dict[str, Any]], object] = lambda _: None) -> Callable[[dict[str, Any]], bytes]:
    """Return a maker of artifacts out of good numbers with one thing changed."""

    def make(good: dict[str, Any]) -> bytes:
        copy = json.loads(json.dumps(good))
        change(copy)
        return archive(("numbers.json", json.dumps(copy).encode(), 0o100644))

    return make


def named(text: str) -> Callable[[dict[str, Any]], bytes]:
    return numbers(lambda good: good["metrics"].append({**good["metrics"][0], "name": text}))


HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "a link": lambda good: archive(("numbers.json", b"/etc/passwd", 0o120777)),
    "an extra file": lambda good: archive(("numbers.json", json.dumps(good).encode(), 0o100644), ("x.md", b"hi", 0o100644)),
    "2 MiB": lambda good: archive(("numbers.json", os.urandom(2 * 2**20), 0o100644)),
    "not JSON": lambda good: archive(("numbers.json", b"evil", 0o100644)),
    "NaN": numbers(lambda good: good["metrics"][0].update(candidate=float("nan"))),
    "an unknown key": numbers(lambda good: good.update(evil=1)),
    "10,000 metrics": numbers(
        lambda good: good.update(metrics=[{**good["metrics"][0], "name": f"m{i}"} for i in range(10_000)])
    ),
    "a mention": named("@team/evil"),
    "HTML": named("<img src=evil>"),
    "a script": named("a](javascript:evil)"),
    "another commit": numbers(lambda good: good.update(commit="a" * 40)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_artifact_is_refused_in_our_own_words(world: World, foreign: tuple[int, Result], case: str) -> None:
    number, result = foreign
    with zipfile.ZipFile(io.BytesIO(world.github.artifacts(result.run_id)["report"])) as sent:
        good = json.loads(sent.read("numbers.json"))
    run = world.imitate(number, HOSTILE[case](good))
    posted = world.follow(run)
    assert posted.jobs == {"comment": "success"}, posted.log[-8000:]
    text = world.comment(number)
    assert "could not" in text or "refused" in text or "not " in text
    for word in ("evil", "root:", "javascript", "<img", "nan"):
        assert word not in text.lower()
    assert world.gate(world.github.head(number))[0] != "success"


def test_two_pull_requests_of_one_branch_get_nothing(world: World, foreign: tuple[int, Result]) -> None:
    number, result = foreign
    twin = world.github.open_pull_request("theirs", fork="stranger/models", author="stranger")
    before = world.comment(number)
    posted = world.follow(result)
    world.github.pulls[twin].state = "closed"
    assert posted.jobs == {"comment": "success"}, posted.log[-8000:]
    assert world.github.comments(twin) == []
    assert world.comment(number) == before


def test_a_maintainer_has_a_forks_exact_commit_trained(world: World, alike: tuple[int, Result]) -> None:
    fork = world.github.fork("friend/models")
    world.branch("kind", set_params(train__weight_decay=0.00051), to=fork)
    number = world.github.open_pull_request("kind", fork="friend/models", author="friend")
    sha = world.github.head(number)
    other = world.dispatch(pull_request=str(number), sha="a" * 40)
    assert (other.jobs["plan"], other.jobs["train"]) == ("failure", "skipped")
    assert f"the head of #{number} is {sha}" in other.logs["plan"]
    result = world.dispatch(pull_request=str(number), sha=sha)
    assert result.jobs == {"plan": "success", "train": "success", "fork": "skipped", "publish": "success"}, result.log[
        -8000:
    ]
    assert world.github.head(number) == sha
    assert world.gate(sha)[0] in ("success", "pending")
    assert "gh run download" in world.comment(number)


# ---------------------------------------------------------------------------------------------------------------------
# ci.yml
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["", "test", "test-slow"])
def test_all_green_is_red_as_soon_as_one_job_is(world: World, first: Result, broken: str) -> None:
    """The jobs' own work is replaced: they would run these very tests."""
    targets = {"test": "true", "test-slow": "true", "workflows": "true"} | ({broken: "false"} if broken else {})
    makefile = "".join(f"{target}:\n\t{command}\n" for target, command in targets.items())
    name = f"ci-{broken or 'good'}"
    number = world.propose(name, lambda folder: (folder / "Makefile").write_text(makefile))
    result = world.start("ci.yml", "pull_request", world.github.payload("pull_request", number=number, action="opened"))
    assert result.jobs["all-green"] == ("failure" if broken else "success"), result.log[-8000:]
    checks = {check["name"]: check["conclusion"] for check in world.github.checks(world.github.head(number))}
    assert checks["all-green"] == result.jobs["all-green"]
