"""Main's model beside the one under review, the verdict and the lineage: python -m pytest tests/judging/test_compare.py"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_params
from ruamel.yaml import YAML
from test_pipeline import ENVIRONMENT, copy_repository, python, require_success

from src.core.files import read_json, sha256
from src.judging import compare as comparing
from src.system.judged import Comparison, Looks

pytestmark = pytest.mark.journey
OUT = "out/main"
JUDGE = [
    OUT, "out/run.json", "out/report/verdict.json", "manifest.json", "--metrics", "metrics.json", "--evaluation",
    "out/evaluation", "--manifest", "out/manifest.parquet", "--validation", "out/validation.json",
    "--history", "out/history",
]  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fork whose main has data and a model, and a branch on which nothing has changed yet."""
    folder = copy_repository(tmp_path_factory.mktemp("compare") / "fork")
    git(folder, "branch", "--move", "main")
    (folder / "manifest.json").unlink(missing_ok=True)
    require_success(python(folder, "dvc", "pull"))
    evaluate = YAML(typ="safe").load((folder / "dvc.yaml").read_text())["stages"]["evaluate"]["cmd"].split()
    require_success(python(folder, *evaluate[2:]))
    (folder / "out/run.json").write_text(json.dumps({"failed": None, "seconds": {"train": 12.5}, "hardware": {"cores": 2}}))
    git(folder, "commit", "--quiet", "--all", "--allow-empty", "--message", "judged")
    git(folder, "checkout", "--quiet", "-b", "branch")
    return folder


@pytest.fixture
def fork(template: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(template, tmp_path / "fork", symlinks=True)
    return tmp_path / "fork"


def compare(folder: Path, *options: str) -> dict[str, Any]:
    paths = ["--arrays", "out/arrays", "--manifest", "out/manifest.parquet", "--model", "out/model", *options]
    require_success(python(folder, "src", "compare", "main", OUT, *paths))
    return read_json(folder / OUT / "facts.json", "")


def judge(folder: Path, plan: dict[str, Any] | None = None) -> dict[str, Any]:
    environment = {**ENVIRONMENT, "PLAN": json.dumps(plan or {})}
    command = [sys.executable, "-m", "src", "judge", *JUDGE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return read_json(folder / "out/report/verdict.json", "")


def commit_on_main(folder: Path, edit: Callable[[], object]) -> str:
    git(folder, "stash", "--quiet", "--include-untracked")
    git(folder, "checkout", "--quiet", "main")
    edit()
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "main goes on")
    sha = git(folder, "rev-parse", "HEAD")
    git(folder, "checkout", "--quiet", "branch")
    subprocess.run(["git", "stash", "pop", "--quiet"], cwd=folder, check=False)
    return sha


def lose_store(folder: Path) -> None:
    shutil.rmtree(folder / ".dvc/cache")
    commit_on_main(folder, lambda: shutil.rmtree(folder / "starter/files"))


def test_the_same_model_is_no_worse_than_itself(fork: Path) -> None:
    facts = compare(fork)
    assert (facts["found"], facts["same_test_set"], facts["behind"], facts["moved_inputs"]) == (True, True, 0, [])
    mine, theirs = (
        pq.read_table(fork / name) for name in ("out/evaluation/predictions.parquet", f"{OUT}/predictions.parquet")
    )
    assert mine.column("prediction").to_pylist() == theirs.column("prediction").to_pylist()
    metrics = read_json(fork / OUT / "metrics.json", "")
    assert metrics["accuracy"] == read_json(fork / "metrics.json", "")["accuracy"]
    timings = read_json(fork / OUT / "timings.json", "")
    assert timings["candidate"]["p95"] > 0
    assert len(timings["main"]["blocks"]) == len(timings["candidate"]["blocks"])
    (fork / "out/history").mkdir(exist_ok=True)
    trained = {"examples_per_second": 4000.0, "model_sha256": sha256(fork / "out/model/model.onnx")}
    (fork / "out/history/throughput.json").write_text(json.dumps(trained))
    verdict = judge(fork, {"sha": "a" * 40, "number": 7, "run_url": "https://x/1"})
    assert verdict["verdict"] == "pass"
    told = read_json(fork / "manifest.json", "")
    assert (told["commit"], told["pull_request"], told["training_seconds"]) == ("a" * 40, 7, 12.5)
    assert (told["throughput"]["examples_per_second"], told["throughput"]["energy_kwh"]) == (4000.0, None)
    assert told["outputs"]["model_sha256"] == sha256(fork / "out/model/model.onnx")
    assert git(fork, "worktree", "list").count("\n") == 0


def test_judging_again_keeps_what_is_true_of_the_manifest_alone(fork: Path) -> None:
    """No forged basis of later verdicts, and no figures of another model's training."""
    compare(fork)
    judge(fork, {"sha": "a" * 40, "number": 7})
    before = (fork / "manifest.json").read_bytes()
    judge(fork, {"sha": "b" * 40, "number": 7, "run_url": "https://x/2"})
    assert (fork / "manifest.json").read_bytes() == before
    told = read_json(fork / "manifest.json", "")
    main = {**told["main"], "series": {"folds": {}}}
    for forged in ({"looks": {**told["looks"], "examples": 0}}, {"anchor": None}, {"anchor": "x"}, {"main": main}):
        (fork / "manifest.json").write_text(json.dumps({**told, **forged}))
        judge(fork, {"sha": "b" * 40, "number": 7})
        again = read_json(fork / "manifest.json", "")
        assert [again[name] for name in ("looks", "anchor", "main")] == [told[name] for name in ("looks", "anchor", "main")]
    (fork / "out/run.json").write_text(json.dumps({**read_json(fork / "out/run.json", ""), "seconds": {}}))
    (fork / "out/history").mkdir(exist_ok=True)
    record = {"examples_per_second": 4000.0, "seconds": 45.0, "hardware": {"cores": 1}}
    for digest, seconds in (("0" * 64, None), (sha256(fork / "out/model/model.onnx"), 45.0)):
        (fork / "manifest.json").unlink()
        (fork / "out/history/throughput.json").write_text(json.dumps({**record, "model_sha256": digest}))
        judge(fork, {"sha": "a" * 40, "number": 7})
        again = read_json(fork / "manifest.json", "")
        assert again["training_seconds"] == seconds
        assert bool(again["hardware"]) == bool(again["throughput"]) == (seconds is not None)


def test_main_that_moved_is_told_by_what_the_model_depends_on(fork: Path) -> None:
    def edit() -> None:
        (fork / "README.md").write_text("x")
        (fork / "src/model.py").write_text((fork / "src/model.py").read_text() + "\n# x\n")
        write_params(fork / "params.yaml", train__epochs=3, gates__min_accuracy=0.1)

    sha = commit_on_main(fork, edit)
    facts = compare(fork)
    assert (facts["commit"], facts["behind"]) == (sha, 1)
    assert facts["moved_inputs"] == ["src/model.py", "params.yaml: train"]
    assert facts["judging_changed"] == []
    verdict = judge(fork)
    assert verdict["verdict"] == "investigate"
    assert "main has since changed what the model depends on (src/model.py, params.yaml: train)" in verdict["reasons"][0]
    git(fork, "checkout", "--quiet", "main", "--", "src/model.py", "params.yaml")
    assert compare(fork)["moved_inputs"] == []


def test_a_change_of_the_rules_is_told(fork: Path) -> None:
    write_params(fork / "params.yaml", gates__resamples=4000, gates__levels__churn="warn", evaluate__golden=16)
    assert compare(fork)["judging_changed"] == []  # a default that is written
    write_params(fork / "params.yaml", gates__max_accuracy_drop=0.9, evaluate__golden=8)
    (fork / "src/core/metrics.py").write_text((fork / "src/core/metrics.py").read_text() + "\n# x\n")
    changed = ["src/core/metrics.py", "params.yaml: evaluate", "params.yaml: gates"]
    assert compare(fork)["judging_changed"] == changed
    assert judge(fork)["verdict"] == "investigate"


def test_another_image_size_set_of_classes_and_test_images_is_asked_of_both(fork: Path) -> None:
    """Grey, at another size, a digit is dropped and one renamed: main's model answers the new test set by its own spec."""
    write_params(fork / "params.yaml", prepare__image_size=6, prepare__channels=1)
    require_success(python(fork, "src", "prepare", "data", "out/arrays", "out/manifest.parquet"))
    assert compare(fork)["found"]
    assert read_json(fork / OUT / "metrics.json", "")["accuracy"] == read_json(fork / "metrics.json", "")["accuracy"]
    table = pq.read_table(fork / "data/digits.parquet")
    names = ["nine" if label == 9 else str(label) for label in table.column("label").to_pylist()]
    renamed = pa.table({"image": table.column("image"), "label": names})
    (fork / "data/digits.parquet").unlink()
    pq.write_table(renamed.filter(pc.not_equal(renamed.column("label"), "8")), fork / "data/digits.parquet")
    require_success(python(fork, "src", "prepare", "data", "out/arrays", "out/manifest.parquet"))
    facts = compare(fork)
    assert (facts["found"], facts["same_test_set"]) == (True, False)
    assert (facts["labels_added"], facts["labels_gone"]) == (["nine"], ["8", "9"])
    left, other = facts["left_test"], facts["relabelled"]
    assert min(left["examples"], other["examples"]) > 10
    assert 0.9 * left["examples"] < left["main_right"] <= left["examples"] < left["of"]
    assert len(left["names"]) == len(other["names"]) == 5
    assert all(text.endswith("(8)") for text in left["names"])
    assert all(text.endswith("(9), now nine") for text in other["names"])
    metrics = read_json(fork / OUT / "metrics.json", "")
    assert metrics["per_class"]["nine"]["recall"] == 0
    assert metrics["per_class"]["3"]["recall"] > 0.9
    rows = pq.read_table(fork / OUT / "predictions.parquet")
    assert "8" not in rows.column("label").to_pylist()


def forget_main(fork: Path) -> None:
    git(fork, "update-index", "--force-remove", "dvc.lock")
    git(fork, "branch", "--force", "main", git(fork, "commit-tree", git(fork, "write-tree"), "-m", "no model yet"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (forget_main, "main has no dvc.lock yet"),
        (lambda fork: git(fork, "branch", "--delete", "--force", "main"), "there is no branch main here"),
        (lambda fork: commit_on_main(fork, (fork / "dvc.lock").unlink), "main's dvc.lock was removed by"),
        (lambda fork: commit_on_main(fork, (fork / "params.yaml").unlink), "'dvc.yaml': Could not find 'kind'"),
        (lose_store, "main's model is in no store (starter: it does not hold all of it)"),
    ],
)
def test_a_model_of_main_that_cannot_be_had_asks_for_a_look_unless_there_never_was_one(
    fork: Path, damage: Any, words: str
) -> None:
    damage(fork)
    facts = compare(fork)
    assert (facts["found"], facts["never"]) == (False, damage is forget_main)
    assert words in facts["why"]
    verdict = judge(fork)
    assert (verdict["verdict"], verdict["baseline"]) == ("pass" if facts["never"] else "investigate", False)
    assert any(words in reason for reason in verdict["reasons"])


def replace_images(fork: Path, keep: int = 0) -> None:
    """Give all images but the first ones another digest, as a fork's own would have."""
    for name in ("out/manifest.parquet", "out/evaluation/predictions.parquet", "out/evaluation/slices.parquet"):
        table, place = pq.read_table(fork / name), Path(fork / name)
        digests = table.column("digest").to_pylist()
        theirs = [digest and f"{digest}{'' if i < keep else '-own'}" for i, digest in enumerate(digests)]
        place.unlink()
        pq.write_table(table.set_column(table.column_names.index("digest"), "digest", pa.array(theirs)), place)


def test_the_templates_example_is_no_model_to_compare_a_first_own_one_with(fork: Path) -> None:
    commit_on_main(fork, lambda: shutil.copyfile(ROOT / "starter/project/manifest.json", fork / "manifest.json"))
    git(fork, "merge", "--quiet", "main")
    replace_images(fork)
    write_params(fork / "params.yaml", gates__min_accuracy=0.5)
    facts = compare(fork)
    assert (facts["example"], facts["never"], facts["found"]) == (True, True, False)
    assert (facts["judging_changed"], facts["first_rules"]) == ([], ["params.yaml: gates"])
    assert not (fork / OUT / "model").exists()  # no latency of the example's either
    verdict = judge(fork)
    assert (verdict["verdict"], verdict["accepted"]) == ("pass", True)
    first = read_json(fork / "manifest.json", "")
    own = sha256(fork / "out/model/model.onnx")
    assert (first["anchor"]["model_sha256"], first["looks"]["examples"], first["looks"]["pull_request"]) == (own, 1, 1)
    (fork / "src/judging/gates.py").write_text((fork / "src/judging/gates.py").read_text() + "\n# x\n")
    assert compare(fork)["judging_changed"] == ["src/judging/gates.py"]
    verdict = judge(fork)
    assert (verdict["verdict"], verdict["lacking"]) == ("investigate", ["engine_reviewed"])


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """What tells of main, in its tree, that its model is the template's example."""
    for name in ("dvc.lock", "manifest.json", "starter/project/manifest.json"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


@pytest.mark.parametrize("default", [True, False])
def test_mains_model_is_found_in_any_store_though_this_branch_has_another(fork: Path, tmp_path: Path, default: bool) -> None:
    """After the report's own commit dvc.lock of the branch no longer names what main's does."""
    require_success(python(fork, "dvc", "remote", "add", "--local", "dead", "https://me:secret@127.0.0.1:9/x"))
    require_success(python(fork, "dvc", "remote", "add", "--local", "young", str(tmp_path / "young")))
    require_success(python(fork, "dvc", "remote", "add", "--local", "other", str(tmp_path / "other")))
    require_success(python(fork, "dvc", "remote", "default", "--local", "other" if default else "young"))
    require_success(python(fork, "dvc", "push", "--remote", "other", "out/model", "out/manifest.parquet"))
    lock = YAML(typ="safe").load((fork / "dvc.lock").read_text())
    (model,) = lock["stages"]["train"]["outs"]
    model["md5"] = "0" * 32 + ".dir"
    with (fork / "dvc.lock").open("w") as file:
        YAML().dump(lock, file)
    git(fork, "commit", "--quiet", "--all", "--message", "judged by the report")
    lose_store(fork)
    assert compare(fork)["found"]
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(fork / ".dvc/cache")
    why = compare(fork)["why"]
    assert all(f"{name}: " in why for name in ("starter", "dead", "young", "other"))
    assert "secret" not in why


def hasty_main(fork: Path) -> None:
    """Main asks for a smaller training than that of its model."""
    commit_on_main(fork, lambda: write_params(fork / "params.yaml", train__epochs=1, train__warmup_epochs=0, train__width=8))


def test_a_lost_model_of_main_is_made_by_training_its_commit_again(fork: Path, tmp_path: Path) -> None:
    hasty_main(fork)
    require_success(python(fork, "dvc", "remote", "add", "--local", "data", str(tmp_path / "data")))
    require_success(python(fork, "dvc", "push", "--remote", "data", "data.dvc"))
    lose_store(fork)
    assert "check the store and its credentials" in compare(fork)["why"]
    facts = compare(fork, "--retrain")
    assert (facts["found"], facts["why"]) == (True, "")
    assert "its commit was trained again for this comparison (the same recipe on this machine" in facts["retrained"]
    assert "data: it does not hold all of it" in facts["retrained"]
    assert read_json(fork / OUT / "card.json", "")["width"] == 8
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(fork / ".dvc/cache")
    facts = compare(fork, "--retrain")
    assert not facts["found"]
    assert "its commit cannot be trained again (its data are in no store either" in facts["why"]


def test_looks_are_counted_and_the_anchor_is_found_in_mains_history(fork: Path) -> None:
    compare(fork)
    judge(fork)
    first = read_json(fork / "manifest.json", "")
    (fork / "manifest.json").unlink()
    assert (first["looks"]["examples"], first["looks"]["pull_request"]) == (1, 1)
    anchor = {"commit": git(fork, "rev-parse", "main"), "model_sha256": first["outputs"]["model_sha256"]}
    assert first["anchor"] == anchor
    commit_on_main(fork, lambda: (fork / "manifest.json").write_text(json.dumps(first)))
    path = fork / "out/model/model.onnx"
    network = onnx.load(path)
    network.doc_string = "main's next model"
    path.unlink()
    onnx.save(network, path)
    card = read_json(fork / "out/model/card.json", "")
    (fork / "out/model/card.json").unlink()
    (fork / "out/model/card.json").write_text(json.dumps({**card, "model_sha256": sha256(path)}))
    require_success(python(fork, "dvc", "commit", "--force", "train"))
    lock = (fork / "dvc.lock").read_text()
    git(fork, "checkout", "--quiet", "dvc.lock")
    told = {**first, "outputs": {**first["outputs"], "model_sha256": sha256(path)}, "anchor": {**anchor, "commit": "f" * 40}}
    told["looks"] = {"examples": 7, "pull_request": 2, "since": "2026-01-02"}

    def edit() -> None:
        (fork / "dvc.lock").write_text(lock)
        (fork / "manifest.json").write_text(json.dumps(told))

    commit_on_main(fork, edit)
    other = {**told, "outputs": {**told["outputs"], "model_sha256": "e" * 64}}
    (fork / "manifest.json").write_text(json.dumps(other))
    git(fork, "add", "manifest.json")
    git(fork, "commit", "--quiet", "--message", "the report's own")
    facts = compare(fork)
    assert facts["found"]
    commit = facts["anchor"]["commit"]
    assert facts["anchor"] == {**anchor, "commit": commit, "is_main": False, "found": True, "why": ""}
    held = json.loads(git(fork, "show", f"{commit}:manifest.json"))["outputs"]["model_sha256"]
    assert held == anchor["model_sha256"]
    assert git(fork, "merge-base", commit, "main") == commit
    answers = pq.read_table(fork / OUT / "anchor/predictions.parquet")
    assert answers.equals(pq.read_table(fork / "out/evaluation/predictions.parquet"))
    assert facts["looks"] == {"examples": 8, "pull_request": 2, "since": "2026-01-02"}
    judge(fork)
    assert read_json(fork / "manifest.json", "")["anchor"] == {**anchor, "commit": commit}


def test_a_merge_that_takes_mains_files_hides_no_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def commit(model: str, where: str) -> str:
        told: dict[str, Any] = {"inputs": {"digest": ""}, "metrics": {}, "verdict": {"verdict": "pass", "reasons": []}}
        told |= {"outputs": {"model_sha256": model}, "data": {"digest": None, "test_sha256": ""}, "commit": None}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        git(tmp_path, "add", "manifest.json")
        git(tmp_path, "commit", "--quiet", "--message", where)
        return git(tmp_path, "rev-parse", "HEAD")

    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit("a", "main")
    git(tmp_path, "checkout", "--quiet", "-b", "branch")
    commit("b", "the report's own")
    git(tmp_path, "checkout", "--quiet", "main")
    main = commit("c", "another model")
    git(tmp_path, "checkout", "--quiet", "branch")
    git(tmp_path, "merge", "--quiet", "--strategy-option", "theirs", "--message", "main's three files", "main")
    assert git(tmp_path, "diff", "--name-only", "main") == ""
    paths = comparing.Paths(*(tmp_path / name for name in ("arrays", "manifest", "model", "data", "params.yaml")))
    facts = Comparison(merge_base=main, commit=main)
    assert comparing._looks(facts, paths) == Looks(pull_request=1, examples=2)
    commit("d", "the report's own again")
    assert comparing._looks(facts, paths) == Looks(pull_request=2, examples=3)


def test_a_model_that_somebody_changed_in_the_store_is_not_compared_with(fork: Path) -> None:
    """The same size and read-only: DVC takes it without a look."""
    digest = hashlib.md5((fork / "out/model/model.onnx").read_bytes()).hexdigest()
    stored = fork / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(content)
    stored.chmod(0o444)
    facts = compare(fork)
    assert not facts["found"]
    assert "somebody changed it there" in facts["why"]


def test_each_label_covers_the_gates_of_its_kind_and_goes_into_the_lineage(fork: Path) -> None:
    write_params(fork / "params.yaml", gates__min_accuracy=1.0)
    compare(fork)
    facts = read_json(fork / "out/main/facts.json", "")
    (fork / "out/main/facts.json").write_text(json.dumps({**facts, "judging_changed": ["src/judging/gates.py"]}))
    override, reviewed = ({"by": by, "at": "now", "label": by, "head": "a" * 40} for by in ("alice", "bob"))
    cases = [
        ({}, ["engine_reviewed", "override"]),
        ({"override": override}, ["engine_reviewed"]),
        ({"engine_reviewed": reviewed}, ["override"]),
        ({"override": override, "engine_reviewed": reviewed}, []),
    ]
    for given, lacking in cases:
        why = {"override": "alice may not", "engine_reviewed": "bob may not"}
        verdict = judge(fork, {**given, "refused": why})
        assert (verdict["lacking"], verdict["accepted"]) == (lacking, not lacking)
        assert verdict["reasons"][len(verdict["reasons"]) - len(lacking) :] == [why[key] for key in lacking]
        written = read_json(fork / "manifest.json", "")["verdict"]
        assert (written["lacking"], "accepted" in written) == (lacking, False)
        for told in (verdict, written):
            assert (told["override"], told["engine_reviewed"]) == (given.get("override"), given.get("engine_reviewed"))
    later = {**override, "head": "b" * 40}
    judge(fork, {"override": later, "engine_reviewed": reviewed})
    assert read_json(fork / "manifest.json", "")["verdict"]["override"] == later
    assert "reviewed by bob (now)" in require_success(python(fork, "src", "lineage", "out/model/model.onnx"))


# The digests
