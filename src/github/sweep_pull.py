"""Open a pull request with the params that a sweep found: `python3 -m src sweep-pull DIR`, the last job of sweep.yml.

DIR is the artifact of the job that searched: best.json (numbers) and params.yaml. That job ran packages and a branch's code,
so what it left is judged here: params.yaml may differ from the branch's in single values of the section `train` alone, each
of the kind it was, and may have lines there for keys that were left to their defaults. A pull request that a workflow opens
starts no workflow: report.yml and ci.yml are started here.
"""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.core.command import UserError
from src.core.records import Record
from src.github.api import ApiError, GitHub, start
from src.github.git import Remote, git, with_files
from src.github.status import run_url, summarize

_PARAMS = "params.yaml"
_SRC = Path(__file__).parents[1]
_LARGEST = 200_000  # bytes of an artifact's file
_LINE = re.compile(r"( {2,4}[a-z_]+):[ ]+([^\s#]+)[ ]*(#.*)?")
_ADDED = re.compile(r" {2,4}([a-z_]+):(?:[ ]+([^\s#]+))?")  # without a value: `augment:`, where there was none
_KINDS = (
    ("number", re.compile(r"[-+]?\d{1,12}(\.\d{1,12})?(e[-+]?\d{1,2})?")),
    ("switch", re.compile(r"true|false")),
    ("word", re.compile(r"(['\"]?)[a-z][a-z0-9_]{0,39}\1")),
)


def publish(folder: Path, github: GitHub, remote: Remote) -> None:
    """Push the branch and open the pull request, or say why there is none.

    Raises:
        UserError: the artifact is not what a sweep leaves, or GitHub refuses the branch.
    """
    facts, text = _read(folder)
    sha, base = os.environ["GITHUB_SHA"], os.environ["GITHUB_REF_NAME"]
    values = list(changes(git(Path(), "show", f"{sha}:{_PARAMS}"), text))
    if facts.best.trial == 0 or not values:
        _tell(f"The sweep {facts.study} found nothing better than the present params: there is no pull request to open.")
        return
    branch = f"sweep/{facts.study.removeprefix('sweep-')}-{facts.trials}"
    title, body = words(facts, values)
    _push(folder, sha, branch, f"{title}\n\n{body}", remote)
    _open(github, branch, base, title, body)


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """What one trial reached on the validation split; None where it was not measured."""

    trial: int
    accuracy: float | None
    log_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Best(Record):
    """best.json: the study, how much was tried on how much, the best trial and that of the present params."""

    study: str
    examples: int
    trials: int
    best: Trial
    present: Trial


def _read(folder: Path) -> tuple[Best, str]:
    """Return best.json and the text of params.yaml."""
    try:
        texts = []
        for name in ("best.json", _PARAMS):
            content = (folder / name).read_bytes()
            if len(content) > _LARGEST:
                raise ValueError(f"{name} is larger than {_LARGEST} bytes")
            texts.append(content.decode())
        found = Best.parse(texts[0], "best.json")
        if not re.fullmatch(r"sweep-[0-9a-f]{12}", found.study):
            raise ValueError("the study's name is none")
    except (OSError, ValueError, UserError, RecursionError) as error:
        raise UserError(f"{folder} is not what a sweep leaves ({error}): look at the job that searched") from None
    return found, texts[1]


def changes(before: str, after: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, old and new value of every line of params.yaml that differs; the old one of a new line is `default`.

    Raises:
        UserError: a line differs in more than one value of the section `train`, or in that value's kind, or is gone.
    """
    # the keys of the section train, read out of the text of its classes: no package is imported here
    classes = ((_SRC / name).read_text() for name in ("training/train_params.py", "images/augment_params.py"))
    keys = {key for text in classes for key in re.findall(r"^    ([a-z_]+): ", text, re.MULTILINE)}
    old, new = (text.rstrip("\n").split("\n") for text in (before, after))
    section = ""
    for place, theirs in enumerate(new, start=1):
        mine = old[0] if old else ""
        if old and _words(mine) == _words(theirs):
            if found := re.match(r"(\w+):", mine):
                section = found[1]
            old.pop(0)
            continue
        changed, added = _change(mine, theirs), _ADDED.fullmatch(theirs)
        added = added if added and added[1] in keys else None
        if section != "train" or not (changed or added):
            raise UserError(
                f"line {place} of the sweep's {_PARAMS} differs in more than one value of the section train: refused"
            )
        if changed:
            old.pop(0)
            yield changed
        elif added and added[2]:
            _kind(added[2])
            yield added[1], "default", added[2]
    if gone := next((line.strip() for line in old if line.strip()), ""):
        raise UserError(f"the sweep's {_PARAMS} has no line `{gone}`: only values may differ")


def _words(line: str) -> list[str]:
    """Return the words of a line; a key without a value means the same as one with null."""
    return re.sub(r":[ ]+null[ ]*$", ":", line).split()


def _change(mine: str, theirs: str) -> tuple[str, str, str] | None:
    """Return key, old and new value of a line that differs in the value alone; None of another."""
    before, after = (_LINE.fullmatch(line) for line in (mine, theirs))
    same = before and after and before[1] == after[1] and (before[3] or "").split() == (after[3] or "").split()
    if not before or not after or not same or _kind(before[2]) != _kind(after[2]):
        return None
    return before[1].strip(), before[2], after[2]


def _kind(value: str) -> str:
    """Return what kind of value this is; of no kind is what has brackets or other signs."""
    for name, pattern in _KINDS:
        if pattern.fullmatch(value):
            return name
    raise UserError(f"a value of the sweep's {_PARAMS} is neither a number, a switch nor a word: refused")


def words(facts: Best, values: list[tuple[str, str, str]]) -> tuple[str, str]:
    """Return title and text of the pull request."""
    best, present = facts.best, facts.present
    lines = [f"| `{key}` | {old} | **{new}** |" for key, old, new in values]
    for name, form in (("accuracy", ".2%"), ("log_loss", ".4f")):
        shown = ("none" if getattr(one, name) is None else format(getattr(one, name), form) for one in (present, best))
        lines.append(f"| validation {name.replace('_', ' ')} | {' | '.join(shown)} |")
    table = "\n".join(["| | now | proposed |", "|---|---|---|", *lines])
    found = f"Trial {best.trial} of {facts.trials} was the best of {facts.study}"
    body = (
        f"{found} on {facts.examples} validation images.\n\n{table}\n\n"
        "It was chosen for these numbers, so they flatter it. The report below compares it with the base on test images "
        f"that took no part in the choice: it decides.\n\n[The sweep]({run_url()}): its artifact `sweep` has the table, the "
        "importance of each key and the history.\n"
    )
    return f"Params of {facts.study}, the best of {facts.trials} trials", body


def _push(folder: Path, sha: str, branch: str, message: str, remote: Remote) -> None:
    """Commit onto the commit that was searched. Dated as that one, so that a second run makes the same commit again."""
    tree = with_files(Path(), sha, {_PARAMS: folder / _PARAMS})
    date = git(Path(), "show", "--no-patch", "--format=%cI", sha)
    dated = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    commit = git(Path(), "commit-tree", tree, "-p", sha, text=message, environment=dated)
    remote.run(Path(), "push", "--quiet", remote.url, f"{commit}:refs/heads/{branch}")
    print(f"pushed {commit[:12]} to {branch}")


def _open(github: GitHub, branch: str, base: str, title: str, body: str) -> None:
    owner = github.repository.split("/")[0]
    there = list(github.pages("pulls", state="open", head=f"{owner}:{branch}", base=base))
    try:
        request = there[0] if there else github.post("pulls", {"title": title, "head": branch, "base": base, "body": body})
    except ApiError as error:
        if error.status not in (403, 422):
            raise
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        address = f"{server}/{github.repository}/compare/{base}...{branch}?expand=1"
        _tell(
            f"The branch `{branch}` holds the best params. This repository lets no workflow open a pull request ({error}): "
            f"[open it yourself]({address}), and its report starts by itself."
        )
        return
    for workflow in ("report.yml", "ci.yml"):
        start(github, workflow, branch)
    _tell(f"Pull request with the best params: {request['html_url']}")


def _tell(sentence: str) -> None:
    print(sentence)
    summarize(sentence)


def main() -> None:
    """Parse the command line and open the pull request."""
    parser = argparse.ArgumentParser(description="Open a pull request with the params that a sweep found.")
    parser.add_argument("folder", type=Path, help="the artifact of the job that searched")
    publish(parser.parse_args().folder, GitHub.from_environment(), Remote.from_environment())
