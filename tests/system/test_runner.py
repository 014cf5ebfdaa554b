"""The self-hosted GPU runner lets only own jobs in, and its doctor sees what is wrong.

python -m pytest tests/system/test_runner.py
"""

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, ROOT

from src.system import runner_doctor

RUNNER = ROOT / "runner"
HOOKS = RUNNER / "hooks"
OURS = {"id": 101, "full_name": "alice/cats"}
FORK = {"id": 202, "full_name": "mallory/cats"}
ALL_EVENTS = ["merge_group", "pull_request", "push", "schedule", "workflow_dispatch"]

linux = pytest.mark.skipif(
    not all(Path(path).exists() for path in ("/usr/bin/timeout", "/usr/bin/python3", "/proc/self/comm")),
    reason="the hook runs on the runner's Linux",
)


# What GitHub sends, cut to what tells events apart (docs.github.com/en/webhooks/webhook-events-and-payloads)


def pull_request(head: Any, base: Any = OURS) -> dict[str, Any]:
    request = {"head": {"repo": head, "sha": "1" * 40}, "base": {"repo": base, "ref": "main"}}
    return {"action": "opened", "number": 7, "pull_request": request, "repository": OURS, "sender": {"login": "bob"}}


PUSH = {"ref": "refs/heads/main", "before": "0" * 40, "after": "1" * 40, "repository": OURS, "commits": []}
DISPATCH = {"ref": "refs/heads/main", "inputs": None, "workflow": ".github/workflows/report.yml", "repository": OURS}
SCHEDULE = {"schedule": "0 5 * * 1", "workflow": ".github/workflows/security.yml", "repository": OURS}
QUEUE = {"action": "checks_requested", "merge_group": {"head_sha": "1" * 40}, "repository": OURS}
COMMENT = {"action": "created", "issue": {"number": 7}, "comment": {"body": "/train"}, "repository": OURS}
RUN = {"action": "completed", "workflow_run": {"id": 9}, "workflow": {"id": 1}, "repository": OURS}

ALLOWED = {
    "push": ("push", PUSH),
    "dispatch": ("workflow_dispatch", DISPATCH),
    "schedule": ("schedule", SCHEDULE),
    "merge queue": ("merge_group", QUEUE),
    "own branch": ("pull_request", pull_request(OURS)),
}
REFUSED = {
    "fork": ("pull_request", pull_request(FORK), "comes from mallory/cats, and forks do not run on this machine"),
    "deleted fork": ("pull_request", pull_request(None), "comes from is gone"),
    "fork under our name": ("pull_request", pull_request({**FORK, "full_name": "alice/cats"}), "forks do not run"),
    "fork with our number": ("pull_request", pull_request({**FORK, "id": 101}), "forks do not run"),
    "base elsewhere": ("pull_request", pull_request(OURS, base=FORK), "forks do not run"),
    "no head": ("pull_request", {**pull_request(OURS), "pull_request": {}}, "comes from is gone"),
    "request is a list": ("pull_request", {**pull_request(OURS), "pull_request": [1]}, "comes from is gone"),
    "pull_request_target": ("pull_request_target", pull_request(OURS), "the event pull_request_target do not run"),
    "workflow_run": ("workflow_run", RUN, "the event workflow_run do not run"),
    "issue_comment": ("issue_comment", COMMENT, "the event issue_comment do not run"),
    "unknown event": ("repository_dispatch", PUSH, "the event repository_dispatch do not run"),
    "event with a command in it": ("push\n::stop-commands::x", PUSH, "the event push???stop-commands??x do not run"),
    "fork called a push": ("push", pull_request(FORK), "its payload is another's"),
    "fork called a push, with its mark": ("push", {**pull_request(FORK), **PUSH}, "its payload is another's"),
    "fork called a dispatch": ("workflow_dispatch", {**pull_request(FORK), **DISPATCH}, "its payload is another's"),
    "push called a pull request": ("pull_request", PUSH, "its payload is another's"),
    "another repository's payload": ("push", {**PUSH, "repository": FORK}, "not the alice/cats that the owner"),
    "made anew under the old name": ("push", {**PUSH, "repository": {**OURS, "id": 303}}, "made anew under the old name"),
    "no repository": ("push", {**PUSH, "repository": None}, "not the alice/cats that the owner"),
}


def configure(folder: Path, **changes: Any) -> Path:
    path = folder / "allowed.json"
    path.write_text(json.dumps({"repositories": {"alice/cats": 101}, "events": ALL_EVENTS, **changes}))
    path.chmod(0o644)
    return path


def environment(folder: Path, event: str, payload: Any, **changes: str | None) -> dict[str, str]:
    path = folder / "event.json"
    path.write_text(payload if isinstance(payload, str) else json.dumps(payload))
    values = {"GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(path), "GITHUB_REPOSITORY": "alice/cats", **changes}
    return {**os.environ, **{name: value for name, value in values.items() if value is not None}}


def start(
    folder: Path, config: Path, variables: dict[str, str], owner: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the hook as the runner does: `bash -e`, in the workspace."""
    uid = os.getuid() if owner is None else owner
    command = ["bash", "-e", str(HOOKS / "job-started.sh"), str(config), "--owner", str(uid)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE)


def require_refusal(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1
    assert done.stdout.startswith("::error title=Refused by the runner::refused: ")
    assert words in done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stdout


@linux
@pytest.mark.parametrize("case", ALLOWED)
def test_own_jobs_run(tmp_path: Path, case: str) -> None:
    event, payload = ALLOWED[case]
    done = start(tmp_path, configure(tmp_path), environment(tmp_path, event, payload))
    assert (done.returncode, done.stdout) == (0, f"allowed: {event} of alice/cats\n")


@linux
@pytest.mark.parametrize("case", REFUSED)
def test_jobs_of_others_do_not_run(tmp_path: Path, case: str) -> None:
    event, payload, words = REFUSED[case]
    require_refusal(start(tmp_path, configure(tmp_path), environment(tmp_path, event, payload)), words)


@linux
@pytest.mark.parametrize("name", ["GITHUB_EVENT_NAME", "GITHUB_EVENT_PATH", "GITHUB_REPOSITORY"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_a_refusal(tmp_path: Path, name: str, value: str | None) -> None:
    variables = environment(tmp_path, "push", PUSH)
    variables.pop(name)
    if value is not None:
        variables[name] = value
    require_refusal(start(tmp_path, configure(tmp_path), variables), f"{name} is not set")


@linux
def test_a_foreign_repository_is_refused_before_its_payload_is_read(tmp_path: Path) -> None:
    variables = environment(tmp_path, "push", "{", GITHUB_REPOSITORY="mallory/cats")
    require_refusal(start(tmp_path, configure(tmp_path), variables), "does not work for mallory/cats")


@linux
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("\x00\x01", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('"push"', "is not a JSON object"),
        ('{"after": 1, "x": "' + "y" * 25 * 2**20 + '"}', "is larger than 25 MiB"),
    ],
    ids=["empty", "half", "binary", "deep", "list", "text", "huge"],
)
def test_a_payload_that_cannot_be_understood_is_a_refusal(tmp_path: Path, payload: str, words: str) -> None:
    require_refusal(start(tmp_path, configure(tmp_path), environment(tmp_path, "push", payload)), words)


@linux
@pytest.mark.parametrize("kind", ["missing", "folder", "link", "pipe", "unreadable"])
def test_a_payload_that_is_no_plain_file_is_a_refusal(tmp_path: Path, kind: str) -> None:
    if kind == "unreadable" and os.getuid() == 0:
        pytest.skip("root reads everything")
    variables = environment(tmp_path, "push", PUSH)
    path = Path(variables["GITHUB_EVENT_PATH"])
    content = path.rename(tmp_path / "real.json")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(content)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        content.rename(path).chmod(0)
    words = "is not a plain file" if kind == "pipe" else "cannot be read"
    require_refusal(start(tmp_path, configure(tmp_path), variables), words)


@linux
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repositories": {}}, "does not work for alice/cats"),
        ({"repositories": {"owner/name": 0}}, "lacks a repository's number"),
        ({"repositories": {"alice/cats": "101"}}, "lacks a repository's number"),
        ({"repositories": ["alice/cats"]}, "is not of the form"),
        ({"events": ["push", 1]}, "is not of the form"),
        ({"events": None}, "is not of the form"),
        ({"refs": "refs/heads/main"}, "is not of the form"),
        ({"event": ["push"]}, "is not of the form"),
        ({"events": ["pull_request_target"]}, "the event push do not run"),
    ],
)
def test_a_list_that_is_not_filled_in_lets_nobody_in(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    require_refusal(start(tmp_path, configure(tmp_path, **changes), environment(tmp_path, "push", PUSH)), words)


@linux
def test_an_event_that_is_never_safe_cannot_be_listed(tmp_path: Path) -> None:
    config = configure(tmp_path, events=["pull_request_target", "workflow_run", "issue_comment"])
    for event, payload in (("pull_request_target", pull_request(OURS)), ("workflow_run", RUN), ("issue_comment", COMMENT)):
        require_refusal(start(tmp_path, config, environment(tmp_path, event, payload)), "do not run on this machine")


@linux
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_list_that_others_can_write_lets_nobody_in(tmp_path: Path, mode: int) -> None:
    config = configure(tmp_path)
    config.chmod(mode)
    require_refusal(start(tmp_path, config, environment(tmp_path, "push", PUSH)), "does not belong to root alone")


@linux
def test_a_list_of_another_owner_lets_nobody_in(tmp_path: Path) -> None:
    done = start(tmp_path, configure(tmp_path), environment(tmp_path, "push", PUSH), owner=os.getuid() + 1)
    require_refusal(done, "does not belong to root alone")


@linux
def test_without_a_list_nobody_gets_in(tmp_path: Path) -> None:
    require_refusal(start(tmp_path, tmp_path / "none.json", environment(tmp_path, "push", PUSH)), "cannot be read")


@linux
@pytest.mark.parametrize("case", ALLOWED)
@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/mine"])
def test_the_deploy_level_takes_the_default_branch_only(tmp_path: Path, case: str, ref: str) -> None:
    config = configure(
        tmp_path, **{**json.loads((RUNNER / "etc/deploy.allowed.json").read_text()), "repositories": {"alice/cats": 101}}
    )
    event, payload = ALLOWED[case]
    payload = {**payload, "ref": ref} if "ref" in payload else payload
    done = start(tmp_path, config, environment(tmp_path, event, payload))
    if case == "schedule" or (case in ("push", "dispatch") and ref == "refs/heads/main"):
        assert done.returncode == 0
    else:
        words = "works for refs/heads/main only" if case in ("push", "dispatch") else "do not run on this machine"
        require_refusal(done, words)


@linux
def test_what_lies_in_the_workspace_or_the_environment_decides_nothing(tmp_path: Path) -> None:
    for name in ("json.py", "argparse.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit(0)\n")
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("python3", "timeout", "sleep"):
        (fake / name).write_text("#!/bin/sh\nexit 0\n")
        (fake / name).chmod(0o755)
    changes = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "json.py"),
        "PATH": f"{fake}:{os.environ['PATH']}",
    }
    variables = environment(tmp_path, "pull_request", pull_request(FORK), **changes)
    require_refusal(start(tmp_path, configure(tmp_path), variables), "forks do not run")


# A worker as GitHub's: it runs the hook, and then every step that says `if: always()`, whatever the hook's exit code was

WORKER = """
import pathlib, signal, subprocess, sys, time
hook = subprocess.Popen(["bash", "-e", *sys.argv[1:]])
if pathlib.Path("cancel").exists():
    time.sleep(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        hook.send_signal(number)
hook.wait()
pathlib.Path("step").write_text("ran")
"""


def run_job(folder: Path, hooks: Path, config: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = folder / "Runner.Worker"
    program.symlink_to("/usr/bin/python3")
    command = [program, "-c", WORKER, hooks / "job-started.sh", config, "--owner", str(os.getuid())]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE)


@linux
def test_an_allowed_job_runs_its_steps(tmp_path: Path) -> None:
    done = run_job(tmp_path, HOOKS, configure(tmp_path), environment(tmp_path, "push", PUSH))
    assert done.returncode == 0
    assert (tmp_path / "step").exists()


@linux
def test_a_refused_job_cannot_run_a_step_by_saying_always(tmp_path: Path) -> None:
    done = run_job(tmp_path, HOOKS, configure(tmp_path), environment(tmp_path, "pull_request", pull_request(FORK)))
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "step").exists()
    assert "forks do not run on this machine" in done.stderr  # which GitHub shows as the job's error


@linux
@pytest.mark.parametrize(
    ("cancelled", "check"),
    [(True, "import time; time.sleep(1.8); raise SystemExit('refused: late')"), (False, "import time; time.sleep(9)")],
    ids=["cancelled", "hangs"],
)
def test_neither_cancelling_nor_waiting_gets_a_job_past_the_hook(tmp_path: Path, cancelled: bool, check: str) -> None:
    hooks = tmp_path / "hooks"
    shutil.copytree(HOOKS, hooks)
    script = (hooks / "job-started.sh").read_text()
    assert "--signal=KILL 5 " in script
    (hooks / "job-started.sh").write_text(script.replace("--signal=KILL 5 ", "--signal=KILL 3 "))
    (hooks / "job_started.py").write_text(check)
    if cancelled:
        (tmp_path / "cancel").touch()
    done = run_job(tmp_path, hooks, configure(tmp_path), environment(tmp_path, "push", PUSH))
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "step").exists()
    assert done.stderr.startswith("refused: ")


@linux
def test_a_check_that_is_gone_lets_nobody_in(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    shutil.copytree(HOOKS, hooks)
    (hooks / "job_started.py").unlink()
    done = run_job(tmp_path, hooks, configure(tmp_path), environment(tmp_path, "push", PUSH))
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "step").exists()


@linux
def test_after_a_job_nothing_of_it_is_left(tmp_path: Path) -> None:
    kept = ("runner/_work/_temp/_runner_file_commands/set_env_1", "runner/_work/_temp/_github_workflow/event.json")
    kept += ("runner/_work/_actions/actions/checkout/index.js", "tmp/dotnet-diagnostic-1-1-socket")
    left = (
        "runner/_work/cats/cats/.venv/bin/python",
        "runner/_work/cats/cats/.git/config",
        "runner/_work/_temp/report.json",
    )
    left += ("home/runner/.netrc", "home/runner/.cache/pip/x", "tmp/implant", "runner/_work/cats/cats/locked/secret")
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    outside = tmp_path / "cache"
    outside.write_text("of the next job")
    (tmp_path / "home/runner/link").symlink_to(outside)
    (tmp_path / "runner/_work/cats/cats/locked").chmod(0o500)
    done = subprocess.run(["bash", "-e", HOOKS / "job-completed.sh", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ("cache", *kept)
    )
    assert list((tmp_path / "home/runner").iterdir()) == []


def test_what_is_started_can_be_started_and_nobody_but_its_owner_can_change_it(tmp_path: Path) -> None:
    command = ["bash", "-c", 'umask 000; exec bash "$0" "$1"', RUNNER / "install.sh", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    installed = [path for folder in ("opt", "etc") for path in (tmp_path / folder).rglob("*")]
    assert len(installed) > 15
    for path in installed:
        assert not path.stat().st_mode & 0o022, path
        if path.is_file():
            assert bool(path.stat().st_mode & 0o111) == (path.suffix == ".sh"), path


# The configuration of one runner, asked for from a server that answers as GitHub's


class GitHub(HTTPServer):
    """Answers the two requests, and keeps them."""

    answers: dict[str, tuple[int, Any]]
    requests: list[tuple[str, str, dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        code, answer = self.server.answers.get(self.path, (404, {}))
        self.send_response(code)
        if code == 302:
            self.send_header("Location", answer)
        self.end_headers()
        self.wfile.write(answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())

    def do_GET(self) -> None:
        """Be where a redirect leads."""
        self.server.requests.append((self.path, self.headers["Authorization"], {}))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"encoded_jit_config": "x"}')

    def log_message(self, *_: Any) -> None:
        pass


APP = "/app/installations/12/access_tokens"
JIT = "/repos/alice/cats/actions/runners/generate-jitconfig"


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub(("127.0.0.1", 0), Handler) as server:
        server.answers = {APP: (201, {"token": "ghs_hour"}), JIT: (201, {"encoded_jit_config": "c2VjcmV0"})}
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def secret(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def jit(folder: Path, github: GitHub, **changes: Any) -> subprocess.CompletedProcess[str]:
    token = secret(folder / "token", "github_pat_x\n")
    config = {
        "api": f"http://127.0.0.1:{github.server_port}",
        "repository": "alice/cats",
        "token_file": str(token),
        **changes,
    }
    path = secret(folder / "github.json", json.dumps({name: value for name, value in config.items() if value is not None}))
    command = [sys.executable, "-I", RUNNER / "jit_config.py", "--config", path, "--level", "pull-request"]
    command += ["--labels", "self-hosted,gpu", "--out", folder / "run/jitconfig", "--uid", str(os.getuid())]
    (folder / "run").mkdir(exist_ok=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_a_runner_for_one_job_is_registered_with_the_labels(tmp_path: Path, github: GitHub) -> None:
    done = jit(tmp_path, github)
    assert done.returncode == 0, done.stderr
    [(path, bearer, body)] = github.requests
    assert (path, bearer) == (JIT, "Bearer github_pat_x")
    assert body["labels"] == ["self-hosted", "gpu"]
    assert body["runner_group_id"] == 1
    assert re.fullmatch(r"[\w.-]{1,30}-pull-request-[0-9a-f]{8}", body["name"])
    out = tmp_path / "run/jitconfig"
    assert out.read_text() == "c2VjcmV0"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "c2VjcmV0" not in done.stdout + done.stderr


def test_an_organisation_registers_in_its_runner_group(tmp_path: Path, github: GitHub) -> None:
    github.answers["/orgs/cats/actions/runners/generate-jitconfig"] = (201, {"encoded_jit_config": "x"})
    done = jit(tmp_path, github, repository=None, organization="cats", runner_group_id=5)
    assert done.returncode == 0, done.stderr
    assert github.requests[0][2]["runner_group_id"] == 5


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_app_signs_its_claim_and_asks_for_the_least(tmp_path: Path, github: GitHub) -> None:
    key, public = secret(tmp_path / "app.pem", ""), tmp_path / "public.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    done = jit(tmp_path, github, token_file=None, app_id=3, installation_id=12, private_key=str(key))
    assert done.returncode == 0, done.stderr
    (path, bearer, body), (_, second, _) = github.requests
    assert (path, second) == (APP, "Bearer ghs_hour")
    assert body == {"repositories": ["cats"], "permissions": {"administration": "write"}}
    head, claim, signature = bearer.removeprefix("Bearer ").split(".")
    decoded = [base64.urlsafe_b64decode(part + "==") for part in (head, claim, signature)]
    assert json.loads(decoded[0]) == {"alg": "RS256", "typ": "JWT"}
    told = json.loads(decoded[1])
    assert told["iss"] == "3"
    assert told["exp"] - told["iat"] <= 600
    (tmp_path / "signature").write_bytes(decoded[2])
    command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "signature"]
    assert subprocess.run(command, input=f"{head}.{claim}".encode(), capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}), "answered with 401: the key or token is not valid"),
        ((403, {}), "lacks the right: Administration (write)"),
        ((404, {}), "does not know this name"),
        ((422, {}), "does not take the labels"),
        ((500, {}), "answered with 500: the next try"),
        ((302, "/elsewhere"), "answered with 302"),
        ((201, "<html>"), "got no usable answer"),
        ((201, {"other": 1}), "got no usable answer"),
    ],
)
def test_what_github_refuses_is_one_sentence_with_the_next_step(
    tmp_path: Path, github: GitHub, answer: tuple[int, Any], words: str
) -> None:
    github.answers[JIT] = answer
    done = jit(tmp_path, github)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "github_pat" not in done.stderr
    assert not (tmp_path / "run/jitconfig").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repository": None}, 'needs either "repository"'),
        ({"repository": "alice/cats/../dogs"}, 'needs either "repository"'),
        ({"organization": "cats"}, 'needs either "repository"'),
        ({"token_file": None}, "needs app_id"),
        ({"api": "http://api.example"}, "begins with https://"),
        ({"labels": []}, "unknown keys (['labels'])"),
        ({"token_file": "/none/token"}, "/none/token: No such file"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_is_sent(
    tmp_path: Path, github: GitHub, changes: dict[str, Any], words: str
) -> None:
    done = jit(tmp_path, github, **changes)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert github.requests == []


def test_a_token_that_others_can_read_is_not_used(tmp_path: Path, github: GitHub) -> None:
    loose = tmp_path / "loose"
    loose.write_text("github_pat_x")
    loose.chmod(0o644)
    done = jit(tmp_path, github, token_file=str(loose))
    assert done.returncode == 1
    assert f"chmod 600 {loose}" in done.stderr
    assert github.requests == []


def test_a_link_that_a_job_left_is_replaced_not_followed(tmp_path: Path, github: GitHub) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/jitconfig").symlink_to(victim)
    assert jit(tmp_path, github).returncode == 0
    assert victim.read_text() == "root's"
    assert (tmp_path / "run/jitconfig").read_text() == "c2VjcmV0"


# The container's first process


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A runner that writes down what it was given."""
    folder = tmp_path / "program"
    (folder / "bin").mkdir(parents=True)
    (folder / "externals").mkdir()
    listener = folder / "bin/Runner.Listener"
    lines = (
        "#!/bin/sh",
        'echo "$PWD|$*|$ACTIONS_RUNNER_INPUT_JITCONFIG"',
        'env | grep -c "$ACTIONS_RUNNER_INPUT_JITCONFIG"',
        "exit 7",
    )
    listener.write_text("\n".join(lines))
    listener.chmod(0o755)
    return folder


def enter(tmp_path: Path, program: Path) -> subprocess.CompletedProcess[str]:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    command = ["bash", RUNNER / "entrypoint.sh", tmp_path / "jitconfig", program, work]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_configuration_reaches_the_runner_and_no_file_or_argument(tmp_path: Path, program: Path) -> None:
    secret(tmp_path / "jitconfig", "c2VjcmV0")
    done = enter(tmp_path, program)
    assert done.returncode == 7  # the runner's own exit code
    assert done.stdout.splitlines() == [f"{tmp_path}/work|run|c2VjcmV0", "1"]
    assert not (tmp_path / "jitconfig").exists()
    assert (tmp_path / "work/externals").resolve() == program / "externals"
    assert not any("c2VjcmV0" in path.read_text() for path in (tmp_path / "work").rglob("*") if path.is_file())


def test_a_container_does_not_start_without_a_configuration_nor_in_a_used_folder(tmp_path: Path, program: Path) -> None:
    assert "jitconfig is missing or empty" in enter(tmp_path, program).stderr
    secret(tmp_path / "jitconfig", "c2VjcmV0")
    (tmp_path / "work/_work").mkdir()
    done = enter(tmp_path, program)
    assert done.returncode == 1
    assert "is not empty, so an earlier job left something" in done.stderr


# The image, the network, the units


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ("BASE_DIGEST=\nRUNNER_VERSION=\nRUNNER_SHA256=\n", "BASE_DIGEST is empty"),
        (
            f"BASE_DIGEST=sha256:{'a' * 64}\nRUNNER_VERSION=latest\nRUNNER_SHA256={'b' * 64}\n",
            "'latest', which is not of the form",
        ),
        (f"BASE_DIGEST=24.04\nRUNNER_VERSION=2.336.0\nRUNNER_SHA256={'b' * 64}\n", "'24.04', which is not of the form"),
        (f"BASE_DIGEST=sha256:{'a' * 64}\nRUNNER_VERSION=2.336.0\nRUNNER_SHA256=\n", "RUNNER_SHA256 is empty"),
    ],
)
def test_an_image_is_not_built_from_what_is_not_pinned(tmp_path: Path, pins: str, words: str) -> None:
    shutil.copytree(RUNNER, tmp_path / "runner")
    (tmp_path / "runner/pins.env").write_text(pins)
    done = subprocess.run(["bash", tmp_path / "runner/build.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert "docs/runner.md" in done.stderr


def test_an_image_is_built_from_the_pins_without_the_data(tmp_path: Path) -> None:
    for name in ("runner", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    pins = {"BASE_DIGEST": f"sha256:{'a' * 64}", "RUNNER_VERSION": "2.336.0", "RUNNER_SHA256": "b" * 64}
    pins["BASE_IMAGE"] = "mirror.example/ubuntu:24.04"
    (tmp_path / "runner/pins.env").write_text("".join(f"{name}={value}\n" for name, value in pins.items()))
    executable(tmp_path / "bin/docker", f'echo "$*" >{tmp_path}/said; tar -t >{tmp_path}/context')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    subprocess.run(["bash", tmp_path / "runner/build.sh"], check=True, env={**os.environ, "PATH": path})
    said = (tmp_path / "said").read_text()
    assert all(f"--build-arg {name}={value}" in said for name, value in pins.items())
    context = (tmp_path / "context").read_text().split()
    assert "runner/Dockerfile" in context
    assert "requirements/torch.txt" in context
    assert not any(name.startswith("data") for name in context)


def test_the_image_names_everything_by_digest_and_runs_as_a_user() -> None:
    text = (RUNNER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == [
        "${BASE_IMAGE}@${BASE_DIGEST:?is_empty:_fill_runner/pins.env_as_docs/runner.md_says}"
    ]
    assert not re.search(r"^ARG (BASE_DIGEST|RUNNER_VERSION|RUNNER_SHA256)=", text, re.MULTILINE)
    assert not re.search(r"^[^#]*\blatest\b", text, re.MULTILINE)
    assert "sha256sum --check --strict" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1001:1001"]


def test_the_shipped_pins_are_empty_or_whole() -> None:
    pins = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", (RUNNER / "pins.env").read_text(), re.MULTILINE))
    assert set(pins) >= {"BASE_DIGEST", "RUNNER_VERSION", "RUNNER_SHA256"}
    assert len({bool(pins[name]) for name in ("BASE_DIGEST", "RUNNER_VERSION", "RUNNER_SHA256")}) == 1


def unit_text() -> str:
    return (RUNNER / "ml-runner@.service").read_text()


def test_the_unit_gives_a_job_a_fence_and_no_socket_or_secret() -> None:
    [command] = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit_text(), re.MULTILINE)
    assert all(flag in command for flag in runner_doctor.HARDENING)
    assert not re.search(r"docker\.sock|--privileged|github\.json|app\.pem|/etc/ml-runner:|TOKEN", command)
    volumes = dict(re.findall(r"--volume=([^:\s]+):(\S+)", command))
    assert volumes["/srv/ml-runner/%i/dvc-cache"] == "/var/cache/dvc:rw"
    assert volumes["/etc/ml-runner/%i.allowed.json"] == "/etc/ml-runner/allowed.json:ro"
    assert volumes["/opt/ml-runner/hooks"] == "/opt/ml-runner/hooks:ro"
    remote = re.search(r"--env=LOCAL_DVC_REMOTE=(\S+)", command)
    assert remote
    assert volumes["/srv/ml-runner/dvc-remote"] == f"{remote[1]}:${{REMOTE_MODE}}"
    assert "Restart=always" in unit_text()


def test_every_variable_of_the_unit_has_a_value_on_both_levels() -> None:
    wanted = set(re.findall(r"\$\{(\w+)\}", unit_text()))
    for level in runner_doctor.LEVELS:
        settings = runner_doctor.read_settings(RUNNER / f"etc/{level}.env")
        assert set(settings) == wanted
        assert all(settings.values())


def test_dvc_in_the_image_takes_the_cache_of_the_volume_and_a_private_site_cache(tmp_path: Path) -> None:
    shutil.copy(RUNNER / "etc/dvc-config", tmp_path / "config")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    variables = {
        **os.environ,
        "DVC_SYSTEM_CONFIG_DIR": str(tmp_path),
        "DVC_GLOBAL_CONFIG_DIR": str(tmp_path / "none"),
        "DVC_NO_ANALYTICS": "1",
    }
    variables["DVC_SITE_CACHE_DIR"] = str(tmp_path / "site")
    for words in (["init", "--quiet"], ["cache", "dir"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "/var/cache/dvc"
    assert "DVC_SITE_CACHE_DIR=/tmp/dvc-site" in (RUNNER / "Dockerfile").read_text()
    assert "--tmpfs=/tmp:" in unit_text()


IPTABLES = """
rules={folder}/rules; touch $rules
shift # --wait
case $1 in
  --check) shift; grep -qxF -- "$*" $rules ;;
  --insert) shift; {{ echo "$*"; cat $rules; }} >$rules.new && mv $rules.new $rules ;;
  --append) shift; echo "$*" >>$rules ;;
  --new-chain) grep -qxF -- "chain $2" $rules && exit 1; echo "chain $2" >>$rules ;;
  --flush) grep -vE "^$2 " $rules >$rules.new; mv $rules.new $rules ;;
esac
"""


def test_the_network_shuts_out_metadata_and_the_host_however_often_it_is_set_up(tmp_path: Path) -> None:
    executable(tmp_path / "bin/iptables", IPTABLES.format(folder=tmp_path))
    executable(tmp_path / "bin/docker", f'[ "$2" = create ] && echo "$*" >>{tmp_path}/networks; test -e {tmp_path}/networks')
    variables = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", RUNNER / "network.sh"], check=True, env=variables, capture_output=True)
        rules = (tmp_path / "rules").read_text().splitlines()
        assert sorted(rules) == sorted(set(rules))
        chain = [rule.removeprefix("ML-RUNNER ") for rule in rules if rule.startswith("ML-RUNNER ")]
        assert chain[:2] == [f"--protocol {kind} --dport 53 --jump RETURN" for kind in ("udp", "tcp")]
        assert chain[2] == "--destination 169.254.0.0/16 --jump REJECT"
        assert "DOCKER-USER --in-interface ml-runner0 --jump ML-RUNNER" in rules
        assert "INPUT --in-interface ml-runner0 --jump REJECT" in rules
    [network] = (tmp_path / "networks").read_text().splitlines()
    assert "--ipv6=false" in network
    assert "enable_icc=false" in network


# The doctor, on a folder that install.sh filled and with commands that answer as a good machine's


class Machine:
    """A root folder and a PATH of its own; what is good can be made bad."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        subprocess.run(["bash", RUNNER / "install.sh", self.root], check=True, capture_output=True)
        self.settle(
            "etc/ml-runner/github.json",
            json.dumps({"repository": "alice/cats", "token_file": "/etc/ml-runner/token"}),
            0o600,
        )
        self.settle("etc/ml-runner/token", "github_pat_x", 0o600)
        for level in runner_doctor.LEVELS:
            shipped = json.loads((RUNNER / f"etc/{level}.allowed.json").read_text())
            self.settle(f"etc/ml-runner/{level}.allowed.json", json.dumps({**shipped, "repositories": {"alice/cats": 101}}))
        (self.root / "etc/systemd/system/multi-user.target.wants").mkdir()
        self.enable_deploy()
        self.say("nvidia-smi", "NVIDIA H100 80GB HBM3, 580.95.05")
        self.say("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.18.0")
        self.say("systemctl", "active")
        self.say("timedatectl", "yes")
        self.say("iptables", "-N ML-RUNNER\n-A ML-RUNNER -d 169.254.0.0/16 -j REJECT")
        self.docker()

    def settle(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.root / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def enable_deploy(self) -> None:
        wants = self.root / "etc/systemd/system/multi-user.target.wants/ml-runner@deploy.service"
        wants.symlink_to("/etc/systemd/system/ml-runner@.service")

    def say(self, command: str, text: str, code: int = 0) -> None:
        executable(self.bin / command, f"/bin/cat <<'END'\n{text}\nEND\nexit {code}")

    def docker(
        self, version: str = "2.336.0", days: int = 3, gpu: str = "GPU 0: NVIDIA H100", runtimes: str = "nvidia"
    ) -> None:
        made = (datetime.now(UTC) - timedelta(days=days, minutes=1)).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
        cases = {"info": f'{{"{runtimes}":{{}}}}', "image": f"{made} {version}", "run": gpu}
        branches = " ".join(f"{name}) echo '{said}' ;;" for name, said in cases.items())
        executable(self.bin / "docker", f"case $1 in {branches} esac")

    def examine(self) -> tuple[int, dict[str, str], str]:
        """Return the exit code, the level of each check, and all that was printed."""
        command = [sys.executable, "-m", "src", "runner-doctor", "--root", self.root]
        environment = {"PATH": str(self.bin)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert "Traceback" not in done.stderr, done.stderr
        found = re.findall(r"^(ok|warn|fail) +(\S.*?)  +\S", done.stdout, re.MULTILINE)
        levels = {name: level for level, name in found}
        return done.returncode, levels, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def require_level(machine: Machine, check: str, level: str, words: str) -> None:
    code, levels, said = machine.examine()
    assert levels[check] == level, said
    assert {name for name, found in levels.items() if found != "ok"} == {check}, said
    assert code == (1 if level == "fail" else 0)
    assert words in said
    assert f"{level} {check}: " in said  # what to do next


def test_the_doctor_finds_nothing_on_a_machine_that_was_set_up(machine: Machine) -> None:
    code, levels, said = machine.examine()
    assert code == 0, said
    assert set(levels.values()) == {"ok"}
    assert 'TRAIN_RUNNER is to be ["self-hosted","gpu"]' in said


def test_on_a_machine_without_anything_the_doctor_says_so_in_sentences(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "src", "runner-doctor", "--root", tmp_path],
        cwd=ROOT,
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "this machine has no NVIDIA driver, and perhaps no GPU" in done.stdout
    assert "docker is not installed" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_driver_is_compared_with_what_the_pinned_torch_needs(machine: Machine) -> None:
    machine.say("nvidia-smi", "NVIDIA A100, 550.54.15\nNVIDIA A100, 550.54.15")
    require_level(machine, "GPU", "fail", "needs driver 580 or newer")


def test_the_doctor_knows_the_pinned_torch() -> None:
    pin = re.search(r"^torch==(\d+\.\d+)", (ROOT / "requirements/torch.txt").read_text(), re.MULTILINE)
    assert pin
    assert pin[1] in runner_doctor.DRIVER_FOR_TORCH, "add its CUDA and lowest driver to src/system/runner_doctor.py"


def test_a_gpu_that_does_not_answer(machine: Machine) -> None:
    machine.say("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch", 18)
    require_level(machine, "GPU", "fail", "Driver/library version mismatch")


def test_a_container_that_gets_no_gpu(machine: Machine) -> None:
    machine.docker(gpu="could not select device driver")
    require_level(machine, "GPU in a job", "fail", "could not select device driver")


def test_docker_without_the_toolkit(machine: Machine) -> None:
    machine.docker(runtimes="runc")
    require_level(machine, "containers", "fail", "nvidia-ctk runtime configure")


@pytest.mark.parametrize(
    ("version", "days", "level"),
    [("2.336.0", 24, "warn"), ("2.336.0", 31, "fail"), ("2.328.9", 1, "fail"), ("2.99.0", 1, "fail")],
)
def test_a_runner_that_github_gives_no_jobs_to(machine: Machine, version: str, days: int, level: str) -> None:
    machine.docker(version, days)
    require_level(machine, "image", level, "GitHub gives an old runner no jobs")


def test_a_clock_that_nobody_sets(machine: Machine) -> None:
    machine.say("timedatectl", "no")
    require_level(machine, "clock", "warn", "timedatectl set-ntp true")


@pytest.mark.parametrize("name", ["job-started.sh", "job_started.py"])
def test_a_hook_that_a_job_could_change(machine: Machine, name: str) -> None:
    (machine.root / "opt/ml-runner/hooks" / name).chmod(0o777)
    require_level(machine, "hooks", "fail", "can be changed by other users than root")


def test_a_hook_in_a_folder_that_a_job_could_change(machine: Machine) -> None:
    (machine.root / "opt/ml-runner/hooks").chmod(0o777)
    require_level(machine, "hooks", "fail", "opt/ml-runner/hooks can be changed")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_hook_of_another_owner(machine: Machine) -> None:
    os.chown(machine.root / "opt/ml-runner/hooks/job-started.sh", 1001, 1001)
    require_level(machine, "hooks", "fail", "chown root:")


def test_a_hook_that_is_not_there(machine: Machine) -> None:
    (machine.root / "opt/ml-runner/hooks/job-completed.sh").unlink()
    require_level(machine, "hooks", "fail", "job-completed.sh is missing")


def test_a_hook_older_than_the_clone(machine: Machine) -> None:
    machine.settle("opt/ml-runner/hooks/job_started.py", "raise SystemExit(0)\n")
    require_level(machine, "hooks", "warn", "is not the one in this clone")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("--init", "--volume=/var/run/docker.sock:/var/run/docker.sock", "opens the host to jobs"),
        ("--init", "--privileged", "opens the host to jobs"),
        ("--cap-drop=ALL", "", "lacks --cap-drop=ALL"),
        ("--env=ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/ml-runner/hooks/job-started.sh", "", "lacks the pre-job hook"),
    ],
)
def test_a_unit_that_somebody_opened(machine: Machine, old: str, new: str, words: str) -> None:
    unit = machine.root / "etc/systemd/system/ml-runner@.service"
    unit.write_text(unit.read_text().replace(old, new))
    code, levels, said = machine.examine()
    assert (code, levels["fence"], levels["units"]) == (1, "fail", "warn")
    assert words in said


@pytest.mark.parametrize(
    "place", ["home/bob/actions-runner/.env", "etc/systemd/system/actions.runner.alice-cats.gpu.service"]
)
def test_a_lasting_runner_beside_ours(machine: Machine, place: str) -> None:
    (machine.root / place).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / place).write_text("ACTIONS_RUNNER_HOOK_JOB_STARTED=/x\n")
    require_level(machine, "other runners", "fail", "belongs to a runner outside a container")


@pytest.mark.parametrize("name", ["github.json", "token"])
def test_a_secret_that_others_can_read(machine: Machine, name: str) -> None:
    (machine.root / "etc/ml-runner" / name).chmod(0o644)
    require_level(machine, "key", "fail", "can be read by others than root")


def test_settings_that_are_still_the_example(machine: Machine) -> None:
    shutil.copy(RUNNER / "etc/github.json", machine.root / "etc/ml-runner/github.json")
    (machine.root / "etc/ml-runner/github.json").chmod(0o600)
    require_level(machine, "key", "fail", "is not filled in")
    machine.settle("etc/ml-runner/github.json", "{", 0o600)
    require_level(machine, "key", "fail", "is not valid JSON")


def test_an_allow_list_that_is_still_the_example(machine: Machine) -> None:
    shutil.copy(RUNNER / "etc/pull-request.allowed.json", machine.root / "etc/ml-runner")
    require_level(machine, "pull-request: allowed", "fail", "gh api repos/OWNER/NAME --jq .id")


def test_a_deploy_level_that_takes_pull_requests(machine: Machine) -> None:
    shutil.copy(machine.root / "etc/ml-runner/pull-request.allowed.json", machine.root / "etc/ml-runner/deploy.allowed.json")
    require_level(machine, "deploy: allowed", "fail", "lets pull requests into the deploy level")


def test_a_deploy_level_that_could_change_the_remote(machine: Machine) -> None:
    path = machine.root / "etc/ml-runner/deploy.env"
    path.write_text(path.read_text().replace("REMOTE_MODE=ro", "REMOTE_MODE=rw"))
    require_level(machine, "deploy: settings", "fail", "REMOTE_MODE is not ro")


def test_labels_by_which_a_pull_request_reaches_the_deploy_level(machine: Machine) -> None:
    path = machine.root / "etc/ml-runner/deploy.env"
    path.write_text(path.read_text().replace("x64,deploy", "x64,gpu,deploy"))
    require_level(machine, "labels", "fail", "both levels have gpu")


def test_a_deploy_level_that_is_not_enabled_is_not_asked_for(machine: Machine) -> None:
    (machine.root / "etc/systemd/system/multi-user.target.wants/ml-runner@deploy.service").unlink()
    shutil.copy(RUNNER / "etc/deploy.allowed.json", machine.root / "etc/ml-runner")
    code, levels, said = machine.examine()
    assert code == 0, said
    assert levels["deploy"] == "ok"


@pytest.mark.parametrize(
    ("change", "words"), [("open", "is open to other users"), ("shared", "leads elsewhere"), ("gone", "is missing")]
)
def test_a_cache_that_is_not_its_levels_own(machine: Machine, change: str, words: str) -> None:
    cache = machine.root / "srv/ml-runner/deploy/dvc-cache"
    if change == "open":
        cache.chmod(0o777)
    else:
        cache.rmdir()
    if change == "shared":
        cache.symlink_to(machine.root / "srv/ml-runner/pull-request/dvc-cache")
    require_level(machine, "deploy: cache", "fail", words)


def test_a_service_that_does_not_run(machine: Machine) -> None:
    executable(machine.bin / "systemctl", "case $2 in *pull*) echo failed; exit 3 ;; esac; echo active")
    require_level(machine, "pull-request: service", "fail", "journalctl --unit ml-runner@pull-request")


def test_a_network_that_lets_jobs_ask_the_cloud(machine: Machine) -> None:
    machine.say("iptables", "iptables: No chain/target/match by that name.", 1)
    require_level(machine, "network", "fail", "systemctl enable --now ml-runner-network")


def test_installing_again_keeps_the_settings(machine: Machine) -> None:
    before = (machine.root / "etc/ml-runner/pull-request.allowed.json").read_text()
    subprocess.run(["bash", RUNNER / "install.sh", machine.root], check=True, capture_output=True)
    assert (machine.root / "etc/ml-runner/pull-request.allowed.json").read_text() == before
    assert machine.examine()[0] == 0
