"""The one check that a branch rule requires: green only when every job it needs is.

    NEEDS='${{ toJSON(needs) }}' python3 -m src all-green

Reads NEEDS, and ALLOWED_TO_SKIP: names, with spaces between, of jobs that may be skipped. GitHub takes a skipped job for a
success, so a job that was skipped because another failed would otherwise let a pull request through.
"""

import argparse
import json
import os
from collections.abc import Mapping

from src.core.command import UserError


def faults(needs: Mapping[str, str], allowed_to_skip: frozenset[str] = frozenset()) -> list[str]:
    """Return a sentence for each job that is not as it must be.

    Args:
        needs: the result of each job by its name: success, failure, cancelled or skipped.
        allowed_to_skip: jobs that may be skipped; a name that is no job is a fault too, else a typing error hides.
    """
    unknown = [f"{job} is allowed to skip but is no job of `needs`" for job in sorted(allowed_to_skip - needs.keys())]
    words = {"failure": "failed", "cancelled": "was cancelled", "skipped": "was skipped and must not be"}
    return unknown + [
        f"{job} {words.get(result, 'has no known result')}"
        for job, result in needs.items()
        if result != "success" and not (result == "skipped" and job in allowed_to_skip)
    ]


def read_needs(text: str) -> dict[str, str]:
    """Read what `toJSON(needs)` gives.

    Raises:
        UserError: it is empty, no JSON, or a job in it has no result.
    """
    advice = "give the step `env: NEEDS: ${{ toJSON(needs) }}` and the job its `needs:`"
    try:
        results = {str(job): entry["result"] for job, entry in json.loads(text).items()}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise UserError(f"NEEDS is not what toJSON(needs) gives: {advice}") from None
    if not results:
        raise UserError(f"NEEDS names no job, so nothing was checked: {advice}")
    return results


def main() -> None:
    """Fail unless every needed job succeeded, or was skipped and may be."""
    argparse.ArgumentParser(description="Fail unless every job of NEEDS is green.").parse_args()
    needs = read_needs(os.environ.get("NEEDS", ""))
    found = faults(needs, frozenset(os.environ.get("ALLOWED_TO_SKIP", "").split()))
    if found:
        raise UserError(f"not all green: {'; '.join(found)}. Open the job's log, mend it, and run it again")
    print(f"all green: {', '.join(needs)}")
