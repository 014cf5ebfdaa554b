"""Is it the reviewed model, and may it ship? python -m pytest tests/release/test_verify.py"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_params
from ruamel.yaml import YAML
from standin import BOT, GitHub, user
from test_pipeline import ENVIRONMENT, copy_repository, python, require_success

from src.core.command import UserError
from src.core.files import digest, read_json, sha256, write_json
from src.github.api import GitHub as Client
from src.github.labels import ENGINE
from src.github.labels import OVERRIDE as LABEL
from src.judging import request as judging
from src.release import overriding, reviewed, verdict
from src.release import verify as verifying
from src.release.journal import Origin, Running, State
from src.release.production import Deployed
from src.release.reviewed import ImageFile
from src.system.judged import JudgedFile, Label, Lineage
from src.system.worktree import checked_out

MODEL = "out/model/model.onnx"
OUT = "out/release"
TOLD = ("dvc.lock", "manifest.json", "metrics.json")
Change = Callable[[Path], object]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def judge(folder: Path, verdict: dict[str, Any], number: int) -> None:
    """Write manifest.json as a report does; the verdict is the test's."""
    text = json.dumps({"commit": "a" * 40, "pull_request": number, "verdict": verdict, "training_seconds": 1.0})
    script = (
        "import json, sys, pathlib; from src.core.files import write_json; from src.judging import lineage; "
        "told = {**lineage.of_files(pathlib.Path()).to_json(), **json.loads(sys.argv[1])}; "
        "write_json(pathlib.Path('manifest.json'), told)"
    )
    done = subprocess.run([sys.executable, "-c", script, text], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    require_success(done)


PASS = {"verdict": "pass", "reasons": ["good"], "override": None}


def lineage_of(**changes: Any) -> Lineage:
    told = {"inputs": {"digest": "i"}, "outputs": {"model_sha256": "5" * 64}, "data": {"digest": "d"}, "metrics": {}}
    found = Lineage.from_json({**told, "commit": "a" * 40, "verdict": PASS, **changes}, "manifest.json")
    return Lineage.from_json(found.to_json(), "manifest.json")  # with the digest of the file that it makes


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [("all", {"confusion.png", "errors.png", "activation.png"}), ("charts", {"confusion.png"}), ("none", set())],
)
def test_a_release_holds_no_picture_that_params_forbid(tmp_path: Path, pictures: str, expected: set[str]) -> None:
    tree, made = tmp_path / "tree", ("model.onnx", "weights.safetensors", "history.csv")
    for name in (*(f"out/model/{name}" for name in made), "out/evaluation/golden/0.png", "judged/report/report.md"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    for name in ("confusion.png", "errors.png", "activation.png", "confusion.csv"):
        (tree / "out/evaluation" / name).touch()
    (tree / "manifest.json").touch()
    write_json(tree / "metrics.json", dict.fromkeys(("accuracy", "macro_f1", "log_loss", "ece"), 0.5))
    write_json(
        tree / "out/model/card.json",
        {"classes": ["cat"], "spec": {"kind": "x", "dtype": "f4", "shape": [9]}, "network": "n", "model_sha256": "5" * 64},
    )
    write_params(tree / "params.yaml", report__pictures=pictures)
    verifying._write(tmp_path / "release", tree, "a" * 40, lineage_of(), tree / "judged", None)
    shown = {path.name for path in (tmp_path / "release/evaluation").iterdir()}
    assert shown == {"confusion.csv", *expected}
    assert (tmp_path / "release/golden/0.png").is_file()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with branches: `empty` has no model, `main` the starter's on top of it, `bad` a model of one epoch."""
    folder = copy_repository(tmp_path_factory.mktemp("verify") / "fork")
    shutil.copytree(ROOT / "src", folder / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "branch", "--move", "main")
    require_success(python(folder, "dvc", "pull"))
    stages = YAML(typ="safe").load((folder / "dvc.yaml").read_text())["stages"]
    require_success(python(folder, "dvc", "commit", "--force", "--quiet"))
    kept = {name: (folder / name).read_bytes() for name in TOLD}
    for name in TOLD:
        (folder / name).unlink()
    commit(folder, "code")
    git(folder, "branch", "empty")
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    judge(folder, PASS, 1)
    commit(folder, "the first model (#1)")
    git(folder, "checkout", "--quiet", "-b", "bad")
    write_params(folder / "params.yaml", train__epochs=1, train__warmup_epochs=0)
    for stage in ("train", "evaluate"):
        require_success(python(folder, *stages[stage]["cmd"].split()[2:]))
    require_success(python(folder, "dvc", "commit", "--force", "--quiet"))
    judge(folder, PASS, 2)
    commit(folder, "a bad model (#2)")
    git(folder, "checkout", "--quiet", "main")
    require_success(python(folder, "dvc", "checkout", "--quiet"))
    return folder


@pytest.fixture
def fork(template: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, on main."""
    shutil.copytree(template, tmp_path / "fork", symlinks=True)
    return tmp_path / "fork"


def verify(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("GITHUB_", "MLFLOW_"))}
    clean["DEPLOY_HOME"] = str(folder.parent / "home")
    command = [sys.executable, "-m", "src", "verify", OUT, *arguments]
    done = subprocess.run(command, cwd=folder, env={**clean, **variables}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert git(folder, "worktree", "list").count("\n") == 0
    return done


def deploy(folder: Path, sha: str) -> None:
    """Make a commit the one that this host serves."""
    image = ImageFile(manifest="m", version="1", image="i", digest="sha256:0", id=None)
    live = Running("n", image, 1, "1", "m", "f", "s", {}, Origin("ann", sha))
    home = folder.parent / "home" / "production"
    home.mkdir(parents=True, exist_ok=True)
    (home / "state.json").write_text(json.dumps(State(live=live).to_json()))


def refuse(folder: Path, kind: str, *arguments: str, **variables: str) -> str:
    """Expect a refusal of that kind; nothing is left that could be deployed. Return what was said."""
    (folder / OUT).mkdir(parents=True, exist_ok=True)
    (folder / OUT / "release.json").write_text("{}")  # of an earlier commit
    done = verify(folder, *arguments, **variables)
    assert done.returncode == 1, done.stdout
    told = read_json(folder / "out/release.outcome.json", "")
    assert (told["ok"], told["kind"]) == (False, kind), told
    assert told["next"]
    assert not (folder / OUT).exists()
    assert "/tree/" not in done.stderr
    return done.stderr


def accept(folder: Path, *arguments: str, **variables: str) -> reviewed.Release:
    require_success(verify(folder, *arguments, **variables))
    assert read_json(folder / "out/release.outcome.json", "")["ok"]
    return reviewed.read(folder / OUT)


def flip(path: Path) -> None:
    """Change one byte; size, mode and time stay."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def stored(folder: Path, name: str) -> Path:
    digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


@pytest.mark.journey
def test_the_reviewed_model_is_written_whole_and_no_document_or_forged_run_cache_changes_it(
    fork: Path, template: Path
) -> None:
    """What is deployed then is released once: a commit of documents on top of it releases nothing."""
    bad = git(fork, "show", "bad:dvc.lock")
    model = YAML(typ="safe").load(git(fork, "show", "main:dvc.lock"))["stages"]["train"]["outs"][0]["md5"]
    for entry in (fork / ".dvc/cache/runs").rglob("*"):
        if entry.is_file():  # every run that DVC remembers now gave the bad model
            forged = YAML(typ="safe").load(bad)["stages"]["train"]["outs"][0]["md5"]
            entry.write_text(entry.read_text().replace(model, forged))
    (fork / "README.md").write_text("words")
    commit(fork, "words")
    release = accept(fork)
    manifest = read_json(fork / "manifest.json", "")
    assert release.manifest == digest(manifest)
    assert release.model_sha256 == sha256(fork / OUT / "model/model.onnx") == sha256(fork / MODEL)
    assert release.model_sha256 == read_json(template / "manifest.json", "")["outputs"]["model_sha256"]
    assert (release.pull_request, release.verdict, release.override) == (1, "pass", None)
    assert release.commit == git(fork, "rev-parse", "HEAD")
    names = {path.relative_to(fork / OUT).as_posix() for path in (fork / OUT).rglob("*") if path.is_file()}
    wanted = {"manifest.json", "metrics.json", "params.yaml", "model/card.json", "model/history.csv", "golden/golden.json"}
    wanted |= {"model/weights.safetensors"}  # what a later training may start from
    assert wanted | {"evaluation/confusion.png", "report/report.md", "report/report.html", "report/verdict.json"} <= names
    assert not git(fork, "status", "--porcelain")
    deploy(fork, git(fork, "rev-parse", "HEAD"))
    (fork / "README.md").write_text("more words")
    commit(fork, "more words")
    output = fork.parent / "output"
    done = verify(fork, GITHUB_OUTPUT=str(output))
    require_success(done)
    assert "unchanged: neither model nor engine" in done.stdout
    assert output.read_text() == "unchanged=true\n"
    assert not (fork / OUT).exists()


# Changed after the review


def change_remote(fork: Path) -> str:
    """DVC's own default: a read-only object of a local remote is taken as it is."""
    require_success(python(fork, "dvc", "remote", "modify", "--local", "starter", "url", str(fork.parent / "store")))
    require_success(python(fork, "dvc", "remote", "modify", "--local", "starter", "verify", "false"))
    require_success(python(fork, "dvc", "push"))
    object_of_model = stored(fork, MODEL)
    there = fork.parent / "store" / object_of_model.relative_to(fork / ".dvc/cache")
    there.chmod(0o444)
    flip(there)
    shutil.rmtree(fork / ".dvc/cache")
    return "out/model/model.onnx is not what was reviewed"


def change_golden_in_cache(fork: Path) -> str:
    flip(stored(fork, "out/evaluation/golden/golden.json"))
    return "out/evaluation is not what was reviewed"


def change_manifest(fork: Path) -> str:
    told = read_json(fork / "manifest.json", "")
    (fork / "manifest.json").write_text(json.dumps({**told, "metrics": {**told["metrics"], "accuracy": 0.9999}}))
    commit(fork, "better")
    return "manifest.json does not fit metrics.json, data.dvc and the model of this commit (metrics differ)"


@pytest.mark.journey
def test_one_changed_byte_is_refused_by_name(fork: Path) -> None:
    head = git(fork, "rev-parse", "HEAD")
    for change in (change_manifest, change_golden_in_cache, change_remote):
        assert change(fork) in refuse(fork, "tampered")
        git(fork, "reset", "--quiet", "--hard", head)


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        ({}, ""),
        ({"accuracy": 0.99, "log_loss": 0.1}, "accuracy 0.9000, reviewed 0.9900; log_loss 0.5000, reviewed 0.1000"),
        ({"examples": 90}, "100 test examples, reviewed 90"),
    ],
)
def test_numbers_forged_in_all_files_at_once_are_refused(tmp_path: Path, forged: dict[str, Any], words: str) -> None:
    """The model is asked again, and its answers are what counts."""
    found = {"accuracy": 0.9, "macro_f1": 0.9, "log_loss": 0.5, "ece": 0.1, "examples": 100}
    write_json(tmp_path / "out/metrics.json", found)
    write_json(tmp_path / "metrics.json", {**found, **forged})
    with pytest.raises(overriding.RefusedError, match=words) if forged else nullcontext():
        verifying._same_answers(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 0.1])
def test_golden_answers_that_are_not_the_reviewed_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(verifying.modelcheck, "bounded_difference", lambda *_: (difference, 1e-6))
    with pytest.raises(overriding.RefusedError, match="probabilities of the golden examples differ"):
        verifying._golden_answers(tmp_path)


@pytest.mark.journey
def test_a_model_of_other_inputs_is_not_the_reviewed_one(fork: Path) -> None:
    git(fork, "checkout", "bad", "--", "dvc.lock")
    commit(fork, "a lock of another commit")
    assert "params.yaml: train" in refuse(fork, "moved")
    git(fork, "reset", "--quiet", "--hard", "HEAD^")
    (fork / "src/model.py").write_text((fork / "src/model.py").read_text() + "\n# x\n")
    (fork / "requirements/torch.txt").write_text("torch==9")
    commit(fork, "main goes on")
    said = refuse(fork, "moved")
    assert "requirements/torch.txt, src/model.py" in said
    assert "make reproduce report" in said


@pytest.mark.journey
def test_what_was_never_reviewed_or_is_lost_is_missing(fork: Path) -> None:
    assert "has no manifest.json, dvc.lock, metrics.json" in refuse(fork, "missing", "--commit", "empty")
    shutil.rmtree(fork / ".dvc/cache")
    shutil.rmtree(fork / "out")
    assert "could not be pulled" in refuse(fork, "missing", "--commit", "bad")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "the verdict of the review is investigate, and nobody has overridden it"),
        ({"engine_reviewed": {"by": "bob", "at": "now"}, "lacking": ["override"]}, f"nobody has given {LABEL}"),
        ({"engine_reviewed": {"by": "bob", "at": "now"}}, ""),
        ({"override": {"by": "bob", "at": "now"}}, ""),
    ],
)
def test_a_verdict_that_nobody_overrode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(verifying.dvc_lock, "moved", lambda *_: [])
    monkeypatch.setattr(verifying.dvc_lock, "stale", lambda _: [])
    for name in verifying._TRACKED:
        (tmp_path / name).touch()
    manifest = lineage_of(verdict={**PASS, "verdict": "investigate", **labels})
    monkeypatch.setattr(verifying.dvc_lock, "inputs", lambda _: manifest.inputs.to_json())
    write_json(tmp_path / "manifest.json", manifest.to_json())
    if words:
        with pytest.raises(overriding.RefusedError, match=words) as caught:
            verifying._reviewed_inputs(tmp_path, "a" * 40)
        assert caught.value.kind == "gates"
    else:
        assert verifying._reviewed_inputs(tmp_path, "a" * 40) == manifest
        (tmp_path / "manifest.json").write_text("{}")
        with pytest.raises(overriding.RefusedError, match="manifest.json is damaged"):
            verifying._reviewed_inputs(tmp_path, "a" * 40)


def test_a_folder_that_is_no_release_is_not_removed_and_no_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds something that verify did not make: name another folder"):
        verifying.verify(tmp_path, "HEAD", again=False)
    assert (tmp_path / "thesis.tex").exists()
    monkeypatch.setattr(verifying, "git", lambda *_: "")
    with pytest.raises(UserError, match="there is no commit nowhere here: name another with --commit"):
        verifying.verify(tmp_path / "release", "nowhere", again=False)


# Judged again


def weaken_params(fork: Path) -> None:
    write_params(
        fork / "params.yaml", train__epochs=1, train__warmup_epochs=0, gates__max_accuracy_drop=0.99,
        gates__max_log_loss_rise=9.0, gates__max_class_drop=1.0, gates__max_slice_drop=0.99, gates__min_accuracy=0.0,
        gates__min_macro_f1=0.0, gates__min_class_recall=0.0, gates__min_slice_accuracy=0.0, gates__min_baseline_margin=-1.0,
    )  # fmt: skip


def weaken_code(fork: Path) -> None:
    code = fork / "src/judging/gates.py"
    code.write_text(code.read_text().replace("        verdict=worst,", '        verdict="pass",'))
    assert 'verdict="pass",' in code.read_text()


@pytest.mark.journey
def test_gates_weakened_in_the_merge_or_one_merge_earlier_do_not_judge_it(fork: Path) -> None:
    """B, bad and with weak gates, was merged by force and refused; C on top of it is judged by A, which is deployed."""
    deploy(fork, git(fork, "rev-parse", "main"))
    git(fork, "checkout", "--quiet", "bad")
    weaken_params(fork)
    weaken_code(fork)
    commit(fork, "B")
    (fork / "README.md").write_text("words")
    commit(fork, "C")
    assert f"the rules of the deployed commit {git(fork, 'rev-parse', 'main')[:12]} is fail" in refuse(fork, "gates")


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    with GitHub(tmp_path) as github:
        github.collaborators |= {"alice": "write", "carol": "triage"}
        yield github


def ci(github: GitHub) -> dict[str, str]:
    reads = ("actions", "contents", "deployments", "metadata", "pull-requests", "statuses")
    token = github.token(dict.fromkeys(reads, "read"))
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_TOKEN": token,
        "GITHUB_SERVER_URL": github.url,
        "GITHUB_REPOSITORY": "team/models",
    }


@pytest.mark.parametrize("given", [("override", "engine_reviewed"), ("override",), ("engine_reviewed",)])
def test_where_the_deployed_judge_cannot_judge_two_labels_accept_a_worse_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    asked: list[str] = []
    claims = {key: {"by": "alice", "at": "2026-11-24T00:00:00Z"} for key in given}
    manifest = lineage_of(verdict={"verdict": "fail", "reasons": ["worse"], **claims})
    found = JudgedFile(verdict="fail", reasons=["judging moved: x"])
    monkeypatch.setattr(verdict, "judge", lambda *_: verdict.Judgement(found, "this commit", "fail", "x"))
    monkeypatch.setattr(verdict, "report", lambda *_: None)
    monkeypatch.setattr(verifying, "_same_answers", lambda *_: None)
    monkeypatch.setattr(overriding, "confirm", lambda _, __, key: asked.append(key))
    if len(given) == 2:
        assert verifying._judge_again(tmp_path, "a" * 40, Deployed("b" * 40), manifest, tmp_path) is None
        told = JudgedFile.read(tmp_path / "report/verdict.json", "")
        assert (told.verdict, told.override, told.engine_reviewed) == ("fail", *(Label(**claims[key]) for key in given))
        assert sorted(asked) == sorted(given)
    else:
        with pytest.raises(overriding.RefusedError, match="the rules of this commit is fail: judging moved: x") as caught:
            verifying._judge_again(tmp_path, "a" * 40, Deployed("b" * 40), manifest, tmp_path)
        assert caught.value.kind == "gates"


def manifest_of(by: str, number: int | None = 1, head: str | None = None) -> Lineage:
    label = {"by": by, "at": "2026-11-24T00:00:00Z", "head": head}
    claims = {"override": label | {"label": LABEL}, "engine_reviewed": label | {"label": ENGINE}}
    return lineage_of(pull_request=number, verdict={"verdict": "fail", "reasons": ["worse"], **claims})


def give(github: GitHub, by: str, label: str = LABEL, branch: str = "branch") -> None:
    """Give a label, which starts a run of report.yml at the head."""
    github.add_label(1, label, by=by)
    github.add_run(github.next_run(), head_sha=github.head(1), head_branch=branch, actor=user(by))


@pytest.fixture
def confirm(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Push a manifest that claims a label, with a pull request, and return why GitHub does not confirm it, or ""."""
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(github.git), str(folder))
    git(folder, "checkout", "--quiet", "-b", "branch")
    monkeypatch.chdir(folder)
    for name, value in ci(github).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("src.github.api._PAUSE", 0.01)

    def go(by: str, label: Change, number: int | None = 1, key: str = "override") -> str:
        write_json(folder / "manifest.json", manifest_of(by, number).to_json())
        sha = commit(folder, "reviewed")
        git(folder, "push", "--quiet", "origin", "branch")
        git(folder, "push", "--quiet", "origin", "branch:main")
        github.open_pull_request("branch")
        label(folder)
        try:
            overriding.confirm(Lineage.read(folder / "manifest.json", ""), sha, key)
        except overriding.RefusedError as error:
            return f"{error.kind}: {error.sentence}"
        return ""

    return go


@pytest.mark.journey
@pytest.mark.parametrize(
    ("key", "label", "number"),
    [
        ("engine_reviewed", ENGINE, 1),
        ("override", LABEL, None),  # judged anew, as after a revert: another pull request brought this manifest
    ],
)
def test_a_label_counts_where_that_person_gave_it(
    confirm: Any, github: GitHub, key: str, label: str, number: int | None
) -> None:
    assert confirm("alice", lambda _: give(github, "alice", label), number=number, key=key) == ""


@pytest.mark.journey
def test_a_label_that_was_given_before_a_later_push_is_refused_and_outside_of_ci_nobody_is_asked(
    confirm: Any, github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push_again(folder: Path) -> None:
        give(github, "alice")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", "more")
        git(folder, "push", "--quiet", "origin", "branch")

    assert "was given to commit" in confirm("alice", push_again)
    monkeypatch.delenv("GITHUB_ACTIONS")
    overriding.confirm(manifest_of("alice"), "HEAD", "override")


@pytest.mark.journey
@pytest.mark.parametrize(
    ("failing", "why"), [("pulls/1", "could not be asked"), ("/permission", "of alice could not be read")]
)
def test_a_label_that_github_does_not_tell_of_is_refused(confirm: Any, github: GitHub, failing: str, why: str) -> None:
    def give_and_fail(_: Path) -> None:
        give(github, "alice")
        github.fail_next(failing, 500, 9)

    said = confirm("alice", give_and_fail)
    assert f"gates: manifest.json says that alice gave the label {LABEL}" in said
    assert why in said


@pytest.mark.parametrize(
    ("counted", "refused", "head", "reviewed_here", "doubt"),
    [
        ({"by": "alice", "head": "c" * 40}, {}, None, True, None),
        ({"by": "alice", "head": "c" * 40}, {}, "c" * 40, True, None),
        (None, {}, None, True, f"#1 has no label {LABEL}"),
        (None, {"override": "carol, who may not write, gave it"}, None, True, "carol, who may not write, gave it"),
        ({"by": "bob", "head": "c" * 40}, {}, None, True, "the label of #1 was given by bob"),
        ({"by": "alice", "head": "c" * 40}, {}, "0" * 40, True, f"given to commit {'c' * 12}, not to {'0' * 12}"),
        ({"by": "alice", "head": "c" * 40}, {}, None, False, "#1 reviewed another model, or with another verdict"),
    ],
)
def test_a_label_counts_for_the_manifest_that_was_reviewed_and_the_person_who_gave_it(
    monkeypatch: pytest.MonkeyPatch, counted: Any, refused: dict[str, str], head: str | None, reviewed_here: bool, doubt: Any
) -> None:
    class Api:
        def get(self, path: str, **_: str) -> Any:
            if path == "pulls/1":
                return {"head": {"sha": "c" * 40}}
            there = manifest_of("alice", head=head) if reviewed_here else lineage_of()
            return {"content": base64.b64encode(json.dumps(there.to_json()).encode())}

    monkeypatch.setattr(overriding.labels, "read", lambda *_: ({"override": Label(**counted)} if counted else {}, refused))
    found = overriding._doubt(Api(), 1, "override", manifest_of("alice", head=head))  # type: ignore[arg-type]
    assert doubt in found if doubt else found is None


@pytest.fixture
def read(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Change files after a deployed commit, let a pull request bring them with that status, and say why that is refused."""
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(github.git), str(folder))
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text("gates: {a: 1}\n")
    deployed = commit(folder, "deployed")
    git(folder, "push", "--quiet", "origin", "HEAD:main")
    for name, value in {**ci(github), "GITHUB_EVENT_NAME": "push"}.items():
        monkeypatch.setenv(name, value)

    def go(name: str, state: str = "", text: str = "gates: {a: 2}\n", by: str = BOT) -> str:
        (folder / name).write_text(text)
        sha = commit(folder, "change")
        git(folder, "push", "--quiet", "origin", "HEAD:change")
        if state:
            github.open_pull_request("change")
            token = github.token({"statuses": "write"}, login=by)
            Client("team/models", token, github.url).post(f"statuses/{sha}", {"state": state, "context": "model-gate"})
        try:
            overriding.require_read(deployed, sha)
        except overriding.RefusedError as error:
            return f"{error.kind}: {error.sentence}"
        return ""

    return go


@pytest.mark.journey
def test_what_a_green_pull_request_brought_of_the_engine_and_what_is_free_are_deployed(read: Callable[..., str]) -> None:
    assert read("README.md") == ""
    assert read("params.yaml", text="gates: {a: 1}\nx: 1\n") == ""
    assert read("Makefile", "success") == ""


@pytest.mark.journey
@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("Makefile", {}, "touches the engine (Makefile), and no pull request brought it"),
        (
            "params.yaml",
            {"text": ' x: "\ngates: {a: 1}\nz:\n "\n gates: {a: 2}\n'},
            "touches the engine (params.yaml: its form)",
        ),
        ("Makefile", {"state": "pending"}, "and model-gate was not green at the head of #1"),
        ("Makefile", {"state": "success", "by": "mallory"}, "and model-gate was not green at the head of #1"),
    ],
)
def test_a_change_of_the_engine_that_nobody_read_is_deployed_by_hand_alone(
    read: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str, how: Any, why: str
) -> None:
    assert why in read(name, **how)
    monkeypatch.setenv("GITHUB_EVENT_NAME", "workflow_dispatch")
    overriding.require_read("HEAD^", "HEAD")
    monkeypatch.setenv("GITHUB_EVENT_NAME", "push")
    monkeypatch.delenv("GITHUB_ACTIONS")
    overriding.require_read("HEAD^", "HEAD")


@pytest.mark.journey
def test_int8_ships_by_the_margins_from_before(fork: Path) -> None:
    git(fork, "checkout", "--quiet", "--detach", "main")
    write_params(fork / "params.yaml", quantize__min_speedup=0.01, quantize__max_accuracy_drop=0.5)
    deploy(fork, commit(fork, "loose"))
    git(fork, "checkout", "--quiet", "main")
    write_params(fork / "params.yaml", quantize__release=True, quantize__min_speedup=99.0)
    commit(fork, "serve INT8")
    release = accept(fork)
    assert read_json(fork / OUT / "report/quantization.json", "")["limits"]["min_speedup"] == 0.01
    assert (release.precision, release.model_sha256) == ("int8", sha256(fork / OUT / "model/model.onnx"))
    assert release.served_sha256 == sha256(fork / OUT / "model/model.int8.onnx")
    assert (fork / OUT / "golden/golden.float.json").exists()


# Whose rules

JUDGE = """
import json, sys
from pathlib import Path
request = json.loads(Path(sys.argv[2]).read_text())
accuracy = float(Path("accuracy").read_text())  # of the tree that is judged
least = float((Path(__file__).parents[1] / "least").read_text())  # of the judge's own commit
verdict = {"verdict": "pass" if accuracy >= least else "fail", "reasons": [f"{accuracy} against {least}"], "novel": 1}
Path(sys.argv[3], "verdict.json").write_text(json.dumps({**verdict, "format": request["format"]}))
"""


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that commits a model of that accuracy, with the gates and the judge that the merge brings."""
    git(tmp_path, "init", "--quiet", "repository")
    folder = tmp_path / "repository"
    monkeypatch.chdir(folder)
    (folder / "src").mkdir(parents=True)
    (folder / "params.yaml").write_text("prepare: {}\n")

    def go(accuracy: float, least: float, judge: str = JUDGE) -> str:
        for name, text in (("accuracy", str(accuracy)), ("least", str(least)), ("src/__main__.py", judge)):
            (folder / name).write_text(text)
        return commit(folder, "merge")

    return go


def judged(sha: str, deployed: Deployed, out: Path) -> verdict.Judgement:
    out.mkdir(exist_ok=True)
    with checked_out(sha) as tree:
        return verdict.judge(tree, sha, lineage_of(), deployed, out)


@pytest.mark.journey
def test_the_deployed_commit_judges_however_often_gates_were_weakened(merge: Callable[..., str], tmp_path: Path) -> None:
    first = merge(0.95, 0.9)
    merge(0.1, 0.0)
    found = judged(merge(0.2, 0.0), Deployed(first), tmp_path / "out")
    assert (found.verdict.verdict, found.verdict.reasons) == ("fail", ["0.2 against 0.9"])
    assert (found.rules, found.moved) == (f"the deployed commit {first[:12]}", "")
    asked = read_json(tmp_path / "out/request.json", "")
    assert (asked["format"], asked["deployed"], asked["why"]) == (1, first, "")


MOVED = {
    "crashes": ("raise SystemExit('judging: it needs another model')", "it needs another model"),
    "is elsewhere": (None, "No module named src"),
    "has another format": (JUDGE.replace('request["format"]', "2"), "another format"),
}


@pytest.mark.journey
@pytest.mark.parametrize("case", MOVED)
def test_a_deployed_judge_that_cannot_judge_is_investigate_and_no_crash(
    merge: Callable[..., str], tmp_path: Path, case: str
) -> None:
    old, why = MOVED[case]
    sha = merge(0.95, 0.9, old or JUDGE)
    if old is None:
        git(Path(), "mv", "src", "source")
        sha = commit(Path(), "moved")
        Path("src").mkdir()
    deployed = Deployed(sha)
    for least, expected in ((0.5, "investigate"), (0.97, "fail")):
        found = judged(merge(0.96, least), deployed, tmp_path / "out")
        assert (found.verdict.verdict, found.rules) == (expected, "this commit")
        assert found.gates == ("pass" if expected == "investigate" else "fail")
        assert why in found.moved
        assert found.verdict.reasons[0] == f"judging moved: {found.moved}"


@pytest.mark.journey
def test_no_judge_gets_a_token(merge: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge's own code judges where nothing was ever deployed, and nothing that judges needs GitHub."""
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.setenv(name, "hush-hush")
    spy = JUDGE.replace("import json, sys", "import json, os, sys").replace(
        'f"{accuracy} against {least}"', "str(dict(os.environ))"
    )
    deployed = Deployed(merge(0.95, 0.9, spy))
    for judge in (deployed, Deployed(None)):
        (reason,) = judged(merge(0.96, 0.9, spy), judge, tmp_path / "out").verdict.reasons
        assert "PYTHONSAFEPATH" in reason
        assert "hush-hush" not in reason


@pytest.mark.journey
def test_unknown_is_investigate_and_never_deployed_is_not(merge: Callable[..., str], tmp_path: Path) -> None:
    sha = merge(0.95, 0.9)
    found = judged(sha, Deployed(None, "GitHub answers 500"), tmp_path / "out")
    assert (found.verdict.verdict, found.moved) == ("investigate", "GitHub answers 500")
    assert read_json(tmp_path / "out/request.json", "")["why"] == "GitHub answers 500"
    found = judged(sha, Deployed(None), tmp_path / "out")
    assert (found.verdict.verdict, found.moved, found.rules) == ("pass", "", "this commit")


def judgement(gates: str = "pass", moved: str = "") -> verdict.Judgement:
    return verdict.Judgement(JudgedFile(verdict=gates, reasons=[]), "rules", gates, moved)


@pytest.mark.parametrize(
    ("review", "labels", "found", "needed"),
    [
        ("pass", [], judgement(), []),
        ("pass", ["override", "engine_reviewed"], judgement(), []),
        ("investigate", ["engine_reviewed"], judgement(), ["engine_reviewed"]),
        ("fail", ["override"], judgement(), ["override"]),
        ("pass", [], judgement("investigate"), ["override"]),
        ("pass", [], judgement("pass", "moved"), ["engine_reviewed"]),
        ("pass", [], judgement("fail", "moved"), ["engine_reviewed", "override"]),
    ],
)
def test_each_label_covers_its_own_and_no_more(
    review: str, labels: list[str], found: verdict.Judgement, needed: list[str]
) -> None:
    manifest = lineage_of(verdict={"verdict": review, "reasons": [], **{key: {"by": "alice"} for key in labels}})
    assert verifying._needed(manifest, Deployed("a" * 40), found) == needed


@pytest.mark.parametrize("example", [True, False])
def test_the_first_own_gates_judge_where_only_the_templates_example_was_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: bool
) -> None:
    by: dict[str, Path] = {}

    def run(module: str, arguments: list[str], params: Path = judging._PARAMS) -> None:
        by[module] = params
        if module == "compare":
            write_json(tmp_path / "main/facts.json", {"looks": {}, "why": "", "example": example})
        else:
            write_json(tmp_path / "verdict.json", {"verdict": "pass", "reasons": [], "gates": []})

    monkeypatch.setattr(judging, "_run", run)
    (tmp_path / "params.yaml").write_text("prepare: {}\n")
    names = ("arrays", "manifest", "model", "validation", "data", "params", "run")
    request = {name: str(tmp_path / "params.yaml") for name in names} | {"deployed": "a" * 40, "why": ""}
    judging._verdict(request, tmp_path)
    assert by["judge"] == (tmp_path / "params.yaml" if example else judging._PARAMS)
