"""Where data and models are kept between runs in CI: `connect` before the pipeline, `push` after it.

    python -m src.storage connect
    python -m src.storage push

DVC_REMOTE_URL names a DVC remote; without it LOCAL_DVC_REMOTE, a directory of the runner's machine; without that the
workflow's artifact store, through the folder out/store, which the workflow uploads. DVC_REMOTE_CONFIG holds lines
`name = value` for that remote (credentials). All of it goes into .dvc/config.local, which Git ignores.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

from src import lineage
from src.command import UserError, run
from src.github.api import ApiError, GitHub
from src.versioning import dvc

REMOTE = "ci"
_STORE = Path("out/store")
_EARLIER = Path("out/earlier")
_LARGEST = 2 * 2**30  # bytes; it is held in memory: larger models want a store of their own
_TRIES = 3


def connect() -> None:
    """Make the store DVC's default remote, and bring what other remotes of the repository hold into the cache.

    Raises:
        UserError: the remote's address or configuration is refused by DVC.
    """
    url = None if _is_forks_code() else os.environ.get("DVC_REMOTE_URL") or os.environ.get("LOCAL_DVC_REMOTE")
    others = _remotes()
    if url:
        print(f"data and models are kept in {_without_password(url)}")
        _add(REMOTE, url)
        _configure(os.environ.get("DVC_REMOTE_CONFIG", ""))
    else:
        print("data and models are kept as artifacts of the workflow runs: set DVC_REMOTE_URL for a lasting store")
        _STORE.mkdir(parents=True, exist_ok=True)
        _add(REMOTE, str(_STORE.resolve()))
        others += _earlier_artifacts()
    _require(dvc("remote", "default", "--local", "--quiet", REMOTE, capture=True), "made the default")
    for name in others:
        # what is only there, as the starter data, is found in the cache from now on; what is missing is no fault yet
        dvc("fetch", "--quiet", "--run-cache", "--remote", name, capture=True)


def push() -> None:
    """Push what dvc.lock names, and the run cache, so that no later run trains this again.

    Raises:
        UserError: it failed three times.
    """
    for attempt in range(1, _TRIES + 1):
        result = dvc("push", "--run-cache", "--remote", REMOTE, capture=True)
        if result.returncode == 0:
            break
        print(f"push {attempt} of {_TRIES} failed: {_last(result.stderr)}")
        time.sleep(0 if attempt == _TRIES else 5 * attempt)
    else:
        raise UserError(
            f"data and model could not be pushed ({_last(result.stderr)}): check DVC_REMOTE_URL and its credentials, "
            "then run the job again; nothing is trained twice, the run cache has it"
        )
    if _STORE.is_dir() and any(_STORE.iterdir()):
        _name_artifact(artifact_name(lineage.inputs(Path())["digest"]))
    print("data, model and run cache are stored")


def artifact_name(input_digest: str) -> str:
    """Return the name under which the artifact store keeps the outputs of these inputs."""
    return f"dvc-store-{input_digest[:24]}"


def _is_forks_code() -> bool:
    """A fork's commit, started by a maintainer, is kept away from the store that main's models come from."""
    return bool(json.loads(os.environ.get("PLAN") or "{}").get("fork"))


def _name_artifact(name: str) -> None:
    target = os.environ.get("GITHUB_ENV")
    if target:
        with Path(target).open("a") as file:
            file.write(f"STORE_NAME={name}\n")


def _add(name: str, url: str) -> None:
    _require(dvc("remote", "add", "--local", "--force", "--quiet", name, url, capture=True), f"taken ({url})")
    # objects are hashed again when they come: a changed one of the same size is otherwise taken as it is
    _require(dvc("remote", "modify", "--local", "--quiet", name, "verify", "true", capture=True), "set to verify")


def _configure(lines: str) -> None:
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise UserError("DVC_REMOTE_CONFIG has a line that is not `name = value`: see dvc remote modify --help")
        _require(
            dvc("remote", "modify", "--local", "--quiet", REMOTE, name, value, capture=True), f"given the option {name}"
        )


def _require(result: "subprocess.CompletedProcess[str]", what: str) -> None:
    if result.returncode:
        raise UserError(f"the DVC remote of this run could not be {what}: {_last(result.stderr)}. Check DVC_REMOTE_URL")


def _remotes() -> list[str]:
    listed = dvc("remote", "list", capture=True).stdout.splitlines()
    return [line.split()[0] for line in listed if line.split() and line.split()[0] != REMOTE]


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ")[:300] if lines else "no reason given"


def _without_password(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2] if mark else url


# ---------------------------------------------------------------------------------------------------------------------
# The artifact store
# ---------------------------------------------------------------------------------------------------------------------


def _earlier_artifacts() -> list[str]:
    """Bring the stores of this commit and of main, where earlier runs left them; return the names of remotes for them."""
    if not os.environ.get("GITHUB_TOKEN"):
        return []
    found = []
    for number, digest in enumerate(sorted(set(_known_digests()))):
        folder = _EARLIER / str(number)
        if _download(artifact_name(digest), folder):
            name = f"earlier-{number}"
            _add(name, str(folder.resolve()))
            found.append(name)
    return found


def _known_digests() -> Iterable[str]:
    """Yield the input digests that the manifests of this commit and of the base name."""
    here = lineage.read_manifest(Path("manifest.json"))
    if here:
        yield here["inputs"]["digest"]
    base = os.environ.get("BASE", "origin/HEAD")
    shown = subprocess.run(["git", "show", f"{base}:manifest.json"], capture_output=True, text=True, check=False)
    if shown.returncode == 0:
        found = lineage.parse_manifest(shown.stdout, f"{base}:manifest.json")
        yield found["inputs"]["digest"]


def _download(name: str, folder: Path) -> bool:
    """Download the newest artifact of that name that a run of this repository's own branches made; False without one."""
    try:
        github = GitHub.from_environment()
        own = github.get("")["id"]
        artifacts = [
            artifact
            for artifact in github.pages("actions/artifacts", name=name)
            # a fork's run can choose any name, and what it stored is not to be trusted
            if not artifact.get("expired") and (artifact.get("workflow_run") or {}).get("head_repository_id") == own
        ]
        if not artifacts:
            return False
        newest = max(artifacts, key=lambda artifact: artifact["created_at"])
        content = github.download(f"actions/artifacts/{newest['id']}/zip", _LARGEST)
    except ApiError as error:
        print(f"the artifact {name} could not be fetched ({error}): the run goes on without it")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return True


def main() -> None:
    """Parse the command line, connect or push."""
    parser = argparse.ArgumentParser(description="Connect CI with the store of data and models, or push to it.")
    parser.add_argument("action", choices=["connect", "push"])
    action = parser.parse_args().action
    connect() if action == "connect" else push()


if __name__ == "__main__":
    run("storage", main)
