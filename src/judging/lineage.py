"""What a model came from, in manifest.json, which is reviewed and kept in Git."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from src.core import results
from src.core.card import Trained
from src.core.command import UserError
from src.core.files import digest, sha256
from src.core.manifest import split_rule
from src.core.metrics_file import MetricsFile
from src.system import dvc_lock
from src.system.git_command import git
from src.system.judged import DataFacts, Decision, Hardware, Inputs, Lineage, ModelAt, Network, Outputs, PackedSeries

MODEL = "out/model/model.onnx"
EVALUATION = "metrics.json"
TEST_ROWS = "out/manifest.parquet"


def of_files(root: Path) -> Lineage:
    """Return what the files of a commit or a working tree say of their model: no verdict, nobody's commit."""
    metrics = MetricsFile.read(root / EVALUATION, made_by="evaluate")
    card = Trained.read(root / MODEL.replace("model.onnx", "card.json"), made_by="train")
    rows = root / TEST_ROWS
    data = DataFacts(
        classes=sorted(metrics.per_class),
        digest=dvc_lock.tracked(root, "data"),
        split_rule=split_rule(rows) if rows.is_file() else None,
        test_examples=metrics.examples,
        test_sha256=test_digest(results.test_rows(rows)) if rows.is_file() else None,
    )
    return Lineage(
        inputs=Inputs.from_json(dvc_lock.inputs(root), "dvc.lock"),
        outputs=Outputs(evaluation_sha256=sha256(root / EVALUATION), model_sha256=sha256(root / MODEL)),
        data=data,
        commit=None,
        metrics=metrics.headline(),
        network=Network(**{one.name: getattr(card, one.name) for one in fields(Network)}),
        verdict=Decision(verdict="", reasons=[]),
    )


def settled(found: Lineage, previous: Lineage | None) -> Lineage:
    """Return the lineage to write where `previous` lies there: that itself where it tells the same.

    So judging again changes no file. Where only verdict or basis differ, the training stays where and when it was.
    """
    if previous is None or (previous.outputs, previous.inputs) != (found.outputs, found.inputs):
        return found
    same = (previous.data, previous.metrics, previous.network) == (found.data, found.metrics, found.network)
    if same and _decision(previous) == _decision(found) and _basis(previous) == _basis(found):
        return previous
    kept = ("commit", "hardware", "training_seconds", "throughput", "pull_request")
    return replace(found, **{name: getattr(previous, name) for name in kept})


def _decision(found: Lineage) -> tuple[Any, ...]:
    """Return what a person decided too: the labels, which count at the commit where they were given."""
    labels = (found.verdict.override, found.verdict.engine_reviewed)
    return found.verdict.verdict, found.verdict.lacking, *((label.by, label.head) if label else None for label in labels)


def _basis(found: Lineage) -> tuple[Any, ...]:
    """Return what later verdicts rest on, which a hand may have changed since: looks, the anchor, main's folds and seeds."""
    main, anchor = found.main, found.anchor.model_sha256 if found.anchor else None
    return found.looks, anchor, (main.model_sha256, main.series) if main and main.series else None


def test_digest(rows: pa.Table) -> str:
    """Return the SHA-256 of a test split: the digest and label of each example, whatever their order."""
    pairs = zip(rows.column("digest").to_pylist(), rows.column("label").to_pylist(), strict=True)
    return digest(sorted(map(list, pairs)))


def pack_series(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> PackedSeries | None:
    """Return main's folds.json or repeats.json in the small form that manifest.json keeps, None where examples are missing.

    The marks are hexadecimal, in the order of the examples of `mine`, the same file of the model under review.
    """
    columns = {example: column for column, example in enumerate(theirs["answers"]["examples"])}
    if not columns.keys() >= set(mine["answers"]["examples"]):
        return None
    order = [columns[example] for example in mine["answers"]["examples"]]
    marked = theirs["answers"]["right"].items()
    right = {seed: f"{int('1' + ''.join(marks[i] for i in order), 2):x}" for seed, marks in marked}
    return PackedSeries(runs=theirs["runs"], split_sha256=theirs["split_sha256"], right=right)


def unpack_series(packed: PackedSeries, mine: Mapping[str, Any]) -> dict[str, Any]:
    """Return main's folds.json or repeats.json from what `pack_series` made of it."""
    right = {seed: f"{int(marks, 16):b}"[1:] for seed, marks in packed.right.items()}
    answers = {"examples": mine["answers"]["examples"], "right": right}
    return {"runs": packed.runs, "split_sha256": packed.split_sha256, "answers": answers}


def read(path: Path) -> Lineage | None:
    """Read a manifest.json; None when there is none.

    Raises:
        UserError: it is damaged.
    """
    return Lineage.parse(path.read_text(errors="replace"), str(path)) if path.is_file() else None


def at(commit: str) -> Lineage | None:
    """Return manifest.json of a commit; None where it has none, or a damaged one."""
    with suppress(UserError):
        return Lineage.parse(git("show", f"{commit}:manifest.json"), f"{commit}:manifest.json") if commit else None
    return None


def anchor(commit: str) -> ModelAt | None:
    """Return the best model before a commit of main, as its manifest names it, with a commit that has it.

    The branch on which it was judged may be gone after a squash merge: the commit is looked for in main's own history.
    None where the manifest names none.
    """
    main = at(commit)
    if main is None or main.anchor is None:
        return None
    model = main.anchor.model_sha256
    for found in git("log", "--reverse", "--format=%H", f"-S{model}", commit, "--", "manifest.json").splitlines():
        there = at(found)
        if there and there.outputs.model_sha256 == model:
            return ModelAt(commit=found, model_sha256=model)
    return ModelAt(commit=main.anchor.commit or "unknown", model_sha256=model)  # no CI has judged it


def lines(found: Lineage) -> Iterable[tuple[str, str]]:
    """Yield a manifest as label and text, for a person."""
    verdict, hardware, network = found.verdict, found.hardware or Hardware(), found.network or Network()
    override, reviewed = verdict.override, verdict.engine_reviewed
    yield "model", found.outputs.model_sha256
    yield "commit", found.commit or "unknown"
    yield "pull request", f"#{found.pull_request}" if found.pull_request else "none"
    yield "verdict", verdict.verdict + (f", overridden by {override.by} ({override.at})" if override else "")
    if reviewed:
        yield "engine", f"reviewed by {reviewed.by} ({reviewed.at})"
    yield "why", "; ".join(verdict.reasons) or "not recorded"
    yield "accuracy", f"{found.metrics['accuracy']:.2%} of {found.data.test_examples} test examples"
    yield "network", f"{network.network}, {network.parameters or 0:,} parameters, seed {network.seed}"
    yield "data", found.data.digest or "not tracked"
    yield "inputs", found.inputs.digest
    yield "environment", ", ".join(f"{name} {value[:12]}" for name, value in found.inputs.environment.items())
    yield "compared with", (found.main and found.main.model_sha256) or "no model of main"
    machine, seconds = hardware.accelerator or hardware.processor or "unknown machine", found.training_seconds
    yield "trained on", machine + (f", {seconds:.0f} s" if seconds else "")
    yield "run", found.run_url or "not in CI"
