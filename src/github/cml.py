"""CML, which posts the comment: found on PATH, or installed from its repository at a pinned commit with its own lock file.

Its npm package and its setup action are not relied on. CML never gets the home folder (it writes `safe.directory = *` into
the Git configuration), uploads nothing (`--publish=false`) and sends no telemetry. What is said here of its ways was read in
bin/cml/comment/create.js, src/cml.js and src/watermark.js of the pinned commit, version 0.20.6.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github.api import GitHub

COMMIT = "a3a66c74b218b08710f42bf599b066e37cb4cba7"
REPOSITORY = "https://github.com/iterative/cml"
TITLE = "model-report"  # without signs that CML escapes
FIRST_PAGE = 30  # comments that `cml comment update` lists; it looks at no others
_FETCH, _INSTALL, _POST = 120.0, 240.0, 90.0  # seconds

_MARK = re.compile(rf'!\[\]\(https://cml\.dev/watermark\.png#[0-9a-fA-F]+ "CML watermark {TITLE}"\)')
# CML gets these and nothing else: no second token, no option by a CML_ variable, no command file of the runner.
_PASSED = re.compile(
    r"PATH|LANG|LC_\w+|TZ|TMPDIR|RUNNER_TEMP|NODE_\w+|SSL_CERT_\w+|(?:HTTPS?|NO|ALL)_PROXY|GITHUB_(?:REPOSITORY|RUN_ID|WORKFLOW)",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY", re.IGNORECASE)


def find_or_install(folder: Path) -> list[str]:
    """Return the command that starts CML; installs it into `folder` when there is none on PATH.

    The variable CML_REPOSITORY names another source of the same commit, such as a mirror.

    Raises:
        UserError: git, node or npm is missing, or the source or its packages cannot be fetched in time.
    """
    found = shutil.which("cml")
    if found:
        return [found]
    missing = [tool for tool in ("git", "node", "npm") if not shutil.which(tool)]
    if missing:
        raise UserError(
            f"CML is not on PATH, and {' and '.join(missing)} to install it with neither: install Git and Node.js"
        )
    whole, head = folder / "node_modules" / ".package-lock.json", folder / ".git" / "HEAD"  # npm writes its file last
    if not (whole.is_file() and head.is_file() and head.read_text().strip() == COMMIT):
        _install(folder)
    return ["node", str(folder / "bin" / "cml.js")]


def _install(folder: Path) -> None:
    """Fetch one commit, which its own hash vouches for, and the packages that its lock file names with theirs."""
    source = os.environ.get("CML_REPOSITORY") or REPOSITORY
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "CI": "true"}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command, seconds in (
        (["git", "init", "--quiet"], _FETCH),
        (["git", "fetch", "--quiet", "--depth", "1", source, COMMIT], _FETCH),
        (["git", "checkout", "--quiet", "--detach", COMMIT], _FETCH),
        (["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], _INSTALL),
    ):
        try:
            _run(command, seconds, folder, environment)
        except UserError as error:
            raise UserError(f"CML cannot be installed from {source}: {error}") from None


def post(command: Sequence[str], api: GitHub, pull_request: int, file: Path) -> str:
    """Let CML create the comment, or update the one it chooses; returns what it printed, the comment's address.

    Raises:
        UserError: it failed, or took longer than 90 seconds.
    """
    server = os.environ.get("GITHUB_SERVER_URL") or "https://github.com"
    arguments = [
        *("comment", "update", f"--target=pr/{pull_request}", "--publish=false", f"--watermark-title={TITLE}"),
        *("--driver=github", f"--repo={server}/{api.repository}", str(file.resolve())),
    ]
    with tempfile.TemporaryDirectory(prefix="cml-home-") as home:
        environment = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
        environment |= {"HOME": home, "REPO_TOKEN": api.token, "GITHUB_SHA": _commit(), "ITERATIVE_DO_NOT_TRACK": "1"}
        environment |= {"CI": "true", "PAGER": "cat", "GIT_TERMINAL_PROMPT": "0", "NO_COLOR": "1"}
        try:
            return _run([*command, *arguments], _POST, Path(home), environment)
        except UserError as error:
            raise UserError(str(error).replace(api.token, "***")) from None


def watermark() -> str:
    """Return the line that CML puts below its comments and knows them by."""
    return f'![](https://cml.dev/watermark.png#{_commit()} "CML watermark {TITLE}")'


def chosen(comments: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the comment that `cml comment update` would change: the last on the first page with the mark, by whomever."""
    marked = [comment for comment in comments[:FIRST_PAGE] if has_mark(comment)]
    return marked[-1] if marked else None


def has_mark(comment: Mapping[str, Any]) -> bool:
    """Tell whether a comment carries CML's mark of our report."""
    return bool(_MARK.search(comment.get("body") or ""))


def _commit() -> str:
    """Return the commit for the mark, which CML would not know again without one."""
    given = os.environ.get("GITHUB_SHA", "")
    return given if re.fullmatch(r"[0-9a-f]{40}", given) else "0" * 40


def _run(command: Sequence[str], seconds: float, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command in a process group of its own, which ends with it; returns its output."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"`{_shown(command)}` does not start ({error.strerror})") from None
    with process:
        try:
            said, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UserError(f"`{_shown(command)}` was not done after {seconds:.0f} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):  # also a grandchild that would hold the pipes open
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last = (f"{said}\n{complaint}".strip().splitlines() or ["it said nothing"])[-1].strip()
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            last = str(json.loads(last)["message"])  # of a line that is JSON, as CML's are
        raise UserError(f"`{_shown(command)}` failed with code {process.returncode} ({last[:300]})")
    return said.strip()


def _shown(command: Sequence[str]) -> str:
    """Name a command by its first words."""
    return " ".join([Path(command[0]).name, *command[1:4]])
