"""What CI found out before the run (src/github/plan.py), handed on in the variable PLAN; empty on a person's own machine."""

import json
import os
import re
from dataclasses import dataclass

from src.core.command import UserError
from src.system.git_command import git
from src.system.judged import Label

_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Plan:
    """The commit under review (40 digits, zeros without Git), its pull request, the run, and the labels that people gave.

    `labels` holds those that count, by `override` and `engine_reviewed`; `refused` says why one does not.
    """

    commit: str
    pull_request: int | None
    run_url: str | None
    labels: dict[str, Label]
    refused: dict[str, str]


def read() -> Plan:
    """Read PLAN; without it the commit is that of the working tree.

    Raises:
        UserError: PLAN is no JSON object, or a label in it has no name of who gave it.
    """
    try:
        found = json.loads(os.environ.get("PLAN") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("PLAN is no JSON object: leave it to CI, which sets it")
    commit = found.get("sha") or git("rev-parse", "HEAD")
    known = re.fullmatch(r"[0-9a-f]{40}", commit)
    given = {key: found[key] for key in ("override", "engine_reviewed") if found.get(key)}
    labels = {key: Label.from_json(label, f"PLAN: {key}") for key, label in given.items()}
    refused = found.get("refused") or {}
    return Plan(commit if known else _NO_COMMIT, found.get("number"), found.get("run_url"), labels, refused)
