"""make doctor: which settings of the repository on GitHub are missing, with the command for each. Reads only.

    python3 -m src doctor .github/settings

Asks GitHub by the `gh` command, so with the login and the permissions of the person who runs it; sends GET requests alone.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from src.github.api import GitHub
from src.github.state import inspect


def main() -> None:
    """Print one line a setting; exit with 1 when a required one does not hold, or cannot be seen."""
    parser = argparse.ArgumentParser(description="Say which settings on GitHub are missing, with the command for each.")
    parser.add_argument("settings", type=Path, help="folder of the files that say what must be")
    arguments = parser.parse_args()
    repository, findings = inspect(GitHub.of_this_folder(), arguments.settings)
    kind = "public" if repository.public else "private"
    role = "you are an administrator" if repository.admin else "you are no administrator: some settings stay unknown"
    print(f"{repository.gh.repository} on {repository.gh.host} ({kind}; {role})")
    for required, title in ((True, "required"), (False, "optional: nothing of this is needed")):
        print(f"\n{title}")
        for finding in findings:
            if finding.required == required:
                print(f"  {finding.word:<8} {finding.sentence}")
                if finding.word != "ok" and finding.mend:
                    print(textwrap.indent(f"mend: {finding.mend}", " " * 11))
    must = [finding for finding in findings if finding.required]
    good = sum(finding.word == "ok" for finding in must)
    fixable = sum(finding.change is not None for finding in findings)
    more = f"; `make settings` mends {fixable} of the above" if fixable else ""
    print(f"\n{good} of {len(must)} required settings hold{more}")
    sys.exit(good < len(must))
