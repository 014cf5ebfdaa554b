"""The commit status `model-gate`, which a branch rule can require."""

import os
from pathlib import Path

from src.github.api import GitHub

CONTEXT = "model-gate"
_LONGEST = 140  # characters of a description: GitHub takes no more


def run_url() -> str:
    """Return the address of the workflow run this is part of."""
    server, repository = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
    return f"{server}/{repository}/actions/runs/{os.environ.get('GITHUB_RUN_ID', '')}"


def shortened(text: str, most: int = _LONGEST) -> str:
    """Cut a text that is longer than GitHub takes."""
    return text if len(text) <= most else text[: most - 1] + "…"


def summarize(text: str) -> None:
    """Add to the summary of the job, where there is one."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def set_outputs(**values: object) -> None:
    """Set outputs of the step."""
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in values.items())


def set_status(github: GitHub, sha: str, state: str, description: str, context: str = CONTEXT) -> None:
    """Set a status of a commit; `state` is success, failure, error or pending."""
    github.post(
        f"statuses/{sha}",
        {"context": context, "description": shortened(description), "state": state, "target_url": run_url()},
    )
