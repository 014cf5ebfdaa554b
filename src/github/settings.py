"""make settings: bring the repository on GitHub to what the files of .github/settings say, and take nothing away.

    python3 -m src settings .github/settings [--dry-run] [--yes]

Looks as the doctor does, prints each change with its command, asks once, and makes them one by one: one that GitHub refuses
is told and does not stop the others. A second run finds nothing to change.
"""

import argparse
import sys
from pathlib import Path

from src.core.command import UserError
from src.github.api import PLAN, ApiError, GitHub
from src.github.state import inspect
from src.github.wanted import Change


def main() -> None:
    """Print what differs, ask, change it; exit with 1 when a change failed."""
    parser = argparse.ArgumentParser(description="Make the settings on GitHub what a folder of files says.")
    parser.add_argument("settings", type=Path, help="folder of the files that say what must be")
    parser.add_argument("--dry-run", action="store_true", help="print the changes and make none")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    gh = GitHub.of_this_folder()
    _, findings = inspect(gh, arguments.settings)
    changes = [finding for finding in findings if finding.change]
    print(f"{gh.repository} on {gh.host}: {len(changes)} to change")
    for finding in changes:
        print(f"  {finding.sentence}\n    {finding.mend}")
    failed = 0
    if changes and not arguments.dry_run and (arguments.yes or _agreed(gh)):
        try:
            failed = sum(not _apply(gh, finding.change) for finding in changes if finding.change)
        except KeyboardInterrupt:
            raise UserError(
                "interrupted: what stands above as changed is changed; run make settings again for the rest"
            ) from None
    for finding in findings:
        if finding.required and finding.word != "ok" and not finding.change:  # it needs a person
            print(f"by hand  {finding.sentence}" + (f"\n         {finding.mend}" if finding.mend else ""))
    sys.exit(failed > 0)


def _agreed(gh: GitHub) -> bool:
    if not sys.stdin.isatty():
        raise UserError("there is nobody to ask: look at the changes above, then run again with --yes")
    try:
        answer = input(f"Change these settings of {gh.repository}? [y/N] ")
    except EOFError:
        answer = ""
    agreed = answer.strip().lower() in {"y", "yes"}
    if not agreed:
        print("nothing was changed")
    return agreed


def _apply(gh: GitHub, change: Change) -> bool:
    try:
        {"POST": gh.post, "PUT": gh.put}[change.method](change.path, change.body)
    except ApiError as error:
        if error.is_final:
            raise
        print(f"failed   {change.file.name}: {error}{_advice(error)}", file=sys.stderr)
        return False
    print(f"changed  {change.file.name}: {change.method} {gh.address(change.path)}")
    return True


def _advice(error: ApiError) -> str:
    if error.by_plan:
        return f": {PLAN}"
    return {
        403: ": an administrator must do it (a fine-grained token: Administration, write), or your plan does not have it",
        404: ": an administrator must do it (a fine-grained token: Administration, write), or your plan does not have it",
        409: ": your organisation forbids it; ask its owner",
        422: ": your plan does not have it, or the file asks for what GitHub does not know",
    }.get(error.status, "; run make settings again")
