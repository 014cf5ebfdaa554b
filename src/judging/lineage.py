"""What a model came from, in manifest.json, which is reviewed and kept in Git."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from src.core import results
from src.core.card import Trained
from src.core.command import UserError
from src.core.files import digest, sha256
from src.core.metrics_file import MetricsFile
from src.system import dvc_lock
from src.system.git_command import git
from src.system.judged import Lineage

MODEL = "out/model/model.onnx"
EVALUATION = "metrics.json"
TEST_ROWS = "out/manifest.parquet"


def manifest(root: Path, told: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the lineage of the model that lies in `root`.

    `told` adds what files do not know: commit, pull_request, verdict, hardware, training_seconds, throughput, run_url,
    anchor (the best model so far) and looks (how many models these test examples have judged). A
    previous manifest of the same inputs, outputs, verdict and basis is returned as it is, so that judging again changes no
    file.
    """
    metrics = MetricsFile.read(root / EVALUATION, made_by="evaluate")
    card = Trained.read(root / MODEL.replace("model.onnx", "card.json"), made_by="train").to_json()
    outputs = {"evaluation_sha256": sha256(root / EVALUATION), "model_sha256": sha256(root / MODEL)}
    facts = {
        "inputs": dvc_lock.inputs(root),
        "outputs": outputs,
        "data": _data(root, metrics),
        "metrics": metrics.headline(),
        "network": {name: card[name] for name in ("network", "width", "parameters", "epoch", "epochs", "seed")},
    }
    same_model = previous is not None and previous["outputs"] == outputs and previous["inputs"] == facts["inputs"]
    if same_model and previous is not None:
        whole = previous.keys() >= {*facts, *told}  # else an earlier version wrote it
        if whole and _judged_alike(previous, told):
            return dict(previous)
        # judged anew, made once: where and when it was trained stays
        kept = {
            name: previous.get(name) for name in ("commit", "hardware", "training_seconds", "throughput", "pull_request")
        }
        return {**facts, **told, **kept}
    return {**facts, **told}


def _judged_alike(previous: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    try:
        return _decision(previous["verdict"]) == _decision(told["verdict"]) and _basis(previous) == _basis(told)
    except (AttributeError, TypeError):  # a hand has made something else of it
        return False


def _decision(verdict: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a person decided too: the labels, which count at the commit where they were given."""
    labels = [verdict.get(key) or {} for key in ("override", "engine_reviewed")]
    lacking = verdict.get("lacking") or []
    return verdict.get("verdict"), lacking, *((label.get("by"), label.get("head")) for label in labels)


def _basis(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what later verdicts rest on, which a hand may have changed since: looks, the anchor, main's folds and seeds."""
    main, anchor = found["main"] or {}, found["anchor"] or {}
    series = main.get("series")
    return found["looks"], anchor.get("model_sha256"), (main.get("model_sha256"), series) if series else None


def _data(root: Path, metrics: MetricsFile) -> dict[str, Any]:
    classes = sorted(metrics.per_class)
    rows = root / TEST_ROWS
    test = test_digest(results.test_rows(rows)) if rows.is_file() else None
    return {
        "classes": classes,
        "digest": dvc_lock.tracked(root, "data"),
        "test_examples": metrics.examples,
        "test_sha256": test,
    }


def test_digest(rows: pa.Table) -> str:
    """Return the SHA-256 of a test split: the digest and label of each example, whatever their order."""
    pairs = zip(rows.column("digest").to_pylist(), rows.column("label").to_pylist(), strict=True)
    return digest(sorted(map(list, pairs)))


def pack_series(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return main's folds.json or repeats.json in the small form that manifest.json keeps, None where examples are missing.

    The marks are hexadecimal, in the order of the examples of `mine`, the same file of the model under review.
    """
    columns = {example: column for column, example in enumerate(theirs["answers"]["examples"])}
    if not columns.keys() >= set(mine["answers"]["examples"]):
        return None
    order = [columns[example] for example in mine["answers"]["examples"]]
    marked = theirs["answers"]["right"].items()
    right = {seed: f"{int('1' + ''.join(marks[i] for i in order), 2):x}" for seed, marks in marked}
    return {"runs": theirs["runs"], "split_sha256": theirs["split_sha256"], "right": right}


def unpack_series(packed: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Return main's folds.json or repeats.json from what `pack_series` made of it."""
    right = {seed: f"{int(marks, 16):b}"[1:] for seed, marks in packed["right"].items()}
    answers = {"examples": mine["answers"]["examples"], "right": right}
    return {"runs": packed["runs"], "split_sha256": packed["split_sha256"], "answers": answers}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest.json; None when there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    return parse_manifest(path.read_text(errors="replace"), str(path))


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """Read the text of a manifest.json that lies at `where`, as in another commit.

    Raises:
        UserError: it is damaged.
    """
    Lineage.parse(text, where)
    return dict(json.loads(text))  # whole: its digest covers what a later version adds


def manifest_at(commit: str) -> dict[str, Any]:
    """Return manifest.json of a commit; {} where it has none, or a damaged one."""
    if not commit:
        return {}
    with suppress(UserError):
        return parse_manifest(git("show", f"{commit}:manifest.json"), f"{commit}:manifest.json")
    return {}


def anchor_of(commit: str) -> dict[str, str]:
    """Return `model_sha256` of the best model before a commit of main, as its manifest names it, and a `commit` that has it.

    The branch on which it was judged may be gone after a squash merge: the commit is looked for in main's own history.
    {} where the manifest names none.
    """
    named = manifest_at(commit).get("anchor") or {}
    if not named:
        return {}
    model = named["model_sha256"]
    for found in git("log", "--reverse", "--format=%H", f"-S{model}", commit, "--", "manifest.json").splitlines():
        if manifest_at(found).get("outputs", {}).get("model_sha256") == model:
            return {"commit": found, "model_sha256": model}
    return {"commit": named["commit"] or "unknown", "model_sha256": model}  # no CI has judged it


def lines(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield a manifest as label and text, for a person."""
    verdict, hardware = found["verdict"], found.get("hardware") or {}
    override = verdict.get("override")
    seconds = found.get("training_seconds")
    yield "model", found["outputs"]["model_sha256"]
    yield "commit", found["commit"]
    yield "pull request", f"#{found['pull_request']}" if found.get("pull_request") else "none"
    yield "verdict", verdict["verdict"] + (f", overridden by {override['by']} ({override['at']})" if override else "")
    if reviewed := verdict.get("engine_reviewed"):
        yield "engine", f"reviewed by {reviewed['by']} ({reviewed['at']})"
    yield "why", "; ".join(verdict.get("reasons", [])) or "not recorded"
    yield "accuracy", f"{found['metrics']['accuracy']:.2%} of {found['data'].get('test_examples', 'unknown')} test examples"
    network = found.get("network") or {}
    yield "network", f"{network.get('network')}, {network.get('parameters', 0):,} parameters, seed {network.get('seed')}"
    yield "data", found["data"]["digest"] or "not tracked"
    yield "inputs", found["inputs"]["digest"]
    yield "environment", ", ".join(f"{name} {value[:12]}" for name, value in found["inputs"]["environment"].items())
    yield "compared with", (found.get("main") or {}).get("model_sha256") or "no model of main"
    machine = hardware.get("accelerator") or hardware.get("processor") or "unknown machine"
    yield "trained on", machine + (f", {seconds:.0f} s" if seconds else "")
    yield "run", found.get("run_url") or "not in CI"
