"""`make update` merges main, takes its results where both sides have some, and leaves other conflicts to a person.

python -m pytest tests/system/test_update.py
"""

import subprocess
from pathlib import Path

import pytest

from src.core.command import UserError
from src.system.update import RESULTS, update

FIRST = "first\nsame\nlast"
Results = tuple[str | None, ...]


class Clone:
    """A clone with a branch `feature`, its remote, and a second clone in which main moves."""

    def __init__(self, folder: Path) -> None:
        self.remote, self.path, self.other = folder / "remote.git", folder / "clone", folder / "other"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", self.remote], check=True)
        self._clone(self.other)
        self.write(self.other, "first", **dict.fromkeys((*RESULTS, "params.yaml", "data.dvc"), FIRST))
        self.git("push", "--quiet", "origin", "HEAD:main", folder=self.other)
        self._clone(self.path)
        self.git("switch", "--quiet", "--create", "feature")

    def _clone(self, folder: Path) -> None:
        subprocess.run(["git", "clone", "--quiet", self.remote, folder], check=True, capture_output=True)
        for key, value in (("user.name", "A"), ("user.email", "a@example.com"), ("commit.gpgsign", "false")):
            self.git("config", key, value, folder=folder)

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder or self.path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def write(self, folder: Path, subject: str, **files: str) -> None:
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
        self.git("add", ".", folder=folder)
        self.git("commit", "--quiet", "--message", subject, folder=folder)

    def here(self, **files: str) -> None:
        self.write(self.path, "here", **files)

    def main(self, **files: str) -> None:
        self.write(self.other, "main", **files)
        self.git("push", "--quiet", "origin", "HEAD:main", folder=self.other)

    def read(self, name: str) -> str:
        return (self.path / name).read_text().strip()


pytestmark = pytest.mark.journey  # Git


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = Clone(tmp_path)
    monkeypatch.chdir(made.path)
    return made


def test_results_of_both_sides_become_mains_and_the_rest_is_merged(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    clone.here(**dict.fromkeys(RESULTS, "here"), **{"params.yaml": "here\nsame\nlast"})
    clone.main(**dict.fromkeys(RESULTS, "main"), **{"params.yaml": "first\nsame\nmain"})
    update("origin/main")
    assert [clone.read(name) for name in RESULTS] == ["main"] * 3
    assert clone.read("params.yaml") == "here\nsame\nmain"
    assert clone.git("status", "--porcelain") == ""
    assert clone.git("rev-list", "--count", "HEAD..origin/main") == "0"
    said = capsys.readouterr().out
    assert "all three are main's now" in said
    assert "git push" in said


@pytest.mark.parametrize(
    ("here", "main", "expected"),
    [  # of dvc.lock, metrics.json and manifest.json
        (("here", "here\nsame\nlast", "here"), ("main", "first\nsame\nmain", None), ("main", "first\nsame\nmain", FIRST)),
        (("here\nsame\nlast", None, None), ("first\nsame\nmain", None, None), ("first\nsame\nmain", FIRST, FIRST)),
    ],
    ids=["those that do not conflict belong to those that do", "merged line by line, they are of no run"],
)
def test_all_results_are_of_one_run(clone: Clone, here: Results, main: Results, expected: Results) -> None:
    clone.here(**{name: text for name, text in zip(RESULTS, here, strict=True) if text})
    clone.main(**{name: text for name, text in zip(RESULTS, main, strict=True) if text})
    update("origin/main")
    assert tuple(clone.read(name) for name in RESULTS) == expected


@pytest.mark.parametrize(("file", "advice"), [("params.yaml", "git merge --abort"), ("data.dvc", "dvc add data")])
def test_another_conflict_waits_for_a_person(clone: Clone, file: str, advice: str) -> None:
    clone.here(**dict.fromkeys((*RESULTS, file), "here"))
    clone.main(**dict.fromkeys((*RESULTS, file), "main"))
    with pytest.raises(UserError, match=advice) as error:
        update("origin/main")
    assert str(error.value).startswith(f"{file}: changed here and in origin/main")
    assert clone.git("diff", "--name-only", "--diff-filter=U") == file
    assert [clone.read(name) for name in RESULTS] == ["main"] * 3
    with pytest.raises(UserError, match="a merge is under way"):
        update("origin/main")


def test_what_cannot_be_merged_now_is_refused_with_what_to_do(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base, sentence in (
        ("upstream/main", "no Git remote upstream"),
        ("main", "name a remote and its branch"),
        ("origin/gone", "git fetch failed: .*gone"),
    ):
        with pytest.raises(UserError, match=sentence):
            update(base)
    for file, advice in (("params.yaml", "git stash"), ("dvc.lock", "git restore .* dvc.lock")):
        (clone.path / file).write_text("mine")
        with pytest.raises(UserError, match=f"{file}: changed and not committed: .*{advice}"):
            update("origin/main")
        clone.git("restore", file)
    clone.git("switch", "--quiet", "main")
    with pytest.raises(UserError, match="this is main itself"):
        update("origin/main")
    clone.git("switch", "--quiet", "--detach")
    with pytest.raises(UserError, match="git switch BRANCH"):
        update("origin/main")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no Git repository"):
        update("origin/main")
