"""Open a pull request with the params that a sweep found: `python3 -m src sweep-pull DIR`, the last job of sweep.yml.

DIR is the artifact of the job that searched. That job ran packages and a branch's code, so nothing is taken from it but
best.json: numbers, and single values for keys of the section `train`, which are put into the branch's params.yaml here. A
pull request that a workflow opens starts no workflow: report.yml and ci.yml are started here.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from src.core.command import UserError
from src.core.records import Record
from src.github.api import ApiError, GitHub, start
from src.github.git import Remote, git, with_files
from src.github.status import run_url, summarize
from src.system.git_command import file_at

_PARAMS = "params.yaml"
_SRC = Path(__file__).parents[1]
_LARGEST = 200_000  # bytes of an artifact's file
_WORD = re.compile(r"(?!(?:true|false|null|yes|no|on|off)$)[a-z][a-z0-9_]{0,39}")


def publish(folder: Path, github: GitHub, remote: Remote) -> None:
    """Push the branch and open the pull request, or say why there is none.

    Raises:
        UserError: the artifact is not what a sweep leaves, or GitHub refuses the branch.
    """
    facts = _read(folder)
    sha, base = os.environ["GITHUB_SHA"], os.environ["GITHUB_REF_NAME"]
    text, values = edited(file_at(sha, _PARAMS), facts.params)
    if facts.best.trial == 0 or not values:
        _tell(f"The sweep {facts.study} found nothing better than the present params: there is no pull request to open.")
        return
    branch = f"sweep/{facts.study.removeprefix('sweep-')}-{facts.trials}"
    title, body = words(facts, values)
    _push(text, sha, branch, f"{title}\n\n{body}", remote)
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
    params: dict[str, Any]


def _read(folder: Path) -> Best:
    try:
        content = (folder / "best.json").read_bytes()
        if len(content) > _LARGEST:
            raise ValueError(f"best.json is larger than {_LARGEST} bytes")
        found = Best.parse(content.decode(), "best.json")
        if not re.fullmatch(r"sweep-[0-9a-f]{12}", found.study):
            raise ValueError("the study's name is none")
    except (OSError, ValueError, UserError, RecursionError) as error:
        raise UserError(f"{folder} is not what a sweep leaves ({error}): look at the job that searched") from None
    return found


def edited(text: str, values: Mapping[str, object]) -> tuple[str, list[tuple[str, str, str]]]:
    """Put values such as {"augment.rotate": 5} into the section `train` of params.yaml, each in its line or in a new one.

    Returns:
        The text, and key, old and new value of what changed; the old one of a new line is `default`.

    Raises:
        UserError: a key is none of `train`, a value is neither number, switch nor word, or the file is not in lines.
    """
    # the keys of the section train, read out of the text of its classes: no package is imported here
    classes = ((_SRC / name).read_text() for name in ("training/train_params.py", "images/augment_params.py"))
    keys = {key for each in classes for key in re.findall(r"^    ([a-z_]+): ", each, re.MULTILINE)}
    lines, changed = text.split("\n"), []
    for name, value in values.items():
        *above, key = name.split(".")
        wanted = value if isinstance(value, str) else json.dumps(value)
        plain = isinstance(value, bool | int | float) and math.isfinite(value)
        if key not in keys or above not in ([], ["augment"]) or not (plain or _WORD.fullmatch(wanted)):
            raise UserError(f"the sweep's value of {name[:60]!r} is none of the section train: refused")
        place = 0
        for depth, part in enumerate(["train", *above]):
            found = _find(lines, place, "  " * depth, part)
            if found is None and depth:
                lines.insert(place, f"  {part}:")
            elif found is None or not re.fullmatch(r"\s*\w+:\s*(#.*)?", lines[found]):
                raise UserError(f"{_PARAMS} has no section `{part}` with a key in each line: set {name} there")
            place = (place if found is None else found) + 1
        indent = "  " * (1 + len(above))
        found = _find(lines, place, indent, key)
        if found is None:
            lines.insert(place, f"{indent}{key}: {wanted}")
            changed.append((key, "default", wanted))
        elif (old := re.fullmatch(r"(\s*\w+:)[ ]*([^\s#]*)(.*)", lines[found])) and not _same(old[2], value):
            lines[found] = f"{old[1]} {wanted}{old[3]}"
            changed.append((key, old[2], wanted))
    return "\n".join(lines), changed


def _find(lines: Sequence[str], start: int, indent: str, key: str) -> int | None:
    """Return the line of a key in the block that begins at a line; None where it has none."""
    for number in range(start, len(lines)):
        line = lines[number]
        if line.startswith(f"{indent}{key}:"):
            return number
        if indent and line.strip() and not line.startswith(indent) and not line.lstrip().startswith("#"):
            return None
    return None


def _same(old: str, value: object) -> bool:
    try:
        return bool(json.loads(old) == value) and isinstance(value, bool) == (old in ("true", "false"))
    except ValueError:
        return old.strip("'\"") == value


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


def _push(text: str, sha: str, branch: str, message: str, remote: Remote) -> None:
    """Commit onto the commit that was searched. Dated as that one, so that a second run makes the same commit again."""
    with NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        tree = with_files(Path(), sha, {_PARAMS: Path(file.name)})
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
