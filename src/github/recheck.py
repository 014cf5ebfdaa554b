"""Take back a green `model-gate` that a branch of this repository gave itself: run once its report has ended.

    python3 -m src recheck

Run by report-comment.yml on `workflow_run`, from the default branch, whatever workflow file the branch has. Reads the event
(GITHUB_EVENT_PATH) and GITHUB_TOKEN (actions, pull-requests: read; statuses: write). Where the branch's head is green and
changes protected files, a label `engine: reviewed` must count there, or the status becomes pending. It turns nothing green.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.github import changes, engine, labels
from src.github.api import GitHub
from src.github.status import set_status


def recheck(github: GitHub, branch: str, default: str) -> list[str]:
    """Look at the head of each open pull request of a branch; returns what was said of those that were taken back.

    Raises:
        ApiError: GitHub does not answer.
    """
    owner = github.repository.split("/")[0]
    return [
        said
        for pull in github.pages("pulls", state="open", head=f"{owner}:{branch}")
        if (said := _recheck(github, pull, default))
    ]


def _recheck(github: GitHub, pull: Mapping[str, Any], default: str) -> str:
    head = pull["head"]["sha"]
    if not labels.has_passed(github, head):
        return ""
    protected = engine.touched(github, default, head, changes.between(github, default, head))
    if not protected or "engine_reviewed" in labels.read(github, pull, head, {})[0]:
        return ""
    said = labels.wanted(protected)
    set_status(github, head, "pending", said)
    return f"#{pull['number']}, {head[:12]}: {said}"


def main() -> None:
    """Read the event and look."""
    argparse.ArgumentParser(description="Take back a green status that a branch gave itself.").parse_args()
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    github = GitHub.from_environment()
    said = recheck(github, event["workflow_run"]["head_branch"], event["repository"]["default_branch"])
    print("\n".join(said) or "nothing to take back")
