"""The workflows, run with act against a stand-in for GitHub, on pull requests of every kind: make workflows

One small repository serves them all. Its `main` gets its model from the first pull request, which has nothing to be compared
with; the others branch off from there. Each kind of pull request is a function that lets it happen and returns what could be
seen after each run; those that the selected tests ask for happen side by side, one on each core.
"""

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from act import Result, run_workflow
from conftest import ROOT, copy_files, write_params
from ruamel.yaml import YAML
from standin import BOT, GitHub, clone, commit

from src.core.command import cores

pytestmark = [pytest.mark.journey, pytest.mark.act]

MARKER = "<!-- model-report -->"
GATE = "model-gate"
OVERRIDE = "model-gate: override"
ENGINE = "engine: reviewed"
REVIEWED = ("dvc.lock", "metrics.json", "manifest.json")
GPU = {"TRAIN_RUNNER": '["self-hosted","gpu"]'}
# GitHub's own machines: each starts empty, so there is no store on it
NO_STORE = {"environment": {"LOCAL_DVC_REMOTE": ""}}
HOSTED = {"variables": {}, **NO_STORE}
TRAINED = {
    "plan": "success",
    "train": "success",
    "fork": "skipped",
    "publish": "success",
    "comment": "success",
    "cancelled": "skipped",
}
POSTED = {"recheck": "skipped", "judge": "success", "comment": "success"}
Edit = Callable[[Path], object]


@dataclass
class Seen:
    """What a person saw of a pull request after a run."""

    number: int
    result: Result
    sha: str  # the head that the run was about
    head: str  # the head afterwards
    comments: dict[int, str]  # ours, by id
    others: int  # comments of other people
    files: dict[str, bytes]  # of the artifact `reviewed`

    @property
    def text(self) -> str:
        """Return the one comment of ours."""
        assert len(self.comments) == 1, self.result.log[-8000:]
        text = next(iter(self.comments.values()))
        assert text.startswith(MARKER + "\n")
        return text

    @property
    def first_line(self) -> str:
        return next(line for line in self.text.splitlines()[1:] if line.strip())

    @property
    def verdict(self) -> Any:
        return json.loads(self.files["out/report/verdict.json"])

    @property
    def trained(self) -> bool:
        return "Running stage 'train'" in self.result.logs["train"]


class World:
    """The stand-in, the store of data and models on the runner's machine, and short words for what happens."""

    def __init__(self, github: GitHub, folder: Path) -> None:
        self.github = github
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self._places = count()

    def branch(self, name: str, edit: Edit, start: str = "main", to: Path | None = None) -> None:
        """Push a branch with a change, or with one change more."""
        place = self.folder / f"clone-{next(self._places)}"
        git = clone(self.github, place)
        git("checkout", "--quiet", "--detach", f"origin/{start}")
        edit(place)
        if to:
            git("remote", "set-url", "origin", str(to))
        commit(git, place, name)

    def propose(self, name: str, edit: Edit, start: str = "main", **options: Any) -> int:
        """Open a pull request with a change."""
        self.branch(name, edit, start)
        return self.github.open_pull_request(name, **options)

    def report(self, number: int, action: str = "synchronize", **options: Any) -> Seen:
        """Run report.yml for a pull request, on the machine that TRAIN_RUNNER names."""
        told = {name: options.pop(name) for name in ("label", "sender") if name in options}
        payload = self.github.payload("pull_request", number=number, action=action, **told)
        return self.see(number, "report.yml", "pull_request", payload, **options)

    def see(self, number: int, workflow: str, event: str, payload: dict[str, Any], **options: Any) -> Seen:
        """Run a workflow and look at what a pull request is like afterwards."""
        github, sha = self.github, self.github.head(number)
        result = self.start(workflow, event, payload, **options)
        comments = {one["id"]: one["body"] for one in github.comments(number) if one["user"]["login"] == BOT}
        others = len(github.comments(number)) - len(comments)
        blob = github.artifacts(result.run_id).get("reviewed")
        return Seen(number, result, sha, github.head(number), comments, others, unzipped(blob) if blob else {})

    def start(self, workflow: str, event: str, payload: dict[str, Any], **options: Any) -> Result:
        environment = {
            "LOCAL_DVC_REMOTE": str(self.store),
            "CML_REPOSITORY": str(self.folder / "gone"),  # there is no network; how CML posts is tested elsewhere
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),  # its list of fonts takes seconds to make
            **options.pop("environment", {}),
        }
        variables = options.pop("variables", GPU)
        options = {"variables": variables, "folder": self.folder, "environment": environment, **options}
        return run_workflow(self.github, workflow, event, payload, **options)

    def follow(self, number: int, result: Result) -> Seen:
        """Run what starts by itself when a run has ended."""
        payload = self.github.payload("workflow_run", run_id=result.run_id)
        return self.see(number, "report-comment.yml", "workflow_run", payload)

    def gate(self, sha: str) -> tuple[str, str]:
        """Return state and description of `model-gate` as a branch rule sees it: the newest."""
        newest = self.github.statuses(sha, GATE)[0]
        return newest["state"], newest["description"]

    def changed_by(self, sha: str) -> set[str]:
        return set(self.github.repository.git("diff", "--name-only", f"{sha}^", sha).split())


def unzipped(blob: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def set_params(**changes: Any) -> Edit:
    """Return an edit of params.yaml, such as `train__epochs=2`."""

    def edit(folder: Path) -> None:
        yaml = YAML()
        content = yaml.load((folder / "params.yaml").read_text())
        for name, value in changes.items():
            section, key = name.split("__")
            content.setdefault(section, {})[key] = value
        with (folder / "params.yaml").open("w") as file:
            yaml.dump(content, file)

    return edit


def append(name: str, text: str) -> Edit:
    def edit(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return edit


REMARK = append("README.md", "\nA remark.\n")


def fill(folder: Path) -> None:
    """Write this repository's files, with a small and hasty network and without a model."""
    copy_files(ROOT, folder, without=REVIEWED)
    floors = {"min_accuracy": 0.5, "min_macro_f1": 0.3, "min_class_recall": 0, "min_slice_accuracy": 0}
    busy = {"max_latency_ms": 5000, "max_latency_ratio": 100}  # beside other tests a latency says nothing
    hasty = {"epochs": 9, "width": 16, "warmup_epochs": 1}
    changes = {f"gates__{key}": value for key, value in (floors | busy).items()}
    changes |= {f"train__{key}": value for key, value in hasty.items()}
    write_params(folder / "params.yaml", gates__levels__baseline_margin="off", **changes)


def begin(world: World) -> None:
    """Push the first commit to main."""
    git = clone(world.github, world.folder / "base")
    fill(world.folder / "base")
    git("add", "--all", "--force")
    commit(git, world.folder / "base", "main")


# What happens


def first_model(world: World) -> dict[str, Seen]:
    """The first pull request of all, on GitHub's own machine."""
    github = world.github
    number = world.propose("first", set_params(train__epochs=8))
    seen = world.report(number, "opened", **HOSTED)
    clone(github, world.folder / "merge")("push", "--quiet", "origin", "origin/first:refs/heads/main")
    github.pulls[number].state = "closed"
    for name, blob in github.artifacts(seen.result.run_id).items():
        if name.startswith("dvc-store-"):  # the machine of TRAIN_RUNNER comes later, and gets what there is
            zipfile.ZipFile(io.BytesIO(blob)).extractall(world.store)
    kept = world.start("keep.yml", "workflow_dispatch", github.payload("workflow_dispatch"), **HOSTED)
    return {"first": seen, "kept": Seen(number, kept, "", "", {}, 0, {})}


def better_model(world: World) -> dict[str, Seen]:
    """It learns for longer, people talk about it a lot, a remark is pushed."""
    github = world.github
    number = world.propose("better", set_params(train__epochs=20))
    for i in range(40):
        github.add_comment(number, f"remark {i}", login="reviewer")
    seen = {"opened": world.report(number, "opened", variables=GPU)}
    world.branch("better", REMARK, start="better")
    github.add_comment(number, f"{MARKER}\nnot ours", login="stranger")
    seen["pushed"] = world.report(number)
    return seen


def worse_model(world: World) -> dict[str, Seen]:
    """It hardly trains, on GitHub's own machine; a remark is pushed, then one more once main's artifact has expired."""
    number = world.propose("worse", set_params(train__epochs=1))
    seen = {"opened": world.report(number, "opened", **HOSTED)}
    for moment in ("pushed", "expired"):
        if moment == "expired":
            world.github.expire_artifacts(*world.github.runs)
        world.branch("worse", REMARK, start="worse")
        seen[moment] = world.report(number, **HOSTED)
    return seen


def similar_model(world: World) -> dict[str, Seen]:
    """Another seed: as good, as far as anybody can tell. Then the base moves on, and who may and who may not give the label.

    At last a friend proposes the same from a fork, and a maintainer has it trained.
    """
    github, change = world.github, set_params(train__seed=3)
    seen = {"opened": world.report(world.propose("similar", change), "opened")}
    world.branch("release", lambda folder: None)
    number = world.propose("stale", REMARK, start="similar", base="release")
    world.branch("release", set_params(train__label_smoothing=0.2), start="release")
    github.add_label(number, OVERRIDE, by="passer-by")
    seen["stale"] = world.report(number, "labeled", label=OVERRIDE, sender="passer-by")
    github.remove_label(number, OVERRIDE)
    github.collaborators["alice"] = "maintain"
    github.add_label(number, OVERRIDE, by="alice")
    seen["decided"] = world.report(number, "labeled", label=OVERRIDE, sender="alice")
    world.branch("kind", change, to=github.fork("friend/models"))
    number = github.open_pull_request("kind", fork="friend/models", author="friend")
    inputs = {"pull_request": str(number), "sha": github.head(number)}
    event = github.payload("workflow_dispatch", inputs=inputs, sender="alice")
    seen["requested"] = world.see(number, "report.yml", "workflow_dispatch", event)
    return seen


def without_status(world: World) -> dict[str, Seen]:
    """A change of the documents alone, when GitHub takes no status."""
    number = world.propose("unlucky", REMARK)
    world.github.fail_next(f"POST .*/statuses/{world.github.head(number)}", status=422)
    return {"opened": world.report(number, "opened")}


def engine(world: World) -> dict[str, Seen]:
    """What decides is changed and nothing else. Then a workflow passes itself."""

    def edit(folder: Path) -> None:
        for name in ("Makefile", "src/github/plan.py", "src/github/publish.py"):
            append(name, '\nraise SystemExit("out of order")\n')(folder)

    seen = {"opened": world.report(world.propose("engine", edit), "opened")}

    def pass_itself(folder: Path) -> None:
        path = folder / ".github/workflows/report.yml"
        text = path.read_text().replace("python3 -m src publish reviewed comment.md", "false")
        path.write_text(text.replace('\'{"state": "failure"', '\'{"state": "success"'))

    number = world.propose("selfish", pass_itself)
    seen["selfish"] = world.report(number, "opened")
    seen["looked at once more"] = world.follow(number, seen["selfish"].result)
    return seen


def stranger(world: World) -> dict[str, Seen]:
    """A fork's pull request, and what follows it."""
    github = world.github
    world.branch("theirs", set_params(train__epochs=1), to=github.fork("stranger/models"))
    number = github.open_pull_request("theirs", fork="stranger/models", author="stranger")
    secrets = {"DVC_REMOTE_CONFIG": "password = hunter2"}
    opened = world.report(number, "opened", secrets=secrets, **NO_STORE)
    seen = {"opened": opened}
    github.add_comment(number, f"{MARKER}\nevil", login="stranger")
    seen["followed"] = world.follow(number, opened.result)
    return seen


def integration(world: World) -> dict[str, Seen]:
    """ci.yml, with the work of its jobs replaced, since they would run these very tests; the engine is as it is recorded."""
    targets = ("lint", "test-yours", "test", "test-journeys", "workflows")

    def record(folder: Path) -> None:
        (folder / "Makefile").write_text("".join(f"{target}:\n\ttrue\n" for target in targets))
        for command in (["git", "add", "--all"], [sys.executable, "-m", "src", "record"]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

    world.branch("recorded", record)
    edits = {
        "yours": set_params(train__epochs=3),
        "broken": lambda folder: (folder / "Makefile").write_text("test:\n\tfalse\ntest-journeys workflows:\n\ttrue\n"),
    }
    seen = {}
    for name, edit in edits.items():
        number = world.propose(f"ci-{name}", edit, start="recorded", base="recorded")
        event = world.github.payload("pull_request", number=number, action="opened")
        seen[name] = world.see(number, "ci.yml", "pull_request", event)
    world.branch("ci-yours", append("metrics.json", "\n"), start="ci-yours")
    event = world.github.payload("workflow_dispatch", branch="ci-yours", sender=BOT)
    return seen | {"results": world.see(seen["yours"].number, "ci.yml", "workflow_dispatch", event)}


def search(world: World) -> dict[str, Seen]:
    """Search better params on a branch whose rate teaches nothing."""
    rates = {"learning_rate": [0.0002, 0.1]}
    world.branch("lazy", set_params(train__learning_rate=0.0002, train__epochs=2, sweep__space=rates, sweep__random=2))
    event = world.github.payload("workflow_dispatch", branch="lazy", inputs={"trials": "3", "minutes": ""})
    result = world.start("sweep.yml", "workflow_dispatch", event)
    assert result.jobs == {"search": "success", "publish": "success"}, result.log[-8000:]
    opened = [number for number, pull in world.github.pulls.items() if pull.base == "lazy"]
    assert len(opened) == 1, result.log[-8000:]
    head = world.github.head(opened[0])
    return {"opened": Seen(opened[0], result, head, head, {}, 0, unzipped(world.github.artifacts(result.run_id)["sweep"]))}


# The stage

Story = Callable[[World], dict[str, Seen]]


def about(story: Story, moment: str = "opened") -> Callable[[Any], Any]:
    """Say which story a test is about, and which moment of it the fixture `seen` shows."""

    def mark(test: Any) -> Any:
        test.story, test.moment = story, moment
        return test

    return mark


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with GitHub(folder) as github:
        made = World(github, folder)
        begin(made)
        yield made


@pytest.fixture(scope="module")
def stories(world: World, request: pytest.FixtureRequest) -> Iterator[Mapping[Story, Future[dict[str, Seen]]]]:
    """All that the selected tests are about: the first model alone, then the rest side by side."""
    tests = [item.function for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = dict.fromkeys(test.story for test in tests if hasattr(test, "story"))
    with ThreadPoolExecutor(cores()) as pool:
        told = {first_model: pool.submit(first_model, world)}
        told[first_model].result()
        told |= {story: pool.submit(story, world) for story in wanted if story is not first_model}
        yield told


@pytest.fixture
def moments(request: pytest.FixtureRequest, stories: Mapping[Story, Future[dict[str, Seen]]]) -> dict[str, Seen]:
    return stories[request.function.story].result()


@pytest.fixture
def seen(request: pytest.FixtureRequest, moments: dict[str, Seen]) -> Seen:
    return moments[request.function.moment]


# Verdicts


@about(first_model, "first")
def test_without_a_model_on_main_only_the_floors_count_and_the_report_says_so(world: World, seen: Seen) -> None:
    assert seen.result.jobs == TRAINED, seen.result.log[-8000:]
    assert "pass" in seen.first_line
    assert "no model of your own" in seen.text
    assert (seen.verdict["verdict"], seen.verdict["baseline"]) == ("pass", False)
    assert world.gate(seen.head)[0] == "success"
    assert world.changed_by(seen.head) == set(REVIEWED)
    assert world.github.repository.git("log", "-1", "--format=%an", seen.head) == BOT
    assert "hosted CPU" in seen.text
    assert "not comparable" in seen.text
    assert "CML cannot be installed" in seen.result.logs["comment"]


@about(first_model, "kept")
def test_each_month_mains_model_is_stored_anew(world: World, moments: dict[str, Seen], seen: Seen) -> None:
    assert seen.result.jobs == {"keep": "success"}, seen.result.log[-8000:]
    first, kept = (world.github.artifacts(moments[moment].result.run_id) for moment in ("first", "kept"))
    (name,) = kept
    assert name.startswith("dvc-store-")
    assert {path for path in unzipped(first[name]) if "/runs/" not in f"/{path}"} <= set(unzipped(kept[name]))


@about(better_model)
def test_a_better_model_passes_and_the_pushed_commit_is_mergeable(world: World, seen: Seen) -> None:
    assert seen.result.jobs == TRAINED, seen.result.log[-8000:]
    assert "pass" in seen.first_line
    compared = next(gate for gate in seen.verdict["gates"] if gate["name"] == "no_worse_than_main")
    assert (compared["outcome"], compared["difference"] > 0.03, compared["low"] > 0) == ("pass", True, True)
    assert world.changed_by(seen.head) == set(REVIEWED)
    assert world.gate(seen.head)[0] == "success"
    assert {"workflow": "ci.yml", "ref": "better", "inputs": {}} in world.github.dispatches
    assert world.github.repository.sha(f"{seen.head}^") == seen.sha
    assert world.gate(seen.sha)[0] == "success"
    assert all("### Metrics" in seen.result.summaries[job] for job in ("train", "publish"))
    assert b"<html" in seen.files["out/report/report.html"][:500]


@about(better_model, "pushed")
def test_a_second_push_updates_the_same_comment_among_forty_others(
    world: World, moments: dict[str, Seen], seen: Seen
) -> None:
    assert seen.result.jobs["publish"] == "success", seen.result.log[-8000:]
    assert not seen.trained
    assert list(seen.comments) == list(moments["opened"].comments)
    assert seen.others == 41
    assert seen.sha[:10] in seen.text
    assert world.gate(seen.head)[0] == "success"


@about(worse_model)
def test_a_worse_model_fails_and_the_comment_names_gate_numbers_and_classes(world: World, seen: Seen) -> None:
    assert seen.result.jobs == TRAINED, seen.result.log[-8000:]
    assert seen.verdict["verdict"] == "fail"
    assert "fail" in seen.first_line
    assert re.search(r"\d\d\.\d+%", seen.first_line)
    failed = {gate["name"] for gate in seen.verdict["gates"] if gate["outcome"] == "fail"}
    assert "no_worse_than_main" in failed
    for name in failed:
        assert name.replace("_", " ") in seen.text
    recalls = json.loads(seen.files["metrics.json"])["per_class"]
    worst = min(recalls, key=lambda name: recalls[name]["recall"])
    assert re.search(rf"^\|.*\b{worst}\b.*\|", seen.text, re.MULTILINE)
    assert world.gate(seen.head)[0] == world.gate(seen.sha)[0] == "failure"


@about(worse_model, "pushed")
def test_the_artifact_store_alone_is_enough_not_to_train_twice(world: World, moments: dict[str, Seen], seen: Seen) -> None:
    opened = moments["opened"]
    assert [name for name in world.github.artifacts(opened.result.run_id) if name.startswith("dvc-store-")]
    assert not seen.trained
    assert (seen.verdict["baseline"], seen.verdict["reasons"]) == (True, opened.verdict["reasons"])
    assert seen.verdict["mcnemar"] == opened.verdict["mcnemar"]
    outputs = [json.loads(one.files["manifest.json"])["outputs"] for one in (seen, opened)]
    assert outputs[0] == outputs[1]


@about(worse_model, "expired")
def test_where_mains_artifact_has_expired_its_commit_is_trained_again(seen: Seen, moments: dict[str, Seen]) -> None:
    assert seen.result.jobs == TRAINED, seen.result.log[-8000:]
    assert re.search(r"main's model is in no store \(.*: it has expired \(", seen.result.logs["train"])
    assert "its commit is trained again" in seen.result.logs["train"]
    assert seen.verdict["reasons"] == moments["opened"].verdict["reasons"]
    assert "main was trained again" in seen.text


@about(similar_model, "stale")
def test_a_base_that_moved_on_asks_for_a_look_and_a_passer_by_cannot_decide(world: World, seen: Seen) -> None:
    assert seen.result.jobs["publish"] == "success", seen.result.log[-8000:]
    assert seen.verdict["verdict"] == "investigate"
    assert seen.verdict["override"] is None
    assert "params.yaml: train" in seen.text
    assert "passer-by, who may not write" in seen.result.logs["plan"]
    states = [status["state"] for status in world.github.statuses(seen.head, GATE)]
    assert "failure" not in states
    assert states[-1] == "pending"


@about(similar_model, "decided")
def test_a_label_of_a_person_who_may_write_decides_and_leaves_the_name(world: World, seen: Seen) -> None:
    assert (seen.verdict["override"]["by"], seen.verdict["override"]["head"]) == ("alice", seen.sha)
    assert "alice" in seen.text
    assert world.gate(seen.head)[0] == "success"
    assert "alice" in world.github.repository.git("show", f"{seen.head}:manifest.json")


@about(engine)
def test_a_change_of_the_engine_alone_waits_until_somebody_has_read_it(world: World, seen: Seen) -> None:
    files = ["Makefile", "src/github/plan.py", "src/github/publish.py"]
    assert seen.result.jobs == {**TRAINED, "train": "skipped"}, seen.result.log[-8000:]
    assert "investigate" in seen.first_line
    assert f"touches the engine: {', '.join(f'`{name}`' for name in files)}" in seen.text
    told = [(status["state"], status["description"]) for status in reversed(world.github.statuses(seen.sha, GATE))]
    asked = f"investigate: once you have read them, add the label {ENGINE}: {', '.join(files)}"
    assert told == [("pending", "being judged"), ("pending", asked)]


@about(engine, "looked at once more")
def test_a_workflow_that_passes_itself_is_taken_back(world: World, seen: Seen) -> None:
    assert seen.result.jobs == {"recheck": "success", "judge": "skipped", "comment": "skipped"}, seen.result.log[-8000:]
    assert [status["state"] for status in world.github.statuses(seen.sha, GATE)] == ["pending", "success", "pending"]
    assert world.gate(seen.sha)[1].endswith(f"add the label {ENGINE}: .github/workflows/report.yml")


# Faults


@about(without_status)
def test_a_gate_that_crashes_has_not_passed(world: World, seen: Seen) -> None:
    failed = {"plan": "failure", "train": "skipped", "publish": "failure", "comment": "skipped"}
    assert seen.result.jobs == {**TRAINED, **failed}, seen.result.log[-8000:]
    assert world.gate(seen.head)[0] == "failure"


# Forks


@about(stranger)
def test_a_fork_runs_on_a_hosted_machine_reads_only_and_leaves_numbers(world: World, seen: Seen) -> None:
    assert seen.result.jobs == {**TRAINED, "train": "skipped", "fork": "success", "publish": "skipped", "comment": "skipped"}
    assert "hunter2" not in seen.result.log
    assert (seen.comments, seen.others) == ({}, 0)
    assert list(unzipped(world.github.artifacts(seen.result.run_id)["report"])) == ["numbers.json"]
    assert list(world.github.artifacts(seen.result.run_id)) == ["report"]
    assert "### Metrics" in seen.result.summaries["fork"]


@about(stranger, "followed")
def test_the_numbers_of_a_fork_are_posted_as_its_own(world: World, seen: Seen) -> None:
    assert seen.result.jobs == POSTED, seen.result.log[-8000:]
    assert seen.sha in seen.text
    assert f"gh workflow run report.yml -f pull_request={seen.number} -f sha={seen.sha}" in seen.text
    assert "touches the engine" not in seen.text
    assert "evil" not in seen.text
    assert seen.others == 1
    assert world.gate(seen.sha)[0] == "pending"


@about(similar_model, "requested")
def test_a_maintainer_has_a_forks_exact_commit_trained(world: World, seen: Seen) -> None:
    assert seen.result.jobs == TRAINED, seen.result.log[-8000:]
    assert seen.head == seen.sha
    assert "gh run download" in seen.text
    assert world.gate(seen.sha)[0] in ("success", "pending")


# ci.yml


CI = {
    "yours": ("success", {"yours"}),
    "results": ("success", set()),
    "broken": ("failure", {"test", "workflows", "pipeline"}),
}


@about(integration)
@pytest.mark.parametrize("moment", CI)
def test_ci_runs_what_a_commit_needs_and_once_and_all_green_is_red_as_soon_as_one_job_is(
    world: World, moments: dict[str, Seen], moment: str
) -> None:
    seen, (wanted, needed) = moments[moment], CI[moment]
    jobs = {"plan": "success", "all-green": wanted, **dict.fromkeys(("yours", "test", "workflows", "pipeline"), "skipped")}
    jobs |= dict.fromkeys(needed, "success") | ({"test": "failure"} if moment == "broken" else {})
    assert seen.result.jobs == jobs, seen.result.log[-8000:]
    assert {check["name"]: check["conclusion"] for check in world.github.checks(seen.sha)}["all-green"] == wanted


# Searches


@about(search)
def test_a_sweep_proposes_what_it_found_and_has_it_judged(world: World, seen: Seen) -> None:
    pull = world.github.pulls[seen.number]
    assert (pull.base, pull.author) == ("lazy", BOT)
    assert "| `learning_rate` | 0.0002 | **0.1** |" in pull.body
    assert world.changed_by(seen.head) == {"params.yaml"}
    assert world.github.repository.git("diff", "--numstat", f"{seen.head}^", seen.head).split()[:2] == ["1", "1"]
    started = {
        one["workflow"] for one in world.github.dispatches if one["ref"] in (pull.branch, f"refs/heads/{pull.branch}")
    }
    assert started == {"report.yml", "ci.yml"}
    assert {"sweep.md", "trials.csv", "history.png", "best.json", "params.yaml"} <= set(seen.files)
