"""The doctor asks and changes nothing, the settings are applied once: python -m pytest tests/github/test_settings.py

The real `gh` talks to a small GitHub on loopback: HTTPS with a certificate made on the spot, state that changes as GitHub's
REST description says, every request written down.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from standin import Handler as StandinHandler
from standin import Server, tls

from src.github import settings
from src.github.api import GitHub, parse_remote
from src.github.labels import LABELS
from src.github.state import _owners
from src.github.wanted import Repository, raised

SETTINGS = ROOT / ".github" / "settings"
SECRETS = {
    *("DVC_REMOTE_CONFIG", "REGISTRY_TOKEN", "SWEEP_STORAGE"),
    *(f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN")),
}
OWNER = {"login": "alice", "id": 7, "type": "User"}


class Site:
    """One repository, alice/demo, as GitHub makes it: state, the requests made, and what is refused."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.refused: dict[str, tuple[int, str, dict[str, str]]] = {}
        self.repository: dict[str, Any] = {
            "full_name": "alice/demo",
            "owner": OWNER,
            "private": False,
            "visibility": "public",
            "default_branch": "main",
            "permissions": {"admin": True, "push": True, "pull": True},
        }
        self.documents: dict[str, dict[str, Any]] = {
            "actions/permissions": {"enabled": True, "allowed_actions": "selected", "sha_pinning_required": False},
            "actions/permissions/workflow": {
                "default_workflow_permissions": "write",
                "can_approve_pull_request_reviews": True,
            },
            "actions/permissions/fork-pr-contributor-approval": {"approval_policy": "first_time_contributors"},
        }
        self.rulesets: list[dict[str, Any]] = []
        self.policies: list[dict[str, Any]] = []
        self.labels: dict[str, Any] = {"bug": {"name": "bug"}}
        self.environments: dict[str, dict[str, Any]] = {}
        self.branches: dict[str, list[dict[str, Any]]] = {}
        self.variables: dict[str, str] = {}
        self.runners: list[Any] = []
        self.workflows = {path.name: "active" for path in (ROOT / ".github" / "workflows").glob("*.yml")}

    def writes(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0] != "GET"]

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Route one request below repos/alice/demo/ as GitHub does; what it does not know is 404."""
        head, _, tail = path.partition("/")
        if path == "" and method == "GET":
            return 200, self.repository
        if path in self.documents and method == "GET":
            return 200, self.documents[path]
        if path in self.documents and method == "PUT":
            defaults = {"allowed_actions": "all", "sha_pinning_required": False} if path == "actions/permissions" else {}
            self.documents[path] = defaults | body
            return 204, None
        if path.startswith("rules/branches/"):
            return 200, self.page(self.rules_of(unquote(path.removeprefix("rules/branches/"))), query)
        if head == "rulesets":
            return self.numbered(self.rulesets, method, tail, body, query, "")
        if path.startswith("actions/policies"):
            number = path.removeprefix("actions/policies").strip("/")
            return self.numbered(self.policies, method, number, body, query, "policies")
        if path == "labels" and method == "POST":
            self.labels[body["name"]] = body
            return 201, body
        if head == "labels" and unquote(tail) in self.labels:
            return 200, self.labels[unquote(tail)]
        if head == "environments":
            return self.environment(method, unquote(tail), body)
        if head == "actions" and path.endswith("/enable") and method == "PUT":
            self.workflows[path.split("/")[2]] = "active"
            return 204, None
        states = [{"path": f".github/workflows/{name}", "state": state} for name, state in self.workflows.items()]
        variables = [{"name": name, "value": value} for name, value in self.variables.items()]
        lists: dict[str, list[Any]] = {"variables": variables, "runners": self.runners, "workflows": states}
        if head == "actions" and tail in lists:
            return 200, {"total_count": len(lists[tail]), tail: self.page(lists[tail], query)}
        return 404, {"message": "Not Found"}

    def numbered(
        self, items: list[dict[str, Any]], method: str, tail: str, body: Any, query: dict[str, list[str]], key: str
    ) -> tuple[int, Any]:
        if method == "GET" and not tail:  # a list shows no rules
            short = [{k: item[k] for k in ("id", "name", "source_type", "enforcement")} for item in self.page(items, query)]
            return 200, {"total_count": len(items), key: short} if key else short
        if method == "POST":
            items.append({"id": 40 + len(items), "source_type": "Repository", "target": "branch", **body})
            return 201, items[-1]
        found = next(item for item in items if str(item["id"]) == tail)
        found |= body or {}
        return 200, found

    def rules_of(self, branch: str) -> list[Any]:
        names = {"~ALL", f"refs/heads/{branch}"} | ({"~DEFAULT_BRANCH"} if branch == "main" else set())
        return [
            {**rule, "ruleset_id": ruleset["id"]}
            for ruleset in self.rulesets
            if ruleset["enforcement"] == "active" and names & set(ruleset["conditions"]["ref_name"]["include"])
            for rule in ruleset["rules"]
        ]

    def environment(self, method: str, name: str, body: Any) -> tuple[int, Any]:
        if name.endswith("/deployment-branch-policies"):
            branches = self.branches.setdefault(name.partition("/")[0], [])
            branches += [body] if method == "POST" else []
            return 200, {"total_count": len(branches), "branch_policies": branches}
        if method == "PUT":  # replaces all that protects it
            people = [{"type": who["type"], "reviewer": {"id": who["id"]}} for who in body.get("reviewers", [])]
            rules = [{"type": "required_reviewers", "reviewers": people}] if people else []
            policy = body.get("deployment_branch_policy")
            self.environments[name] = {"name": name, "protection_rules": rules, "deployment_branch_policy": policy}
        if name.endswith("/secrets"):
            return 200, {"total_count": 0, "secrets": []}
        return (200, self.environments[name]) if name in self.environments else (404, {"message": "Not Found"})

    @staticmethod
    def page(items: list[Any], query: dict[str, list[str]]) -> list[Any]:
        size, number = int(query.get("per_page", ["30"])[0]), int(query.get("page", ["1"])[0])
        return items[(number - 1) * size : number * size]


class Handler(StandinHandler):
    """What `gh` sees of a Site: the REST API of a server that is not github.com."""

    site: Site

    def handle_any(self) -> None:
        parts, content = urlsplit(self.path), self.read_body()
        whole = parts.path.removeprefix("/api/v3/")
        path = whole.removeprefix("repos/alice/demo").strip("/")
        self.entry = {}
        self.site.requests.append((self.command, path))
        body = json.loads(content) if content else None
        if self.command != "GET":
            self.site.bodies.append(body)
        status, answer, headers = (
            self.site.refused.get(f"{self.command} {path}") or self.site.refused.get("*") or (0, "", {})
        )
        if not self.headers.get("Authorization"):
            public = {key: value for key, value in self.site.repository.items() if key != "permissions"}
            self.send(200 if path == "" else 401, json.dumps(public).encode())
        elif status or not whole.startswith("repos/alice/demo"):
            self.send(status or 404, json.dumps({"message": answer or "Not Found"}).encode(), headers)
        else:
            status, found = self.site.answer(self.command, path, parse_qs(parts.query), body)
            self.send(status, b"" if found is None else json.dumps(found).encode())


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def command(site: Site, tmp_path: Path) -> Iterator[Run]:
    """Run a module in a clone of alice/demo, with a Python that sees the standard library alone."""
    if not shutil.which("gh"):
        pytest.skip("the command gh is not installed")
    tls()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    clone = tmp_path / "clone"
    for part in ("settings", "workflows"):
        shutil.copytree(ROOT / ".github" / part, clone / ".github" / part)
    subprocess.run(["git", "init", "-q", clone], check=True)
    origin = f"https://localhost:{server.server_port}/alice/demo.git"
    subprocess.run(["git", "-C", clone, "remote", "add", "origin", origin], check=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    login = {"GH_ENTERPRISE_TOKEN": "secret-token", "SSL_CERT_FILE": os.environ["SSL_CERT_FILE"], "HOME": str(tmp_path)}
    login |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "localhost"}

    def call(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-S", "-m", "src", module, ".github/settings", *words],
            cwd=clone,
            env=kept | login,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    yield call
    server.shutdown()
    thread.join()
    server.server_close()


def lines(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"  {word} ")]


@pytest.mark.journey
def test_settings_make_everything_right_once_and_the_doctor_only_looks(site: Site, command: Run) -> None:
    before = command("doctor")
    assert before.returncode == 1, before.stderr
    assert {method for method, _ in site.requests} == {"GET"}
    assert (
        "the verdict does not block a merge: main can be deleted, takes force pushes, takes direct pushes" in before.stdout
    )
    assert "does not wait for model-gate of GitHub Actions, does not wait for all-green of GitHub Actions" in before.stdout
    assert 'default_workflow_permissions is "write", can_approve_pull_request_reviews is true' in before.stdout

    looked = command("settings", "--dry-run")
    assert looked.returncode == 0
    assert site.writes() == []

    first = command("settings", "--yes")
    assert first.returncode == 0, first.stdout + first.stderr
    assert site.writes() == [
        ("PUT", "actions/permissions/workflow"),
        ("PUT", "actions/permissions/fork-pr-contributor-approval"),
        ("POST", "rulesets"),
        ("POST", "labels"),
        ("POST", "labels"),
        ("PUT", "environments/fork-training"),
        ("PUT", "actions/permissions"),
        ("PUT", "environments/production"),
        ("POST", "environments/production/deployment-branch-policies"),
        ("PUT", "environments/staging"),
        ("POST", "environments/staging/deployment-branch-policies"),
        ("PUT", "environments/training"),
        ("POST", "actions/policies"),
    ]
    assert site.documents["actions/permissions"] == {
        "enabled": True,
        "sha_pinning_required": True,
        "allowed_actions": "selected",  # the owner's own choice, which a careless PUT would reset
    }
    assert "bug" in site.labels
    assert site.environments["fork-training"]["protection_rules"][0]["reviewers"] == [
        {"type": "User", "reviewer": {"id": 7}}
    ]

    site.requests.clear()
    second = command("settings", "--yes")
    assert second.returncode == 0
    assert "0 to change" in second.stdout
    assert site.writes() == []

    after = command("doctor")
    assert after.returncode == 0, after.stdout
    assert re.search(r"^(\d+) of \1 required settings hold$", after.stdout, re.MULTILINE)
    assert len(lines(after.stdout, "missing ")) == len(json.loads((SETTINGS / "variables.json").read_text()))
    assert "secret-token" not in before.stdout + first.stdout + after.stdout


def test_an_engine_that_nobody_owns_is_told(tmp_path: Path) -> None:
    owners = tmp_path / "CODEOWNERS"
    repository = Repository(GitHub("alice/demo"), tmp_path / "settings", True, True, "main", False, ("alice", 7))
    assert [finding.word for finding in _owners(repository)] == ["warning"]
    owners.write_text("# /src/ @team\n/src/model.py # of everybody\n")
    assert [finding.word for finding in _owners(repository)] == ["warning"]
    owners.write_text("/src/ @organisation/team\n")
    assert [finding.word for finding in _owners(repository)] == ["ok"]


@pytest.mark.journey
def test_the_printed_commands_do_what_settings_do(site: Site, command: Run, tmp_path: Path) -> None:
    site.environments["fork-training"] = {
        "protection_rules": [{"type": "wait_timer", "wait_timer": 5}],
        "deployment_branch_policy": {"protected_branches": True, "custom_branch_policies": False},
    }
    site.workflows["ci.yml"] = "disabled_manually"
    printed = command("doctor").stdout
    mends = [line.partition("mend: ")[2] for line in printed.splitlines() if " mend: " in line]
    mends = [mend for mend in mends if " variable set " not in mend]
    by_hand = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE")}
    by_hand |= {"GH_ENTERPRISE_TOKEN": "x", "HOME": str(tmp_path), "NO_PROXY": "localhost"}
    for mend in [mend for mend in mends if "workflow enable" not in mend]:  # that one asks GraphQL first
        subprocess.run(["bash", "-c", mend], cwd=tmp_path / "clone", env=by_hand, check=True, capture_output=True)
    typed = dict(zip([path for _, path in site.writes()], site.bodies, strict=True))
    assert typed["environments/fork-training"] == {
        "reviewers": [{"type": "User", "id": 7}],
        "prevent_self_review": False,
        "deployment_branch_policy": {"protected_branches": True, "custom_branch_policies": False},
        "wait_timer": 5,
    }
    site.requests.clear()
    site.bodies.clear()
    assert [rule["type"] for rule in site.rulesets[0]["rules"]][2:] == ["pull_request", "required_status_checks"]
    rest = command("settings", "--yes")
    assert site.writes() == [("PUT", "actions/workflows/ci.yml/enable")], rest.stdout + rest.stderr
    assert command("doctor").returncode == 0


@pytest.mark.journey
def test_one_refusal_does_not_stop_the_others_and_is_told(site: Site, command: Run) -> None:
    site.refused["POST rulesets"] = (403, "Upgrade to GitHub Pro or make this repository public", {})
    site.refused["PUT environments/fork-training"] = (422, "Validation Failed", {})
    done = command("settings", "--yes")
    assert done.returncode == 1
    assert "failed   ruleset-main.json: POST repos/alice/demo/rulesets: 403 Upgrade to GitHub Pro" in done.stderr
    assert "make this repository public: your plan does not have it in a private repository" in done.stderr
    assert "failed   environment-fork-training.json:" in done.stderr
    assert site.labels.keys() >= set(LABELS.values())
    assert site.policies
    assert done.stderr.count("\n") == 2


@pytest.mark.journey
def test_a_public_repository_with_its_own_runner_and_wrong_variables_are_told(site: Site, command: Run) -> None:
    site.variables = {f"OTHER_{i}": "x" for i in range(30)}  # fills the first page
    site.variables |= {
        "TRAIN_RUNNER": '["self-hosted", "gpu"]',
        "REPORT_KEEP": "ten",
        "DVC_REMOTE_URL": "https://me:pw@host/x",
    }
    site.runners = [{"name": "box", "status": "offline", "labels": [{"name": "self-hosted"}, {"name": "GPU"}]}]
    site.rulesets.append(
        {
            "id": 3,
            "name": "all",
            "source_type": "Repository",
            "enforcement": "active",
            "conditions": {"ref_name": {"include": ["~ALL"], "exclude": []}},
            "rules": [{"type": "pull_request"}, {"type": "non_fast_forward"}],
        }
    )
    said = command("doctor").stdout
    assert "warning  this repository is PUBLIC and TRAIN_RUNNER names a machine of yours" in said
    assert "no runner of this repository with the labels self-hosted, gpu is online" in said
    assert "variable REPORT_KEEP must be a whole number of at least 1, and is something else" in said
    assert "variable DVC_REMOTE_URL must be an address" in said
    assert "me:pw" not in said
    for environment in ("training", "staging"):
        assert f"the environment {environment} has no secret DVC_REMOTE_CONFIG" in said
    assert "the report cannot push to the branch of a pull request: a rule asks for a pull request" in said
    assert "the report cannot push to `reports`: a rule asks for no force pushes" in said
    site.runners[0]["status"] = "online"
    assert "a runner with the labels self-hosted, gpu is online: box" in command("doctor").stdout


@pytest.mark.journey
def test_a_private_repository_keeps_secrets_from_forks(site: Site, command: Run) -> None:
    path = "actions/permissions/fork-pr-workflows-private-repos"
    site.repository |= {"private": True, "visibility": "private"}
    site.documents[path] = {
        "run_workflows_from_fork_pull_requests": True,
        "send_write_tokens_to_workflows": True,
        "send_secrets_and_variables": True,
        "require_approval_for_fork_pr_workflows": False,
    }
    assert command("settings", "--yes").returncode == 0
    assert site.documents[path] == {
        "run_workflows_from_fork_pull_requests": True,
        "send_write_tokens_to_workflows": False,
        "send_secrets_and_variables": False,
        "require_approval_for_fork_pr_workflows": True,
    }
    assert ("PUT", "actions/permissions/fork-pr-contributor-approval") not in site.writes()


@pytest.mark.journey
def test_who_is_no_administrator_is_told_what_stays_unknown(site: Site, command: Run) -> None:
    site.repository["permissions"] = {"admin": False, "push": True, "pull": True}
    for path in ("actions/permissions", "actions/permissions/workflow", "actions/policies"):
        site.refused[f"GET {path}"] = (403, "Must have admin rights to Repository.", {})
    done = command("doctor")
    assert done.returncode == 1
    assert "you are no administrator" in done.stdout
    unknown = lines(done.stdout, "unknown ")
    assert len(unknown) == 4
    assert all("403 Must have admin rights" in line and "Administration, read" in line for line in unknown)


@pytest.mark.journey
@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "Bad credentials", {}), r"401 Bad credentials: run `gh auth login"),
        (
            (403, "API rate limit exceeded", {"X-RateLimit-Reset": "1900000000"}),
            r"rate limit exceeded: run again after \d\d:\d\d$",
        ),
        ((404, "Not Found", {}), r"shows you no repository alice/demo .* check `git remote get-url origin`"),
    ],
)
def test_when_github_does_not_answer_there_is_one_sentence(
    site: Site, command: Run, refusal: tuple[int, str, dict[str, str]], words: str
) -> None:
    site.refused["*"] = refusal
    done = command("doctor")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(words, done.stderr.strip()), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.journey
def test_nothing_is_changed_without_an_answer(
    site: Site, command: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command("settings")
    assert (done.returncode, site.writes()) == (1, [])
    assert "there is nobody to ask: look at the changes above, then run again with --yes" in done.stderr
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, agreed in (("n", False), ("", False), ("Y", True)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert settings._agreed(GitHub("alice/demo")) == agreed
    assert capsys.readouterr().out == "nothing was changed\n" * 2


@pytest.mark.parametrize(
    ("remote", "host", "name"),
    [
        ("https://github.com/alice/demo.git", "github.com", "alice/demo"),
        ("git@github.com:alice/demo.git", "github.com", "alice/demo"),
        ("ssh://git@ssh.github.com:443/alice/demo.git", "github.com", "alice/demo"),
        ("https://git.example.com:8443/a.b/c_d.git", "git.example.com:8443", "a.b/c_d"),
    ],
)
def test_the_repository_is_read_from_the_remote(remote: str, host: str, name: str) -> None:
    assert parse_remote(remote) == (host, name)


def test_raising_takes_nothing_away_and_comes_to_rest() -> None:
    have = {"n": 3, "on": True, "rules": [{"type": "a", "parameters": {"n": 1}}, {"type": "mine"}], "extra": 1}
    want = {"n": 1, "on": False, "rules": [{"type": "b"}, {"type": "a", "parameters": {"n": 2, "app_id": 5}}], "new": [1]}
    once = raised(want, have)
    assert once == {
        "n": 3,
        "on": True,
        "rules": [{"type": "a", "parameters": {"n": 2, "app_id": 5}}, {"type": "mine"}, {"type": "b"}],
        "extra": 1,
        "new": [1],
    }
    assert raised(want, once) == once
    assert raised(["x"], ["~ALL"]) == ["~ALL"]


def test_on_github_com_a_status_must_come_from_github_actions_and_the_command_takes_the_file() -> None:
    repository = Repository(GitHub("alice/demo"), SETTINGS, True, True, "main", False, ("alice", 7))
    want = repository.read("ruleset-main.json")
    checks = want["rules"][3]["parameters"]["required_status_checks"]
    assert {check["context"]: check["integration_id"] for check in checks} == {"model-gate": 15368, "all-green": 15368}
    mend, _ = repository.change("POST", "rulesets", want, "ruleset-main.json")
    assert mend == f"gh api --method POST repos/alice/demo/rulesets --input {SETTINGS}/ruleset-main.json"


def test_the_files_name_what_the_workflows_use() -> None:
    texts = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    text = "\n".join(texts)
    policy = json.loads((SETTINGS / "actions-policy.json").read_text())
    allowed = set(policy["rules"][0]["parameters"]["allowed_events"])
    assert {event for each in texts for event in YAML(typ="safe").load(each)["on"]} <= allowed
    assert not allowed & {"pull_request_target", "issue_comment"}
    variables = json.loads((SETTINGS / "variables.json").read_text())
    assert {variable["name"] for variable in variables} == set(re.findall(r"vars\.(\w+)", text))
    assert set(re.findall(r"secrets\.(\w+)", text)) == SECRETS
    named = {json.loads(path.read_text())["name"] for path in SETTINGS.glob("label-*.json")}
    assert named == set(LABELS.values())
    assert all(text.count(f"github.event.label.name != '{name}'") == 1 for name in named)
    assert all(text.count(f"github.event.label.name == '{name}'") == 1 for name in named)
    for variable in variables:
        assert re.fullmatch(variable["pattern"], variable["example"]), variable["name"]
        assert not re.fullmatch(variable["pattern"], "https://me:pw@host/x"), variable["name"]


def test_both_workflows_hand_on_every_variable_that_a_deployment_reads() -> None:
    read = set(re.findall(r'"((?:DEPLOY|CANARY)_[A-Z_]+|MODEL_NAME)"', (ROOT / "src/release/settings.py").read_text()))
    assert len(read) > 10
    for name in ("deploy.yml", "rollback.yml"):
        content = YAML(typ="safe").load((ROOT / ".github" / "workflows" / name).read_text())
        handed = {key: value for key, value in content["env"].items() if value == f"${{{{ vars.{key} }}}}"}
        assert read - {"DEPLOY_ENVIRONMENT"} <= set(handed), name


@pytest.mark.journey
def test_production_is_for_main_alone_and_keeps_its_reviewers(site: Site, command: Run) -> None:
    reviewer = {"type": "User", "reviewer": {"id": 9}}
    site.environments["production"] = {
        "protection_rules": [{"type": "required_reviewers", "reviewers": [reviewer]}],
        "deployment_branch_policy": None,
    }
    site.environments["staging"] = {
        "protection_rules": [],
        "deployment_branch_policy": {"protected_branches": True, "custom_branch_policies": False},
    }
    assert "the environment production takes jobs of any branch" in command("doctor").stdout
    assert command("settings", "--yes").returncode == 0
    assert site.environments["production"]["protection_rules"][0]["reviewers"] == [reviewer]
    assert site.branches == {"production": [{"name": "main"}]}
    assert site.environments["staging"]["deployment_branch_policy"]["protected_branches"]
    site.requests.clear()
    assert command("settings", "--yes").returncode == 0
    assert site.writes() == []


@pytest.mark.template
def test_every_setting_has_its_place_in_the_document() -> None:
    document = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"`{name}`" in document for name in [*SECRETS, *LABELS.values()])
    for path in SETTINGS.iterdir():
        assert path.name in document, path.name
    for variable in json.loads((SETTINGS / "variables.json").read_text()):
        assert f"`{variable['name']}`" in document
