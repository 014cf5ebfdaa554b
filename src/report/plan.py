"""What CI found out before the run (src/github/plan.py), handed on in the variable PLAN; empty on a person's own machine."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from src.command import UserError

_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Plan:
    """The commit under review (40 digits, zeros without Git), its pull request, the run, and a person's override.

    `refused` says why a label does not count.
    """

    commit: str
    pull_request: int | None
    run_url: str | None
    override: dict[str, Any] | None
    refused: str


def read() -> Plan:
    """Read PLAN; without it the commit is that of the working tree.

    Raises:
        UserError: PLAN is no JSON object.
    """
    try:
        found = json.loads(os.environ.get("PLAN") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("PLAN is no JSON object: leave it to CI, which sets it")
    commit = found.get("sha") or _head()
    known = re.fullmatch(r"[0-9a-f]{40}", commit)
    told = found.get("number"), found.get("run_url"), found.get("override"), found.get("refused") or ""
    return Plan(commit if known else _NO_COMMIT, *told)


def _head() -> str:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()
