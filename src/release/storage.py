"""Where data and models are kept between runs in CI: `connect` before the pipeline, `push` after it.

    python -m src storage connect [--main] [--deployed]
    python -m src storage push [--main]

DVC_REMOTE_URL names a DVC remote; without it LOCAL_DVC_REMOTE, a directory of the runner's machine; without that the
workflow's artifact store, through the folder out/store, which the workflow uploads. DVC_REMOTE_CONFIG holds lines
`name = value` for that remote (credentials); a value `base64:...` is the content of a file, such as a key. All of it goes
into .dvc/config.local and .dvc/tmp, which Git ignores. DVC's plug-in for the scheme is installed where it is missing.

The remote has a place for each pull request, `pull-requests/NUMBER` (or `branches/NAME`), below main's own. Only `--main`
writes into main's: jobs of the default branch, after the model was compared with its review. What dvc.lock names may come
from any place, since its bytes are compared with their digest; DVC's run cache, which names what no commit does, comes from
the pull request's own place alone, and main's has none. A commit's .dvc/config cannot say anything about these remotes:
their names are drawn anew in each job.
"""

import argparse
import base64
import binascii
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from src.core.command import UserError
from src.github.api import ApiError, GitHub
from src.judging import lineage
from src.release import production
from src.system import dvc_lock
from src.system.addresses import without_secrets
from src.system.git_command import file_at, git, has
from src.system.judged import Lineage
from src.system.objects import remove_changed
from src.system.versioning import dvc
from src.system.worktree import LOST_ARTIFACTS, cache, checked_out, reason, remotes, share_dvc

_STORE = Path("out/store")
_EARLIER = LOST_ARTIFACTS.parent
_LARGEST = 2 * 2**30  # bytes; it is held in memory: larger models want a store of their own
_UNPACKED = 8 * 2**30  # bytes
_ENTRIES = 1_000_000
_OBJECT = re.compile(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")
_TRIES = 3
_SECRETS = ("DVC_REMOTE_CONFIG", "GITHUB_TOKEN")
_EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
_MAINS = (".github/workflows/deploy.yml", ".github/workflows/keep.yml")  # what these store has been compared with its review


def connect(*, main: bool = False, deployed: bool = False) -> None:
    """Make this run's place in the store DVC's default remote, and bring what other places hold into the cache.

    Args:
        main: take main's place, which a pull request only reads.
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
    _forget_configuration()
    # a fork's commit, started by a maintainer, is kept away from the store that main's models come from
    url = None if _plan().get("fork") else os.environ.get("DVC_REMOTE_URL") or os.environ.get("LOCAL_DVC_REMOTE")
    judges, others = _judged_against(deployed), remotes(Path())
    for name in others:  # as the commit names them; a scheme without this option verifies by itself
        dvc("remote", "modify", "--local", "--quiet", name, "verify", "true", capture=True)
    number, branch = _plan().get("number"), re.sub(r"[^A-Za-z0-9_-]", "-", _branch())
    own = "" if main else f"pull-requests/{int(number)}" if number else f"branches/{branch}"
    remote = f"ci-{secrets.token_hex(8)}"
    if url:
        print(f"data and models are kept in {without_secrets(_below(url, own))}")
        _add(remote, _below(url, own))
        _configure(remote)
        _require_answer(remote)
        # main's place, the first, has not what is merged and not yet deployed: that is with its pull request
        made = [_manifest_of(commit) for commit in ("", *judges)]
        places = {"", *(f"pull-requests/{one.pull_request}" for one in made if one and one.pull_request is not None)}
        for place in sorted(places - {own}):
            others.append(f"{remote}-{len(others)}")
            _add(others[-1], _below(url, place))
            _configure(others[-1])
    else:
        print("data and models are kept as artifacts of the workflow runs: set DVC_REMOTE_URL for a lasting store")
        _STORE.mkdir(parents=True, exist_ok=True)
        _add(remote, str(_STORE.resolve()))
    others += _earlier_artifacts(judges, remote)  # beside any store: it may be younger than main's model
    _remote("made the default", "default", "--local", "--quiet", remote)
    for name in others:
        # what is only there, as the starter data, is found in the cache from now on; what is missing is no fault yet
        dvc("fetch", "--quiet", "--remote", name, capture=True)
    for commit in ("", *judges):
        if removed := remove_changed(commit, cache()):
            print(f"removed from the cache, since they are not what dvc.lock names: {', '.join(removed[:5])}")


def push(*, main: bool = False) -> None:
    """Push what dvc.lock names, and the run cache, so that no later run of this pull request trains this again.

    Args:
        main: into main's place: without a run cache, and only when all bytes are what dvc.lock says.

    Raises:
        UserError: it failed three times, or an object is not what its name says.
    """
    remote = dvc("config", "--local", "core.remote", capture=True).stdout.strip()
    if main and (changed := remove_changed("", cache())):
        raise UserError(
            f"{len(changed)} objects of the cache are not what dvc.lock names ({changed[0]}): they are removed and main's "
            "place is as it was; run the job again, and it brings them anew"
        )
    for attempt in range(1, _TRIES + 1):
        result = dvc("push", *([] if main else ["--run-cache"]), "--remote", remote, capture=True)
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
            dvc("push", "--quiet", "--remote", remote, "out/model", "out/manifest.parquet", folder=tree, capture=True)
    if _STORE.is_dir() and any(_STORE.iterdir()) and Path("dvc.lock").is_file():
        name = artifact_name(dvc_lock.inputs(Path())["digest"])
        if target := os.environ.get("GITHUB_ENV"):
            with Path(target).open("a") as file:
                file.write(f"STORE_NAME={name}\n")
    print("data and model are stored in main's place" if main else "data, model and run cache are stored")


def artifact_name(input_digest: str) -> str:
    """Return the name under which the artifact store keeps the outputs of these inputs."""
    return f"dvc-store-{input_digest[:24]}"


def _plan() -> Any:
    """Return what the job `plan` found of the commit: branch, number of the pull request, whether it is a fork's."""
    return json.loads(os.environ.get("PLAN") or "{}")


def _branch() -> str:
    return _plan().get("branch") or os.environ.get("GITHUB_REF_NAME") or "unknown"


def _manifest_of(commit: str) -> Lineage | None:
    """Return manifest.json of a commit, "" for the working tree; None where it has none, or a damaged one."""
    with suppress(UserError, OSError):  # it is named by what needs it
        text = file_at(commit, "manifest.json") if commit else Path("manifest.json").read_text(errors="replace")
        return Lineage.parse(text, "manifest.json")
    return None


def _below(url: str, place: str) -> str:
    return f"{url.rstrip('/')}/{place}" if place else url


def _forget_configuration() -> None:
    """Begin with a configuration of our own: a commit moves neither the cache nor what a job adds to it.

    The cache of a machine that stays is of many pull requests: its run cache could name any model for these inputs.
    """
    Path(".dvc/config.local").unlink(missing_ok=True)
    asked = [dvc("config", f"--{level}", "cache.dir", capture=True).stdout.strip() for level in ("global", "system")]
    folder = next(filter(None, asked), str(Path(".dvc/cache").absolute()))
    dvc("config", "--local", "--quiet", "cache.dir", folder, capture=True)
    shutil.rmtree(Path(folder, "runs"), ignore_errors=True)


def _add(name: str, url: str) -> None:
    _remote(f"taken ({without_secrets(url)})", "add", "--local", "--force", "--quiet", name, url)
    # objects are hashed again when they come: a changed one of the same size is otherwise taken as it is
    _remote("set to verify", "modify", "--local", "--quiet", name, "verify", "true")


def _configure(remote: str) -> None:
    for line in filter(None, map(str.strip, os.environ.get("DVC_REMOTE_CONFIG", "").splitlines())):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise UserError("DVC_REMOTE_CONFIG has a line that is not `name = value`: see dvc remote modify --help")
        if value.startswith("base64:"):  # the content of a file, which only this account can read
            path = Path(".dvc/tmp", f"{remote}-{name}").resolve()
            try:
                content = base64.b64decode(value.removeprefix("base64:"), validate=True)
            except binascii.Error:
                raise UserError(
                    f"DVC_REMOTE_CONFIG: what follows {name} = base64: is no base64: encode the file by base64, on one line"
                ) from None
            path.parent.mkdir(exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(content)
            value = str(path)
        _remote(f"given the option {name}", "modify", "--local", "--quiet", remote, name, value)


def _remote(what: str, *arguments: str) -> None:
    result = dvc("remote", *arguments, capture=True)
    if result.returncode:
        raise UserError(f"the DVC remote of this run could not be {what}: {reason(result.stderr)}. Check DVC_REMOTE_URL")


def _require_answer(remote: str) -> None:
    """Store the object of an empty file: a store that is down, or refuses, is noticed before hours of training.

    DVC's own questions do not tell: of a server that does not answer it says that nothing is there.
    """
    from dvc.repo import Repo  # type: ignore[import-untyped] # takes a second, and only this needs it
    from dvc_objects.fs.local import localfs

    try:
        with Repo() as repo, NamedTemporaryFile() as empty:
            repo.cloud.get_remote_odb(remote).add(empty.name, localfs, _EMPTY_MD5, check_exists=False)
    except Exception as error:  # each kind of store has exceptions of its own
        said = reason(str(error) or type(error).__name__)
        raise UserError(
            f"the DVC remote of this run takes no data ({said}): nothing was trained. Check DVC_REMOTE_URL (or "
            "LOCAL_DVC_REMOTE) and DVC_REMOTE_CONFIG, and that the store is up; then run the job again"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# The artifact store
# ---------------------------------------------------------------------------------------------------------------------


def _earlier_artifacts(judges: list[str], prefix: str) -> list[str]:
    """Bring the stores of this commit and of main, where earlier runs left them; return the names of remotes for them."""
    if not os.environ.get("GITHUB_TOKEN"):
        return []
    found, lost = [], []
    wanted: dict[str, set[str]] = {}
    # input digests under which runs may have stored the models of this commit, of the base and of its anchor, each with the
    # commit at which the review trained it: those of manifest.json and of dvc.lock, for another file may have changed since
    for commit in ("", *judges):
        manifest = _manifest_of(commit)
        digests = {manifest.inputs.digest} if manifest else set()
        tree_of = checked_out(commit) if commit else nullcontext(Path())
        with tree_of as tree, suppress(UserError, AttributeError, KeyError, TypeError):  # what needs a lock names its damage
            digests.add(dvc_lock.inputs(tree)["digest"])
        for digest in digests:
            wanted.setdefault(digest, set()).add(str(manifest.commit if manifest else None))
    for number, (digest, reviewed_commits) in enumerate(sorted(wanted.items())):
        folder, name = _EARLIER / str(number), artifact_name(digest)
        if why := _download(name, reviewed_commits, folder):
            lost.append(f"artifact {name}: {why}\n")
        else:
            found.append(f"{prefix}-earlier-{number}")
            _add(found[-1], str(folder.resolve()))
    LOST_ARTIFACTS.parent.mkdir(parents=True, exist_ok=True)
    LOST_ARTIFACTS.write_text("".join(lost))
    print("".join(lost), end="")
    return found


def _judged_against(deployed: bool) -> list[str]:
    """Return the commits whose models judge this one: the base or what is deployed, and its anchor where that is another."""
    if deployed:
        base = production.find().commit or ""  # where it cannot be found out, verify says why
    else:
        base = git("rev-parse", "--verify", "--quiet", f"{os.environ.get('BASE', 'origin/HEAD')}^{{commit}}")
    anchor = lineage.anchor(base) if base else None
    return list(dict.fromkeys(commit for commit in (base, anchor and anchor.commit) if commit and has(commit)))


def _download(name: str, reviewed: set[str], folder: Path) -> str:
    """Download the artifact of that name that is trusted most, and is the newest of these; return why not, or "".

    Any run can choose any name, and any branch of this repository may be somebody's first: main's own runs come first, then
    those of this branch, and of the commits that were reviewed. What a fork's run or another branch's left is not taken.
    """
    try:
        github = GitHub.from_environment()
        repository = github.get("")
        left = github.pages("actions/artifacts", name=name)
        artifacts = [(rank, one) for one in left if (rank := _rank(github, repository, reviewed, one)) is not None]
        if not artifacts:
            return "no run has left it"
        kept = [(rank, artifact) for rank, artifact in artifacts if not artifact.get("expired")]
        if not kept:
            return f"it has expired ({max(str(artifact.get('expires_at')) for _, artifact in artifacts)})"
        newest = max(kept, key=lambda pair: (-pair[0], pair[1]["created_at"]))[1]
        content = github.download(f"actions/artifacts/{newest['id']}/zip", _LARGEST)
    except ApiError as error:
        return f"it could not be fetched ({error})"
    shutil.rmtree(folder, ignore_errors=True)
    return _unpack(content, folder)


def _rank(github: GitHub, repository: Mapping[str, Any], reviewed: set[str], artifact: Mapping[str, Any]) -> int | None:
    """Return how far the run that left an artifact is trusted, 0 the most; None is not at all."""
    run = artifact.get("workflow_run") or {}
    if run.get("head_repository_id") != repository["id"]:
        return None
    if run.get("head_branch") == repository["default_branch"]:
        path = str(github.get(f"actions/runs/{run['id']}").get("path")).partition("@")[0]
        return 0 if path in _MAINS else 2  # report.yml, for a fork's commit that a maintainer has read
    return 1 if run.get("head_branch") == _branch() or run.get("head_sha") in reviewed else None


def _unpack(content: bytes, folder: Path) -> str:
    """Write the objects of a zip into a folder, nothing else of it; return why not, or ""."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if _OBJECT.fullmatch(entry.filename)]
            size = sum(entry.file_size for entry in entries)
            if size > _UNPACKED or len(entries) > _ENTRIES:
                return (
                    f"it unpacks to {size / 2**30:.1f} GiB in {len(entries)} files, allowed are {_UNPACKED / 2**30:g} GiB "
                    f"in {_ENTRIES}: set DVC_REMOTE_URL for a store without this limit"
                )
            for entry in entries:  # zipfile ends with the size that it declares, and writes no links
                archive.extract(entry, folder)
            folder.mkdir(parents=True, exist_ok=True)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        return f"it is damaged ({error})"
    return ""


def main() -> None:
    """Parse the command line, connect or push."""
    parser = argparse.ArgumentParser(description="Connect CI with the store of data and models, or push to it.")
    parser.add_argument("action", choices=["connect", "push"])
    parser.add_argument("--main", action="store_true", help="main's place, which pull requests only read")
    parser.add_argument("--deployed", action="store_true", help="connect: with what is deployed in place of the base")
    args = parser.parse_args()
    if args.deployed and args.action == "push":
        parser.error("--deployed belongs to connect")
    connect(main=args.main, deployed=args.deployed) if args.action == "connect" else push(main=args.main)
