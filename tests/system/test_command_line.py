"""A command that fails says why in one sentence: python -m pytest tests/system/test_command_line.py"""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from src.core.command import Stopped, UserError
from src.system.command_line import run
from src.system.safe_path import refuse_shadows


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("mend this"), 1, "demo: mend this"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
            1,
            "demo: the disk is full: free some space and run again (out/x)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "y"),
            1,
            "demo: permission denied: check the owner and mode of the file (y)",
        ),
        (OSError("odd"), 1, "demo: odd"),
        (KeyboardInterrupt(), 130, "demo: interrupted"),
        (Stopped(), 143, "demo: stopped by SIGTERM"),
    ],
)
def test_a_command_fails_with_one_sentence(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run("demo", main)
    assert caught.value.code == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


POISON = ("torch.py", "onnxruntime.py", "ruamel.py", "numpy/__init__.py", "json.py", "pathlib.py", "subprocess.py")


@pytest.mark.journey
@pytest.mark.parametrize(
    ("python", "verb", "also"),
    [(sys.executable, "evaluate", "PYTHONPATH"), (sys._base_executable, "doctor", "")],
)
def test_no_file_beside_src_is_imported_in_place_of_a_package(tmp_path: Path, python: str, verb: str, also: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path) if also else ""}

    def told() -> str:
        command = [python, "-m", "src", verb, "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    (tmp_path / "conftest.py").touch()  # no package has that name
    assert told().startswith(f"usage: python -m src {verb}")
    for name in POISON:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    assert (
        told()
        == f"{verb}: {tmp_path}/json.py could be imported in place of the package json: rename it, or move it into src/\n"
    )
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", POISON)
def test_each_of_them_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    refuse_shadows(ROOT)
    with pytest.raises(UserError, match="could be imported in place of the package"):
        refuse_shadows(tmp_path)


def test_other_modules_are_run_without_the_repository_on_the_path() -> None:
    """`python -m NAME` puts the folder that one stands in before all packages; -P leaves it out."""
    shell = [ROOT / "Makefile", *(ROOT / ".ci").glob("*"), *(ROOT / ".github/workflows").glob("*.yml")]
    for files, command in (
        (shell, r"""(?:python|RUN)"? -m (?!src\b)"""),
        ((ROOT / "src").rglob("*.py"), r"""(?:executable|python), "-m", "(?!src"|venv"|pip")"""),
    ):
        for file in files:
            assert not re.search(f".*{command}.*", file.read_text()), file.relative_to(ROOT)
