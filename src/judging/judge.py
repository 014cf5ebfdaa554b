"""Judge the model under review: every gate of params.yaml. Writes verdict.json, and manifest.json where there is a model.

    python -m src judge out/main out/run.json out/report/verdict.json manifest.json --evaluation out/evaluation ...

A failed pipeline and bad data are verdicts too. In CI the variable PLAN holds what src/github/plan.py found out: the commit
and pull request under review, the run, and what people decided by a label.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.core import results
from src.core.card import Trained
from src.core.command import UserError
from src.core.files import read_json, sha256, write_json
from src.core.manifest import read_manifest
from src.core.metrics_file import MetricsFile
from src.judging import gates, lineage, plan
from src.judging.gates import Answers, Facts, Trainings
from src.judging.plan import Plan
from src.system.judged import Comparison, Decision, Hardware, JudgedFile, Lineage, MainModel, ModelAt, Throughput
from src.system.params import Params, load

_ENGINE = ("judging",)  # gates that the label `engine: reviewed` covers; `model-gate: override` covers every other
_SCORES: dict[str, Callable[[pa.Table], NDArray[np.bool_]]] = {  # what gates.metric may name: 0 or 1 for each example
    "accuracy": lambda table: _column(table, "prediction") == _column(table, "label"),
}


@dataclass(frozen=True)
class Paths:
    """What there is to judge; any of them may be missing after a failure."""

    metrics: Path
    evaluation: Path
    manifest: Path
    validation: Path
    model: Path = Path("out/model")


def judge(
    main_folder: Path,
    run_path: Path,
    verdict_path: Path,
    lineage_path: Path,
    paths: Paths,
    params_path: Path,
    history: Path | None = None,
) -> None:
    """Write the verdict, and the lineage of what was judged; `history` has the figures of the last training on this machine.

    Raises:
        UserError: a file is damaged, or PLAN is no JSON.
    """
    given = plan.read()
    if not run_path.is_file():
        raise UserError(f"{run_path} is missing: run make reproduce first, then make report again")
    run = read_json(run_path, made_by="evaluate")
    try:
        params = load(params_path)
    except UserError as error:
        # params.yaml does not say what the gates are
        write_json(verdict_path, JudgedFile(verdict="fail", reasons=[str(error)]).to_json())
        print(f"verdict: fail\n- {error}")
        return
    known = Comparison.read(main_folder / "facts.json", made_by="evaluate")
    facts = _facts(main_folder, known, run, paths, params)
    verdict = gates.judge(facts, params.gates)
    verdict = replace(verdict, accepted=verdict.verdict == "pass")
    described = None
    if facts.metrics is not None and facts.budget is None:
        verdict = _decided(verdict, given)
        previous = _previous(lineage_path)
        described = lineage.settled(_lineage(main_folder, verdict, known, run, given, history, paths.model), previous)
        described = None if described is previous else described
    write_json(verdict_path, verdict.to_json())
    print(f"verdict: {verdict.verdict}" + (", accepted" if verdict.accepted and verdict.verdict != "pass" else ""))
    print("\n".join(f"- {reason}" for reason in verdict.reasons))
    if described:
        write_json(lineage_path, described.to_json())


def _previous(path: Path) -> Lineage | None:
    """Read the lineage that lies there; a damaged one is written anew, and then the next run tells the training."""
    try:
        return lineage.read(path)
    except UserError as error:
        print(f"{error}. It is made again now")
        return None


def _facts(main_folder: Path, known: Comparison, run: dict[str, Any], paths: Paths, params: Params) -> Facts:
    """Gather what the gates look at; results of an earlier run are none of this one's when it failed."""
    failed = run.get("failed")
    validation = read_json(paths.validation, made_by="validate") if paths.validation.is_file() else None
    if failed:
        fresh = validation if failed == "validate" else None
        return Facts(failed=failed, validation=fresh, why_no_main=known.why, judging_changed=known.judging_changed)
    timings = read_json(main_folder / "timings.json", made_by="evaluate")
    rows = results.test_rows(paths.manifest)
    score = _SCORES[params.gates.metric]
    mine = _of_examples(paths.evaluation / "predictions.parquet", rows)
    compared = known.found and (main_folder / "predictions.parquet").is_file()
    theirs = _of_examples(main_folder / "predictions.parquet", rows) if compared else None
    anchor = known.anchor
    best = _of_examples(main_folder / "anchor/predictions.parquet", rows) if anchor.found and not anchor.is_main else theirs
    labels, before = _column(mine, "label"), None
    if compared:  # which of these examples main's manifest has in its test split too
        theirs_before = set(results.test_rows(main_folder / "rows.parquet").column("digest").to_pylist())
        before = np.array([one in theirs_before for one in rows.column("digest").to_pylist()], dtype=bool)
    slices = _of_examples(paths.evaluation / "slices.parquet", rows)
    return Facts(
        validation=validation,
        metrics=MetricsFile.read(paths.metrics, made_by="evaluate"),
        labels=labels,
        answers=_answers(mine, score),
        slices={name: slices.column(name).to_numpy() for name in slices.column_names if name != "digest"},
        latency=timings["candidate"],
        comparable=run.get("lane", {}).get("comparable", True),
        budget=run.get("budget"),
        main_metrics=MetricsFile.read(main_folder / "metrics.json", made_by="evaluate") if compared else None,
        main_answers=_answers(theirs, score) if theirs is not None else None,
        main_latency=timings["main"],
        why_no_main=known.why,
        folds=_trainings(paths.model, main_folder / "model", "folds") if compared else None,
        seeds=_trainings(paths.model, main_folder / "model", "repeats") if compared else None,
        training_examples=read_manifest(paths.manifest).column("split").to_pylist().count("train"),
        same_training=known.same_training,
        moved_inputs=known.moved_inputs,
        judging_changed=known.judging_changed,
        bins=params.evaluate.calibration_bins,
        main_never=known.never,
        first_rules=known.first_rules,
        shared=~np.isin(labels, known.labels_added) if known.labels_added else None,
        labels_added=known.labels_added,
        labels_gone=known.labels_gone,
        left_test=known.left_test,
        tested_before=before,
        relabelled=known.relabelled,
        split_rules=known.split_rules,
        looks=known.looks.pull_request or 1,
        models_judged=1 if known.looks.examples is None else known.looks.examples,
        judged_since=known.looks.since,
        anchor_answers=_answers(best, score) if best is not None and (anchor.is_main or anchor.found) else None,
        anchor_commit=anchor.commit,
        why_no_anchor="" if anchor.is_main else anchor.why,
    )


def _trainings(model: Path, main: Path, kind: str) -> Trainings | None:
    """Read what several trainings of both recipes have right, of the examples that both have; None where none is comparable.

    Folds are comparable where there are as many: with fewer each model learns from less.
    """
    paths = [folder / f"{kind}.json" for folder in (model, main)]
    if not all(path.is_file() for path in paths):
        return None
    told = [read_json(path, made_by="train", keys=("runs", "split_sha256")) for path in paths]
    if not all("answers" in one for one in told):  # trained before answers were kept
        return None
    first = [[run for run in one["runs"] if run["seed"] == one["runs"][0]["seed"]] for one in told]
    if len(first[0]) != len(first[1]):
        return None
    columns = [{example: column for column, example in enumerate(one["answers"]["examples"])} for one in told]
    both = [example for example in columns[0] if example in columns[1]]
    if not both:
        return None
    marks = []
    for one, column in zip(told, columns, strict=True):  # a row a seed, that of the model itself first
        right, own = one["answers"]["right"], str(one["runs"][0]["seed"])
        seeds = [own, *sorted(right.keys() - {own}, key=int)]
        marks.append(np.array([[right[seed][column[example]] == "1" for example in both] for seed in seeds], dtype=bool))
    return Trainings(*marks)


def _of_examples(path: Path, rows: pa.Table) -> pa.Table:
    """Read a table of the test examples; it must be of just these, in this order."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run make reproduce, then make report again")
    table = pq.read_table(path)
    if table.column("digest").to_pylist() != rows.column("digest").to_pylist():
        raise UserError(f"{path} is of other test examples than the manifest: run make reproduce, then make report again")
    return table


def _answers(table: pa.Table, score: Callable[[pa.Table], NDArray[np.bool_]]) -> Answers:
    return Answers(
        right=score(table),
        log_losses=table.column("log_loss").to_numpy(),
        confidences=table.column("confidence").to_numpy().astype(np.float64),
        predictions=_column(table, "prediction"),
    )


def _column(table: pa.Table, name: str) -> Any:
    return np.array(table.column(name).to_pylist(), dtype=object)


def _decided(verdict: JudgedFile, given: Plan) -> JudgedFile:
    """Enter what people decided: accepted is what the labels cover, each the gates of its kind."""
    needed = {"engine_reviewed" if name in _ENGINE else "override" for name in verdict.stopped_by}
    if not needed and verdict.verdict != "pass":
        needed = {"override"}
    lacking = sorted(needed - given.labels.keys())
    refused = [given.refused[key] for key in lacking if key in given.refused]
    return replace(
        verdict,
        override=given.labels.get("override"),
        engine_reviewed=given.labels.get("engine_reviewed"),
        accepted=not lacking,
        lacking=lacking,
        reasons=verdict.reasons + refused,
    )


def _lineage(
    main_folder: Path,
    verdict: JudgedFile,
    known: Comparison,
    run: dict[str, Any],
    given: Plan,
    history: Path | None,
    model: Path,
) -> Lineage:
    """Put together what files, the run, the comparison and CI say of this model."""
    made = lineage.of_files(Path())
    anchor, before = None, known.anchor
    if verdict.anchor_moves and (before.found or known.never):
        anchor = ModelAt(commit=given.commit, model_sha256=made.outputs.model_sha256)
    elif before.model_sha256:
        anchor = ModelAt(commit=before.commit, model_sha256=before.model_sha256)
    decision = Decision(**{one.name: getattr(verdict, one.name) for one in fields(Decision)})
    return replace(
        made,
        anchor=anchor,
        commit=given.commit,
        looks=known.looks,
        main=_compared_with(main_folder, model, known),
        pull_request=given.pull_request,
        run_url=given.run_url,
        verdict=decision,
        **_training(run, history, model),
    )


def _compared_with(main_folder: Path, model: Path, known: Comparison) -> MainModel:
    """Return what of main the lineage keeps.

    `series` are its folds and repeats where this comparison trained them: no store has them, and they judge the merge too.
    """
    packed = {}
    for kind in known.series:
        theirs, mine = (read_json(folder / f"{kind}.json", made_by="train") for folder in (main_folder / "model", model))
        packed[kind] = lineage.pack_series(theirs, mine)
    path = main_folder / "model" / "model.onnx"
    return MainModel(
        commit=known.commit,
        model_sha256=sha256(path) if path.is_file() else None,
        series={kind: one for kind, one in packed.items() if one},
    )


def _training(run: dict[str, Any], history: Path | None, model: Path) -> dict[str, Any]:
    """Return hardware, training_seconds and throughput of the training of this very model, each None where it is not known.

    A model that was restored was trained in another run: on this machine, if `history` names it, else elsewhere.
    """
    record, card = (history / "throughput.json" if history else None), model / "card.json"
    measured = read_json(record, made_by="train") if record and record.is_file() else {}
    if not card.is_file() or measured.get("model_sha256", "") != Trained.read(card, made_by="train").model_sha256:
        measured = {}
    here = run.get("seconds", {}).get("train")
    hardware = run.get("hardware") if here is not None else measured.get("hardware")
    return {
        "hardware": Hardware.from_json(hardware, "run.json: hardware") if hardware else None,
        "throughput": Throughput.from_json(measured, str(record)) if measured else None,
        "training_seconds": measured.get("seconds") if here is None else here,
    }


def main() -> None:
    """Parse the command line and judge."""
    parser = argparse.ArgumentParser(description="Judge the model under review by the gates of params.yaml.")
    parser.add_argument("main", type=Path, help="folder that src.judging.compare wrote")
    parser.add_argument("run", type=Path, help="run.json that make reproduce wrote")
    parser.add_argument("verdict", type=Path, help="verdict.json to write")
    parser.add_argument("lineage", type=Path, help="manifest.json to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of evaluate")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder that evaluate wrote")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest that prepare wrote")
    parser.add_argument("--validation", type=Path, required=True, help="validation.json that validate wrote")
    parser.add_argument("--model", type=Path, default=Path("out/model"), help="folder that train wrote")
    parser.add_argument("--history", type=Path, help="folder that train wrote speed, memory and energy into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    paths = Paths(args.metrics, args.evaluation, args.manifest, args.validation, args.model)
    judge(args.main, args.run, args.verdict, args.lineage, paths, args.params, args.history)
