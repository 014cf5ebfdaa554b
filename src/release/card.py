"""The model card: what a registered version is, how good, where weak, and where it came from, as Markdown for MLflow.

Its sections follow "Model Cards for Model Reporting" (Mitchell et al., 2019), as far as the reviewed numbers can fill them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from src.release.reviewed import Release
from src.system.escaping import escape

LARGEST = 5000  # characters; the column of MLflow's database
_SHOWN = 20  # classes that are named
_FEW = 20  # test images of a class or slice under which its number says little

Row = Mapping[str, Any]


def write(release: Release, card: Row, metrics: Row, manifest: Row) -> str:
    """Return the model card in at most LARGEST characters; `card` is card.json, `metrics` metrics.json.

    Lines that do not fit are left out from the end.
    """
    lines = [*_opening(release, card), *_numbers(card, metrics), *_limits(card, metrics)]
    lines += _origin(release, card, metrics, manifest)
    text = "\n".join([*lines, ""])
    note = "\n\nMore is in the report of the run.\n"
    return text if len(text) <= LARGEST else text[: LARGEST - len(note)].rpartition("\n")[0] + note


def _opening(release: Release, card: Row) -> Iterator[str]:
    shape = " x ".join(map(str, card["spec"]["shape"]))
    parameters = f", {card['parameters']:,} parameters" if "parameters" in card else ""
    yield f"Tells {len(release.classes)} classes of images apart: {_named(release.classes)}."
    yield ""
    yield f"Network {escape(card['network'])}{parameters}; takes {card['spec']['dtype']} {card['spec']['kind']} of {shape},"
    yield "scales them itself, returns one probability a class. Format: ONNX."
    if int8 := release.int8:
        yield ""
        interval = f"{int8['accuracy_low']:+.2%} to {int8['accuracy_high']:+.2%}"
        yield f"Served as INT8: accuracy {int8['accuracy_difference']:+.2%} ({interval}) against the numbers below, and"
        yield f"{int8['speedup']:.2f} times as fast on the machine that deployed it."


def _numbers(card: Row, metrics: Row) -> Iterator[str]:
    interval = f" ({metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%})" if "accuracy_low" in metrics else ""
    rows: dict[str, str | None] = {
        "accuracy": f"{metrics['accuracy']:.2%}{interval}",
        "macro F1": f"{metrics['macro_f1']:.4f}" if "macro_f1" in metrics else None,
        "log loss": f"{metrics['log_loss']:.4f}" if "log_loss" in metrics else None,
        "calibration error": f"{metrics['ece']:.2%}" if "ece" in metrics else None,
        "worst class": _worst(metrics.get("per_class"), "recall"),
        "worst slice": _worst(metrics.get("slices"), "accuracy"),
        "logistic regression, for comparison": f"{metrics['baseline']['accuracy']:.2%}" if "baseline" in metrics else None,
        "accuracy on validation images": f"{card['validation']['accuracy']:.2%}" if "validation" in card else None,
    }
    yield from ("", "## Numbers", f"On {metrics['examples']:,} test images that training never saw:", "")
    yield from ("| measure | value |", "| --- | --- |")
    yield from (f"| {name} | {value} |" for name, value in rows.items() if value)


def _limits(card: Row, metrics: Row) -> Iterator[str]:
    height, width, *_ = card["spec"]["shape"]
    yield from ("", "## Limits of use")
    yield "- An image of anything else also gets one of these classes: refuse what is answered with a low probability."
    how = escape(str(card["spec"]["encoding"].get("fit", "fitted")))
    yield f"- It sees {height} x {width} pixels ({how}); finer detail is lost."
    if found := _worst(metrics.get("per_class"), "recall"):
        yield f"- Weakest class: {found}."
    if found := _worst(metrics.get("slices"), "accuracy"):
        yield f"- Weakest slice: {found}."
    if few := [name for name, row in metrics.get("per_class", {}).items() if row["examples"] < _FEW]:
        yield f"- Under {_FEW} test images, so hardly measured: {_named(few)}."
    if "ece" in metrics:
        yield f"- A probability is off by {metrics['ece']:.2%} on average."


def _origin(release: Release, card: Row, metrics: Row, manifest: Row) -> Iterator[str]:
    override, hardware, seconds = release.override, manifest.get("hardware") or {}, manifest.get("training_seconds")
    by = f", overridden by {escape(str(override.get('by')))} at {override.get('at')}" if override else ""
    yield from ("", "## Verdict", f"{release.verdict}{by}")
    yield from (f"- {escape(str(reason), 300)}" for reason in manifest["verdict"].get("reasons", []))
    yield from ("", "## Data and training")
    yield f"- data: {manifest['data']['digest'] or 'not tracked'}, {metrics['examples']:,} test images"
    if "epochs" in card:
        yield f"- {card['epochs']} epochs, the best was {card.get('epoch')}; seed {card.get('seed')}"
    machine = hardware.get("accelerator") or hardware.get("processor") or "an unknown machine"
    yield f"- trained on {escape(str(machine))}{f' in {seconds:.0f} s' if seconds else ''}"
    yield from ("", "## Lineage", f"- manifest {release.manifest}", f"- SHA-256 of model.onnx {release.model_sha256}")
    if release.int8:
        yield f"- SHA-256 of model.int8.onnx {release.served_sha256}"
    yield f"- deployed commit {release.commit}, trained at {release.trained_commit}"
    yield f"- inputs {release.inputs}"
    yield f"- pull request {f'#{release.pull_request}' if release.pull_request else 'none'}"


def _worst(rows: Row | None, number: str) -> str | None:
    """Name the row whose number is lowest; None without rows."""
    if not rows:
        return None
    name = min(rows, key=lambda name: (rows[name][number], name))
    return f"{escape(name, 60)}, {number} {rows[name][number]:.2%} of {rows[name]['examples']} images"


def _named(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(escape(name, 60) for name in names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
