"""Tell what a fork's run reported, without trusting a byte of it: the privileged half of a fork's pull request.

    python3 -m src fork-report comment.md

Run by report-comment.yml on `workflow_run`, from the default branch. Reads the event (GITHUB_EVENT_PATH), GITHUB_TOKEN
(actions, pull-requests: read; statuses: write) and the artifact `report` of the run, which must be one file numbers.json
that fits src/system/numbers.py. Sets `model-gate`, and writes the comment, the output `number` that says on which pull
request the next job posts it, and the job summary. The pull request is found by what GitHub says of the run, never by
what the artifact says.
"""

import argparse
import io
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from src.core.command import UserError
from src.github import changes, engine, fork_words, labels
from src.github.api import ApiError, GitHub, TooLargeError
from src.github.fork_words import Run
from src.github.status import CONTEXT, set_outputs, set_status, summarize
from src.system import numbers
from src.system.numbers import Numbers, NumbersError

ARTIFACT = "report"
LARGEST_ZIP = 1024 * 1024  # bytes
_TOO_LARGE = f"its artifact is larger than {LARGEST_ZIP // 1024} KiB"
_TOO_OLD = "it is too old and no longer kept"
# What zipfile raises on bytes that are no whole zip, or one that is encrypted or of a kind that it cannot read.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError)
_SILENT = {"cancelled", "skipped", "action_required", "neutral", "stale"}  # conclusions of a run that has nothing to report


def read_event(path: Path) -> tuple[Run | None, str]:
    """Read a `workflow_run` event; returns the run of a fork's pull request, or None and why there is nothing to do.

    Raises:
        UserError: the file is no such event.
    """
    try:
        event = json.loads(path.read_text(encoding="utf-8"))
        ran, home = event["workflow_run"], event["repository"]
        head = ran["head_repository"]
        if ran["event"] != "pull_request":
            return None, f"the run was not started by a pull request but by {ran['event']}"
        if head is None:
            return None, "the fork is gone"
        if head["id"] == home["id"]:
            return None, "the pull request is of this repository, whose own run posts its report"
        return Run(
            id=ran["id"],
            url=ran["html_url"],
            conclusion=ran["conclusion"] or "",
            sha=ran["head_sha"],
            owner=head["owner"]["login"],
            branch=ran["head_branch"],
            head_repository=head["id"],
            base=home["default_branch"],
        ), ""
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no workflow_run event: this command is for report-comment.yml") from None


def find_pull_request(api: GitHub, finished: Run) -> int | None:
    """Return the number of the one open pull request whose head is this very commit of this very repository; else None."""
    listed = api.pages("pulls", state="open", base=finished.base, head=f"{finished.owner}:{finished.branch}")
    matching = [
        int(pull["number"])
        for pull in listed
        if (pull["head"]["sha"], (pull["head"]["repo"] or {}).get("id")) == (finished.sha, finished.head_repository)
        and (pull["state"], pull["base"]["ref"]) == ("open", finished.base)
    ]
    return matching[0] if len(matching) == 1 else None


def fetch(api: GitHub, run_id: int) -> bytes | None:
    """Return the zip of the run's newest artifact `report`, or None when the run left none.

    Raises:
        NumbersError: it is too large (not downloaded then), or no longer kept.
    """
    listed = [one for one in api.pages(f"actions/runs/{run_id}/artifacts", name=ARTIFACT) if one["name"] == ARTIFACT]
    if not listed:
        return None
    newest = max(listed, key=lambda one: int(one["id"]))
    if newest["expired"]:
        raise NumbersError(_TOO_OLD)
    if newest["size_in_bytes"] > LARGEST_ZIP:
        raise NumbersError(_TOO_LARGE)
    try:
        return api.download(f"actions/artifacts/{newest['id']}/zip", LARGEST_ZIP)
    except TooLargeError:
        raise NumbersError(_TOO_LARGE) from None
    except ApiError as error:
        if error.status not in (404, 410):
            raise
        raise NumbersError(_TOO_OLD) from None


def unpack(content: bytes) -> bytes:
    """Return numbers.json of a zip that holds it and nothing else; nothing is ever written to the disk.

    Raises:
        NumbersError: no zip, another or a further entry, a link, too large, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = _only_entry(archive.infolist())
            with archive.open(entry) as file:
                unpacked = file.read(numbers.LARGEST + 1)  # whatever size the entry claims
    except _DAMAGED:
        raise NumbersError("its artifact is not a whole zip") from None
    if len(unpacked) > numbers.LARGEST:
        raise NumbersError(f"numbers.json is larger than {numbers.LARGEST // 1024} KiB")
    return unpacked


def _only_entry(entries: Sequence[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    if [entry.orig_filename for entry in entries] != ["numbers.json"]:
        raise NumbersError("its artifact holds something other than the one file numbers.json")
    kind = stat.S_IFMT(entries[0].external_attr >> 16)
    if kind not in (0, stat.S_IFREG):  # 0: written by a system without modes
        raise NumbersError("numbers.json is not a regular file")
    if entries[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # Python unpacks the others without bound
        raise NumbersError("numbers.json is packed in an unusual way")
    if entries[0].file_size > numbers.LARGEST:
        raise NumbersError(f"numbers.json is larger than {numbers.LARGEST // 1024} KiB")
    return entries[0]


def read_report(api: GitHub, finished: Run) -> Numbers | None:
    """Return the run's numbers, validated; None when it left none.

    Raises:
        NumbersError: the artifact is too old, too large, hostile, or of another commit.
    """
    content = fetch(api, finished.id)
    if content is None:
        return None
    found = numbers.parse(unpack(content))
    if found.commit != finished.sha:
        raise NumbersError("it names another commit than the one that was run")
    return found


def has_nothing_to_say(api: GitHub, finished: Run) -> bool:
    """Tell whether a run that left no report did nothing at all: cancelled, or every job of it skipped."""
    if finished.conclusion in _SILENT:
        return True
    try:
        results = [job["conclusion"] for job in api.pages(f"actions/runs/{finished.id}/jobs")]
    except ApiError:  # then its own conclusion, which is none of those, is all that is known
        return False
    return bool(results) and all(result in _SILENT for result in results)


def report(api: GitHub, finished: Run, number: int, protected: Sequence[str]) -> str | None:
    """Return the comment's Markdown, or None when there is nothing to say."""
    try:
        found: Numbers | str | None = read_report(api, finished)
    except NumbersError as error:
        found = str(error)
    if found is None:
        if has_nothing_to_say(api, finished):
            return None
        found = f"the run left none (it ended with `{re.sub('[^a-z_]', '', finished.conclusion)}`)"
    return fork_words.render(found, number, finished, protected)


def main() -> None:
    """Find, fetch, validate, render, tell."""
    parser = argparse.ArgumentParser(description="Judge what a fork's run left, and write the comment on it.")
    parser.add_argument("comment", type=Path, help="the comment, a file to write")
    file = parser.parse_args().comment
    path = os.environ.get("GITHUB_EVENT_PATH")
    if not path:
        raise UserError("GITHUB_EVENT_PATH is not set: this command is for report-comment.yml")
    finished, why = read_event(Path(path))
    if finished is None:
        return _nothing(why)
    api = GitHub.from_environment()
    number = find_pull_request(api, finished)
    if number is None:
        return _nothing(f"no single open pull request is at {finished.sha} any more; the run of a newer push posts")
    changed = changes.of_pull_request(api, number)
    protected = engine.touched(api, finished.base, finished.sha, changed)
    if changed and not changes.relevant(changed) and finished.conclusion not in _SILENT:
        return _write(file, number, _unchanged(api, finished, number, changed, protected))
    text = report(api, finished, number, protected)
    if text is None:
        return _nothing("the run did nothing")
    # a claim passes no gate: the status is left pending where nothing has set it, and the reviewer sees why
    try:
        if not any(one["context"] == CONTEXT for one in api.pages(f"commits/{finished.sha}/statuses")):
            said = "A fork's own numbers do not count: a maintainer starts the trusted run (see the comment)"
            set_status(api, finished.sha, "pending", said)
    except ApiError as error:
        print(f"::warning::{CONTEXT} could not be left pending: {error}")
    return _write(file, number, text)


def _unchanged(api: GitHub, finished: Run, number: int, changed: Sequence[str], protected: Sequence[str]) -> str:
    """Decide about a fork that leaves the model alone: by GitHub's list of files, main's lineage, a person's label."""
    given, refused = labels.read(api, api.get(f"pulls/{number}"), finished.sha, {}) if protected else ({}, {})
    reviewer = given["engine_reviewed"].by if "engine_reviewed" in given else ""
    if protected and not reviewer:
        set_status(api, finished.sha, "pending", labels.wanted(protected))
    else:
        set_status(api, finished.sha, "success", "nothing that the model depends on changed: nothing was trained")
    return fork_words.unchanged(changed, finished, protected, reviewer, refused.get("engine_reviewed", ""))


def _write(file: Path, number: int, text: str) -> None:
    """Leave the comment to the job that may post it, which holds nothing else."""
    summarize(text)
    file.write_text(text, encoding="utf-8")
    set_outputs(number=number)
    print(f"the comment on #{number} is written to {file}")


def _nothing(why: str) -> None:
    why = re.sub(r"[^ -~]", "?", why)  # a line of a log is read for commands: no line breaks in it
    print(f"::notice::nothing to post: {why}")
    summarize(f"Nothing to post: {why}.")
