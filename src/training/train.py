"""Stage 3, train. Reads the arrays and the passed validation; writes the model, and how fast it was trained.

    python -m src train out/arrays out/validation.json out/model out/history --checkpoints out/checkpoints

The decoded split lies on the device and is augmented there in batches. The weights that are kept are those of
the epoch with the lowest validation loss. A killed run goes on from its last checkpoint when the same command is run.

`train.processes` in params.yaml trains with several processes of this machine, torchrun with those of several machines.
"""

import argparse
import csv
import datetime as dt
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from src.core import arrays, metrics
from src.core.arrays import Arrays
from src.core.card import Card
from src.core.files import check_outputs, replacing, rounded, sha256, write_json
from src.core.params import section
from src.images.prepare_params import Prepare
from src.training import export, loop, meter, series
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.checkpoint import held
from src.training.classifier import save
from src.training.loop import Fitted, fit
from src.training.task import of, require_passed
from src.training.train_params import Train
from src.training.world import World, become_torchrun, joined, several


def train(
    folder: Path,
    validation: Path,
    out: Path,
    history: Path,
    checkpoints: Path,
    params: Train,
    *,
    manifest: Path | None = None,
    world: World | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> None:
    """Train on the arrays in `folder`; write the model into `out` and speed and memory into `history`.

    Folds and further seeds, where params ask for them, are trained after the model; `out` gets folds.json and repeats.json.
    The models of further seeds answer the test split, as evidence for the gates: nothing is selected by it.

    Args:
        folder: that prepare wrote.
        validation: validation.json.
        out: folder to write the model into.
        history: folder to write what no two runs agree on into; it is no output of the pipeline, and names its model.
        checkpoints: folder for the state of a run that is stopped.
        params: the section `train`.
        manifest: that prepare wrote; folds and further seeds need it.
        world: the processes that train together; rank 0 writes.
        callbacks: what tracks the run, fetches the champion to start from, and describes the hardware.

    Raises:
        UserError: the data did not pass validation, params ask for what is not there, or the loss is not finite.
    """
    world = world or World()
    data = arrays.load(folder)
    require_passed(validation, data)
    further = series.plan(data, params, manifest)
    started = time.monotonic()
    fitted = fit(of(data), params, checkpoints, world=world, tags={}, callbacks=callbacks, keep=True)
    seconds, best = time.monotonic() - started, fitted.best
    said = f"trained in {seconds:.1f} s; best epoch {best['epoch']} of {params.epochs}: {loop.result(best)}"
    evidence = series.run(further, data, params, checkpoints, fitted, world, callbacks) if further.jobs else {}
    if not world.writes:
        return
    classifier = fitted.classifier
    with replacing(out) as fresh, replacing(history) as speeds:
        fresh.mkdir()
        export.write(export.to_onnx(classifier, data.spec, data.classes), fresh / "model.onnx")
        save(classifier, fresh / "weights.safetensors")
        _write_csv(fresh / "history.csv", fitted.history)
        write_json(fresh / "card.json", _card(fitted, data, fresh, params).to_json())
        for name, runs in evidence.items():
            write_json(fresh / f"{name}.json", runs)
        speeds.mkdir()
        _write_csv(speeds / "throughput.csv", fitted.throughput)
        about = {
            "ended": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hardware": callbacks.hardware(),
            "model_sha256": sha256(fresh / "model.onnx"),
            "seconds": rounded(seconds, 2),
            "threads": torch.get_num_threads() if fitted.summary["memory_of"] == "process" else None,  # of a CPU
        }
        write_json(speeds / "throughput.json", fitted.summary | about)
    series.remove(checkpoints)  # not before what was trained is written: until then a kill costs nothing
    if evidence:
        print(series.summary(evidence))
    print(f"{said}\n{meter.sentence(fitted.summary)}")
    if warning := metrics.one_class_warning(fitted.predicted, data.classes, "validation images"):
        print(warning)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys() if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _card(fitted: Fitted, data: Arrays, folder: Path, params: Train) -> Card:
    """What the model is, for whoever loads it; nothing in it differs between equal runs."""
    classifier, best = fitted.classifier, fitted.best
    return Card(
        classes=data.classes,
        epoch=best["epoch"],
        epochs=params.epochs,
        flops=export.flops(classifier, data.spec),
        manifest_sha256=data.manifest_sha256,
        model_sha256=sha256(folder / "model.onnx"),
        network=params.network,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        seed=params.seed,
        spec=data.spec,
        start_weights_sha256=params.weights_sha256 if params.weights else None,
        temperature=rounded(float(classifier.temperature)),
        torch=torch.__version__,
        tta=params.tta,
        validation={name: rounded(best[f"validation_{name}"]) for name in ("accuracy", "loss")},
        weights_sha256=sha256(folder / "weights.safetensors"),
        width=params.width,
    )


def main(callbacks: Callbacks = NO_CALLBACKS) -> None:
    """Train as the command line says; `callbacks` are what lies outside of the stage."""
    parser = argparse.ArgumentParser(description="Train the network of params.yaml; write ONNX, weights, card, history.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("validation", type=Path, help="validation.json that validate wrote")
    parser.add_argument("out", type=Path, help="folder to write the model into")
    parser.add_argument("history", type=Path, help="folder to write speed and memory of each epoch into")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for the state of a run that is stopped")
    parser.add_argument("--manifest", type=Path, help="manifest that prepare wrote; folds and further seeds need it")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    params = section(args.params, "train", Train)
    if params.processes > 1 and not several():
        become_torchrun(params.processes, ["train", *sys.argv[1:]])
    with joined() as world:
        arrays.load(args.arrays, section(args.params, "prepare", Prepare).spec)
        given = [args.manifest] if args.manifest else []
        check_outputs([args.arrays, args.validation, args.checkpoints, *given], folders=[args.out, args.history])
        with held(args.checkpoints) if world.writes else nullcontext():
            folders = (args.arrays, args.validation, args.out, args.history, args.checkpoints)
            train(*folders, params, manifest=args.manifest, world=world, callbacks=callbacks)
