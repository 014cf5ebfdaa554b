"""The self-hosted GPU runner lets only own jobs in, and its doctor sees what is wrong.

python -m pytest tests/system/test_runner.py
"""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from conftest import PATIENCE, ROOT

from src.system import runner_doctor

RUNNER = ROOT / "runner"
HOOKS = RUNNER / "hooks"
OURS = {"id": 101, "full_name": "alice/cats"}
FORK = {"id": 202, "full_name": "mallory/cats"}
ALL_EVENTS = ["merge_group", "pull_request", "push", "schedule", "workflow_dispatch"]

NOW = datetime(2026, 12, 1, tzinfo=UTC)

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
    "request is a list": ("pull_request", {**pull_request(OURS), "pull_request": [1]}, "comes from is gone"),
    "unknown event": ("repository_dispatch", PUSH, "the event repository_dispatch do not run"),
    "event with a command in it": ("push\n::stop-commands::x", PUSH, "the event push???stop-commands??x do not run"),
    "fork called a push": ("push", pull_request(FORK), "its payload is another's"),
    "fork called a push, with its mark": ("push", {**pull_request(FORK), **PUSH}, "its payload is another's"),
    "fork called a dispatch": ("workflow_dispatch", {**pull_request(FORK), **DISPATCH}, "its payload is another's"),
    "push called a pull request": ("pull_request", PUSH, "its payload is another's"),
    "another repository's payload": ("push", {**PUSH, "repository": FORK}, "not the alice/cats that the owner"),
    "made anew under the old name": ("push", {**PUSH, "repository": {**OURS, "id": 303}}, "made anew under the old name"),
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


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


HOOK = module(HOOKS / "job_started.py")


def decide(config: Path, variables: dict[str, str], owner: int | None = None) -> str:
    """Return what the pre-job hook's check says of a job: an `allowed: ` line, or the reason of its exit code 1."""
    uid = os.getuid() if owner is None else owner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job_started.py", str(config), "--owner", str(uid)])
        patch.setattr(os, "environ", variables)
        output = io.StringIO()
        patch.setattr(sys, "stdout", output)
        try:
            HOOK.main()
        except SystemExit as refusal:
            output.write(str(refusal.code))
    said = output.getvalue().strip()
    assert said.startswith(("allowed: ", "refused: "))
    assert "\n" not in said
    return said


@pytest.mark.parametrize("case", ALLOWED)
def test_own_jobs_run(tmp_path: Path, case: str) -> None:
    event, payload = ALLOWED[case]
    assert decide(configure(tmp_path), environment(tmp_path, event, payload)) == f"allowed: {event} of alice/cats"


@pytest.mark.parametrize("case", REFUSED)
def test_jobs_of_others_do_not_run(tmp_path: Path, case: str) -> None:
    event, payload, words = REFUSED[case]
    assert words in decide(configure(tmp_path), environment(tmp_path, event, payload))


@pytest.mark.parametrize("name", ["GITHUB_EVENT_NAME", "GITHUB_EVENT_PATH", "GITHUB_REPOSITORY"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_a_refusal(tmp_path: Path, name: str, value: str | None) -> None:
    assert f"{name} is not set" in decide(configure(tmp_path), environment(tmp_path, "push", PUSH, **{name: value}))


def test_a_foreign_repository_is_refused_before_its_payload_is_read(tmp_path: Path) -> None:
    variables = environment(tmp_path, "push", "{", GITHUB_REPOSITORY="mallory/cats")
    assert "does not work for mallory/cats" in decide(configure(tmp_path), variables)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"after": 1, "x": "' + "y" * 25 * 2**20 + '"}', "is larger than 25 MiB"),
    ],
    ids=["half", "deep", "list", "huge"],
)
def test_a_payload_that_cannot_be_understood_is_a_refusal(tmp_path: Path, payload: str, words: str) -> None:
    assert words in decide(configure(tmp_path), environment(tmp_path, "push", payload))


def test_a_payload_that_is_no_plain_file_is_a_refusal(tmp_path: Path) -> None:
    variables = environment(tmp_path, "push", PUSH)
    path = Path(variables["GITHUB_EVENT_PATH"])
    content = path.rename(tmp_path / "real.json")
    assert "cannot be read" in decide(configure(tmp_path), variables)
    path.symlink_to(content)
    assert "cannot be read" in decide(configure(tmp_path), variables)
    path.unlink()
    os.mkfifo(path)
    assert "is not a plain file" in decide(configure(tmp_path), variables)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repositories": {}}, "does not work for alice/cats"),
        ({"repositories": {"alice/cats": "101"}}, "lacks a repository's number"),
        ({"events": ["push", 1]}, "is not of the form"),
        ({"refs": "refs/heads/main"}, "is not of the form"),
        ({"events": ["pull_request_target"]}, "the event push do not run"),
    ],
)
def test_a_list_that_is_not_filled_in_lets_nobody_in(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in decide(configure(tmp_path, **changes), environment(tmp_path, "push", PUSH))


@pytest.mark.parametrize(
    ("event", "payload"), [("pull_request_target", pull_request(OURS)), ("workflow_run", RUN), ("issue_comment", COMMENT)]
)
def test_an_event_that_is_never_safe_cannot_be_listed(tmp_path: Path, event: str, payload: Any) -> None:
    for config in (configure(tmp_path), configure(tmp_path, events=[event])):
        assert f"the event {event} do not run" in decide(config, environment(tmp_path, event, payload))


def test_a_list_that_others_can_write_or_own_or_that_is_gone_lets_nobody_in(tmp_path: Path) -> None:
    config, variables = configure(tmp_path), environment(tmp_path, "push", PUSH)
    assert "does not belong to root alone" in decide(config, variables, owner=os.getuid() + 1)
    for mode in (0o664, 0o646):
        config.chmod(mode)
        assert "does not belong to root alone" in decide(config, variables)
    assert "cannot be read" in decide(tmp_path / "none.json", variables)


@pytest.mark.parametrize("case", ALLOWED)
@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/mine"])
def test_the_deploy_level_takes_the_default_branch_only(tmp_path: Path, case: str, ref: str) -> None:
    shipped = json.loads((RUNNER / "etc/deploy.allowed.json").read_text())
    config = configure(tmp_path, **{**shipped, "repositories": {"alice/cats": 101}})
    event, payload = ALLOWED[case]
    payload = {**payload, "ref": ref} if "ref" in payload else payload
    said = decide(config, environment(tmp_path, event, payload))
    if case == "schedule" or (case in ("push", "dispatch") and ref == "refs/heads/main"):
        assert said.startswith("allowed: ")
    else:
        assert ("works for refs/heads/main only" if case in ("push", "dispatch") else "do not run on this machine") in said


@linux
@pytest.mark.journey
def test_what_lies_in_the_workspace_or_the_environment_decides_nothing(tmp_path: Path) -> None:
    for name in ("json.py", "argparse.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit(0)\n")
    for name in ("python3", "timeout", "sleep"):
        executable(tmp_path / "bin" / name, "exit 0")
    changes = {"PYTHONPATH": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    variables = environment(tmp_path, "pull_request", pull_request(FORK), **changes)
    # as GitHub's runner does: `bash -e`, in the workspace
    command = ["bash", "-e", str(HOOKS / "job-started.sh"), str(configure(tmp_path)), "--owner", str(os.getuid())]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.fullmatch(r"::error title=Refused by the runner::refused: .*forks do not run.*\n", done.stdout)


# A worker as GitHub's: it runs the hook, and then every step that says `if: always()`, whatever the hook's exit code was

WORKER = """
import pathlib, signal, subprocess, sys, time
hook = subprocess.Popen(["bash", "-e", *sys.argv[1:]])
if pathlib.Path("cancel").exists():
    time.sleep(0.4)
    for number in (signal.SIGINT, signal.SIGTERM):
        hook.send_signal(number)
hook.wait()
pathlib.Path("step").write_text("ran")
"""


CHECKS: dict[str, tuple[Any, str | None, str]] = {  # the payload, what stands in place of the check, what GitHub shows
    "fork": (pull_request(FORK), "", "forks do not run on this machine"),
    "check gone": (PUSH, None, "can't open file"),
    "cancelled": (PUSH, "import time; time.sleep(1); raise SystemExit('refused: late')", "refused: late"),
    "check hangs": (PUSH, "import time; time.sleep(9)", "took longer than 5 seconds"),
}


def run_job(folder: Path, payload: Any, check: str | None) -> subprocess.CompletedProcess[str]:
    shutil.copytree(HOOKS, folder / "hooks")
    script = (folder / "hooks/job-started.sh").read_text()
    assert "--signal=KILL 5 " in script
    (folder / "hooks/job-started.sh").write_text(script.replace("--signal=KILL 5 ", "--signal=KILL 2 "))
    if check is None:
        (folder / "hooks/job_started.py").unlink()
    elif check:
        (folder / "hooks/job_started.py").write_text(check)
    (folder / "Runner.Worker").symlink_to("/usr/bin/python3")
    command = [folder / "Runner.Worker", "-c", WORKER, folder / "hooks/job-started.sh", configure(folder)]
    variables = environment(folder, "push" if payload is PUSH else "pull_request", payload)
    command += ["--owner", str(os.getuid())]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE)


@linux
@pytest.mark.journey
def test_an_allowed_job_runs_its_steps(tmp_path: Path) -> None:
    assert run_job(tmp_path, PUSH, "").returncode == 0
    assert (tmp_path / "step").exists()


@linux
@pytest.mark.journey
@pytest.mark.parametrize("case", CHECKS)
def test_no_step_of_a_refused_job_runs_by_saying_always_by_cancelling_or_by_waiting(tmp_path: Path, case: str) -> None:
    if case == "cancelled":
        (tmp_path / "cancel").touch()
    payload, check, words = CHECKS[case]
    done = run_job(tmp_path, payload, check)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "step").exists()
    assert words in done.stderr  # which GitHub shows as the job's error


@linux
@pytest.mark.journey
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


# The configuration of one runner


JIT = module(RUNNER / "jit_config.py")
APP = "/app/installations/12/access_tokens"
REGISTER = "/repos/alice/cats/actions/runners/generate-jitconfig"


class GitHub:
    """Answers requests in place of urllib's opener, and keeps them."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            APP: (201, {"token": "ghs_hour"}),
            REGISTER: (201, {"encoded_jit_config": "c2VjcmV0"}),
        }
        self.requests: list[tuple[str, str, dict[str, Any]]] = []

    def open(self, request: Any, timeout: int) -> Any:
        path = request.full_url.removeprefix("https://api.example")
        self.requests.append((path, request.headers["Authorization"], json.loads(request.data)))
        code, answer = self.answers[path]
        if code != 201:
            raise urllib.error.HTTPError(request.full_url, code, "", SimpleNamespace(), None)  # type: ignore[arg-type]
        return io.BytesIO(answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> GitHub:
    made = GitHub()

    def opener(handler: Any) -> GitHub:
        assert handler().redirect_request() is None, "a redirect would carry the token to another host"
        return made

    monkeypatch.setattr(JIT.urllib.request, "build_opener", opener)
    return made


def secret(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def jit(folder: Path, **changes: Any) -> str:
    """Register a runner; return the sentence that it fails with, or an empty one."""
    token = secret(folder / "token", "github_pat_x\n")
    config = {"api": "https://api.example", "repository": "alice/cats", "token_file": str(token), **changes}
    path = secret(folder / "github.json", json.dumps({name: value for name, value in config.items() if value is not None}))
    command = ["jit_config.py", "--config", str(path), "--level", "pull-request", "--labels", "self-hosted,gpu"]
    (folder / "run").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--out", str(folder / "run/jitconfig"), "--uid", str(os.getuid())])
        try:
            JIT.main()
        except SystemExit as fault:
            return str(fault.code)
    return ""


def test_a_runner_for_one_job_is_registered_with_the_labels(
    tmp_path: Path, github: GitHub, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    victim = secret(tmp_path / "victim", "root's")
    (tmp_path / "run/jitconfig").symlink_to(victim)  # that a job left: it is replaced, not followed
    assert not jit(tmp_path)
    [(path, bearer, body)] = github.requests
    assert (path, bearer) == (REGISTER, "Bearer github_pat_x")
    assert body["labels"] == ["self-hosted", "gpu"]
    assert body["runner_group_id"] == 1
    assert re.fullmatch(r"[\w.-]{1,30}-pull-request-[0-9a-f]{8}", body["name"])
    out = tmp_path / "run/jitconfig"
    assert (out.read_text(), victim.read_text()) == ("c2VjcmV0", "root's")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "c2VjcmV0" not in "".join(capsys.readouterr())


@pytest.mark.journey
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_app_signs_its_claim_and_asks_for_the_least(tmp_path: Path, github: GitHub) -> None:
    key, public = secret(tmp_path / "app.pem", ""), tmp_path / "public.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    assert not jit(tmp_path, token_file=None, app_id=3, installation_id=12, private_key=str(key))
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


# The container's first process


@pytest.mark.journey
def test_the_configuration_reaches_the_runner_and_no_file_or_argument_nor_a_used_folder(tmp_path: Path) -> None:
    program, work = tmp_path / "program", tmp_path / "work"
    lines = ('echo "$PWD|$*|$ACTIONS_RUNNER_INPUT_JITCONFIG"', 'env | grep -c "$ACTIONS_RUNNER_INPUT_JITCONFIG"', "exit 7")
    executable(program / "bin/Runner.Listener", "\n".join(lines))
    (program / "externals").mkdir()
    work.mkdir()

    def enter() -> subprocess.CompletedProcess[str]:
        command = ["bash", RUNNER / "entrypoint.sh", tmp_path / "jitconfig", program, work]
        return subprocess.run(command, capture_output=True, text=True)

    assert "jitconfig is missing or empty" in enter().stderr
    secret(tmp_path / "jitconfig", "c2VjcmV0")
    done = enter()
    assert done.returncode == 7  # the runner's own exit code
    assert done.stdout.splitlines() == [f"{tmp_path}/work|run|c2VjcmV0", "1"]
    assert not (tmp_path / "jitconfig").exists()
    assert (work / "externals").resolve() == program / "externals"
    assert not any("c2VjcmV0" in path.read_text() for path in work.rglob("*") if path.is_file())
    secret(tmp_path / "jitconfig", "c2VjcmV0")
    (work / "_work").mkdir()
    done = enter()
    assert done.returncode == 1
    assert "is not empty, so an earlier job left something" in done.stderr


# The image, the network, the units


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.journey
@pytest.mark.parametrize(
    ("digest", "version", "sha", "words"),
    [
        ("", "2.336.0", "b" * 64, "BASE_DIGEST is empty"),
        ("24.04", "2.336.0", "b" * 64, "'24.04', which is not of the form"),
        (f"sha256:{'a' * 64}", "2.336.0", "", "RUNNER_SHA256 is empty"),
    ],
)
def test_an_image_is_not_built_from_what_is_not_pinned(
    tmp_path: Path, digest: str, version: str, sha: str, words: str
) -> None:
    shutil.copytree(RUNNER, tmp_path / "runner")
    pins = f"BASE_DIGEST={digest}\nRUNNER_VERSION={version}\nRUNNER_SHA256={sha}\n"
    (tmp_path / "runner/pins.env").write_text(pins)
    done = subprocess.run(["bash", tmp_path / "runner/build.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert "docs/runner.md" in done.stderr


def test_the_image_names_everything_by_digest_and_runs_as_a_user() -> None:
    text = (RUNNER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == [
        "${BASE_IMAGE}@${BASE_DIGEST:?is_empty:_fill_runner/pins.env_as_docs/runner.md_says}"
    ]
    assert not re.search(r"^ARG (BASE_DIGEST|RUNNER_VERSION|RUNNER_SHA256)=", text, re.MULTILINE)
    assert not re.search(r"^[^#]*\blatest\b", text, re.MULTILINE)
    assert "sha256sum --check --strict" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1001:1001"]
    pins = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", (RUNNER / "pins.env").read_text(), re.MULTILINE))
    assert len({bool(pins[name]) for name in ("BASE_DIGEST", "RUNNER_VERSION", "RUNNER_SHA256")}) == 1


HARDENING = (
    "--rm",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=1001:1001",
    "--network=ml-runner",
    "--pids-limit=",
    "--memory=",
    "--tmpfs=/runner:",
    "--env=ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/ml-runner/hooks/job-started.sh",
)


def unit_text() -> str:
    return (RUNNER / "ml-runner@.service").read_text()


def test_the_unit_gives_a_job_a_fence_and_no_socket_or_secret() -> None:
    [command] = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit_text(), re.MULTILINE)
    assert all(flag in command for flag in HARDENING)
    assert not re.search(r"docker\.sock|--privileged|github\.json|app\.pem|/etc/ml-runner:|TOKEN", command)
    volumes = dict(re.findall(r"--volume=([^:\s]+):(\S+)", command))
    assert volumes["/srv/ml-runner/%i/dvc-cache"] == "/var/cache/dvc:rw"
    assert volumes["/etc/ml-runner/%i.allowed.json"] == "/etc/ml-runner/allowed.json:ro"
    assert volumes["/opt/ml-runner/hooks"] == "/opt/ml-runner/hooks:ro"
    remote = re.search(r"--env=LOCAL_DVC_REMOTE=(\S+)", command)
    assert remote
    assert volumes["/srv/ml-runner/dvc-remote"] == f"{remote[1]}:${{REMOTE_MODE}}"
    assert "Restart=always" in unit_text()


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


@pytest.mark.journey
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


# The doctor, on a folder as install.sh fills it and with a good machine's answers


class Machine:
    """A root folder, and the answers of commands; what is good can be made bad."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        installed = {"hooks": "opt/ml-runner/hooks", "etc": "etc/ml-runner"}
        for source, folder in installed.items():
            shutil.copytree(RUNNER / source, root / folder)
        for name in ("jit_config.py", "network.sh"):
            shutil.copy(RUNNER / name, root / "opt/ml-runner")
        (root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
        for name in ("ml-runner@.service", "ml-runner-network.service"):
            shutil.copy(RUNNER / name, root / "etc/systemd/system")
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
        for level in runner_doctor.LEVELS:
            (root / f"srv/ml-runner/{level}/dvc-cache").mkdir(mode=0o700, parents=True)
        self.fill_in()
        wants = root / "etc/systemd/system/multi-user.target.wants/ml-runner@deploy.service"
        wants.symlink_to("/etc/systemd/system/ml-runner@.service")
        self.answers: dict[str, tuple[int | None, str]] = {
            "nvidia-smi": (0, "NVIDIA H100 80GB HBM3, 580.95.05"),
            "systemctl": (0, "active"),
            "iptables": (0, "-N ML-RUNNER\n-A ML-RUNNER -d 169.254.0.0/16 -j REJECT"),
            "docker info": (0, '{"nvidia":{}}'),
            "docker run": (0, "GPU 0: NVIDIA H100"),
        }
        self.runner("2.336.0", 3)

        def call(*command: str) -> tuple[int | None, str]:
            return self.answers.get(" ".join(command[:2]), self.answers.get(command[0], (None, "")))

        monkeypatch.setattr(runner_doctor, "call", call)

    def fill_in(self) -> None:
        settings = {"repository": "alice/cats", "token_file": "/etc/ml-runner/token"}
        secret(self.root / "etc/ml-runner/github.json", json.dumps(settings))
        secret(self.root / "etc/ml-runner/token", "github_pat_x")
        for level in runner_doctor.LEVELS:
            shipped = json.loads((RUNNER / f"etc/{level}.allowed.json").read_text())
            path = self.root / f"etc/ml-runner/{level}.allowed.json"
            path.write_text(json.dumps({**shipped, "repositories": {"alice/cats": 101}}))

    def runner(self, version: str, days: int) -> None:
        created = NOW - timedelta(days=days, minutes=1)
        self.answers["docker image"] = (0, f"{created:%Y-%m-%dT%H:%M:%S}.123456789Z {version}")

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        path.write_text(path.read_text().replace(old, new))

    def share_cache(self) -> None:
        cache = self.root / "srv/ml-runner/deploy/dvc-cache"
        cache.rmdir()
        cache.symlink_to(self.root / "srv/ml-runner/pull-request/dvc-cache")

    def foreign_runner(self) -> Path:
        return self.root / "etc/systemd/system/actions.runner.alice-cats.gpu.service"

    def examine(self) -> dict[str, runner_doctor.Line]:
        return {line.name: line for line in runner_doctor.examine(self.root, NOW)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "root", monkeypatch)


def test_the_doctor_finds_nothing_on_a_machine_that_was_set_up(machine: Machine) -> None:
    lines = machine.examine()
    assert {line.level for line in lines.values()} == {"ok"}, lines
    assert lines["labels"].seen == 'TRAIN_RUNNER is to be ["self-hosted","gpu"]'


def test_the_doctor_knows_the_pinned_torch() -> None:
    pin = re.search(r"^torch==(\d+\.\d+)", (ROOT / "requirements/torch.txt").read_text(), re.MULTILINE)
    assert pin
    assert pin[1] in runner_doctor.DRIVER_FOR_TORCH, "add its CUDA and lowest driver to src/system/runner_doctor.py"


Break = Callable[[Machine], object]


def say(command: str, code: int, text: str) -> Break:
    return lambda machine: machine.answers.update({command: (code, text)})


def mode(name: str, bits: int) -> Break:
    return lambda machine: (machine.root / name).chmod(bits)


def edit(name: str, old: str, new: str) -> Break:
    return lambda machine: machine.edit(name, old, new)


def remove(name: str) -> Break:
    return lambda machine: (machine.root / name).unlink()


ETC, HOOK_FOLDER, UNIT = "etc/ml-runner", "opt/ml-runner/hooks", "etc/systemd/system/ml-runner@.service"
FAULTS: dict[str, tuple[str, str, str, Break]] = {
    "old driver": ("GPU", "fail", "driver 580 or newer", say("nvidia-smi", 0, "A100, 550.54.15")),
    "no toolkit": ("containers", "fail", "nvidia-ctk runtime configure", say("docker info", 0, '{"runc":{}}')),
    "no GPU in a job": ("GPU in a job", "fail", "no driver", say("docker run", 1, "no driver")),
    "runner of 31 days": ("image", "fail", "an old runner no jobs", lambda machine: machine.runner("2.336.0", 31)),
    "open hook": ("hooks", "fail", "other users than root", mode(f"{HOOK_FOLDER}/job_started.py", 0o777)),
    "opened unit": (
        "units",
        "fail",
        "open the host",
        edit("etc/systemd/system/ml-runner@.service", "--init", "--privileged"),
    ),
    "other hook": ("hooks", "fail", "not the one in this clone", edit(f"{HOOK_FOLDER}/job_started.py", "import", "#")),
    "service beside": ("other runners", "fail", "outside a container", lambda machine: machine.foreign_runner().touch()),
    "open settings": ("key", "fail", "read by others", mode(f"{ETC}/github.json", 0o644)),
    "example list": ("pull-request: allowed", "fail", "--jq .id", edit(f"{ETC}/pull-request.allowed.json", "101", "0")),
    "open list": ("pull-request: allowed", "fail", "not root's", mode(f"{ETC}/pull-request.allowed.json", 0o666)),
    "pull requests": ("deploy: allowed", "fail", "lets pull", edit(f"{ETC}/deploy.allowed.json", "push", "pull_request")),
    "writes the remote": ("deploy: settings", "fail", "REMOTE_MODE", edit(f"{ETC}/deploy.env", "=ro", "=rw")),
    "shared label": ("labels", "fail", "both levels have gpu", edit(f"{ETC}/deploy.env", ",deploy", ",gpu,deploy")),
    "open cache": ("deploy: cache", "fail", "to other users", mode("srv/ml-runner/deploy/dvc-cache", 0o777)),
    "shared cache": ("deploy: cache", "fail", "leads elsewhere", lambda machine: machine.share_cache()),
    "stopped": ("pull-request: service", "fail", "journalctl", say("systemctl is-active", 3, "failed")),
    "metadata": ("network", "fail", "enable --now ml-runner-network", say("iptables", 1, "")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names_what_is_wrong_and_what_to_do_next(machine: Machine, fault: str) -> None:
    check, level, words, break_it = FAULTS[fault]
    break_it(machine)
    line = machine.examine()[check]
    assert line.level == level
    assert words in f"{line.seen} {line.todo}"
    assert line.todo


def test_a_hook_that_another_user_owns_is_not_safe(tmp_path: Path) -> None:
    hook, other = tmp_path / "job_started.py", os.getuid() + 1
    hook.touch(mode=0o644)
    assert runner_doctor.is_safe(hook, tmp_path)
    assert not runner_doctor.is_safe(hook, cast("Path", SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=other))))


@pytest.mark.journey
def test_what_install_sh_puts_in_place_passes_belongs_to_its_owner_alone_and_stays_as_it_is_set(
    machine: Machine, tmp_path: Path
) -> None:
    machine.root = tmp_path / "installed"
    command = ["bash", "-c", 'umask 000; exec bash "$0" "$1"', RUNNER / "install.sh", machine.root]
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True)
        if not (machine.root / "etc/ml-runner/token").exists():
            installed = [path for folder in ("opt", "etc") for path in (machine.root / folder).rglob("*")]
            machine.fill_in()
    assert {line.level for line in machine.examine().values()} == {"ok"}
    assert len(installed) > 15
    for path in installed:
        assert not path.stat().st_mode & 0o022, path
        if path.is_file():
            assert bool(path.stat().st_mode & 0o111) == (path.suffix == ".sh"), path
