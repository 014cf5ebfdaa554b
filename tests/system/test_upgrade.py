"""`make upgrade` brings the template's next version into a fork and into a copy without its history.

python -m pytest tests/system/test_upgrade.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_files

from src.core.command import UserError
from src.system import template_version
from src.system.params_text import taken_out
from src.system.template_version import RECORD, is_engine
from src.system.upgrade import upgrade

NEW = 'newest_dial: int = Field(default=3, description="what it is")'
GATES = "src/judging/gates.py"


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def edit(folder: Path, path: str, old: str, new: str) -> None:
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, 1))


def commit(folder: Path, subject: str) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", subject)


def record(folder: Path, version: str) -> None:
    """Record, commit and tag what lies there, as the template's release does."""
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} (2030-01-01)\n")
    git(folder, "add", "--all")
    subprocess.run([sys.executable, "-m", "src", "record"], cwd=folder, check=True, capture_output=True)
    commit(folder, version)
    git(folder, "tag", f"v{version}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as version 1.0.0, and a made-up 1.1.0 after it."""
    folder = tmp_path_factory.mktemp("template") / "template"
    copy_files(ROOT, folder)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "README.md").write_text("The template.\n")  # a fork of it has another
    (folder / "src/judging/gone.py").write_text('"""A file that the next version does not have."""\n')
    record(folder, "1.0.0")
    edit(folder, GATES, '"""', '"""Next version. ')
    (folder / "README.md").write_text("The template, next version.\n")
    (folder / "src/judging/next.py").write_text('"""A file of the next version."""\n')
    (folder / "src/judging/gone.py").unlink()
    edit(folder, "params.yaml", "  width: 24 ", "  width: 32 ")
    edit(
        folder,
        "params.yaml",
        "  max_imbalance: 20          #",
        "  newest_dial: 3             # what it is\n  max_imbalance: 20          #",
    )
    edit(folder, "src/validation/validate_params.py", "    max_imbalance:", f"    {NEW}\n    max_imbalance:")
    record(folder, "1.1.0")
    return folder


@pytest.fixture(params=["fork", "copy"])
def mine(request: pytest.FixtureRequest, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository made from version 1.0.0, with its history or without, in which all four places are others."""
    folder = tmp_path / "mine"
    git(tmp_path, "clone", "--quiet", "--branch", "v1.0.0", f"file://{template}", str(folder))
    if request.param == "copy":
        shutil.rmtree(folder / ".git")
        git(folder, "init", "--quiet")
        commit(folder, "Initial commit")
    for key, value in (("user.name", "A"), ("user.email", "a@example.com")):
        git(folder, "config", key, value)
    git(folder, "switch", "--quiet", "-C", "main")
    (folder / "data.dvc").write_text("outs: []\n")
    (folder / "dvc.lock").write_text("{}\n")
    (folder / "src/data.py").write_text('"""Our own."""\n')
    edit(folder, "src/model.py", '"""', '"""Ours: ')
    (folder / "README.md").write_text("Ours.\n")
    (folder / "requirements/yours.in").write_text("tifffile==2026.3.3\n")
    (folder / "notes.txt").write_text("ours\n")
    edit(folder, "params.yaml", "  epochs: 50 ", "  epochs: 7  ")
    commit(folder, "ours")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.journey
def test_an_upgrade_replaces_the_engine_and_keeps_what_is_the_forks(
    template: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("data.dvc", "dvc.lock", "src/data.py", "src/model.py", "README.md", "requirements/yours.in", "notes.txt")
    before = {path: (mine / path).read_text() for path in kept}
    upgrade(str(template), go_on=False)
    assert git(mine, "branch", "--show-current") == "upgrade/1.1.0"
    assert git(mine, "log", "--format=%s", "main..") == "template: upgrade 1.0.0 to 1.1.0"
    assert {path: (mine / path).read_text() for path in kept} == before
    for path in (GATES, "src/judging/next.py", "src/validation/validate_params.py", "CHANGELOG.md", "Makefile"):
        assert (mine / path).read_text() == (template / path).read_text(), path
    assert not (mine / "src/judging/gone.py").exists()
    assert git(mine, "status", "--porcelain") == ""
    assert template_version.read(mine).version == "1.1.0"
    assert template_version.changed(mine) == []
    params = (mine / "params.yaml").read_text()
    assert "  epochs: 7  " in params
    assert "  width: 24 " in params
    assert "newest_dial: 3" in params
    said = capsys.readouterr().out
    assert "train.width: stays 24; the template's own went from 24 to 32" in said
    assert "validate.newest_dial: new, 3" in said
    assert "README.md" in said
    assert "git push --set-upstream origin upgrade/1.1.0" in said
    assert str(template) not in (mine / RECORD).read_text()
    with pytest.raises(UserError, match=r"nothing to do: this is version 1\.1\.0"):
        upgrade(str(template), go_on=False)


@pytest.mark.journey
def test_a_key_that_the_new_version_does_not_know_is_taken_out_and_told(
    template: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(mine, "params.yaml", "  epochs: 7  ", "  gone_dial: 5\n  epochs: 7  ")
    commit(mine, "a dial that is gone")
    upgrade(f"{template}@v1.1.0", go_on=False)
    assert "train.gone_dial: 5 taken out: the new version has no such key" in capsys.readouterr().out
    assert "gone_dial" not in (mine / "params.yaml").read_text()


@pytest.mark.journey
def test_a_changed_engine_is_listed_and_nothing_is_done_until_it_is_told_to_go_on(
    template: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (mine / GATES).open("a") as file:  # merges by lines
        file.write("# ours\n")
    edit(
        mine,
        "src/validation/validate_params.py",
        "    max_imbalance:",
        f"    {NEW.replace('newest', 'our')}\n    max_imbalance:",
    )
    edit(mine, "Makefile", "help:", "our-own:\n\t@true\n\nhelp:")  # the template has not touched it
    commit(mine, "engine: ours")
    assert template_version.changed(mine) == ["Makefile", GATES, "src/validation/validate_params.py"]
    head = git(mine, "rev-parse", "HEAD")
    with pytest.raises(UserError, match="nothing was done") as error:
        upgrade(str(template), go_on=False)
    assert all(f"\n  {path}\n" in str(error.value) for path in template_version.changed(mine))
    assert "make upgrade GO_ON=1 TO=" in str(error.value)
    assert (git(mine, "rev-parse", "HEAD"), git(mine, "branch", "--show-current")) == (head, "main")
    upgrade(str(template), go_on=True)
    assert (mine / GATES).read_text() == (template / GATES).read_text() + "# ours\n"
    assert "our-own" in (mine / "Makefile").read_text()
    assert "our_dial" not in (mine / "src/validation/validate_params.py").read_text()
    said = capsys.readouterr().out
    merged, replaced = said.index("merged by lines"), said.index("the template's text is taken")
    assert merged < said.index(GATES) < replaced < said.index("src/validation/validate_params.py")
    assert template_version.changed(mine) == ["Makefile", GATES]


@pytest.mark.journey
def test_where_the_template_lies_and_which_version_is_meant(template: Path, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make upgrade TO=https://"):
        upgrade("v1.1.0", go_on=False)  # nobody has said of what
    with pytest.raises(UserError, match="v9.9.9 cannot be fetched from"):
        upgrade(f"{template}@v9.9.9", go_on=False)
    with pytest.raises(UserError, match="cannot be asked for its versions"):
        upgrade(str(tmp_path / "nowhere"), go_on=False)
    other = tmp_path / "other"
    git(tmp_path, "init", "--quiet", str(other))
    with pytest.raises(UserError, match="has no version"):
        upgrade(str(other), go_on=False)
    (mine / "notes.txt").write_text("more\n")
    with pytest.raises(UserError, match="notes.txt: changed and not committed"):
        upgrade(str(template), go_on=False)
    git(mine, "restore", ".")
    content = json.loads((mine / RECORD).read_text())
    (mine / RECORD).write_text(json.dumps({**content, "source": f"file://{template}"}))
    commit(mine, "source")
    git(mine, "branch", "upgrade/1.1.0")
    with pytest.raises(UserError, match=r"there is a branch upgrade/1\.1\.0 already"):
        upgrade("v1.1.0", go_on=False)


def test_what_a_fork_is_invited_to_fill_in_is_no_change_of_the_engine() -> None:
    free = ("data.dvc", "params.yaml", "docs/ours.md", ".github/CODEOWNERS", ".github/settings/ruleset-main.json", RECORD)
    assert not [path for path in free if is_engine(path)]
    assert all(is_engine(path) for path in ("Makefile", GATES, ".github/workflows/ci.yml", "requirements/run.txt"))


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (("a", "x"), "# top\na:\n  y: 2  # keep\nb: 3\n"),
        (("a",), "# top\nb: 3\n"),
        (("c", "z"), "# top\na:\n  x: 1\n  y: 2  # keep\nb: 3\n"),
    ],
)
def test_a_key_goes_with_its_lines_alone(place: tuple[str, ...], left: str) -> None:
    assert taken_out("# top\na:\n  x: 1\n  y: 2  # keep\nb: 3\n", place) == left


@pytest.mark.template
def test_the_record_is_that_of_the_files_that_are_there() -> None:
    """`git add --all && make record` mends it."""
    recorded = template_version.read(ROOT)
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = [line.partition("\t") for line in listed.split("\0") if line]
    assert recorded.files == {path: fields.split()[1] for fields, _, path in entries if path != RECORD}
    assert f"\n## {recorded.version} " in (ROOT / "CHANGELOG.md").read_text()
