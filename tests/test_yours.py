"""The contract of what is yours: data/, params.yaml, src/data.py, src/model.py. It takes less than a minute: make test-yours

This file is yours too: add a test for what your data must hold or your network must do. Some 200 of your images are read,
of every class; the network is tried on them, or on drawn images where your data cannot be read.
"""

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

import src
from src.core import reference
from src.core.arrays import Split
from src.core.command import UserError, cores
from src.core.manifest import class_order
from src.images import readers
from src.images.decoding import decode_examples, to_record_batch
from src.images.prepare import resolve
from src.system import dvc_lock
from src.system.params import Params, load
from src.training.task import Task
from src.validation import checks

ROOT = Path(__file__).parent.parent
if Path(src.__file__).parent != ROOT / "src":
    pytest.skip("these tests are of the working tree: run make test-yours", allow_module_level=True)

IMAGES = 200  # that are read, or two of each class where that is more
SURE = 20  # images expected on a side of the split from which on none there is no chance


class Sample(NamedTuple):
    """Some examples, as rows of the manifest and as uint8 pixels (n, height, width, channels)."""

    labels: set[str | None]  # of all examples
    whole: bool  # all of data/ is in it
    rows: pa.Table
    half: pa.Table  # the split of half of the same examples, in another order
    pixels: NDArray[np.uint8]


@cache
def params() -> Params:
    return load(ROOT / "params.yaml")


@cache
def sample() -> Sample:
    """Read and decode examples of each label and given split in turn, the same ones each time."""
    found = readers.scan(Path(os.path.relpath(ROOT / "data")))
    groups = defaultdict(list)
    for piece in readers.read(found):
        for place, example in enumerate(readers.examples(piece), start=piece.start):
            groups[example.label, example.split].append(place)
    count, random = max(IMAGES, 2 * len(groups)), Random(0)
    drawn = [random.sample(group, min(len(group), count)) for group in groups.values()]
    ranked = sorted((rank, number, place) for number, group in enumerate(drawn) for rank, place in enumerate(group))
    places = {place: order for order, (_, _, place) in enumerate(ranked[:count])}
    chosen = {}
    for piece in readers.read(found):
        if not places.keys().isdisjoint(range(piece.start, piece.start + len(piece))):
            for place, example in enumerate(readers.examples(piece), start=piece.start):
                if place in places:
                    chosen[places[place]] = example
    examples = [chosen[order] for order in sorted(chosen)]
    with ThreadPoolExecutor(cores()) as pool:
        decoded = list(pool.map(lambda example: decode_examples([example], params().prepare), examples))
    rows = pa.Table.from_batches([to_record_batch(facts) for _, _, facts in decoded])
    half = rows.slice(0, max(len(groups), len(rows) // 2))
    half = half.take(list(reversed(range(len(half)))))
    return Sample(
        {label for label, _ in groups},
        len(examples) == found.images,
        resolve(rows, params().prepare),
        resolve(half, params().prepare),
        np.concatenate([pixels for pixels, _, _ in decoded]),
    )


@pytest.fixture
def examples() -> Sample:
    """The sample; where it cannot be had, the test ends with the reason."""
    require_params()
    if not (ROOT / "data").exists():
        if os.environ.get("GITHUB_ACTIONS") == "true":
            pytest.skip("this job has no access to the DVC remote; the stages prepare and validate check all of data/")
        fail("data/ is missing: run make reproduce, which pulls it, or put your images into data/<label>/")
    try:
        return sample()
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename} cannot be read ({error.strerror}): check owner and mode of the file or folder")


def fail(message: str) -> NoReturn:
    raise pytest.fail.Exception(message, pytrace=False) from None


def require_params() -> None:
    try:
        params()
    except UserError:
        pytest.skip("params.yaml does not load: see test_params_load")


def names(rows: pa.Table, most: int = 10) -> str:
    """List images with their faults, a line each."""
    lines = [
        f"  {row['path']}{'' if row['row'] < 0 else '#' + str(row['row'])}{': ' + row['fault'] if row['fault'] else ''}"
        for row in rows.slice(0, most).to_pylist()
    ]
    return "\n".join([*lines, *([f"  and {len(rows) - most} more"] if len(rows) > most else [])])


# Params and data


def test_params_load() -> None:
    try:
        params()
    except UserError as error:
        fail(str(error))


def test_data_are_readable(examples: Sample) -> None:
    faulty = examples.rows.filter(examples.rows.column("digest").is_null())
    share, limit = len(faulty) / len(examples.rows), params().validation.max_corrupt
    if len(faulty) == len(examples.rows) or (share > limit and params().validation.checks.corrupt == "error"):
        fail(
            f"{len(faulty)} of {len(examples.rows)} files that were tried in data/ cannot be read, over "
            f"validate.max_corrupt {limit:g} of params.yaml; repair or remove them:\n{names(faulty)}"
        )
    readable = set(examples.rows.filter(examples.rows.column("digest").is_valid()).column("label").to_pylist())
    lost = sorted(map(repr, examples.labels - readable - {None}))
    if lost:
        fail(f"no file of class {', '.join(lost[:5])} that was tried can be read; repair them:\n{names(faulty)}")


def test_labels_are_sane(examples: Sample) -> None:
    labels = sorted(label for label in examples.labels if label is not None)
    if len(labels) < 2:
        fail(f"data/ has {len(labels)} class ({', '.join(map(repr, labels))}), needed are 2: add data/<another label>/")
    spaced = [label for label in labels if label != label.strip() or not label]
    if spaced:
        fail(f"label {spaced[0]!r} is empty, or begins or ends with a space: give data/{spaced[0]}/ another name")
    near = defaultdict(list)
    for label in labels:
        near[label.casefold()].append(label)
    alike = [group for group in near.values() if len(group) > 1]
    if alike:
        fail(f"labels {', '.join(map(repr, alike[0]))} differ in capitals alone: give both one name")
    asked = {"schema", "labels", *(["min_images"] if examples.whole else [])}
    no_pairs, nothing = np.empty((0, 2), dtype=np.int64), reference.Reference()
    found, _ = checks.inspect(examples.rows, params().validation, nothing, no_pairs, params().prepare.image_size)
    wrong = [finding for finding in found if finding.check in asked and finding.level == "error"]
    if wrong:
        fail("\n".join(": ".join([each.message, *([", ".join(each.files[:5])] if each.files else [])]) for each in wrong))


def test_split_is_stable_and_has_every_side(examples: Sample) -> None:
    sides = [
        {row["digest"]: row["split"] for row in rows.to_pylist() if row["split"]} for rows in (examples.rows, examples.half)
    ]
    moved = [digest for digest in sides[1].keys() & sides[0].keys() if sides[0][digest] != sides[1][digest]]
    if moved:
        rows = examples.rows.filter(pa.compute.is_in(examples.rows.column("digest"), pa.array(moved)))
        fail(
            "an image's side of the split depends on which other images there are, so adding data would move it; "
            f"split_of in src/core/manifest.py may look at its key alone:\n{names(rows)}"
        )
    prepare = params().prepare
    shares = {"validation": prepare.validation_share, "test": prepare.test_share}
    shares["train"] = 1 - sum(shares.values())
    for side, share in shares.items():
        sure = examples.whole or share * len(sides[0]) >= SURE
        if sure and side not in sides[0].values():
            fail(
                f"none of {len(sides[0])} images falls on the side {side}: add images, groups or given splits for it, "
                "or raise prepare.validation_share or prepare.test_share in params.yaml"
            )


def test_examples_have_the_shape_of_params_and_are_no_blanks(examples: Sample) -> None:
    prepare, pixels = params().prepare, examples.pixels
    expected = (len(examples.rows), *prepare.image_size, prepare.channels)
    assert (pixels.shape, pixels.dtype) == (expected, np.uint8), f"decoded images are {pixels.shape}, expected {expected}"
    readable = examples.rows.column("digest").is_valid().to_numpy()
    blank = readable & (pixels.reshape(len(pixels), -1).std(axis=1) == 0)
    if blank.sum() > 0.1 * readable.sum():
        fail(
            f"{blank.sum()} of {readable.sum()} images are of one colour at prepare.image_size {list(prepare.image_size)}: "
            f"look at them, and at prepare.fit in params.yaml:\n{names(examples.rows.filter(pa.array(blank)))}"
        )


@pytest.mark.parametrize("module", ["src/data.py", "src/model.py"])
def test_dvc_trains_again_when_a_file_that_yours_imports_changes(module: str) -> None:
    finder = ModuleFinder([str(ROOT)])
    finder.run_script(str(ROOT / module))
    paths = [Path(found.__file__) for found in finder.modules.values() if found.__file__]
    imported = {path.relative_to(ROOT).as_posix() for path in paths}
    for name, stage in dvc_lock.wiring(ROOT).items():
        if module not in stage["deps"]:
            continue
        folders = tuple(f"{path}/" for path in stage["deps"])
        lacking = sorted(path for path in imported - {*stage["deps"], "src/__init__.py"} if not path.startswith(folders))
        if lacking:
            lines = "\n".join(f"      - {path}" for path in lacking)
            fail(
                f"{module} imports {', '.join(lacking)}, and a change there would not run the stage {name} again: "
                f"add to stages.{name}.deps in dvc.yaml\n{lines}"
            )


# The network: train.network of params.yaml, at train.width, on a CPU


def check_model() -> Any:
    """Return what make check-model runs."""
    return pytest.importorskip("src.lab.experiments.check_model", reason="src/lab is not here, which asks the network")


@cache
def task() -> Task:
    """Return the sample's training images as a task, or drawn ones."""
    try:
        rows, prepare = sample().rows, params().prepare
        kept = np.flatnonzero(rows.column("split").to_numpy(zero_copy_only=False) == "train")
        classes = sorted(label for label in sample().labels if label is not None)
        places = {label: place for place, label in enumerate(sorted(classes, key=class_order))}
        labels = np.array([places[label] for label in rows.column("label").take(kept).to_pylist()], dtype=np.int64)
        split = Split(sample().pixels[kept], labels)
        drawn = len(set(labels.tolist())) < 2
    except Exception:  # whatever is wrong with the data is named by their own tests
        drawn = True
    if drawn:
        return check_model().drawn(params())
    return Task(split, split, list(places), prepare.spec, "")


@cache
def findings() -> dict[str, Any]:
    train = params().train.model_copy(update={"device": "cpu"})
    threads = torch.get_num_threads()
    height, width = params().prepare.image_size
    torch.set_num_threads(cores() if height * width > 64 * 64 else 1)  # on small images threads wait more than they work
    try:
        found = check_model().check(task(), params().model_copy(update={"train": train}))
    finally:
        torch.set_num_threads(threads)
    return {finding.check: finding for finding in found}


def require(*asked: str) -> None:
    """Fail with what `make check-model` found and advises."""
    require_params()
    try:
        found = findings()
    except UserError as error:
        fail(str(error))
    network = f"network {params().train.network} (train.network in params.yaml, a line of NETWORKS in src/model.py)"
    for check in asked:
        if check not in found:
            broken = next(finding.check for finding in found.values() if finding.result == "FAIL")
            pytest.skip(f"{check}: not asked, because {broken} failed")
        if found[check].result == "FAIL":
            fail(f"{network}: {check}: {found[check].told}. What to do: {found[check].advice}")
        if found[check].result == "not shown":
            pytest.skip(f"{check}: {found[check].told}: not shown; {found[check].advice}")


def test_network_builds_and_gives_one_logit_per_class() -> None:
    require("builds", "shapes")


def test_logits_are_finite_and_not_probabilities() -> None:
    require("logits", "extreme images")


def test_network_does_not_mix_the_examples_of_a_batch() -> None:
    require("one image alone")


def test_every_parameter_gets_a_gradient() -> None:
    require("first loss", "gradients")


def test_network_learns_a_batch_by_heart() -> None:
    require("learns by heart", "evaluation mode")


def test_onnx_answers_as_pytorch_does() -> None:
    require("ONNX")


def test_training_is_repeatable() -> None:
    require("repeatable")
