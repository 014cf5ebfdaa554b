"""`make setup` on machines that lack something: python -m pytest tests/test_environment.py"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what setup needs; neither Git nor packages."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "src" / "environment.py", folder / "src")
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("lock.txt", "torch.txt"):
        (folder / "requirements" / name).write_text("# nothing to install\n")
    return folder


def tools(folder: Path, *names: str) -> str:
    """Return a PATH that holds only the named tools."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return str(folder)


def setup(project: Path, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "src/environment.py"], cwd=project, capture_output=True, text=True, env={**os.environ, **environment}
    )


def init(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)


def require_sentence(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_clone(project: Path) -> None:
    require_sentence(
        setup(project, GIT_CEILING_DIRECTORIES=str(project.parent)), "is no Git clone, and DVC versions data beside"
    )


def test_git_is_missing(project: Path, tmp_path: Path) -> None:
    require_sentence(setup(project, PATH=tools(tmp_path / "bin", "sh")), "git is not installed: install it")


def test_python_is_missing(project: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", "sh", "make", "git")
    result = subprocess.run(["make", "reproduce"], cwd=project, capture_output=True, text=True, env={"PATH": path})
    assert "there is no python3: install Python 3.11 to 3.13, or name one" in result.stderr
    assert result.returncode != 0


def test_the_script_can_be_read_by_an_old_python_which_is_told_to_go(project: Path, tmp_path: Path) -> None:
    """Another version number stands in for another Python; its syntax is held to 3.6 by compiling."""
    source = (project / "src" / "environment.py").read_text()
    import ast

    ast.parse(source, feature_version=(3, 6))
    wrapped = project / "src" / "old.py"
    wrapped.write_text("import sys\nsys.version_info = (3, 8, 1, 'final', 0)\n" + source)
    path = tools(tmp_path / "bin", "git", "sh")
    result = subprocess.run([sys.executable, "src/old.py"], cwd=project, capture_output=True, text=True, env={"PATH": path})
    require_sentence(result, "Python 3.8 cannot run this project, which needs 3.11 to 3.13")


def test_a_package_that_cannot_be_had_is_named(project: Path) -> None:
    init(project)
    (project / "requirements" / "torch.txt").write_text("no-such-package-anywhere==1.0\n")
    result = setup(project, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    require_sentence(result, "PyTorch could not be installed (ERROR: Could not find a version that satisfies")
    assert not (project / ".venv" / "installed").exists()


def test_a_broken_download_is_refused_by_its_hash(project: Path, tmp_path: Path) -> None:
    init(project)
    links = tmp_path / "links"
    links.mkdir()
    (links / "broken-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    (project / "requirements" / "lock.txt").write_text(f"broken==1.0 --hash=sha256:{'0' * 64}\n")
    result = setup(project, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links))
    require_sentence(result, "the locked packages could not be installed (ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")


def test_a_second_run_does_nothing_and_a_changed_lock_installs_again(project: Path) -> None:
    init(project)
    assert "making .venv" in setup(project).stdout
    assert setup(project).stdout == ""
    (project / "requirements" / "lock.txt").write_text("# another\n")
    assert "making .venv" in setup(project).stdout
