"""Stage 2, validate. Reads the manifest and arrays; writes validation.json and a profile; stops the pipeline on bad data.

    python -m src validate out/arrays out/manifest.parquet reference.json out/validation.json out/profile

Every rule is checked before anything is said. `params.yaml` decides which findings are errors; with one, both outputs
are still written, the findings are printed with the first offending files, and the exit status is 1.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from src.core import arrays, pictures
from src.core import reference as recorded
from src.core.arrays import Arrays
from src.core.command import UserError, table
from src.core.files import check_outputs, replacing, sha256, write_json
from src.core.manifest import MANIFEST, SPLITS, class_order, read_manifest
from src.core.params import section
from src.validation import checks, duplicates
from src.validation.checks import Finding
from src.validation.validate_params import Validate

_LISTED = 1000  # faulty files named in validation.json; the manifest has them all
_PRINTED = 10
_EXAMPLES = 8  # of each class, in the profile's picture
_CLASSES_SHOWN = 20
_RANGE = {"smallest": "min", "median": "median", "largest": "max"}


def validate(folder: Path, manifest_path: Path, reference: Path, report: Path, profile: Path, params: Validate) -> None:
    """Check the manifest, write the report and the profile.

    Raises:
        UserError: an input is missing or damaged, or a check of level `error` failed (both outputs are written then).
    """
    manifest = read_manifest(manifest_path, MANIFEST.names)
    card = arrays.load(folder)
    near = np.empty((0, 2), dtype=np.int64)
    if params.checks.near_duplicates != "off":
        near = duplicates.near(manifest, card.thumbnails())
    findings, drift = checks.inspect(manifest, params, recorded.read(reference), near, card.spec.shape[:2])
    passed = not any(finding.level == "error" for finding in findings)
    told = {
        "drift": drift,
        "faults": _faults(manifest),
        "findings": [asdict(finding) for finding in findings],
        "manifest_sha256": sha256(manifest_path),
        "passed": passed,
    }
    with replacing(report) as fresh_report, replacing(profile) as fresh_profile:
        write_json(fresh_report, told)
        fresh_profile.mkdir()
        write_json(fresh_profile / "statistics.json", recorded.summarize(manifest).model_dump())
        write_json(fresh_profile / "profile.json", _numbers(manifest))
        _draw_numbers(fresh_profile / "profile.png", manifest)
        _draw_examples(fresh_profile / "examples.png", card)
    print(_tell(manifest, findings))
    if not passed:
        names = ", ".join(finding.check for finding in findings if finding.level == "error")
        raise UserError(
            f"the data failed ({names}); see {report} and {profile}. Mend data/ or change `validate` in params.yaml"
        )


def _faults(manifest: pa.Table) -> dict[str, Any]:
    faulty = manifest.filter(manifest.column("fault").is_valid()).select(["path", "row", "fault"]).to_pylist()
    return {"count": len(faulty), "files": faulty[:_LISTED]}


def _tell(manifest: pa.Table, findings: list[Finding]) -> str:
    """What a person reads on the terminal: the faulty files, then the findings with the first offenders of each."""
    lines = []
    faults = _faults(manifest)
    if faults["count"]:
        lines.append(f"{faults['count']} faulty files, left out:")
        rows = [
            [file["path"] if file["row"] < 0 else f"{file['path']}#{file['row']}", file["fault"]] for file in faults["files"]
        ]
        lines.append(table(["file", "fault"], rows[:_PRINTED]))
        if faults["count"] > _PRINTED:
            lines.append(f"... {faults['count'] - _PRINTED} more in validation.json and the manifest")
        lines.append("")
    if not findings:
        return "\n".join([*lines, "all checks passed"])
    rows = [[finding.level, finding.check, finding.message] for finding in findings]
    lines.append(table(["level", "check", "finding"], rows))
    for finding in findings:
        if finding.files:
            more = f" and {finding.count - 5} more" if finding.count > 5 else ""
            lines.append(f"{finding.check}: {', '.join(finding.files[:5])}{more}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The profile: what the data look like
# ---------------------------------------------------------------------------------------------------------------------


def _numbers(manifest: pa.Table) -> dict[str, Any]:
    frame = manifest.to_pandas()
    kept = frame[frame["split"].notna()]
    counts = kept.groupby(["label", "split"]).size()
    return {
        "classes": {
            label: {split: int(counts.get((label, split), 0)) for split in SPLITS}
            for label in sorted(kept["label"].unique(), key=class_order)
        },
        "copies": int(frame["duplicate_of"].notna().sum()),
        "faulty": int(frame["fault"].notna().sum()),
        "files": len(frame),
        "formats": {str(k): int(v) for k, v in kept["format"].value_counts().sort_index().items()},
        "modes": {str(k): int(v) for k, v in kept["mode"].value_counts().sort_index().items()},
        "sizes": {side: {name: float(kept[side].agg(of)) for name, of in _RANGE.items()} for side in ("width", "height")},
    }


def _draw_numbers(path: Path, manifest: pa.Table) -> None:
    frame = manifest.to_pandas()
    kept = frame[frame["split"].notna()]
    made = pictures.figure(11, 3.6)
    by_class, sizes, brightness = made.subplots(1, 3)
    _draw_classes(by_class, kept)
    sizes.scatter(kept["width"], kept["height"], s=8, alpha=0.3, color=pictures.BLUE, edgecolors="none")
    sizes.set(title="Original sizes", xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    for split, colour in zip(SPLITS, (pictures.BLUE, pictures.ORANGE, pictures.GREY), strict=True):
        values = kept.loc[kept["split"] == split, "brightness"]
        density = len(values) > 0
        brightness.hist(values, bins=40, range=(0, 1), histtype="step", density=density, label=split, color=colour)
    brightness.set(title="Brightness", xlabel="mean grey value, 0 to 1", ylabel="density")
    brightness.legend(fontsize=8)
    pictures.save(made, path)


def _draw_classes(axes: Any, kept: Any) -> None:
    counts = kept["label"].value_counts().head(_CLASSES_SHOWN)
    labels = sorted(counts.index, key=class_order)
    left = np.zeros(len(labels))
    for split, colour in zip(SPLITS, (pictures.BLUE, pictures.ORANGE, pictures.GREY), strict=True):
        inside = kept[kept["split"] == split]["label"].value_counts()
        widths = np.array([inside.get(label, 0) for label in labels], dtype=float)
        axes.barh([pictures.shorten(label) for label in labels], widths, left=left, color=colour, label=split)
        left += widths
    axes.invert_yaxis()
    rest = kept["label"].nunique() - len(labels)
    axes.set(title=f"Images of each class{f' (largest {len(labels)}, {rest} more)' if rest else ''}", xlabel="images")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def _draw_examples(path: Path, card: Arrays) -> None:
    train = card.split("train")
    classes = card.classes[:_CLASSES_SHOWN]
    title = "What the model sees: the first training images of each class"
    made, squares = pictures.grid(len(classes) * _EXAMPLES, _EXAMPLES, title)
    for place, axes in enumerate(squares):
        label, number = divmod(place, _EXAMPLES)
        rows = np.flatnonzero(train.labels == label)
        axes.set_axis_off()
        if number < len(rows):
            pictures.show_image(axes, train.examples[rows[number]], pictures.shorten(classes[label]))
    pictures.save(made, path)


def main() -> None:
    """Parse the command line and validate."""
    parser = argparse.ArgumentParser(description="Check the manifest; write a report and a profile; fail on bad data.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("manifest", type=Path, help="manifest that prepare wrote")
    parser.add_argument("reference", type=Path, help="statistics recorded by `make reference`")
    parser.add_argument("report", type=Path, help="validation.json to write")
    parser.add_argument("profile", type=Path, help="folder to write pictures and statistics into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.arrays, args.manifest, args.reference], folders=[args.profile], files=[args.report])
    params = section(args.params, "validate", Validate)
    validate(args.arrays, args.manifest, args.reference, args.report, args.profile, params)
