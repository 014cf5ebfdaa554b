"""Bring main's model beside the one under review: both answer the same test images, on the same machine, in turns.

    python -m src compare origin/main out/main --arrays out/arrays --manifest out/manifest.parquet --model out/model

Writes a folder: facts.json (what main is, how far it has moved, or why there is no model of it), timings.json, and where
main has a model its metrics, predictions, learning curve, card, parameters and manifest rows. Main's model always answers
this working tree's test split, so that a changed test set changes both; so does the anchor, the best model before main's
(anchor/predictions.parquet). With --retrain a commit whose model no store has is trained again in its own tree, and main's
recipe gets the folds and seeds that this working tree's has.
"""

import argparse
import datetime as dt
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from src.core import arrays, results
from src.core.card import Card
from src.core.command import UserError
from src.core.files import check_outputs, read_json, replacing, sha256, write_json
from src.core.inference import Model
from src.core.manifest import read_manifest, split_rule
from src.core.yaml_files import parse_yaml
from src.judging import lineage, speed
from src.system import dvc_lock, hardware, protection
from src.system.git_command import git, has
from src.system.judged import AnchorFacts, Comparison, ExamplesLeft, Looks, ModelAt
from src.system.params import filled, load
from src.system.params_text import put
from src.system.versioning import dvc
from src.system.worktree import bring, checked_out, share_dvc

_BLOCKS, _REQUESTS = 9, 60  # rounds of single-image requests, the two models in turns
_FETCHED = ("out/model", "out/manifest.parquet")
_EXAMPLE = "starter/project/manifest.json"  # the lineage of the model that the template comes with
_NAMED = 5  # examples of a list
_DECIDING = ("kind", "prepare", "validate", "train", "evaluate")


class NoModelError(Exception):
    """Main's model cannot be had; the text says why, for the report."""


class ExampleModelError(NoModelError):
    """Main's model is the template's example: this repository has no model of its own to compare with yet."""


@dataclass(frozen=True)
class Paths:
    """What the pipeline of this working tree made; the first three may be missing after a failure."""

    arrays: Path
    manifest: Path
    model: Path
    data: Path
    params: Path


def compare(base: str, out: Path, paths: Paths, retrain: bool = False) -> None:
    """Write the folder `out`; `retrain` makes models that no store has by training their commits again.

    Raises:
        UserError: this is no Git repository, or a file of the working tree is damaged.
    """
    with replacing(out) as fresh:
        fresh.mkdir()
        facts = _history(base, paths.params)
        try:
            if facts.why:
                raise NoModelError(facts.why)
            with checked_out(facts.commit) as tree:
                share_dvc(tree)
                facts = _fetch(facts, tree, fresh, paths, retrain)
                if wanted := _series_to_bring(fresh, paths):
                    # a pull request could write its own manifest.json: only what nobody reviews any more reads it
                    trained = partial(_train_series, tree) if retrain else _reviewed_series
                    facts = trained(facts, wanted, fresh, paths)
                _answer(fresh, paths, "main's model")
                facts = replace(_test_changes(facts, tree, fresh, paths), found=True)
        except ExampleModelError as error:
            # the gates of params.yaml, too, are the template's: these are the first of this repository's own
            changed, first = _engine_files(facts.merge_base), _engine_params(facts.merge_base, paths.params)
            facts = replace(facts, example=True, never=True, why=str(error), judging_changed=changed, first_rules=first)
        except Exception as error:  # whatever main holds, the report on this side is still wanted, and asks for a look
            facts = replace(facts, why=_words(error, "main's"))
        facts = replace(facts, looks=_looks(facts, paths))
        facts = _anchor(facts, fresh, paths, retrain)
        write_json(fresh / "timings.json", _time(fresh / "model", paths))
        write_json(fresh / "facts.json", facts.to_json())
    if not facts.found:
        print(f"not compared with main: {facts.why}")
        return
    moved = f", {facts.behind} commits ahead of this branch" if facts.behind else ""
    print(f"compared with {facts.ref} at {facts.commit[:12]}{moved}")


def _words(error: Exception, whose: str) -> str:
    if isinstance(error, NoModelError | UserError):
        return str(error)
    return f"{whose} files cannot be read: {type(error).__name__}: {error}"


# ---------------------------------------------------------------------------------------------------------------------
# Git: where main is, and what changed on either side
# ---------------------------------------------------------------------------------------------------------------------


def _history(base: str, params: Path) -> Comparison:
    names = [base, base.removeprefix("origin/")]  # a repository without a remote has its own main
    commit = next(filter(None, (git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") for name in names)), "")
    why = "" if commit else f"there is no branch {base} here: fetch it, or name another with BASE="
    facts = Comparison(ref=base, commit=commit, merge_base=commit, why=why)
    if commit and not git("ls-tree", "--name-only", commit, "dvc.lock"):
        never, why = _never(commit)
        facts = replace(facts, never=never, why=why)
    fork_point = git("merge-base", "HEAD", commit) if commit else ""
    if not fork_point:
        return facts
    moved: list[str] = []
    with suppress(UserError):  # a dvc.yaml that cannot be read has failed the pipeline already
        moved = _moved(fork_point, commit, params)
    return replace(
        facts,
        merge_base=fork_point,
        behind=int(git("rev-list", "--count", f"HEAD..{commit}")),
        moved_inputs=moved,
        judging_changed=_engine_files(fork_point) + _engine_params(fork_point, params),
    )


def _never(commit: str) -> tuple[bool, str]:
    """Say whether main never had a model, or had one that nobody can find without its dvc.lock; and why."""
    removed = git("log", "-1", "--format=%h", commit, "--", "dvc.lock")
    if removed:
        return False, f"main's dvc.lock was removed by {removed}: restore it with git checkout {removed}^ dvc.lock"
    if git("rev-parse", "--is-shallow-repository") == "true":
        return False, "main has no dvc.lock here, and its history is cut off: git fetch --unshallow"
    return True, "main has no dvc.lock yet: nothing was reproduced there"


def _moved(fork_point: str, commit: str, params: Path) -> list[str]:
    """Return what the model depends on and main has changed since, where this working tree has not the same already."""
    inputs = dvc_lock.model_inputs(Path())
    folders = tuple(f"{name}/" for name in inputs)
    differs = git("diff", "--name-only", fork_point, commit).splitlines()
    changed = {path for path in differs if path in inputs or path.startswith(folders)}
    moved = sorted(path for path in changed - {str(params)} if git("show", f"{commit}:{path}") != _text(Path(path)))
    if str(params) in changed:
        then, now, here = _sections(fork_point, params), _sections(commit, params), _sections("", params)
        names = [name for name in _DECIDING if then.get(name) != now.get(name) != here.get(name)]
        moved += [f"{params}: {name}" for name in names]
    return moved


def _engine_files(fork_point: str) -> list[str]:
    """Return the protected files that this working tree has changed."""
    return protection.protected(git("diff", "--name-only", "--no-renames", "-z", fork_point).split("\0")[:-1])


def _engine_params(fork_point: str, params: Path) -> list[str]:
    """Return the protected sections of params.yaml that this working tree has changed."""
    then, here = _sections(fork_point, params), _sections("", params)
    return [f"{params}: {name}" for name in protection.RULES if then and then.get(name) != here.get(name)]


def _sections(commit: str, params: Path) -> dict[str, Any]:
    """Read params.yaml of a commit, or of the working tree for "", with the defaults; {} where there is none to read."""
    text = git("show", f"{commit}:{params}") if commit else _text(params)
    try:
        content = parse_yaml(text, params)
    except UserError:  # an earlier commit may hold anything
        return {}
    return filled(content) if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.is_file() else ""


# ---------------------------------------------------------------------------------------------------------------------
# Main's model, and its answers
# ---------------------------------------------------------------------------------------------------------------------


def _fetch(facts: Comparison, tree: Path, out: Path, paths: Paths, retrain: bool) -> Comparison:
    """Copy what is compared out of main's tree: the model that main's dvc.lock names, or its recipe trained again.

    Raises:
        NoModelError: it cannot be had, or is the template's example and no image of that is left.
    """
    lost = bring(tree, _FETCHED)
    retrained = _train_again(tree, "main's model", lost, retrain) if lost else ""
    if not lost and not all(dvc_lock.is_as_recorded(tree, name) for name in _FETCHED):
        raise NoModelError(
            "the model that the store gave is not the one that main's dvc.lock names: somebody changed it there"
        )
    if _has_no_image_of(tree, paths) and _is_example(tree):
        raise ExampleModelError("main's model is the template's example, made of the starter data")
    main_run = lineage.read(tree / "manifest.json")
    if main_run and main_run.outputs.model_sha256 != sha256(tree / "out/model/model.onnx"):
        main_run = None  # reproduced on main since, without a report: the lineage is an earlier model's
    try:
        Card.read(tree / "out/model/card.json", made_by="train")
    except UserError as error:
        key = str(error).partition(": ")[0].removeprefix(f"{tree}/")
        raise NoModelError(
            f"another version of the template made main's model, which this one cannot read ({key})"
        ) from None
    shutil.copytree(tree / "out/model", out / "model")
    for source, name in (
        ("out/model/history.csv", "history.csv"),
        ("out/model/card.json", "card.json"),
        ("out/manifest.parquet", "rows.parquet"),
        ("params.yaml", "params.yaml"),
    ):
        shutil.copyfile(tree / source, out / name)
    return replace(facts, main_run=main_run, retrained=retrained)


def _has_no_image_of(tree: Path, paths: Paths) -> bool:
    """True where none of main's images, by its digest, is in this data set."""
    if not paths.manifest.is_file():
        return False
    mine, theirs = (
        pq.read_table(path, columns=["digest"]).column("digest") for path in (paths.manifest, tree / "out/manifest.parquet")
    )
    return not pc.any(pc.is_in(theirs.drop_null(), mine.drop_null())).as_py()


def _is_example(tree: Path) -> bool | None:
    """True where main's model is made of the data that the template comes with; None where its own files do not tell.

    Main's files tell, which no pull request can change.
    """
    with suppress(UserError):
        example, main = (lineage.read(tree / name) for name in (_EXAMPLE, "manifest.json"))
        if example and main and example.data.digest:
            of_model = dvc_lock.inputs(tree)["stages"].get("prepare", {}).get("deps", {}).get("data")
            return {main.data.digest, of_model} == {example.data.digest}
    return None


def _train_again(tree: Path, whose: str, lost: str, wanted: bool) -> str:
    """Train a checked-out commit whose model no store has; return the sentence that tells it.

    Raises:
        NoModelError: it is not wanted, or does not go.
    """
    told = f"{whose} is in no store ({lost})"
    if not wanted:
        raise NoModelError(f"{told}: check the store and its credentials, or dvc push it from where it is")
    print(f"{told}: its commit is trained again")
    recorded = dvc_lock.recorded(tree).get("out/model")
    if why := _reproduce(tree):
        raise NoModelError(f"{told}, and its commit cannot be trained again ({why}): dvc push it from where it is")
    same = dvc_lock.md5(tree / "out/model") == recorded
    model = "the very model, byte for byte" if same else "the same recipe on this machine, not the same bytes"
    return f"{told}: its commit was trained again for this comparison ({model})"


def _reproduce(tree: Path) -> str:
    """Run the stages up to train in a checked-out commit; return why they failed, or ""."""
    if (tree / "data.dvc").is_file() and (lost := bring(tree, ["data.dvc"])):
        return f"its data are in no store either: {lost}"
    done = dvc("repro", "train", folder=tree, capture=True)
    return " ".join(done.stderr.split())[-300:] if done.returncode else ""


def _series_to_bring(out: Path, paths: Paths) -> list[str]:
    """Return which of folds and repeats this working tree's model has, and main's has none that is comparable with them."""

    def alike(kind: str) -> bool:  # scored on the same examples and as long
        files = [folder / f"{kind}.json" for folder in (paths.model, out / "model")]
        one, other = (read_json(path, made_by="train") if path.is_file() else {} for path in files)
        return one.get("split_sha256") == other.get("split_sha256") and len(one["runs"]) == len(other.get("runs", []))

    made = [kind for kind in ("folds", "repeats") if (paths.model / f"{kind}.json").is_file()]
    wanted = [kind for kind in made if not alike(kind)]
    same = wanted and _same(_fitted_rows(paths.manifest), _fitted_rows(out / "rows.parquet"))
    return wanted if same else []


def _train_series(tree: Path, facts: Comparison, wanted: list[str], out: Path, paths: Paths) -> Comparison:
    """Train main's commit with the folds and seeds of this working tree's model.

    Only folds.json and repeats.json are taken of it. Returns the facts with `series`, and a sentence more in `retrained`,
    where it goes.
    """
    train = load(paths.params).train
    values = {"folds": train.folds, "repeats": train.repeats, "seed": train.seed}  # the seed deals the folds
    text = put((tree / "params.yaml").read_text(), {("train", key): value for key, value in values.items()})
    (tree / "params.yaml").write_text(text)
    counts = {"folds": train.folds, "seeds": train.repeats}
    series = " and ".join(f"{count} {what}" for what, count in counts.items() if count > 1)
    print(f"main's commit is trained again with {series}")
    if why := _reproduce(tree):
        print(f"main's commit could not be trained with {series}: {why}")
        return facts
    for kind in wanted:
        shutil.copyfile(tree / "out/model" / f"{kind}.json", out / "model" / f"{kind}.json")
    told = f"main's commit was trained again with {series}, as this model was"
    return replace(facts, retrained=f"{facts.retrained} {told}".strip(), series=wanted)


def _reviewed_series(facts: Comparison, wanted: list[str], out: Path, paths: Paths) -> Comparison:
    """Take main's folds and repeats from the lineage of the model: its review trained them, a deployment trains nothing."""
    found = lineage.read(Path("manifest.json"))
    reviewed = found.main if found else None
    if reviewed is None or reviewed.model_sha256 != sha256(out / "model/model.onnx"):
        return facts
    series = [kind for kind in wanted if kind in reviewed.series]
    for kind in series:
        mine = read_json(paths.model / f"{kind}.json", made_by="train", keys=("answers",))
        write_json(out / "model" / f"{kind}.json", lineage.unpack_series(reviewed.series[kind], mine))
    return replace(facts, series=series)


def _fitted_rows(manifest: Path) -> pa.Table:
    rows = read_manifest(manifest)
    return rows.filter(pc.is_in(rows.column("split"), pa.array(["train", "validation"])))


def _answer(out: Path, paths: Paths, whose: str) -> None:
    """Let the model in `out` answer this working tree's test split; write metrics.json and predictions.parquet.

    Raises:
        NoModelError: it cannot.
    """
    if not (paths.arrays.is_dir() and paths.manifest.is_file()):
        return
    made = [paths.arrays, paths.manifest, out / "model", out / "metrics.json", out]
    options = ["--data", paths.data, "--params", paths.params]
    safe = ["-P"] if sys.flags.safe_path else []  # at a merge the working directory is not this code's
    command = [sys.executable, *safe, "-m", "src", "answer", *map(str, made + options)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise NoModelError(f"{whose} cannot answer the test examples: {lines[-1].removeprefix('answer: ')[:300]}")


def _test_changes(facts: Comparison, tree: Path, out: Path, paths: Paths) -> Comparison:
    """Tell how labels, test examples and the rule of the split differ from main's."""
    if not (paths.arrays.is_dir() and paths.manifest.is_file()):
        return facts
    mine, theirs = results.test_rows(paths.manifest), results.test_rows(out / "rows.parquet")
    labels = dict(zip(mine.column("digest").to_pylist(), mine.column("label").to_pylist(), strict=True))
    rows = theirs.select(["path", "row", "digest", "label"]).to_pylist()
    gone = [row for row in rows if row["digest"] not in labels]
    other = [row for row in rows if row["digest"] in labels and labels[row["digest"]] != row["label"]]
    why, main_right = "", None
    if _has_no_image_of(tree, paths) and _is_example(tree) is None:
        why = f"whether main's model is the template's example is not known, as {_EXAMPLE} there cannot be read"
    if gone and not bring(tree, ["out/evaluation"]):
        answers = pq.read_table(tree / "out/evaluation/predictions.parquet").to_pylist()
        digests = {row["digest"] for row in gone}
        main_right = sum(row["prediction"] == row["label"] for row in answers if row["digest"] in digests)
    names = [_named(row) for row in gone[:_NAMED]]
    renamed = [f"{_named(row)}, now {labels[row['digest']]}" for row in other[:_NAMED]]
    known, here = Card.read(out / "card.json", made_by="train").classes, arrays.load(paths.arrays).classes
    rules = [split_rule(path) for path in (out / "rows.parquet", paths.manifest)]
    return replace(
        facts,
        labels_added=sorted(set(here) - set(known)),
        labels_gone=sorted(set(known) - set(here)),
        left_test=ExamplesLeft(examples=len(gone), of=len(rows), names=names, main_right=main_right, why=why),
        relabelled=ExamplesLeft(examples=len(other), names=renamed),
        split_rules=rules if rules[0] != rules[1] else [],
        same_test_set=_same(mine, theirs),
        same_training=_same(_fitted_rows(paths.manifest), _fitted_rows(out / "rows.parquet")),
    )


def _named(row: dict[str, Any]) -> str:
    place = row["path"] if row["row"] is None else f"{row['path']} row {row['row']}"
    return f"{place} ({row['label']})"


def _same(mine: pa.Table, theirs: pa.Table) -> bool:
    columns = ["digest", "label"]
    return sorted(map(str, mine.select(columns).to_pylist())) == sorted(map(str, theirs.select(columns).to_pylist()))


# ---------------------------------------------------------------------------------------------------------------------
# What these test examples have judged before, and the best model so far
# ---------------------------------------------------------------------------------------------------------------------


def _looks(facts: Comparison, paths: Paths) -> Looks:
    """Count the models that these test examples have judged: those of this branch, and those that led to main's."""
    test = lineage.test_digest(results.test_rows(paths.manifest)) if paths.manifest.is_file() else ""
    since_main = f"{facts.merge_base or 'HEAD'}..HEAD"
    # a merge of main that takes its three files hides from Git's short history what the branch had before
    asked = ("log", "--full-history", "--no-merges", "--format=%H", since_main, "--", "manifest.json")
    found = [there for there in map(lineage.at, git(*asked).splitlines()) if there and there.data.test_sha256 == test]
    models = {there.outputs.model_sha256 for there in found}
    if (paths.model / "model.onnx").is_file():
        models.add(sha256(paths.model / "model.onnx"))
    main = lineage.at(facts.commit)
    today, counted = dt.datetime.now(dt.UTC).date().isoformat(), max(1, len(models))
    if main is None or not (main.data.test_sha256 == test or facts.same_test_set):
        since = min((there.looks.since for there in found if there.looks and there.looks.since), default=today)
        return Looks(examples=len(models), pull_request=counted, since=since)
    before = main.looks or Looks()
    new = models - {main.outputs.model_sha256}
    examples = (1 if before.examples is None else before.examples) + len(new)
    return Looks(examples=examples, pull_request=counted, since=before.since)


def _anchor(facts: Comparison, out: Path, paths: Paths, retrain: bool) -> Comparison:
    """Let the anchor answer the test split too, where it is another model than main's."""
    if facts.never:
        return facts
    there = lineage.at(facts.commit)
    main = there.outputs.model_sha256 if there else ""
    if facts.found and facts.main_run is None and not facts.retrained:
        main = sha256(out / "model/model.onnx")  # the manifest is of an earlier model
    named = lineage.anchor(facts.commit)
    if named is None or named.model_sha256 == main:
        is_main = AnchorFacts(commit=facts.commit, model_sha256=main, is_main=True, found=facts.found, why=facts.why)
        return replace(facts, anchor=is_main)
    why, retrained = "", facts.retrained
    try:
        retrained = _answer_of_anchor(named, out, paths, retrain, retrained)
    except Exception as error:  # likewise
        why = _words(error, "the anchor's")
    anchor = AnchorFacts(commit=named.commit or "", model_sha256=named.model_sha256, found=not why, why=why)
    return replace(facts, anchor=anchor, retrained=retrained)


def _answer_of_anchor(named: ModelAt, out: Path, paths: Paths, retrain: bool, retrained: str) -> str:
    """Bring the anchor's model and let it answer; return `retrained`, with a sentence more where it was trained again.

    Raises:
        NoModelError: it cannot be had, or cannot answer.
    """
    commit = named.commit or ""
    if not has(commit):
        raise NoModelError(f"no commit of main holds it, and {commit[:12]} is not in this clone")
    with checked_out(commit) as tree:
        share_dvc(tree)
        if lost := bring(tree, ["out/model"]):
            whose = f"the anchor's model (the best so far, {commit[:12]})"
            retrained = f"{retrained} {_train_again(tree, whose, lost, retrain)}".strip()
        elif sha256(tree / lineage.MODEL) != named.model_sha256:
            raise NoModelError(f"{commit[:12]} holds another model than the anchor that main's manifest names")
        shutil.copytree(tree / "out/model", out / "anchor/model")
    _answer(out / "anchor", paths, "the anchor's model")
    return retrained


# ---------------------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------------------


def _time(main_model: Path, paths: Paths) -> dict[str, Any]:
    """Time single images on both models in turns, so that a busy machine is busy for both."""
    folders = {"candidate": paths.model, "main": main_model}
    models = {name: Model(folder) for name, folder in folders.items() if (folder / "model.onnx").is_file()}
    blocks: dict[str, list[Any]] = {name: [] for name in models}
    random = np.random.default_rng(0)
    for _ in range(_BLOCKS):
        for name, model in models.items():
            images = random.integers(0, 256, (8, *model.spec.shape)).astype(model.spec.dtype)
            blocks[name].append(speed.latencies(model, images, _REQUESTS))
    told: dict[str, Any] = {"candidate": None, "hardware": hardware.describe(), "main": None}
    for name, taken in blocks.items():
        p95 = [round(float(np.percentile(block, 95)), 4) for block in taken]
        told[name] = {**speed.percentiles(np.concatenate(taken)), "blocks": p95}
    return told


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description="Let main's model answer this working tree's test images.")
    parser.add_argument("base", help="the branch to compare with, such as origin/main")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--arrays", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest that prepare wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that train wrote")
    parser.add_argument("--data", type=Path, default=Path("data"), help="raw data, for another image size than main's")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--retrain", action="store_true", help="train the commit of a model that no store has again")
    args = parser.parse_args()
    os.environ.setdefault("GIT_TERMINAL_PROMPT", "0")
    os.environ["MLFLOW_TRACKING_URI"] = ""  # what is trained again here is nobody's experiment
    check_outputs([args.arrays, args.manifest, args.model, args.data], folders=[args.out])
    paths = Paths(args.arrays, args.manifest, args.model, args.data, args.params)
    compare(args.base, args.out, paths, args.retrain)
