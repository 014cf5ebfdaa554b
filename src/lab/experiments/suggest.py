"""Suggest a recipe for the images in data/: `make suggest` looks at them and writes one; it trains nothing.

    python -m src suggest data params/suggested.yaml [--params params.yaml]

Prints a table of what is there, what to set and why. The file holds only what differs from params.yaml; adopt it with
`make reproduce PARAMS=params/suggested.yaml`. The same data and params give the same file.
"""

import argparse
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.core.command import UserError, table
from src.core.files import check_outputs, write_bytes
from src.core.manifest import class_order
from src.core.params import content
from src.core.shape import Shape
from src.images import images, readers
from src.images.prepare_params import image_spec
from src.system.params import Params, filled, load
from src.system.params_text import same
from src.training import export
from src.training.classifier import Classifier, networks

_DECODED = 200  # images that are looked at, spread evenly over the data
_GREY = 8  # grey levels: JPEG gives a grey image stored as RGB so much colour
_FLAT = 0.5  # of neighbouring pixels are equal in drawings, scans and digits; in photographs far fewer
_SIDES = (64, 48, 32)  # without a GPU; the largest that can be trained on in minutes
_SMALL = 16  # pixels; up to here params.yaml's own recipe, made for digits, stays
_STEPS = 1200  # of the optimiser, in all: few images need many epochs
_EPOCHS = (12, 60)
_BATCHES = ((2_000, 32), (10_000, 64), (30_000, 128), (math.inf, 500))  # (fewer training images than, batch size)
_OPERATIONS = 6e13  # of a training: ten minutes of a processor with 0.1 TFLOP/s
_NETWORK, _WIDTH = "airbench_narrow", 32
_OURS = ("small_resnet", "resnet18", "airbench", _NETWORK)  # the template's networks; a fork's own is left alone
_RECIPE = (
    ("network", _NETWORK, "learns most in few steps without a GPU"),
    ("width", _WIDTH, "64 learns more and costs three times as much"),
    ("optimizer", "muon", "made for this network"),
    ("learning_rate", 0.15, "of muon; try others with make find-lr"),
    ("schedule", "linear", "goes with muon"),
    ("warmup_epochs", 0, "muon's steps have one length from the first"),
    ("weight_decay", 0.0024, "of the last layer alone"),
    ("gradient_clip", 0, "a gradient's length does not enter muon's steps"),
)


@dataclass(frozen=True)
class DataSummary:
    """What lies under data/.

    `counts`: images of each class. `training` and `test`: images that these splits will have. `held_out`: the smaller share
    of the validation and the test split. `sizes`: (height, width) of a sample, shape (n, 2), upright.
    """

    counts: dict[str, int]
    training: int
    test: int
    held_out: float
    sizes: NDArray[np.int64]
    grey: bool
    photographs: bool


class Suggestion(NamedTuple):
    """One key of params.yaml, such as `train.augment.flip`, with its value and the reason in a few words."""

    key: str
    value: Any
    found: str
    reason: str


def look(root: Path, params: Params) -> DataSummary:
    """Count the images under `root` by label, and decode a sample.

    Raises:
        UserError: there are no images, fewer than two classes, or none of the sample can be decoded.
    """
    found = readers.scan(root)
    chosen = set(np.linspace(0, found.images - 1, min(_DECODED, found.images)).astype(int).tolist())
    counts: Counter[str] = Counter()
    given: Counter[str | None] = Counter()
    looks: list[tuple[tuple[int, int], bool, float]] = []
    fault = ""
    for piece in readers.read(found):
        for place, example in enumerate(readers.examples(piece), start=piece.start):
            if example.fault or example.label is None or example.content is None:
                continue
            counts[example.label] += 1
            given[example.split if params.prepare.use_given_splits else None] += 1
            if place in chosen:
                try:
                    held = example.content
                    content = held if isinstance(held, bytes) else Path(held).read_bytes()
                    pixels = images.decode(content, int(params.prepare.max_megapixels * 1e6)).pixels
                    grey = np.quantile(np.ptp(pixels.astype(np.int16), axis=2), 0.99) <= _GREY
                    equal = (pixels[:, 1:] == pixels[:, :-1]).all(axis=2)  # pixels and their right neighbours
                    looks.append((pixels.shape[:2], bool(grey), float(equal.mean()) if equal.size else 0.0))
                except Exception as error:  # Pillow's readers raise almost any class on a damaged file; prepare names each
                    fault = str(error)
    if len(counts) < 2 or not looks:
        problem = (
            f"{len(counts)} class with readable labels" if len(counts) < 2 else f"no image that can be decoded ({fault})"
        )
        raise UserError(f"{root} holds {problem}: put images into {root}/<label>/, at least two labels, and run again")
    left = 1 - sum(
        share
        for split, share in (("validation", params.prepare.validation_share), ("test", params.prepare.test_share))
        if not given[split]
    )
    test = given["test"] or sum(counts.values()) * params.prepare.test_share
    return DataSummary(
        dict(sorted(counts.items(), key=lambda pair: class_order(pair[0]))),
        max(1, round((given[None] + given["train"]) * left)),
        round(test),
        min(params.prepare.validation_share, params.prepare.test_share),
        np.array([size for size, _, _ in looks]),
        all(grey for _, grey, _ in looks),
        float(np.median([flat for _, _, flat in looks])) < _FLAT,
    )


def suggest(facts: DataSummary, params: Params) -> list[Suggestion]:
    """Return every setting that the data decide, also where params say it already."""
    short = int(np.median(facts.sizes.min(axis=1)))
    sides, count = f"median short side {short} pixels", f"about {facts.training:,} training images"
    known = params.train.network in _OURS and _NETWORK in networks()
    batch = next(size for most, size in _BATCHES if facts.training < most)
    steps = max(1, facts.training // batch)
    epochs = int(np.clip(math.ceil(_STEPS / steps), *_EPOCHS))
    fit, ratio, shapes, why_fit = _fit(facts.sizes)
    channels, colours = (1, "grey") if facts.grey else (3, "colour")
    size = _image_size(short, ratio, channels, facts, epochs if known else 0)
    why_size = "their own size" if min(size) >= short else "what a CPU trains on in minutes; with a GPU take more"
    imbalance = max(facts.counts.values()) / min(facts.counts.values())
    classes = f"largest class {imbalance:.1f} times the smallest"
    settings = [
        Suggestion("prepare.image_size", size if size[0] != size[1] else size[0], sides, why_size),
        Suggestion("prepare.channels", channels, colours, "by the pixels of a sample"),
        Suggestion("prepare.fit", fit, shapes, why_fit),
    ]
    small = min(size) <= _SMALL
    if known and not small:
        settings += [Suggestion(f"train.{key}", value, "photographs or drawings", why) for key, value, why in _RECIPE]
    if not small:
        settings += [
            Suggestion("train.epochs", epochs, count, f"{steps * epochs:,} steps; fewer images need more epochs"),
            Suggestion("train.batch_size", batch, count, f"{steps} steps an epoch"),
        ]
    weights, why = ("sqrt", "rare classes count more; `balanced` more still") if imbalance > 3 else ("none", "about equal")
    settings.append(Suggestion("train.class_weights", weights, classes, why))
    flip, looks = facts.photographs, "photographs, by their pixels" if facts.photographs else "drawings or scans: flat areas"
    check = "CHECK: left and right mean the same" if flip else "CHECK: a mirror image may be another class"
    if not small:
        settings += [
            Suggestion("train.tta", "flip" if flip else "none", looks, "mean over both mirror images, twice the latency"),
            Suggestion("train.augment.crop", min(size) // 16, looks, "a sixteenth of the side"),
            Suggestion("train.augment.flip", flip, looks, check),
            Suggestion("train.augment.rotate", 0 if flip else 10, looks, "photographs stand upright"),
            Suggestion("train.augment.scale", 0 if flip else 0.1, looks, "for photographs the crop moves objects enough"),
        ]
    return settings


def _fit(sizes: NDArray[np.int64]) -> tuple[str, float, str, str]:
    """Choose how images become one shape: `fit`, width for one of height, what is there, and why."""
    low, middle, high = np.quantile(sizes[:, 1] / sizes[:, 0], [0.1, 0.5, 0.9])
    shapes = f"width to height {low:.2f} to {high:.2f}"
    if high / low < 1.2:
        return "crop", 1.0 if 0.8 <= middle <= 1.25 else float(middle), shapes, "one shape: little is cut off"
    if max(high, 1 / low) > 2:
        return "pad", 1.0, shapes, "a crop would cut off half of the longest"
    return "crop", 1.0, shapes, f"a crop cuts off up to {1 - min(low, 1 / high):.0%}"


def _image_size(short: int, ratio: float, channels: int, facts: DataSummary, epochs: int) -> tuple[int, int]:
    """Take the images' own (height, width), or what a CPU trains on in minutes; without epochs, no matter how long."""

    def shape(side: int) -> tuple[int, int]:
        return (side, round(side * ratio)) if ratio >= 1 else (round(side / ratio), side)

    side = max(2, min(short, _SIDES[0]))
    for smaller in _SIDES[1:]:
        built = networks()[_NETWORK](Shape(shape(side), channels, len(facts.counts)), _WIDTH) if epochs else None
        if built is None or side <= smaller:
            break
        spec = image_spec(shape(side), channels)
        cost = export.training_flops(Classifier(built, [0.0] * channels, [1.0] * channels), spec)
        side = smaller if cost * facts.training * epochs > _OPERATIONS else side
    return shape(side)


def notes(facts: DataSummary, params: Params) -> list[str]:
    """Say what no setting mends, and what a person has to decide."""
    lines = []
    least = params.gates.min_slice_examples
    few = {label: count * facts.held_out for label, count in facts.counts.items() if count * facts.held_out < least}
    if few:
        named = ", ".join(f"{label} about {few[label]:.1f}" for label in sorted(few, key=lambda label: few[label])[:5])
        lines.append(
            f"{len(few)} of {len(facts.counts)} classes will have under {least} images to validate or test with ({named}). "
            "The gates show such a class and do not judge it (gates.min_slice_examples): add images of it, or raise "
            "prepare.validation_share and prepare.test_share"
        )
    half = 100 * 1.96 * math.sqrt(0.09 / max(1, facts.test))
    lines.append(
        f"about {facts.test:,} test images tell an accuracy of 90 % to within {half:.1f} points. "
        "The floors in section `gates` are your team's bar: nothing is suggested for them"
    )
    return lines


def recipe(settings: list[Suggestion], base: str) -> str:
    """Return the text of a recipe that extends `base`: a key a line, its reason behind it."""
    lines = [
        "# Made by `make suggest` from what lies in data/; a later run replaces it. Adopt it, after a look at each reason:",
        "# make reproduce PARAMS=params/suggested.yaml",
        f"extends: {base}",
    ]
    above: list[str] = []
    for key, value, found, reason in settings:
        *sections, name = key.split(".")
        for depth, section in enumerate(sections):
            if above[: depth + 1] != sections[: depth + 1]:
                lines += [""] * (depth == 0) + [f"{'  ' * depth}{section}:"]
        above = sections
        written = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"{'  ' * len(sections)}{name}: {written}  # {found}: {reason}")
    return "\n".join(lines) + "\n"


def changes(settings: list[Suggestion], present: dict[str, Any]) -> list[Suggestion]:
    """Return the settings that params do not say already."""
    values = [(one, reduce(getitem, one.key.split("."), present)) for one in settings]
    return [one for one, now in values if not same(now, list(one.value) if isinstance(one.value, tuple) else one.value)]


def main() -> None:
    """Parse the command line, look and suggest."""
    parser = argparse.ArgumentParser(description="Suggest a recipe for the images in data/, and write it; train nothing.")
    parser.add_argument("data", type=Path, help="folder of class folders and Parquet shards")
    parser.add_argument("out", type=Path, help="recipe to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.data, args.params], files=[args.out])
    params = load(args.params)
    facts = look(args.data, params)
    settings = suggest(facts, params)
    differing = changes(settings, filled(content(args.params)))
    write_bytes(args.out, recipe(differing, os.path.relpath(args.params, args.out.parent)).encode())
    rows = [
        [one.found, f"{one.key}: {json.dumps(one.value)}", "" if one in differing else "as it is", one.reason]
        for one in settings
    ]
    print(f"{sum(facts.counts.values()):,} images, {len(facts.counts)} classes\n")
    print(table(["what is there", "set", "", "why"], rows))
    print("\n".join(["", *notes(facts, params), ""]))
    if not differing:
        print(f"{args.params} says all of this already")
        return
    print(f"{args.out} has what differs from {args.params} ({len(differing)}). Adopt it: make reproduce PARAMS={args.out}")
