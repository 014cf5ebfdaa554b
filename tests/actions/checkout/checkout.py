"""What actions/checkout does, as far as this project's workflows need it; run by action.yml beside it.

It also puts a ready `.venv` in place, so that `make setup` finds it up to date: the packages are those of the
environment that runs the tests (STANDIN_ROOT), and nothing is copied or installed.
"""

import base64
import os
import re
import runpy
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(os.environ["GITHUB_WORKSPACE"], os.environ["FOLDER"])
DEFAULT = os.environ["GITHUB_REPOSITORY"]


def main() -> None:
    asked, repository = os.environ["REF"], os.environ["REPOSITORY"]
    if os.environ["GITHUB_EVENT_NAME"] in ("pull_request_target", "workflow_run") and (asked or repository != DEFAULT):
        sys.exit("refusing to check out what a pull request may have chosen in a workflow that holds secrets")
    ref = asked or os.environ["GITHUB_REF"]
    url = f"{os.environ['GITHUB_SERVER_URL']}/{repository}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet", "--initial-branch", "none")
    git("remote", "add", "origin", url)
    fetch(ref if repository != DEFAULT or asked else os.environ["GITHUB_SHA"])
    branch = ref.removeprefix("refs/heads/")
    if re.fullmatch(r"[0-9a-f]{40}", branch) or ref.startswith("refs/pull/"):
        git("checkout", "--quiet", "--detach", "FETCH_HEAD")
    else:
        git("checkout", "--quiet", "-B", branch, "FETCH_HEAD")
    if os.environ["PERSIST"] == "true":
        git("config", "--local", "http.extraheader", header())
    prepare_environment()


def header() -> str:
    return "AUTHORIZATION: basic " + base64.b64encode(f"x-access-token:{os.environ['TOKEN']}".encode()).decode()


def git(*arguments: str) -> None:
    if subprocess.run(["git", *arguments], cwd=FOLDER, check=False).returncode:
        sys.exit(f"git {arguments[0]} failed")


def fetch(ref: str) -> None:
    """Fetch one ref, or with fetch-depth 0 all branches and tags as well; the ref is FETCH_HEAD afterwards."""
    token = ["-c", f"http.extraheader={header()}"]
    if os.environ["DEPTH"] == "0":
        git(*token, "fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
        git(*token, "fetch", "--quiet", "--no-tags", "origin", ref)
    else:
        git(*token, "fetch", "--quiet", "--no-tags", "--depth", os.environ["DEPTH"], "origin", ref)


def prepare_environment() -> None:
    """Make `.venv` here out of the packages of the tests' own, if this checkout locks the same ones."""
    root, setup = Path(os.environ["STANDIN_ROOT"]), FOLDER / "src" / "system" / "environment.py"
    locks = [Path("requirements", name) for name in ("run.txt", "yours.txt", "check.txt", "uv.txt", "torch.txt")]
    if not all((FOLDER / path).exists() and (FOLDER / path).read_bytes() == (root / path).read_bytes() for path in locks):
        return
    venv.create(FOLDER / ".venv", symlinks=True)
    packages = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    (FOLDER / ".venv" / packages / "ready.pth").write_text(f"{os.environ['STANDIN_PACKAGES']}\n")
    environment = runpy.run_path(str(setup))
    environment["write_stamp"](environment["outdated"](environment["lock_names"](True)))
    uv = Path(os.environ["STANDIN_PACKAGES"]).parents[2] / "bin" / "uv"
    if uv.exists():
        (FOLDER / ".venv/bin/uv").symlink_to(uv)


if __name__ == "__main__":
    main()
