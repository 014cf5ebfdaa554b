"""The commit status `model-gate`, which a branch rule can require."""

import os

from src.github.api import GitHub

CONTEXT = "model-gate"
_LONGEST = 140  # GitHub takes no more


def run_url() -> str:
    """Return the address of the workflow run this is part of."""
    server, repository = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
    return f"{server}/{repository}/actions/runs/{os.environ.get('GITHUB_RUN_ID', '')}"


def set_status(github: GitHub, sha: str, state: str, description: str, context: str = CONTEXT) -> None:
    """Set a status of a commit; `state` is success, failure, error or pending."""
    text = description if len(description) <= _LONGEST else description[: _LONGEST - 1] + "…"
    github.post(f"statuses/{sha}", {"context": context, "description": text, "state": state, "target_url": run_url()})
