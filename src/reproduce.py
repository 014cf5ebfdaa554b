"""Pull the data, reproduce the pipeline, and show what came out: `make reproduce`."""

from pathlib import Path
from typing import Any

from src.command import UserError, run, table
from src.files import read_json
from src.versioning import dvc, has_unrecorded_changes

_METRICS = Path("metrics.json")
_TIMINGS = Path("out/timings.json")
_LOCK = Path("dvc.lock")
_OPEN = {
    "pictures": "out/evaluation/ (confusion, curves, calibration, errors, activation)",
    "data profile": "out/profile/ (profile.png, examples.png)",
    "model": "out/model/ (model.onnx, weights.safetensors, card.json)",
    "metrics": "metrics.json; history in MLflow: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db",
}


def reproduce() -> None:
    """Run `dvc pull` where data are missing, then `dvc repro`; print metrics and what to open.

    Raises:
        UserError: the data cannot be fetched, or a stage failed (it has said why itself).
    """
    _pull()
    before = _LOCK.read_bytes() if _LOCK.exists() else b""
    if dvc("repro").returncode:
        raise UserError("the pipeline stopped; the lines above say why. Mend it and run make reproduce again")
    if _LOCK.read_bytes() == before:
        print("\nNothing changed since the last run.")
    print(f"\n{_results()}\n")
    print("\n".join(f"{name + ':':14}{path}" for name, path in _OPEN.items()))


def _pull() -> None:
    """Fetch data/ as data.dvc names it, unless it has changes of the user's own: those are never overwritten."""
    if has_unrecorded_changes(Path("data")):
        print("data/ differs from data.dvc: it is used as it is, and recorded (as by dvc add data)")
    elif dvc("pull", "data.dvc").returncode:
        raise UserError(
            "the data could not be pulled; the lines above say why. Check the remote in .dvc/config, then run again"
        )


def _results() -> str:
    metrics, timings = (read_json(path, made_by="evaluate") for path in (_METRICS, _TIMINGS))
    baseline = metrics["baseline"]
    rows = [["accuracy", _accuracy(metrics), _accuracy(baseline)]]
    rows += [[name, f"{metrics[name]:.4f}", f"{baseline[name]:.4f}"] for name in ("macro_f1", "log_loss", "ece")]
    worst, score = min(((name, scores["recall"]) for name, scores in metrics["per_class"].items()), key=lambda pair: pair[1])
    rows.append(["worst class", f"{worst}: recall {score:.2%}", ""])
    rows.append(["model size", f"{metrics['model_bytes'] / 2**20:.1f} MiB", ""])
    rows.append(["latency p95", f"{timings['latency_ms']['p95']:.2f} ms", ""])
    rows.append(["throughput", f"{timings['throughput_images_per_second']:,.0f} images/s", ""])
    return table([f"test, {metrics['images']} images", "model", "logistic regression"], rows)


def _accuracy(metrics: dict[str, Any]) -> str:
    return f"{metrics['accuracy']:.2%} ({metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%})"


if __name__ == "__main__":
    run("reproduce", reproduce)
