"""Is the model of a commit the one that was reviewed, and may it ship? Nothing is trained, nothing of DVC's is run again.

    python -m src verify out/release [--commit HEAD] [--again]

Checks the commit, not the working tree: its inputs against manifest.json, the pulled bytes against dvc.lock and the SHA-256
of the review; then the rules of the deployed commit judge it once more. Writes the folder that `src/release/reviewed.py`
describes, or refuses and leaves none. It leaves none either, and is content, where the commit changes neither the model nor
the engine of what is deployed; --again, or a workflow started by hand, goes on all the same.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.core.card import Card
from src.core.command import UserError
from src.core.files import check_outputs, read_json, replacing, sha256, write_json
from src.core.metrics_file import MetricsFile
from src.github.labels import LABELS
from src.judging import lineage
from src.release import int8, modelcheck, overriding, production, reviewed, verdict
from src.release.outcome import RefusedError, telling
from src.release.production import Deployed
from src.release.reviewed import RELEASE, Release
from src.release.verdict import CannotJudgeError, Judgement
from src.system import dvc_lock
from src.system.git_command import git
from src.system.judged import JudgedFile, Lineage
from src.system.params import load
from src.system.worktree import bring, checked_out, share_dvc

_PULLED = ("out/model", "out/evaluation", "out/arrays", "out/manifest.parquet", "out/validation.json")
_TRACKED = ("manifest.json", "dvc.lock", "dvc.yaml", "params.yaml", "metrics.json")
_WITHIN = {"accuracy": 0.002, "log_loss": 0.01}  # of the reviewed numbers, on another processor
_TRIES = 3
_RETRAIN = (
    "git switch -c retrain && make reproduce report && git commit --all --message 'Train on what main is now' && "
    "git push --set-upstream origin retrain && gh pr create --fill"
)


def verify(folder: Path, commit_name: str, *, again: bool) -> None:
    """Write the folder, or none where what is deployed is the same.

    Raises:
        RefusedError: the commit's model is not the reviewed one (moved, tampered, missing), or does not pass (gates).
    """
    # what is refused now must not be found there
    check_outputs([], folders=[folder])
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RELEASE).is_file():
        raise UserError(f"{folder} holds something that verify did not make: name another folder, or move it away")
    shutil.rmtree(folder, ignore_errors=True)
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit_name}^{{commit}}")
    if not commit:
        raise UserError(f"there is no commit {commit_name} here: name another with --commit, or run from a Git repository")
    print(f"commit {commit[:12]}: {git('show', '--no-patch', '--format=%s', commit)}")
    if changed := [line.split(maxsplit=1)[1] for line in git("status", "--porcelain").splitlines()]:
        print(f"uncommitted changes are not deployed: {', '.join(changed[:5])}")
    deployed = production.find()
    if not again and production.is_unchanged(deployed, commit):
        print(f"unchanged: neither model nor engine has changed since the deployed commit {str(deployed.commit)[:12]}")
        if target := os.environ.get("GITHUB_OUTPUT"):
            with Path(target).open("a") as file:
                file.write("unchanged=true\n")
        return
    overriding.require_read(deployed.commit, commit)
    with checked_out(commit) as tree, _without_its_path(tree), TemporaryDirectory(prefix="judged-") as judged:
        manifest = _reviewed_inputs(tree, commit)
        share_dvc(tree)
        _pull(tree)
        _reviewed_bytes(tree, manifest)
        _golden_answers(tree)
        table = _judge_again(tree, commit, deployed, manifest, Path(judged))
        _write(folder, tree, commit, manifest, Path(judged), table)
    print(f"verified: {folder} holds what is released")


@contextmanager
def _without_its_path(tree: Path) -> Iterator[None]:
    """A person does not know the temporary folder that a message names."""
    try:
        yield
    except RefusedError:
        raise
    except UserError as error:
        raise UserError(str(error).replace(f"{tree}/", "")) from None


# ---------------------------------------------------------------------------------------------------------------------
# The reviewed one
# ---------------------------------------------------------------------------------------------------------------------


def _reviewed_inputs(tree: Path, commit: str) -> Lineage:
    """Return the manifest of the commit, whose inputs are still those that the model was made of."""
    missing = [name for name in _TRACKED if not (tree / name).is_file()]
    if missing:
        raise RefusedError(
            "missing",
            f"commit {commit[:12]} has no {', '.join(missing)}: no model of it was reviewed",
            "run make reproduce report, commit what they wrote and open a pull request",
        )
    try:
        manifest = Lineage.parse((tree / "manifest.json").read_text(errors="replace"), "manifest.json")
    except UserError as error:
        then = "restore it with git checkout, or let a pull request's report write it"
        raise RefusedError("tampered", f"manifest.json is damaged ({error})", then) from None
    now, told = dvc_lock.inputs(tree), manifest.verdict
    reviewed_inputs = manifest.inputs.to_json()
    differs = dvc_lock.moved(reviewed_inputs, now) or (["dvc.lock"] if reviewed_inputs != now else [])
    # engine: reviewed covers no failed gate; of the others, the review says which label would
    lacking, by = (
        [LABELS[key] for key in told.lacking],
        told.override or (told.verdict == "investigate" and told.engine_reviewed),
    )
    differs = sorted({*differs, *dvc_lock.stale(tree)})
    if differs:
        raise RefusedError(
            "moved",
            f"main has moved: it asks for another model than the reviewed one ({', '.join(differs[:5])} changed since)",
            f"let it be trained and reviewed: {_RETRAIN}",
        )
    if told.verdict != "pass" and (lacking or not by):
        label = " and ".join(lacking) or LABELS["override"]
        raise RefusedError(
            "gates",
            f"the verdict of the review is {told.verdict}, and nobody has {f'given {label}' if by else 'overridden it'}",
            f"open a pull request that makes it pass, or on which a person puts the label {label}",
        )
    print(f"inputs are those of the review, {manifest.inputs.digest[:12]}")
    return manifest


def _pull(tree: Path) -> None:
    """Bring what is judged and shipped, from the cache or a remote."""
    for attempt in range(1, _TRIES + 1):
        lost = bring(tree, _PULLED)
        if not lost:
            return
        time.sleep(0 if attempt == _TRIES else attempt)
    raise RefusedError(
        "missing",
        f"the reviewed model could not be pulled ({lost})",
        "check the DVC remote and its credentials; where it has lost the model, make reproduce, dvc push and a pull request "
        "bring one that is reviewed",
    )


def _reviewed_bytes(tree: Path, manifest: Lineage) -> None:
    """Compare what was pulled with dvc.lock and with the manifest, byte by byte."""
    changed = [name for name in _PULLED if not dvc_lock.is_as_recorded(tree, name)]
    model = sha256(tree / lineage.MODEL)
    reviewed_one = model == manifest.outputs.model_sha256
    if changed:
        names = ", ".join([name for name in changed if name != "out/model"] + ([] if reviewed_one else [lineage.MODEL]))
        raise RefusedError(
            "tampered",
            f"{names or 'out/model'} is not what was reviewed: somebody changed it in the store",
            "remove that object from the DVC cache (dvc cache dir) and run again; if the remote holds it, restore it there",
        )
    if not reviewed_one:
        raise RefusedError(
            "tampered",
            "manifest.json is the review of another model than the one that dvc.lock records",
            f"restore both with git checkout from one reviewed commit, or let it be reviewed: {_RETRAIN}",
        )
    facts, parts = lineage.of_files(tree), ("outputs", "data", "metrics", "network")
    differs = [name for name in parts if getattr(facts, name) != getattr(manifest, name)]
    if differs:
        raise RefusedError(
            "tampered",
            f"manifest.json does not fit metrics.json, data.dvc and the model of this commit ({', '.join(differs)} differ)",
            "restore them with git checkout from the commit that was reviewed, or let a new report write them",
        )
    fault = modelcheck.unsafe(tree / lineage.MODEL)
    if fault:
        what, _, then = f"{lineage.MODEL} {fault}".partition(": ")
        raise RefusedError("tampered", what, then)
    print(f"model is the reviewed one, SHA-256 {model[:12]}")


def _golden_answers(tree: Path) -> None:
    """Run the model for the first time, within limits of time and memory, and compare its golden answers with the review's.

    Raises:
        RefusedError: it gives others, or does not end within the limits.
    """
    then = "look at the network of src/model.py and at out/evaluation/golden, and let a new report be reviewed"
    try:
        difference, limit = modelcheck.bounded_difference(tree / "out/model", tree / "out/evaluation/golden")
    except UserError as error:
        raise RefusedError("tampered", str(error).replace(f"{tree}/", ""), then) from None
    if not difference <= limit:  # NaN, too
        said = f"probabilities of the golden examples differ by {difference:.2g} from the reviewed, allowed are {limit:g}"
        raise RefusedError("tampered", said, then)
    print(f"the golden examples are answered as reviewed, within {difference:.1g}")


# ---------------------------------------------------------------------------------------------------------------------
# May it ship?
# ---------------------------------------------------------------------------------------------------------------------


def _judge_again(tree: Path, commit: str, deployed: Deployed, manifest: Lineage, out: Path) -> dict[str, Any] | None:
    """Let the deployed commit's rules judge the model, and write the report; return the table of INT8 if that may serve.

    Raises:
        RefusedError: they do not pass it, or cannot judge it, and no person has accepted that.
    """
    judgement = verdict.judge(tree, commit, manifest, deployed, out)
    found = judgement.verdict
    _same_answers(tree, out)
    said = f"the verdict by the rules of {judgement.rules} is {found.verdict}: {'; '.join(found.reasons)}"
    for key in _needed(manifest, deployed, judgement):
        person = getattr(manifest.verdict, key)
        if not person:
            then = "run again once that can be found out" if deployed.why else "revert the merge"
            label = LABELS[key]
            raise RefusedError("gates", said, f"{then}, or let a person put the label {label} on a pull request")
        overriding.confirm(manifest, commit, key)
        found = replace(found, **{key: person})
        print(f"accepted by {person.by} ({LABELS[key]}, {person.at or 'when is not known'})")
    print(said)
    write_json(out / "report" / "verdict.json", found.to_json())
    try:
        verdict.report(tree, commit, manifest, out)
    except CannotJudgeError as error:  # no reason to keep the model away
        print(f"the report is without its pages, which cannot be written ({error})")
    return _int8(found, out)


def _needed(manifest: Lineage, deployed: Deployed, judgement: Judgement) -> list[str]:
    """Return what a person must have accepted, as keys of the manifest's verdict."""
    needed = {key for key in LABELS if getattr(manifest.verdict, key) and manifest.verdict.verdict != "pass"}
    if judgement.gates != "pass" or deployed.why:
        needed = needed | {"override"}
    if judgement.moved:
        needed = needed | {"engine_reviewed"}
    return sorted(needed)


def _int8(found: JudgedFile, out: Path) -> dict[str, Any] | None:
    """Return the table of the INT8 model where one was asked for and may serve; else the float model, as reviewed, does."""
    path = out / int8.FOLDER / "quantization.json"
    if not path.is_file():
        if found.why_no_int8:
            print(f"the float model is released, because an INT8 one cannot be made ({found.why_no_int8})")
        return None
    table: dict[str, Any] = read_json(path, made_by="quantize", keys=("verdict", "reasons"))
    passed = table["verdict"] == "pass"
    said = "INT8 is released: " if passed else "the float model is released, because INT8 does not pass its gates: "
    print(said + "; ".join(table["reasons"]))
    return table if passed else None


def _same_answers(tree: Path, out: Path) -> None:
    """Compare with the numbers of the review.

    Raises:
        RefusedError: the same model gives others here; the review was of something else, or this machine computes wrongly.
    """
    told, found = (MetricsFile.read(path, "evaluate") for path in (tree / lineage.EVALUATION, out / "metrics.json"))
    one = 1.5 / max(1, told.examples)  # where one example is worth more than the tolerance, it may differ
    differs = [
        f"{name} {getattr(found, name):.4f}, reviewed {getattr(told, name):.4f}"
        for name, within in _WITHIN.items()
        if abs(getattr(found, name) - getattr(told, name)) > max(within, one if name == "accuracy" else 0)
    ]
    if told.examples and found.examples != told.examples:
        differs.append(f"{found.examples} test examples, reviewed {told.examples}")
    if differs:
        raise RefusedError(
            "tampered",
            f"the reviewed model answers otherwise than reviewed ({'; '.join(differs)})",
            "restore metrics.json from the reviewed commit, or let a new report be reviewed",
        )
    print("accuracy and log loss are those of the review")


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    tree: Path,
    commit: str,
    manifest: Lineage,
    judged: Path,
    table: Mapping[str, Any] | None,
) -> None:
    metrics = MetricsFile.read(tree / lineage.EVALUATION, made_by="evaluate")
    card = Card.read(tree / "out/model/card.json", made_by="train")
    release = Release(
        manifest=manifest.digest,
        model_sha256=manifest.outputs.model_sha256,
        commit=commit,
        trained_commit=str(manifest.commit),
        pull_request=manifest.pull_request,
        data=manifest.data.digest,
        inputs=manifest.inputs.digest,
        verdict=manifest.verdict.verdict,
        override=manifest.verdict.override,
        metrics=metrics.headline(),
        classes=card.classes,
        precision="int8" if table else "fp32",
        int8=int8.facts(table) if table else None,
    )
    with replacing(folder) as fresh:
        fresh.mkdir()
        for name in ("manifest.json", "metrics.json", "params.yaml"):
            shutil.copyfile(tree / name, fresh / name)
        (fresh / "model").mkdir()
        for name in ("model.onnx", "weights.safetensors", "card.json", "history.csv"):
            shutil.copyfile(tree / "out/model" / name, fresh / "model" / name)
        shutil.copytree(tree / "out/evaluation/golden", fresh / "golden", copy_function=shutil.copyfile)
        hidden = {"all": (), "charts": ("errors.png", "activation.png"), "none": ("*.png",)}
        left = shutil.ignore_patterns("golden", *hidden[load(tree / "params.yaml").report.pictures])
        shutil.copytree(tree / "out/evaluation", fresh / "evaluation", ignore=left, copy_function=shutil.copyfile)
        shutil.copytree(judged / "report", fresh / "report", copy_function=shutil.copyfile)
        int8.add(fresh, judged / int8.FOLDER, table)
        reviewed.write(fresh, release)


def main() -> None:
    """Parse the command line and verify."""
    parser = argparse.ArgumentParser(description="Check that a commit's model is the reviewed one, and judge it again.")
    parser.add_argument("folder", type=Path, help="folder to write, such as out/release")
    parser.add_argument("--commit", default="HEAD", help="what to release")
    parser.add_argument("--again", action="store_true", help="also where neither model nor engine has changed")
    args = parser.parse_args()
    by_hand = os.environ.get("GITHUB_EVENT_NAME") == "workflow_dispatch"
    with telling("verify", args.folder):
        verify(args.folder, args.commit, again=args.again or by_hand)
