"""`make test` asks little of the style of a fork's own files: python -m pytest tests/test_lint.py"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

YOURS = ("src/data.py", "src/model.py", "tests/test_yours.py")


CARELESS = """
import os, sys
class swap_net( object ):
    def __init__(self, l = []): self.l = [i for i in l if i!='']
def unTyped(x, unused): return x
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What lint and types look at, with the fork's own files in a careless style."""
    for name in ("src", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in YOURS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text() + CARELESS)
    return tmp_path


def lint(folder: Path, tool: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the commands of `make lint` that call a tool."""
    recipe = (ROOT / "Makefile").read_text().split("\nlint: ")[1].split("\n\n")[0]
    commands = re.findall(rf'^\t@"\$\$RUN" (?:-P )?(-m {tool}\b.*)$', recipe, re.MULTILINE)
    assert commands
    return [
        subprocess.run([sys.executable, *command.split()], cwd=folder, capture_output=True, text=True)
        for command in commands
    ]


@pytest.mark.journey
def test_ruff_takes_a_careless_style_and_refuses_an_undefined_name(clone: Path) -> None:
    assert [run.stdout for run in lint(clone, "ruff") if run.returncode] == []
    with (clone / "src/model.py").open("a") as file:
        file.write("def broken(): return undefined_name\n")
    refused = [run.stdout for run in lint(clone, "ruff") if run.returncode]
    assert len(refused) == 1
    assert "Undefined name `undefined_name`" in refused[0]


@pytest.mark.journey
def test_mypy_takes_functions_without_annotations(clone: Path) -> None:
    assert [run.stdout for run in lint(clone, "mypy") if run.returncode] == []


@pytest.mark.template
@pytest.mark.parametrize("command", ["check", "format --check"])
def test_the_template_s_own_are_as_strict_as_the_rest(command: str) -> None:
    run = subprocess.run([sys.executable, "-m", "ruff", *command.split(), *YOURS], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
