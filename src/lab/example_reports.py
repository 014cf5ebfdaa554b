"""Make the example reports of docs/reports: three pull requests against this commit, trained, judged and reported for real.

    python -m src example-reports docs/reports

Works in a clone of HEAD in a temporary folder, with its starter data; takes a few minutes, and needs no account.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from src.core.files import replacing
from src.system.params_text import put

STORIES: dict[str, dict[tuple[str, ...], Any]] = {
    "green": {("train", "weight_decay"): 0.001},
    "yellow": {("train", "width"): 8},
    "red": {("train", "epochs"): 2},
}
_BASE = "base"
_COLOURS = 64  # of a picture: charts need no more, and Git keeps every byte


def main() -> None:
    """Read the command line and make the reports."""
    parser = argparse.ArgumentParser(description="Make the three example reports.")
    parser.add_argument("out", type=Path, help="folder to write green.md, yellow.md, red.md and their pictures into")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch, replacing(out) as fresh:
        clone = Path(scratch) / "example"
        subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
        _run(clone, "git", "checkout", "--quiet", "--orphan", _BASE)  # a main that nothing was judged on before
        _run(clone, "git", "rm", "--quiet", "--force", "manifest.json")
        _reproduce(clone, "Results of main")
        _report(clone)
        _commit(clone, "Lineage of main")
        for story, values in STORIES.items():
            _run(clone, "git", "checkout", "--quiet", "-B", story, _BASE)
            params = clone / "params.yaml"
            params.write_text(put(params.read_text(), values))
            _reproduce(clone, f"Params of the example {story}")
            _report(clone)
            _keep(clone / "out/report", fresh, story)
            _run(clone, "git", "checkout", "--quiet", ".")


def _reproduce(clone: Path, subject: str) -> None:
    _run(clone, sys.executable, "-m", "src", "reproduce")
    _commit(clone, subject)


def _report(clone: Path) -> None:
    _run(clone, "make", "-o", "setup", "report", f"RUN={sys.executable}", f"BASE={_BASE}")


def _commit(clone: Path, subject: str) -> None:
    _run(clone, "git", "add", "--all")
    author = ["-c", "user.name=example", "-c", "user.email=example@localhost"]
    _run(clone, "git", *author, "commit", "--quiet", "--all", "--allow-empty", f"--message={subject}")


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)


def _keep(report: Path, out: Path, story: str) -> None:
    """Copy a report's Markdown, and its pictures in few colours."""
    (out / story).mkdir(parents=True)
    for path in sorted((report / "pictures").glob("*.png")):
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(_COLOURS).save(out / story / path.name, optimize=True)
    text = (report / "report.md").read_text()
    (out / f"{story}.md").write_text(text.replace("](pictures/", f"]({story}/"))
    shutil.rmtree(report)
