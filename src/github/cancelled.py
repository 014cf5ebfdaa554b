"""Say on a commit that its run of report.yml was cancelled, or `model-gate` would be "being judged" for ever.

    python3 -m src cancelled

Run by the last job of that run. Reads SHA, the commit that was judged, NUMBER, its pull request (or empty), and
GITHUB_RUN_ID. Where a newer run judges the same commit, the status is left to it.
"""

import argparse
import os

from src.github.api import GitHub
from src.github.status import CONTEXT, set_status


def tell(github: GitHub, sha: str, number: str, run_id: str) -> str:
    """Set the status of a commit whose run was cancelled; returns what was said.

    Raises:
        ApiError: GitHub does not answer.
    """
    head = github.get(f"pulls/{number}")["head"]["sha"] if number else sha
    if head != sha:
        said = f"superseded: a newer push is judged, {head[:12]}"
    elif any(
        str(one["id"]) != run_id and one["status"] != "completed"
        for one in github.pages("actions/workflows/report.yml/runs", head_sha=sha)
    ):
        return "a newer run judges this commit"
    else:
        said = "the run was cancelled: push again or re-run it"
    set_status(github, sha, "error", said)
    return said


def main() -> None:
    """Tell on the commit that the environment names."""
    argparse.ArgumentParser(description="Say on a commit that its run of report.yml was cancelled.").parse_args()
    sha = os.environ["SHA"]
    print(
        f"{CONTEXT} on {sha[:12]}: {tell(GitHub.from_environment(), sha, os.environ['NUMBER'], os.environ['GITHUB_RUN_ID'])}"
    )
