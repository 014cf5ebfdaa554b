"""How the settings of the repository on GitHub stand, against what must be. Asks only (GET), changes nothing.

A setting that is stricter than its file is well, and what no file names is nobody's business here. What GitHub does not show
is told as unknown, with the permission that is lacking: it hides from those who may not see as if nothing were there.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from src.core.command import UserError
from src.github.api import PLAN, ApiError, GitHub
from src.github.wanted import Change, Finding, Repository, raised

_ADMIN = "you must be an administrator (a fine-grained token: Administration, read)"
_COLLABORATOR = "you must be a collaborator (a fine-grained token: Variables and Environments, read)"
_AT_ONCE = 6  # requests
_PROBE = "any-branch-of-a-pull-request"
_BARS = {
    "creation": "no new branches",
    "merge_queue": "a merge queue",
    "non_fast_forward": "no force pushes",
    "pull_request": "a pull request",
    "required_signatures": "signed commits",
    "required_status_checks": "status checks",
    "update": "no updates",
}


@dataclass(frozen=True)
class _Check:
    """A question to GitHub; `what` and `permission` are for the case that it refuses to answer."""

    what: str
    look: Callable[[Repository], Iterator[Finding]]
    required: bool = True
    permission: str = _ADMIN


@dataclass(frozen=True)
class _Document:
    """A setting that is read and written at one path; `keep` are the keys that a write must send again as they are."""

    file: str
    path: str
    says: str
    required: bool = True
    keep: tuple[str, ...] = ()
    only: str = ""


_DOCUMENTS = (
    _Document("actions.json", "actions/permissions", "GitHub Actions run", keep=("allowed_actions", "sha_pinning_required")),
    _Document(
        "actions-token.json", "actions/permissions/workflow", "a workflow's token reads only, unless a job asks for more"
    ),
    _Document(
        "actions-fork-approval.json",
        "actions/permissions/fork-pr-contributor-approval",
        "workflows of every outside contributor wait for approval",
        only="public",
    ),
    _Document(
        "actions-private-forks.json",
        "actions/permissions/fork-pr-workflows-private-repos",
        "forks get neither secrets nor a token that writes",
        keep=("run_workflows_from_fork_pull_requests",),
        only="private",
    ),
    _Document(
        "actions-pinned.json",
        "actions/permissions",
        "only actions that are pinned to a commit run",
        required=False,
        keep=("allowed_actions",),
    ),
)


def inspect(gh: GitHub, folder: Path) -> tuple[Repository, list[Finding]]:
    """Compare the repository with the files of `folder`; required settings come first.

    Raises:
        UserError: GitHub cannot be asked at all, or a file is missing or damaged.
    """
    repository = _repository(gh, folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(partial(_look, repository), _checks(repository))
        findings = [finding for some in found for finding in some]
    return repository, sorted(findings, key=lambda finding: not finding.required)


def _look(repository: Repository, check: _Check) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(check.look(repository))  # what was found before a refusal stays
    except ApiError as error:
        if error.is_final:
            raise
        lacking = f"; {PLAN}" if error.by_plan else "" if repository.admin else f"; {check.permission}"
        findings.append(Finding("unknown", check.required, f"{check.what}: GitHub does not show it ({error}){lacking}"))
    return findings


def _repository(gh: GitHub, folder: Path) -> Repository:
    try:
        answer = gh.get("")
    except ApiError as error:
        if error.is_final:
            raise
        raise UserError(
            f"{gh.host} shows you no repository {gh.repository} ({error}): check `git remote get-url origin` and "
            "`gh auth status`, or name it as GH_REPO=owner/name"
        ) from None
    if "permissions" not in answer:  # GitHub shows a public repository to everybody
        raise UserError(f"gh is not logged in to {gh.host}: run `gh auth login --hostname {gh.host}` and try again")
    organisation = answer["owner"]["type"] == "Organization"
    person = gh.get("/user") if organisation else answer["owner"]
    return Repository(
        gh,
        folder,
        public=answer["visibility"] == "public",
        admin=bool(answer["permissions"].get("admin")),
        branch=answer["default_branch"],
        organisation=organisation,
        owner=(person["login"], person["id"]),
    )


def _checks(repository: Repository) -> list[_Check]:
    kind = "public" if repository.public else "private"
    documents = [document for document in _DOCUMENTS if document.only in {"", kind}]
    labels = [path.name for path in sorted(repository.folder.glob("label-*.json"))]
    environments = [path.name for path in sorted(repository.folder.glob("environment-*.json"))]
    return [
        *(_Check(document.says, partial(_document, document), document.required) for document in documents),
        _Check("the default branch", _main),
        _Check("the workflows are switched on", _workflows),
        _Check("the verdict blocks a merge", _rules),
        _Check("the report may push to its branches", _open_branches),
        *(_Check(f"the label of {file.removesuffix('.json')}", partial(_label, file)) for file in labels),
        *(_Check(file.removesuffix(".json"), partial(_environment, file), required=False) for file in environments),
        _Check("the owners of the engine", _owners, required=False),
        _Check("the variables", _variables, required=False, permission=_COLLABORATOR),
        _Check("the secret of the DVC remote", _secret, required=False, permission=_COLLABORATOR),
        *(_Check("the runners", partial(_runner, name), required=False) for name in ("TRAIN_RUNNER", "DEPLOY_RUNNER")),
        _Check("the events that start a workflow", _policy, required=False),
    ]


def _document(document: _Document, repository: Repository) -> Iterator[Finding]:
    want, have = repository.read(document.file), repository.gh.get(document.path)
    other = {key: have.get(key) for key, value in want.items() if have.get(key) != value}
    if not other:
        yield Finding("ok", document.required, document.says)
        return
    kept = {key: have[key] for key in document.keep if key in have}
    shown = ", ".join(f"{key} is {json.dumps(value)}" for key, value in other.items())
    mend = repository.change("PUT", document.path, kept | want, document.file)
    yield Finding("differs", document.required, f"{document.says}: not so, for {shown}", *mend)


def _main(repository: Repository) -> Iterator[Finding]:
    if repository.branch == "main":
        yield Finding("ok", True, "the default branch is called main")
        return
    path = repository.gh.address(f"branches/{quote(repository.branch, safe='')}/rename")
    mend = repository.gh.command("api", "--method", "POST", path, "--raw-field", "new_name=main")
    yield Finding(
        "differs", True, f"the default branch is called {repository.branch}, and ci.yml runs on pushes to main", mend
    )


def _workflows(repository: Repository) -> Iterator[Finding]:
    files = sorted(path.name for path in (repository.folder.parent / "workflows").glob("*.yml"))
    listed = list(repository.gh.pages("actions/workflows"))
    states = {flow["path"].removeprefix(".github/workflows/"): flow["state"] for flow in listed}
    for file in files:
        state = states.get(file)
        if state is None:
            where = f"push it to {repository.branch}; in a fork, switch workflows on in the tab Actions first"
            yield Finding(
                "missing", True, f"GitHub knows no workflow {file}: {where}", f"git push origin {repository.branch}"
            )
        elif state != "active":
            change = Change("PUT", f"actions/workflows/{file}/enable", {}, repository.folder.parent / "workflows" / file)
            mend = repository.gh.command("workflow", "enable", file, "--repo", repository.name)
            yield Finding("differs", True, f"the workflow {file} is switched off ({state})", mend, change)
    if all(states.get(file) == "active" for file in files):
        yield Finding("ok", True, f"the workflows are switched on: {', '.join(files)}")


def _rules(repository: Repository) -> Iterator[Finding]:
    want = repository.read("ruleset-main.json")
    if repository.gh.host != "github.com":  # the number of the app that must set a status is that of GitHub Actions there
        for check in _status_checks(want["rules"]):
            check.pop("integration_id", None)
    effective = _effective(repository, repository.branch)
    lacking = [words for rule in want["rules"] for words in _lacks(rule, effective.get(rule["type"]))]
    if not lacking:
        names = " and ".join(check["context"] for check in _status_checks(want["rules"]))
        yield Finding("ok", True, f"the verdict blocks a merge: {repository.branch} waits for {names}")
        return
    have = _named(repository, "rulesets", want["name"])
    mend = _create_or_raise(repository, "rulesets", want, have, "ruleset-main.json")
    sentence = f"the verdict does not block a merge: {repository.branch} {', '.join(lacking)}"
    yield Finding("differs" if have else "missing", True, sentence, *mend)


def _status_checks(rules: list[Any]) -> list[Any]:
    checks = [rule["parameters"]["required_status_checks"] for rule in rules if rule["type"] == "required_status_checks"]
    return [check for some in checks for check in some]


def _effective(repository: Repository, branch: str) -> dict[str, Any]:
    """Return the rules in force on a branch by type, those of several rulesets (an organisation's too) taken together."""
    found: dict[str, Any] = {}
    for rule in repository.gh.pages(f"rules/branches/{quote(branch, safe='')}"):
        found[rule["type"]] = raised(rule, found.get(rule["type"]))
    return found


def _lacks(want: Any, have: Any) -> list[str]:
    if have is not None and raised(want, have) == have:
        return []
    if want["type"] == "required_status_checks":
        there = _status_checks([have] if have else [])
        return [
            f"does not wait for {c['context']} of GitHub Actions"
            for c in _status_checks([want])
            if raised([c], there) != there
        ]
    words = {"deletion": "can be deleted", "non_fast_forward": "takes force pushes", "pull_request": "takes direct pushes"}
    return [words.get(want["type"], f"lacks the rule {want['type']}")]


def _named(repository: Repository, path: str, name: str) -> Any:
    """Get the repository's own ruleset or policy of that name in full; None when there is none."""
    for item in repository.gh.pages(path):
        if item["name"] == name and item.get("source_type", "Repository") == "Repository":
            return repository.gh.get(f"{path}/{item['id']}")
    return None


def _create_or_raise(repository: Repository, path: str, want: Any, have: Any, file: str) -> tuple[str, Change]:
    if have is None:
        return repository.change("POST", path, want, file)
    return repository.change("PUT", f"{path}/{have['id']}", raised(want, _part(have, want)), file)


def _part(have: Any, want: Any) -> Any:
    return {key: have[key] for key in want if key in have}


def _open_branches(repository: Repository) -> Iterator[Finding]:
    closed = False
    mild = {"creation", "non_fast_forward"}  # the bot only adds to a branch that is there; `reports` it makes and rewrites
    for branch, words, harmless in (
        (_PROBE, "the branch of a pull request", mild),
        ("reports", "`reports`", set()),
    ):
        for kind, rule in _effective(repository, branch).items():
            if kind in _BARS.keys() - harmless:
                closed = True
                where = f"https://{repository.gh.host}/{repository.name}/settings/rules/{rule.get('ruleset_id', '')}"
                sentence = f"the report cannot push to {words}: a rule asks for {_BARS[kind]}"
                yield Finding("differs", True, sentence, f"exclude it from the branches of {where}")
    if not closed:
        yield Finding("ok", True, "the report may push to the branch of a pull request and to `reports`")


def _label(file: str, repository: Repository) -> Iterator[Finding]:
    want = repository.read(file)
    name = want["name"]
    if _there(repository.gh, f"labels/{quote(name, safe='')}"):
        yield Finding("ok", True, f"the label `{name}` exists")
        return
    sentence = f"the label `{name}`, by which a named person lets a change pass a gate"
    yield Finding("missing", True, sentence, *repository.change("POST", "labels", want, file))


def _there(gh: GitHub, path: str) -> Any:
    """Get what everyone who reads the repository may see; None says that it does not exist."""
    try:
        return gh.get(path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _environment(file: str, repository: Repository) -> Iterator[Finding]:
    name = file.removeprefix("environment-").removesuffix(".json")
    want = repository.read(file)
    guarded = "reviewers" in want
    required = guarded and repository.public
    have = _there(repository.gh, f"environments/{quote(name, safe='')}")
    rules = {rule["type"]: rule for rule in (have or {}).get("protection_rules", [])}
    asked = rules.get("required_reviewers", {}).get("reviewers", [])
    policy = (have or {}).get("deployment_branch_policy")
    bounded = policy is not None or want["deployment_branch_policy"] is None
    if have and (asked or not guarded) and bounded:
        yield Finding("ok", required, f"the environment {name} exists" + (" and asks a reviewer" if asked else ""))
        yield from _environment_branch(name, policy or {}, repository)
        return
    body = want | ({"deployment_branch_policy": policy} if policy else {})
    if "wait_timer" in rules:
        body["wait_timer"] = rules["wait_timer"]["wait_timer"]
    sentence = f"the environment {name} does not exist yet; the first run would make it"
    if have and not bounded:
        sentence = f"the environment {name} takes jobs of any branch, which could use what it holds"
    if asked:
        body["reviewers"] = [{"type": who["type"], "id": who["reviewer"]["id"]} for who in asked]
    elif guarded:
        login, number = repository.owner
        body["reviewers"] = [
            {**person, "id": number} if person["id"] == "@owner" else person for person in want["reviewers"]
        ]
        sentence = f"the environment {name} asks no reviewer; it would be {login} (name others under Settings, Environments)"
    yield Finding(
        "differs" if have else "missing", required, sentence, *repository.change("PUT", f"environments/{name}", body, file)
    )
    yield from _environment_branch(name, body["deployment_branch_policy"] or {}, repository)


def _environment_branch(name: str, policy: dict[str, bool], repository: Repository) -> Iterator[Finding]:
    """Where an environment lists its branches, the default branch must be one of them."""
    if not policy.get("custom_branch_policies"):
        return
    path = f"environments/{quote(name, safe='')}/deployment-branch-policies"
    listed = (_there(repository.gh, f"{path}?per_page=100") or {}).get("branch_policies", [])
    if any(one["name"] == repository.branch for one in listed):
        yield Finding("ok", False, f"the environment {name} takes jobs of {repository.branch}")
        return
    body = {"name": repository.branch}
    sentence = f"the environment {name} takes no job of {repository.branch}"
    yield Finding("missing", False, sentence, *repository.change("POST", path, body, "deployment-branch.json"))


def _owners(repository: Repository) -> Iterator[Finding]:
    path = repository.folder.parent / "CODEOWNERS"
    lines = path.read_text().splitlines() if path.is_file() else []
    if any("@" in line.partition("#")[0] for line in lines):
        yield Finding("ok", False, f"{path} names who reviews the engine")
        return
    yield Finding("warning", False, f"{path} names nobody who reviews the engine: put your team's handle there, and push it")


@cache
def _values(repository: Repository) -> dict[str, str]:
    """Return the variables that a workflow sees; the repository's own win over its organisation's."""
    sources = ["actions/organization-variables"] if repository.organisation else []
    pairs = [pair for path in (*sources, "actions/variables") for pair in repository.gh.pages(path, per_page=30)]
    return {pair["name"]: pair["value"] for pair in pairs}


def _variables(repository: Repository) -> Iterator[Finding]:
    values = _values(repository)
    for variable in repository.read("variables.json"):
        name, value = variable["name"], values.get(variable["name"], "")
        mend = repository.gh.command("variable", "set", name, "--repo", repository.name, "--body", variable["example"])
        if not value:
            yield Finding("missing", False, f"variable {name}; without it {variable['without']}", mend)
        elif re.fullmatch(variable["pattern"], value):
            yield Finding("ok", False, f"variable {name} is set")
        else:
            yield Finding("differs", True, f"variable {name} must be {variable['must']}, and is something else", mend)


def _secret(repository: Repository) -> Iterator[Finding]:
    name = "DVC_REMOTE_CONFIG"
    if not _values(repository).get("DVC_REMOTE_URL"):
        return
    for environment in ("training", "staging"):  # pull requests' places in the store, and main's
        held = _there(repository.gh, f"environments/{environment}/secrets?per_page=100") or {"secrets": []}
        if any(secret["name"] == name for secret in held["secrets"]):
            yield Finding("ok", False, f"the environment {environment} holds the secret {name}")
            continue
        mend = repository.gh.command("secret", "set", name, "--env", environment, "--repo", repository.name)
        sentence = f"the environment {environment} has no secret {name}; without it the machine's own login opens the remote"
        yield Finding("missing", False, sentence, mend)


def _runner(name: str, repository: Repository) -> Iterator[Finding]:
    try:
        labels = [str(label) for label in json.loads(_values(repository).get(name, ""))]
    except (ValueError, TypeError):  # which _variables tells
        return
    if all(re.match(r"(ubuntu|windows|macos)-", label) for label in labels):
        return
    if repository.public:
        mend = ("repo", "edit", repository.name, "--visibility", "private", "--accept-visibility-change-consequences")
        sentence = (
            f"this repository is PUBLIC and {name} names a machine of yours, which GitHub advises against: a pull "
            "request may rewrite a workflow, and only the hook on the machine keeps strangers out. See docs/runner.md"
        )
        yield Finding("warning", False, sentence, repository.gh.command(*mend))
    wanted = {label.lower() for label in labels}
    for runner in repository.gh.pages("actions/runners"):
        if runner["status"] == "online" and wanted <= {label["name"].lower() for label in runner["labels"]}:
            yield Finding("ok", False, f"a runner with the labels {', '.join(labels)} is online: {runner['name']}")
            return
    sentence = f"no runner of this repository with the labels {', '.join(labels)} is online: runs wait, and fail after a day"
    yield Finding("warning", False, sentence, "start it (docs/runner.md), or run `make runner-doctor` on the machine")


def _policy(repository: Repository) -> Iterator[Finding]:
    want = repository.read("actions-policy.json")
    events = ", ".join(want["rules"][0]["parameters"]["allowed_events"])
    have = _named(repository, "actions/policies", want["name"])
    if have and raised(want, _part(have, want)) == _part(have, want):
        yield Finding("ok", False, f"a policy says which events start a workflow: {events}")
        return
    mend = _create_or_raise(repository, "actions/policies", want, have, "actions-policy.json")
    sentence = f"no policy says that only these events start a workflow: {events}"
    yield Finding("differs" if have else "missing", False, sentence, *mend)
