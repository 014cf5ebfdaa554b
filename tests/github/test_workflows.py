"""The workflow files keep their rules: python -m pytest tests/github/test_workflows.py

They are run for real by tests/github/test_workflow_runs.py and tests/release/test_deploy_runs.py.
"""

import itertools
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from act import strings
from conftest import ROOT
from ruamel.yaml import YAML

from src.system import environment

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.y*ml"))
HOSTED = re.compile(r"(ubuntu|windows|macos)-[\w.]+")
ACTIONS = {
    "actions/attest",
    "actions/cache",
    "actions/cache/restore",
    "actions/checkout",
    "actions/upload-artifact",
    "actions/download-artifact",
}
TRIGGERS = {"pull_request", "merge_group", "push", "schedule", "workflow_dispatch", "workflow_run"}
IGNORES = {("report-comment.yml", "dangerous-triggers")}
WRITES = {
    ("audit.yml", "tell"): {"issues"},
    ("deploy.yml", "attest"): {"attestations", "id-token"},
    ("deploy.yml", "build"): {"packages"},
    ("deploy.yml", "record"): {"deployments", "issues"},
    ("lock.yml", "commit"): {"actions", "contents"},
    ("report-comment.yml", "comment"): {"pull-requests"},
    ("report-comment.yml", "judge"): {"statuses"},
    ("report-comment.yml", "recheck"): {"statuses"},
    ("report.yml", "cancelled"): {"statuses"},
    ("report.yml", "comment"): {"pull-requests"},
    ("report.yml", "plan"): {"statuses"},
    ("report.yml", "publish"): {"actions", "contents", "statuses"},
    ("rollback.yml", "record"): {"deployments", "issues"},
    ("sweep.yml", "publish"): {"actions", "contents", "pull-requests"},
    ("watchdog.yml", "watch"): {"issues", "pull-requests", "statuses"},
}
RELEASES = ("deploy.yml", "rollback.yml")


def read(text: str) -> Any:
    return YAML(typ="safe").load(text)


def jobs(content: Any) -> Iterator[tuple[str, Any]]:
    yield from content["jobs"].items()


def steps(content: Any) -> Iterator[tuple[str, Any]]:
    for name, job in jobs(content):
        for step in job.get("steps", []):
            yield name, step


# The rules: each takes the text of a workflow and yields what breaks it


def unpinned(text: str) -> Iterator[str]:
    """Every action is an allowed one, at a full commit, with its version beside it."""
    for use in re.findall(r"^\s*(?:-\s+)?uses:\s*(.+)$", text, re.MULTILINE):
        found = re.fullmatch(r"([\w/-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)
        if not found or found[1] not in ACTIONS:
            yield use


def loose_tokens(text: str) -> Iterator[str]:
    """Nothing is granted on top, and each job lists what it needs."""
    content = read(text)
    if content.get("permissions") != {}:
        yield "permissions on top"
    for name, job in jobs(content):
        if not isinstance(job.get("permissions"), dict):
            yield f"permissions of {name}"


def endless(text: str) -> Iterator[str]:
    """Every job has a time limit, and runs that a newer one makes pointless are known by a group."""
    content = read(text)
    if "group" not in (content.get("concurrency") or {}) or "cancel-in-progress" not in content["concurrency"]:
        yield "concurrency"
    for name, job in jobs(content):
        if "timeout-minutes" not in job:
            yield f"timeout-minutes of {name}"


def scripts(text: str) -> Iterator[str]:
    """A step is one plain line: what it takes comes by `env`, and logic lives in Python."""
    for name, step in steps(read(text)):
        for code in (step.get("run"), step.get("with", {}).get("script")):
            if code and ("${{" in code or "\n" in code.strip()):
                yield f"{name}: {code}"


def triggers(content: Any) -> set[str]:
    on = content["on"]
    return {on} if isinstance(on, str) else set(on)


def bad_triggers(text: str) -> Iterator[str]:
    """No trigger but the allowed ones; `workflow_run` runs the default branch's code, hosted, without secrets."""
    content = read(text)
    yield from triggers(content) - TRIGGERS
    if "workflow_run" not in triggers(content):
        return
    if triggers(content) != {"workflow_run"}:
        yield "workflow_run beside other triggers"
    for name, step in steps(content):
        if step.get("uses", "").startswith("actions/checkout@") and {"ref", "repository"} & set(step.get("with", {})):
            yield f"{name} checks out what it was told to"
    for name, job in jobs(content):
        if not HOSTED.fullmatch(str(job["runs-on"])):
            yield f"{name} runs on {job['runs-on']}"
    yield from (string for string in strings(content) if re.search(r"\bsecrets\b", string))


def open_to_forks(text: str) -> Iterator[str]:
    """A job that may run on a machine of one's own never runs for a fork's pull request, nor for an outsider's comment."""
    content = read(text)
    for name, job in jobs(content):
        untrusted = triggers(content) - {"push", "merge_group", "workflow_dispatch", "schedule"}
        if not may_be_self_hosted(job) or not untrusted:
            continue
        if untrusted != {"pull_request"} or True in outcomes(str(job.get("if", "true"))):
            yield name


def may_be_self_hosted(job: Any) -> bool:
    """True unless every label is the literal name of a hosted image: an expression can become anything."""
    wanted = job.get("runs-on")
    labels = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [""]
    return not all(HOSTED.fullmatch(str(label)) for label in labels)


def secrets_anywhere(text: str) -> Iterator[str]:
    """Secrets belong to a job's environment, which can have reviewers; none is inherited or given to a whole workflow."""
    content = read(text)
    for name, job in jobs(content):
        used = re.findall(r"\bsecrets\.(\w+)", "\n".join(strings(job)))
        if job.get("secrets") == "inherit" or ("environment" not in job and set(used) - {"GITHUB_TOKEN"}):
            yield name
    if re.search(r"\bsecrets\.", "\n".join(strings({**content, "jobs": {}}))):
        yield "the whole workflow"


def shared_dvc(text: str) -> Iterator[str]:
    """A job that runs DVC keeps its site cache to itself: the default is a folder that everyone may write pickles to."""
    for name, job in jobs(read(text)):
        runs = "\n".join(str(step.get("run", "")) for step in job.get("steps", []))
        if re.search(r"dvc|-m src (reproduce|storage|report|verify)|make (report|reproduce|sweep)", runs):
            where = str(job.get("env", {}).get("DVC_SITE_CACHE_DIR", ""))
            if not where.startswith(("${{ github.workspace }}/", "${{ runner.temp }}/")):
                yield name


def poisonable_caches(text: str) -> Iterator[str]:
    """What a job keeps in a cache, others of its scope run: one that holds a secret or a token that writes keeps nothing.

    Nor does one whose run a person may start for a fork's commit, since that is in the scope of main, which all restore.
    """
    content = read(text)
    for name, step in steps(content):
        job, action = content["jobs"][name], step.get("uses", "").partition("@")[0]
        risky = "write" in job["permissions"].values() or re.search(r"\bsecrets\.", "\n".join(strings(job)))
        chosen = (content["on"] if isinstance(content["on"], dict) else {}).get("workflow_dispatch") or {}
        if action == "actions/cache" and (risky or "environment" in job or chosen.get("inputs") or may_be_self_hosted(job)):
            yield f"{name} keeps"
        if action == "actions/cache/restore" and "write" in job["permissions"].values():
            yield f"{name} restores"
        if action.startswith("actions/cache") and step["with"]["key"] != "${{ steps.environment.outputs.key }}":
            yield f"key of {name}"


def forgotten_jobs(text: str) -> Iterator[str]:
    """`all-green` runs whatever happened, and knows of every other job."""
    content = read(text)
    gate = content["jobs"].get("all-green")
    if gate is None:
        return
    if gate.get("if") != "always()":
        yield "if"
    yield from set(content["jobs"]) - {"all-green"} - set(gate["needs"])


# Conditions: what can `if:` come to when the event is a fork's pull request?


def outcomes(text: str) -> set[bool]:
    """Return what a condition can come to: all that is not known of a fork's pull request is tried as true and as false."""
    text = re.sub(r"^\s*\$\{\{(.*)\}\}\s*$", r"\1", text, flags=re.DOTALL)
    for known, value in ((SAME, False), (SAME.replace("==", "!="), True)):
        text = text.replace(known, str(value))
    text = re.sub(r"github\.event_name ([!=]=) '(\w+)'", lambda m: str((m[2] == "pull_request") == (m[1] == "==")), text)
    unknown: dict[str, None] = {}
    operand = r"(?:[\w.*-]+(?:\((?:'[^']*'|[^()']|\((?:'[^']*'|[^()'])*\))*\))?|'[^']*')"
    comparison = rf"(?<![\w.])(?!True\b|False\b){operand}(?: (?:[<>]=?|[!=]=) {operand})?"
    text = re.sub(comparison, lambda m: str(m[0] == "true") if m[0] in ("true", "false") else name(unknown, m[0]), text)
    text = text.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    assert not re.sub(r"[() ]|\b(and|or|not|True|False|u\d+)\b", "", text), f"not understood: {text}"
    code = compile(text.strip(), "condition", "eval")
    values = itertools.product((True, False), repeat=len(unknown))
    return {bool(eval(code, {f"u{i}": value for i, value in enumerate(each)})) for each in values}


def name(unknown: dict[str, None], operand: str) -> str:
    """Name an operand whose value is not known; the same operand has one name."""
    unknown.setdefault(operand)
    return f"u{list(unknown).index(operand)}"


SAME = "github.event.pull_request.head.repo.full_name == github.repository"

# Every workflow keeps every rule

RULES = (
    *(unpinned, loose_tokens, endless, scripts, bad_triggers, open_to_forks, secrets_anywhere, shared_dvc),
    *(poisonable_caches, forgotten_jobs),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_workflow_keeps_every_rule(file: Path, rule: Callable[[str], Iterator[str]]) -> None:
    assert list(rule(file.read_text())) == []


OWN_MACHINES = {
    "report.yml": {"train"},
    "deploy.yml": {"verify", "register", "staging", "deploy"},
    "rollback.yml": {"rollback"},
    "keep.yml": {"keep"},
    "sweep.yml": {"search"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_listed_jobs_may_be_self_hosted_and_no_others(file: Path) -> None:
    """The rule about forks would hold as well if nothing could ever run on one's own machine."""
    content = read(file.read_text())
    assert {name for name, job in jobs(content) if may_be_self_hosted(job)} == OWN_MACHINES.get(file.name, set())


def test_only_the_listed_jobs_may_write_and_only_what_is_listed() -> None:
    found = {}
    for file in FILES:
        for name, job in jobs(read(file.read_text())):
            if granted := {scope for scope, level in job["permissions"].items() if level == "write"}:
                found[file.name, name] = granted
    assert found == WRITES


def test_only_one_workflow_starts_after_another_and_has_all_its_names_right() -> None:
    contents = {file.name: read(file.read_text()) for file in FILES}
    followers = {name for name, content in contents.items() if "workflow_run" in triggers(content)}
    assert followers == {"report-comment.yml"}
    names = {content["name"] for content in contents.values()}
    assert set(contents["report-comment.yml"]["on"]["workflow_run"]["workflows"]) <= names


def test_jobs_that_hold_a_write_token_run_no_installed_code() -> None:
    """They use the standard library of whatever python3 there is: no environment, no packages, no model.

    The one that builds an image cannot, and may write nothing else than images.
    """
    for (name, job), writes in WRITES.items():
        if writes == {"packages"}:
            continue
        for step in read((FOLDER / name).read_text())["jobs"][job]["steps"]:
            assert re.match(r"python3 -m src [a-z-]+( \S+)*$|curl ", step.get("run", "curl ")), step["run"]


def test_what_may_write_for_a_pull_request_runs_the_default_branchs_code_and_npm_may_comment_alone() -> None:
    default = "github.event.repository.default_branch"
    refs = {
        "plan": f"${{{{ {default} }}}}",
        "publish": f"${{{{ needs.plan.outputs.code || {default} }}}}",
        "cancelled": f"${{{{ needs.plan.outputs.code || {default} }}}}",
        "comment": "${{ needs.plan.outputs.code }}",
    }
    for name, job in (key for key in WRITES if key[0].startswith("report")):
        content = read((FOLDER / name).read_text())["jobs"][job]
        checkouts = [step["with"] for step in content["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert [one.get("ref") for one in checkouts] == [refs[job] if name == "report.yml" else None], (name, job)
        if job == "comment":  # installs CML and its packages
            assert content["permissions"] == {"contents": "read", "pull-requests": "write"}
        else:
            assert not [step for step in content["steps"] if re.search(r"src comment|npm|cml", str(step.get("run")))]


def test_the_hosted_lane_that_the_watchdog_offers_is_there() -> None:
    content = read((FOLDER / "report.yml").read_text())
    assert content["on"]["workflow_dispatch"]["inputs"]["hosted"]["type"] == "boolean"
    train = content["jobs"]["train"]
    for expression in (train["runs-on"], train["timeout-minutes"], train["env"]["TRAIN_RUNNER"]):
        assert "inputs.hosted" in expression
    text = (FOLDER / "report.yml").read_text()
    assert text.count("vars.TRAIN_RUNNER") == 3, "each use of the variable heeds `hosted`"


@pytest.mark.parametrize("name", RELEASES)
def test_what_changes_production_waits_for_its_turn_and_is_never_cancelled(name: str) -> None:
    content = read((FOLDER / name).read_text())
    assert content["concurrency"] == {"group": "deploy-production", "cancel-in-progress": False, "queue": "max"}
    assert triggers(content) <= {"push", "workflow_dispatch"}
    first = next(iter(content["jobs"].values()))
    assert "github.ref == format('refs/heads/{0}', github.event.repository.default_branch)" in first["if"]


def test_a_cached_environment_is_named_by_system_python_and_every_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "REQUIREMENTS", str(tmp_path))
    keys = set()
    for text in ("one==1", "one==2"):
        (tmp_path / "run.txt").write_text(text)
        keys |= {environment.cache_key()}
        monkeypatch.setattr(platform, "python_version", lambda: "3.12.9")
        keys |= {environment.cache_key()}
    assert len(keys) == 3
    assert f"-{platform.machine()}-3.12.9-" in environment.cache_key()


def test_a_merge_that_changes_neither_model_nor_engine_builds_and_deploys_nothing() -> None:
    release = read((FOLDER / "deploy.yml").read_text())["jobs"]
    steps_of_verify = {step["name"]: step.get("if", "") for step in release["verify"]["steps"]}
    for name in ("Store what was verified in main's place", "Keep the release"):
        assert "!steps.verify.outputs.unchanged" in steps_of_verify[name]
    for job in ("register", "build"):
        assert "!needs.verify.outputs.unchanged" in release[job]["if"]
    for job in ("staging", "deploy"):
        assert "needs.build.result == 'success'" in release[job]["if"]


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_never_trains_and_restores_no_cache(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not re.search(r"make (reproduce|report)|-m src (reproduce|train)|dvc repro|actions/cache|cache:", text)


def test_nothing_is_built_beside_the_registrys_token() -> None:
    built = read((FOLDER / "deploy.yml").read_text())["jobs"]["build"]
    runs = [(step["run"], "REGISTRY_TOKEN" in step.get("env", {})) for step in built["steps"] if "run" in step]
    build = ".venv/bin/python -m src build out/release"
    assert runs == [("make setup", False), (build, False), (f"{build} --push", True)]
    assert "REGISTRY_TOKEN" not in built.get("env", {})


def test_an_image_is_verified_before_it_runs_and_no_code_of_ours_meets_the_signing_token() -> None:
    content = read((FOLDER / "deploy.yml").read_text())
    assert not [step for step in content["jobs"]["attest"]["steps"] if "run" in step or "checkout" in step.get("uses", "")]
    deploying = [name for name, step in steps(content) if "-m src deploy " in step.get("run", "")]
    assert deploying == ["staging", "deploy"]
    for name in deploying:
        job = content["jobs"][name]
        runs = [step.get("run", "") for step in job["steps"]]
        assert runs.index(".venv/bin/python -m src attested out/release") < runs.index(
            ".venv/bin/python -m src deploy out/release"
        )
        assert "attest" in job["needs"]
        assert "needs.attest.result == 'success' || needs.attest.result == 'skipped'" in job["if"]


# The linters of workflows


def tool(name: str) -> str:
    """Return the path of a program, which the environment has beside its Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/bin") or shutil.which(name)
    assert found, f"{name} is missing: it is part of the environment (make setup-checks)"
    return found


def zizmor(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [tool("zizmor"), "--offline", "--persona", "auditor", "--no-progress", "--color", "never", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def actionlint(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [tool("actionlint"), "-no-color", "-shellcheck", tool("shellcheck"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.journey
def test_zizmor_finds_nothing_as_an_auditor_and_each_ignore_is_known() -> None:
    result = zizmor(FOLDER)
    assert result.returncode == 0, result.stdout
    assert f"({len(IGNORES)} ignored)" in result.stdout + result.stderr
    found = {(file.name, rule) for file in FILES for rule in re.findall(r"zizmor: ignore\[([\w-]+)\]", file.read_text())}
    assert found == IGNORES
    assert sum(file.read_text().count("zizmor: ignore") for file in FILES) == len(IGNORES)
    assert not list((ROOT / ".github").rglob("*zizmor*")), "no configuration file that could hide findings"


@pytest.mark.journey
def test_actionlint_finds_nothing() -> None:
    result = actionlint(*FILES)
    assert result.returncode == 0, result.stdout
