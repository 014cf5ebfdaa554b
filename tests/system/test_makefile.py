"""What a variable of the Makefile holds is never run: python -m pytest tests/system/test_makefile.py"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# variable: the targets that take it
TAKERS = {
    "BASE": ("report", "update"),
    "PARAMS": ("reproduce",),
    "MODEL": ("lineage",),
    "TO": ("upgrade",),
    "VERSION": ("rollback",),
    "REASON": ("rollback",),
    "ARGS": (
        *("serve", "settings", "sweep", "check-model", "find-lr", "profile"),
        *("bench-train", "bench-gpu", "bench-serve"),
    ),
}
FLAGS = {"RETRAIN": ("report", "--retrain"), "AGAIN": ("deploy", "--again"), "GO_ON": ("upgrade", "--go-on")}
PROGRAMS = {"RUN": "status", "PYTHON": "doctor"}
LISTS = ("ARGS",)
HOSTILE = "x;touch y $(touch y) `touch y` $(shell touch y) * a'b\"c $y"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Makefile in a folder of its own, with a program that notes its arguments in place of Python."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >>'{tmp_path}/calls'; printf '\\n\\0' >>'{tmp_path}/calls'\n")
    program.chmod(0o755)
    return tmp_path


def make(folder: Path, goal: str, *arguments: str, **environment: str) -> list[list[str]]:
    """Run a target without its setup; return the arguments of each call."""
    program = str(folder / "program")
    programs = [f"{name}={program}" for name in PROGRAMS if name not in environment and f"{name}=" not in "".join(arguments)]
    command = ["make", "-o", "setup", *programs, goal, *arguments]
    subprocess.run(command, cwd=folder, env={"PATH": os.environ["PATH"], **environment}, capture_output=True)
    calls = folder / "calls"
    return [call.split("\0")[:-1] for call in calls.read_text().split("\n\0")[:-1]] if calls.exists() else []


@pytest.mark.journey
@pytest.mark.parametrize("variable", TAKERS)
def test_a_value_arrives_as_it_was_given(folder: Path, variable: str) -> None:
    """By environment as it is; on the command line make itself reads `$`, which a person writes twice."""
    words = HOSTILE.split() if variable in LISTS else [HOSTILE]
    for goal in TAKERS[variable]:
        for arguments, environment in (([f"{variable}={HOSTILE.replace('$', '$$')}"], {}), ([], {variable: HOSTILE})):
            calls = make(folder, goal, *arguments, **environment)
            assert any(call[at : at + len(words)] == words for call in calls for at in range(len(call))), (goal, calls)
            (folder / "calls").unlink()
    assert not (folder / "y").exists()


@pytest.mark.journey
@pytest.mark.parametrize("variable", [*FLAGS, *PROGRAMS])
def test_a_switch_or_a_program_is_not_run_by_a_shell(folder: Path, variable: str) -> None:
    goal, option = FLAGS.get(variable, (PROGRAMS.get(variable), None))
    for arguments, environment in (([f"{variable}={HOSTILE.replace('$', '$$')}"], {}), ([], {variable: HOSTILE})):
        calls = make(folder, str(goal), *arguments, **environment)
        assert option is None or sum(call.count(option) for call in calls) == 1
        (folder / "calls").unlink(missing_ok=True)
    assert not (folder / "y").exists()


@pytest.mark.journey
def test_what_is_not_given_has_its_default(folder: Path) -> None:
    assert make(folder, "report")[0][2:4] == ["compare", "origin/main"]
    assert "--retrain" in make(folder, "report")[0]
    assert "--retrain" not in make(folder, "report", "RETRAIN=")[-3]
    assert make(folder, "lineage")[-1][2:] == ["lineage", "out/model/model.onnx"]
    assert make(folder, "reproduce")[-1][2:] == ["reproduce"]


def test_every_variable_is_tried_and_none_is_put_into_a_recipe() -> None:
    recipes = "\n".join(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t"))
    assert re.findall(r"(?<!\$)\$[({](\w+)", recipes) == ["MAKEFILE_LIST"]  # which the file `make -f` names
    used = set(re.findall(r"\$\$\{?([A-Z_]+)\b", recipes)) - {"PATH", "PWD"}
    assert used == {*TAKERS, *FLAGS, *PROGRAMS}
