"""Bring main's model beside the one under review: both answer the same test images, on the same machine, in turns.

    python -m src.report.compare origin/main out/main --arrays out/arrays --manifest out/manifest.parquet --model out/model

Writes a folder: facts.json (what main is, how far it has moved, or why there is no model of it), timings.json, and where
main has a model its metrics, predictions, learning curve, card, parameters and manifest rows. Main's model always answers
this working tree's test split, so that a changed test set changes both.
"""

import argparse
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ruamel.yaml import YAML

from src import arrays, hardware, lineage, results
from src.command import UserError, run
from src.files import check_outputs, replacing, sha256, write_json
from src.inference import Model
from src.params import Evaluate, load
from src.worktree import bring, checked_out, git, share_dvc

_BLOCKS, _REQUESTS = 9, 60  # rounds of single-image requests, the two models in turns
_FETCHED = ("out/model", "out/manifest.parquet")
_DECIDING = ("prepare", "validate", "train", "evaluate")


class NoModelError(Exception):
    """Main's model cannot be had; the text says why, for the report."""


@dataclass(frozen=True)
class Paths:
    """What the pipeline of this working tree made; the first three may be missing after a failure."""

    arrays: Path
    manifest: Path
    model: Path
    data: Path
    params: Path


def compare(base: str, out: Path, paths: Paths) -> None:
    """Write the folder `out`.

    Raises:
        UserError: this is no Git repository, or a file of the working tree is damaged.
    """
    with replacing(out) as fresh:
        fresh.mkdir()
        facts = _history(base, paths.params)
        try:
            if facts["why"]:
                raise NoModelError(facts["why"])
            with checked_out(facts["commit"]) as tree:
                share_dvc(tree)
                facts |= _fetch(tree, fresh)
                facts |= _answer(fresh, paths)
                facts["found"] = True
        except (NoModelError, UserError) as error:  # whatever main holds, the report on this side is still wanted
            facts["why"] = str(error)
        write_json(fresh / "timings.json", _time(fresh / "model", paths))
        write_json(fresh / "facts.json", facts)
    print(_tell(facts))


def _tell(facts: dict[str, Any]) -> str:
    if not facts["found"]:
        return f"not compared with main: {facts['why']}"
    moved = f", {facts['behind']} commits ahead of this branch" if facts["behind"] else ""
    return f"compared with {facts['ref']} at {facts['commit'][:12]}{moved}"


# ---------------------------------------------------------------------------------------------------------------------
# Git: where main is, and what changed on either side
# ---------------------------------------------------------------------------------------------------------------------


def _history(base: str, params: Path) -> dict[str, Any]:
    names = [base, base.removeprefix("origin/")]  # a repository without a remote has its own main
    commit = next(filter(None, (git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") for name in names)), "")
    facts: dict[str, Any] = {
        "behind": 0,
        "commit": commit,
        "found": False,
        "judging_changed": [],
        "main_run": None,
        "merge_base": commit,
        "moved_inputs": [],
        "never": False,
        "ref": base,
        "same_test_set": False,
        "why": "" if commit else f"there is no branch {base} here: fetch it, or name another with BASE=",
    }
    if commit and not git("ls-tree", "--name-only", commit, "dvc.lock"):
        facts |= _never(commit)
    fork_point = git("merge-base", "HEAD", commit) if commit else ""
    if not fork_point:
        return facts
    facts["merge_base"] = fork_point
    facts["behind"] = int(git("rev-list", "--count", f"HEAD..{commit}"))
    with suppress(UserError):  # a dvc.yaml that cannot be read has failed the pipeline already
        facts["moved_inputs"] = _moved(fork_point, commit, params)
    facts["judging_changed"] = _judging_changed(fork_point, params)
    return facts


def _never(commit: str) -> dict[str, Any]:
    """Say whether main never had a model, or had one that nobody can find without its dvc.lock."""
    removed = git("log", "-1", "--format=%h", commit, "--", "dvc.lock")
    if removed:
        why = f"main's dvc.lock was removed by {removed}: restore it with git checkout {removed}^ dvc.lock"
        return {"never": False, "why": why}
    if git("rev-parse", "--is-shallow-repository") == "true":
        return {"never": False, "why": "main has no dvc.lock here, and its history is cut off: git fetch --unshallow"}
    return {"never": True, "why": "main has no dvc.lock yet: nothing was reproduced there"}


def _moved(fork_point: str, commit: str, params: Path) -> list[str]:
    """Return what the model depends on and main has changed since, where this working tree has not the same already."""
    changed = set(git("diff", "--name-only", fork_point, commit).splitlines()) & lineage.model_inputs(Path())
    moved = sorted(path for path in changed - {str(params)} if git("show", f"{commit}:{path}") != _text(Path(path)))
    if str(params) in changed:
        then, now, here = _sections(fork_point, params), _sections(commit, params), _sections("", params)
        names = [name for name in _DECIDING if then.get(name) != now.get(name) != here.get(name)]
        moved += [f"{params}: {name}" for name in names]
    return moved


def _judging_changed(fork_point: str, params: Path) -> list[str]:
    """Return what decides how models are judged and this working tree has changed."""
    changed = set(git("diff", "--name-only", fork_point).splitlines()) & set(lineage.JUDGING)
    then, here = _sections(fork_point, params), _sections("", params)
    # where main had no such section, there is nothing that could have been weakened
    sections = [name for name in ("evaluate", "gates") if name in then and then[name] != here.get(name)]
    return sorted(changed) + [f"{params}: {name}" for name in sections]


def _sections(commit: str, params: Path) -> dict[str, Any]:
    """Read params.yaml of a commit, or of the working tree for an empty name; {} where there is none to read."""
    text = git("show", f"{commit}:{params}") if commit else _text(params)
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except Exception:  # an earlier commit may hold anything
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.is_file() else ""


# ---------------------------------------------------------------------------------------------------------------------
# Main's model, and its answers
# ---------------------------------------------------------------------------------------------------------------------


def _fetch(tree: Path, out: Path) -> dict[str, Any]:
    """Copy what is compared out of main's tree; the model only when it is the one that main's dvc.lock names."""
    if lost := bring(tree, _FETCHED):
        raise NoModelError(
            f"main's model is in no store ({lost}): check the store and its credentials, or dvc push it from where it is"
        )
    if not lineage.is_as_recorded(tree, "out/model"):
        raise NoModelError(
            "the model that the store gave is not the one that main's dvc.lock names: somebody changed it there"
        )
    main_run = lineage.read_manifest(tree / "manifest.json")
    if main_run and main_run["outputs"]["model_sha256"] != sha256(tree / "out/model/model.onnx"):
        main_run = None  # reproduced on main since, without a report: the lineage is an earlier model's
    shutil.copytree(tree / "out/model", out / "model")
    for source, name in (
        ("out/model/history.csv", "history.csv"),
        ("out/model/card.json", "card.json"),
        ("out/manifest.parquet", "rows.parquet"),
        ("params.yaml", "params.yaml"),
    ):
        shutil.copyfile(tree / source, out / name)
    return {"main_run": main_run}


def _answer(out: Path, paths: Paths) -> dict[str, Any]:
    """Let main's model answer this working tree's test split; write metrics.json and predictions.parquet."""
    if not (paths.arrays.is_dir() and paths.manifest.is_file()):
        return {}
    model = Model(out / "model")
    rows = results.test_rows(paths.manifest)
    probabilities = model.probabilities(_images_for(model, out, paths))
    here = arrays.load(paths.arrays)
    classes = [*here.classes, *(name for name in model.classes if name not in here.classes)]
    spread = _spread(probabilities, model.classes, classes)
    labels = here.split("test").labels
    params = load(paths.params).evaluate
    write_json(out / "metrics.json", _numbers(labels, spread, classes, rows, params, model))
    pq.write_table(results.predictions(labels, spread, classes, rows), out / "predictions.parquet", compression="zstd")
    return {"same_test_set": _same(rows, results.test_rows(out / "rows.parquet"))}


def _numbers(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: list[str],
    rows: pa.Table,
    params: Evaluate,
    model: Model,
) -> dict[str, Any]:
    told = results.numbers(labels, probabilities, classes, rows, params)
    present = {name: row for name, row in told["per_class"].items() if row["images"] or name in model.classes}
    several = results.trainings(model.path.parent, params.confidence)
    return {**told, **several, "model_bytes": model.path.stat().st_size, "per_class": present}


def _spread(probabilities: NDArray[np.float32], own: list[str], classes: list[str]) -> NDArray[np.float32]:
    """Place a model's columns among those of all classes; a class that it does not know has probability 0."""
    spread = np.zeros((len(probabilities), len(classes)), dtype=np.float32)
    spread[:, [classes.index(name) for name in own]] = probabilities
    return spread


def _same(mine: pa.Table, theirs: pa.Table) -> bool:
    columns = ["digest", "label"]
    return sorted(map(str, mine.select(columns).to_pylist())) == sorted(map(str, theirs.select(columns).to_pylist()))


def _images_for(model: Model, out: Path, paths: Paths) -> NDArray[np.uint8]:
    """Return this working tree's test images as main's model takes them: prepared anew where size or fit changed."""
    here = arrays.load(paths.arrays)
    if (here.size, here.channels, here.fit) == (model.size, model.channels, model.card["fit"]):
        return here.split("test").images
    if not paths.data.is_dir():
        raise NoModelError(f"main's model takes another image size and {paths.data} is not there to prepare it from")
    folder = out / "prepared"
    yaml = YAML()
    content = yaml.load(paths.params.read_text())
    content["prepare"] |= {"image_size": list(model.size), "channels": model.channels, "fit": model.card["fit"]}
    with (out / "prepare.yaml").open("w") as file:
        yaml.dump(content, file)
    made_of = [str(paths.data), str(folder), str(out / "prepared.parquet"), "--params", str(out / "prepare.yaml")]
    command = [sys.executable, "-m", "src.stages.prepare", *made_of]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NoModelError(f"the test images could not be prepared for main's model ({made.stderr.strip()[-200:]})")
    images = np.array(arrays.load(folder).split("test").images)
    shutil.rmtree(folder)
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------------------


def _time(main_model: Path, paths: Paths) -> dict[str, Any]:
    """Time single images on both models in turns, so that a busy machine is busy for both."""
    folders = {"candidate": paths.model, "main": main_model}
    models = {name: Model(folder) for name, folder in folders.items() if (folder / "model.onnx").is_file()}
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    random = np.random.default_rng(0)
    for _ in range(_BLOCKS):
        for name, model in models.items():
            images = random.integers(0, 256, (8, *model.size, model.channels), dtype=np.uint8)
            blocks[name].append(hardware.latencies(model, images, _REQUESTS))
    told: dict[str, Any] = {"candidate": None, "hardware": hardware.describe(), "main": None}
    for name, taken in blocks.items():
        p95 = [round(float(np.percentile(block, 95)), 4) for block in taken]
        told[name] = {**hardware.percentiles(np.concatenate(taken)), "blocks": p95}
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
    args = parser.parse_args()
    check_outputs([args.arrays, args.manifest, args.model, args.data], folders=[args.out])
    compare(args.base, args.out, Paths(args.arrays, args.manifest, args.model, args.data, args.params))


if __name__ == "__main__":
    os.environ.setdefault("GIT_TERMINAL_PROMPT", "0")
    run("compare", main)
