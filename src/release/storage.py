"""Where data and models are kept between runs in CI: `connect` before the pipeline, `push` after it.

    python -m src storage connect [--deployed]
    python -m src storage push

DVC_REMOTE_URL names a DVC remote; without it LOCAL_DVC_REMOTE, a directory of the runner's machine; without that the
workflow's artifact store, through the folder out/store, which the workflow uploads. DVC_REMOTE_CONFIG holds lines
`name = value` for that remote (credentials); a value `base64:...` is the content of a file, such as a key. All of it goes
into .dvc/config.local and .dvc/tmp, which Git ignores. DVC's plug-in for the scheme is installed where it is missing.
"""

import argparse
import base64
import binascii
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from src.core.command import UserError
from src.github.api import ApiError, GitHub
from src.judging import lineage
from src.release import production
from src.system import dvc_lock
from src.system.addresses import without_secrets
from src.system.versioning import dvc
from src.system.worktree import LOST_ARTIFACTS, checked_out, git, has, reason, remotes, share_dvc

REMOTE = "ci"
_STORE = Path("out/store")
_EARLIER = LOST_ARTIFACTS.parent
_LARGEST = 2 * 2**30  # bytes; it is held in memory: larger models want a store of their own
_TRIES = 3
_SECRETS = ("DVC_REMOTE_CONFIG", "GITHUB_TOKEN")
_EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def connect(*, deployed: bool = False) -> None:
    """Make the store DVC's default remote, and bring what other remotes of the repository hold into the cache.

    Args:
        deployed: bring the artifacts of what is deployed, which a merge is compared with, in place of those of the base.

    Raises:
        UserError: the remote's address or configuration is refused by DVC, or the remote does not take an object.
        SystemExit: the plug-in for the remote's scheme cannot be installed, which has been said.
    """
    # an installer may run code of a package that it builds, which has no use for these
    public = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    command = [sys.executable, str(Path(__file__).parents[1] / "system" / "environment.py"), "--plugins"]
    installed = subprocess.run(command, check=False, env=public)
    if installed.returncode:
        sys.exit(installed.returncode)
    url = None if _is_forks_code() else os.environ.get("DVC_REMOTE_URL") or os.environ.get("LOCAL_DVC_REMOTE")
    others = [name for name in remotes(Path()) if name != REMOTE]
    if url:
        print(f"data and models are kept in {without_secrets(url)}")
        _add(REMOTE, url)
        _configure(os.environ.get("DVC_REMOTE_CONFIG", ""))
        _require_answer()
    else:
        print("data and models are kept as artifacts of the workflow runs: set DVC_REMOTE_URL for a lasting store")
        _STORE.mkdir(parents=True, exist_ok=True)
        _add(REMOTE, str(_STORE.resolve()))
    others += _earlier_artifacts(deployed)  # beside any store: it may be younger than main's model
    _remote("made the default", "default", "--local", "--quiet", REMOTE)
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
        print(f"push {attempt} of {_TRIES} failed: {reason(result.stderr)}")
        time.sleep(0 if attempt == _TRIES else 5 * attempt)
    else:
        raise UserError(
            f"data and model could not be pushed ({reason(result.stderr)}): check DVC_REMOTE_URL and its credentials, "
            "then run the job again; nothing is trained twice, the run cache has it"
        )
    # so that this store has what the next comparison needs, and no artifact of it expires
    for commit in _judged_against(deployed=False):
        with checked_out(commit) as tree:
            share_dvc(tree)
            dvc("push", "--quiet", "--remote", REMOTE, "out/model", "out/manifest.parquet", folder=tree, capture=True)
    if _STORE.is_dir() and any(_STORE.iterdir()) and Path("dvc.lock").is_file():
        _name_artifact(artifact_name(dvc_lock.inputs(Path())["digest"]))
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
    _remote(f"taken ({without_secrets(url)})", "add", "--local", "--force", "--quiet", name, url)
    # objects are hashed again when they come: a changed one of the same size is otherwise taken as it is
    _remote("set to verify", "modify", "--local", "--quiet", name, "verify", "true")


def _configure(lines: str) -> None:
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise UserError("DVC_REMOTE_CONFIG has a line that is not `name = value`: see dvc remote modify --help")
        if value.startswith("base64:"):
            value = str(_write_key(name, value.removeprefix("base64:")))
        _remote(f"given the option {name}", "modify", "--local", "--quiet", REMOTE, name, value)


def _write_key(name: str, encoded: str) -> Path:
    """Write the decoded content into a file that only this account can read, and return its path."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise UserError(
            f"DVC_REMOTE_CONFIG: what follows {name} = base64: is no base64: encode the file by base64, on one line"
        ) from None
    path = Path(".dvc/tmp", f"{REMOTE}-{name}").resolve()
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def _remote(what: str, *arguments: str) -> None:
    result = dvc("remote", *arguments, capture=True)
    if result.returncode:
        raise UserError(f"the DVC remote of this run could not be {what}: {reason(result.stderr)}. Check DVC_REMOTE_URL")


def _require_answer() -> None:
    """Store the object of an empty file: a store that is down, or refuses, is noticed before hours of training.

    DVC's own questions do not tell: of a server that does not answer it says that nothing is there.
    """
    from dvc.repo import Repo  # type: ignore[import-untyped] # takes a second, and only this needs it
    from dvc_objects.fs.local import localfs

    try:
        with Repo() as repo, NamedTemporaryFile() as empty:
            repo.cloud.get_remote_odb(REMOTE).add(empty.name, localfs, _EMPTY_MD5, check_exists=False)
    except Exception as error:  # each kind of store has exceptions of its own
        said = reason(str(error) or type(error).__name__)
        raise UserError(
            f"the DVC remote of this run takes no data ({said}): nothing was trained. Check DVC_REMOTE_URL (or "
            "LOCAL_DVC_REMOTE) and DVC_REMOTE_CONFIG, and that the store is up; then run the job again"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# The artifact store
# ---------------------------------------------------------------------------------------------------------------------


def _earlier_artifacts(deployed: bool) -> list[str]:
    """Bring the stores of this commit and of main, where earlier runs left them; return the names of remotes for them."""
    if not os.environ.get("GITHUB_TOKEN"):
        return []
    found, lost = [], []
    for number, digest in enumerate(sorted(set(_known_digests(deployed)))):
        folder, name = _EARLIER / str(number), artifact_name(digest)
        if why := _download(name, folder):
            lost.append(f"artifact {name}: {why}\n")
        else:
            found.append(f"earlier-{number}")
            _add(found[-1], str(folder.resolve()))
    LOST_ARTIFACTS.parent.mkdir(parents=True, exist_ok=True)
    LOST_ARTIFACTS.write_text("".join(lost))
    print("".join(lost), end="")
    return found


def _known_digests(deployed: bool) -> Iterable[str]:
    """Yield the input digests under which runs may have stored the models of this commit, of the base and of its anchor."""
    yield from _digests_of(Path())
    for commit in _judged_against(deployed):
        with checked_out(commit) as tree:
            yield from _digests_of(tree)


def _digests_of(tree: Path) -> Iterable[str]:
    """Yield what manifest.json names and what dvc.lock comes to: another file may have changed since the manifest."""
    with suppress(UserError):  # a damaged file of an earlier commit; that of this one is named by what needs it
        manifest = lineage.read_manifest(tree / "manifest.json")
        if manifest:
            yield manifest["inputs"]["digest"]
    with suppress(UserError, AttributeError, KeyError, TypeError):
        yield dvc_lock.inputs(tree)["digest"]


def _judged_against(deployed: bool) -> list[str]:
    """Return the commits whose models judge this one: the base or what is deployed, and its anchor where that is another."""
    if deployed:
        base = production.find().commit or ""  # where it cannot be found out, verify says why
    else:
        base = git("rev-parse", "--verify", "--quiet", f"{os.environ.get('BASE', 'origin/HEAD')}^{{commit}}")
    anchor = lineage.anchor_of(base).get("commit") if base else ""
    return list(dict.fromkeys(commit for commit in (base, anchor) if commit and has(commit)))


def _download(name: str, folder: Path) -> str:
    """Download the newest artifact of that name that a run of this repository's own branches made; return why not, or ""."""
    try:
        github = GitHub.from_environment()
        own = github.get("")["id"]
        artifacts = [
            artifact
            for artifact in github.pages("actions/artifacts", name=name)
            # a fork's run can choose any name, and what it stored is not to be trusted
            if (artifact.get("workflow_run") or {}).get("head_repository_id") == own
        ]
        if not artifacts:
            return "no run has left it"
        kept = [artifact for artifact in artifacts if not artifact.get("expired")]
        if not kept:
            return f"it has expired ({max(str(artifact.get('expires_at')) for artifact in artifacts)})"
        newest = max(kept, key=lambda artifact: artifact["created_at"])
        content = github.download(f"actions/artifacts/{newest['id']}/zip", _LARGEST)
    except ApiError as error:
        return f"it could not be fetched ({error})"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        return f"it is damaged ({error})"
    return ""


def main() -> None:
    """Parse the command line, connect or push."""
    parser = argparse.ArgumentParser(description="Connect CI with the store of data and models, or push to it.")
    parser.add_argument("action", choices=["connect", "push"])
    parser.add_argument("--deployed", action="store_true", help="connect: with what is deployed in place of the base")
    args = parser.parse_args()
    if args.deployed and args.action == "push":
        parser.error("--deployed belongs to connect")
    connect(deployed=args.deployed) if args.action == "connect" else push()
