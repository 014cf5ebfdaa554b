"""Record a version of the template, for the template itself: `make record`.

python -m src record [--source URL]
"""

import argparse
import re
from pathlib import Path

from src.core.command import UserError
from src.system.git_command import run_git
from src.system.template_version import RECORD, Template, blobs, read

_VERSION = re.compile(r"^## (\d+\.\d+\.\d+)\b", re.MULTILINE)


def main() -> None:
    """Record what is staged as the version that CHANGELOG.md begins with: for the template itself, not for forks."""
    parser = argparse.ArgumentParser(description="Record the staged files as the version that CHANGELOG.md begins with.")
    parser.add_argument("--source", help="URL or path of the template's repository; the one before stays without it")
    options = parser.parse_args()
    newest = _VERSION.search(Path("CHANGELOG.md").read_text())
    if not newest:
        raise UserError(
            "CHANGELOG.md has no line such as `## 1.0.0`: write what the version brings under one, and run again"
        )
    source = options.source if options.source is not None else read(Path()).source if Path(RECORD).exists() else ""
    tree = run_git("write-tree").strip()
    files = {path: blob for path, (_, blob) in blobs(Path(), tree).items() if path != RECORD}
    Path(RECORD).write_text(Template(newest[1], source, files).text())
    print(f"{RECORD}: version {newest[1]}, {len(files)} files")
