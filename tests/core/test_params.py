"""params.yaml is refused by name, key, value and expectation: python -m pytest tests/core/test_params.py"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_params
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from src.core.command import UserError
from src.core.params import section
from src.evaluation.evaluate_params import Evaluate
from src.system.params import Params, filled, load, remark
from src.system.sweep_params import Sweep
from src.training.train_params import Train


def test_the_shipped_file_is_valid_short_and_remarked() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train.epochs = 3
    lines = (ROOT / "params.yaml").read_text().splitlines()
    assert len(lines) < 70
    keys = [line for line in lines if line.startswith("  ")]
    assert [line for line in keys if "#" not in line] == []


def test_the_shipped_file_says_of_each_key_what_its_class_says() -> None:
    place: list[str] = []
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if found := re.match(r"( *)(\w+): *([^#]*)(?:# (.*))?", line):
            place = [*place[: len(found[1]) // 2], found[2]]
            assert not found[3] or found[4] == remark(place), line


def test_every_key_has_a_default_and_a_remark() -> None:
    values = filled({})
    for dial in dials():
        assert remark(dial.split(".")), dial
        place = values
        for name in dial.split("."):
            assert name in place, dial
            place = place[name]


def test_a_stage_reads_its_own_section_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {epochs: 3}\ngates: {min_accuracy: high}\n")
    assert section(path, "train", Train).epochs == 3
    with pytest.raises(UserError, match="section evaluate is missing: write `evaluate:`, with nothing below it"):
        section(path, "evaluate", Evaluate)
    path.write_text("train: {epochz: 3, augment: {crop: -1}}\n")
    with pytest.raises(UserError, match=r"train.augment.crop is -1, .*; train.epochz is unknown; did you mean epochs\?"):
        section(path, "train", Train)


def list_params(path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "src", "params", "--params", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.journey
def test_the_listing_is_a_file_of_params_that_marks_what_is_set(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    params = write_params(path, train__epochs=7)
    printed = list_params(path).stdout
    (tmp_path / "listed.yaml").write_text(printed)
    assert load(tmp_path / "listed.yaml") == params
    assert re.search(r"\n  epochs: 7 +# set, default 50: passes over", printed)
    assert re.search(r"\n  width: 24 +# set: channels", printed)
    assert re.search(r"\n  ema: 0 +# keep a moving average", printed)
    assert len(re.findall(r"^ *[\w.]+: \S.*# \S", printed, re.MULTILINE)) == len(list(dials()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train__epochs": -3}, ["train.epochs is -3", "greater than or equal to 1"]),
        ({"train__epochs": True}, ["train.epochs is True", "valid integer"]),
        ({"train__epoch": 3}, ["train.epoch is unknown", "epochs", "batch_size"]),
        ({"train__augment__flop": True}, ["train.augment.flop is unknown", "flip"]),
        ({"train__learning_rate": float("nan")}, ["train.learning_rate", "finite"]),
        ({"train__optimizer": "adam"}, ["train.optimizer is 'adam'", "'sgd', 'adamw' or 'muon'"]),
        ({"prepare__size": 8}, ["prepare: size was renamed to image_size"]),
        ({"prepare__image_size": -8}, ["prepare.image_size is -8", "greater than or equal to 2"]),
        ({"prepare__image_size": [8, 8, 8]}, ["prepare.image_size", "one side or [height, width]"]),
        ({"train__epochs": 0, "prepare__channels": 4}, ["train.epochs", "prepare.channels is 4", "1 or 3"]),  # all at once
        ({"prepare__test_share": 0.95}, ["validation_share + test_share"]),
        ({"validate__checks__drift": "fatal"}, ["validate.checks.drift is 'fatal'", "'error', 'warn' or 'off'"]),
        ({"nonsense": 1}, ["nonsense is unknown", "prepare, validate, train, evaluate"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(tmp_path: Path, change: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        write_params(tmp_path / "params.yaml", **change)
    for word in ["params.yaml", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [", "not valid YAML"),
        ("", "holds no sections"),
        ("train: {}\ntrain: {}\n", "not valid YAML"),
        ("train: {}\n", "section prepare is missing: write `prepare:`"),
        ("prepare: {channels: 2020-13-45}\n", "not valid YAML"),
    ],
)
def test_a_broken_or_missing_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="is missing: run from the repository's root"):
        load(path)
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load(path)


# What DVC sees of a change


def dials(section: type[BaseModel] = Params) -> Iterator[str]:
    """Yield the dotted name of every dial that the typed classes know."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{key}.{below}" for below in dials(field.annotation))
        else:
            yield key


def test_no_param_has_a_name_that_dvc_leaves_out() -> None:
    """DVC's run cache ignores keys called `size` and `nfiles`, however deep: a change of such a dial would do nothing."""
    assert "train.augment.crop" in set(dials())
    assert [name for name in dials() if {"size", "nfiles"} & set(name.split("."))] == []
    for key in ("size", "nfiles"):  # the only keys that users name themselves
        with pytest.raises(ValidationError, match=f"space.{key} is no key of train"):
            Sweep.model_validate({"space": {key: [1, 2]}})


@pytest.mark.journey
@pytest.mark.filterwarnings("ignore")  # deprecations inside DVC
def test_a_change_of_any_dial_runs_each_stage_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The params of the real dvc.yaml, with a command for each stage that notes that it ran, through DVC's run cache."""
    from dvc.repo import Repo  # takes a second

    monkeypatch.chdir(tmp_path)
    yaml = YAML(typ="safe")
    reads = {name: stage["params"] for name, stage in yaml.load((ROOT / "dvc.yaml").read_text())["stages"].items()}
    stages = {
        name: {"cmd": f"echo {name} >> ran && cp input {name}", "deps": ["input"], "params": params, "outs": [name]}
        for name, params in reads.items()
    }
    Path("input").write_text("1")
    yaml.dump({"stages": stages}, Path("dvc.yaml"))
    values: dict[str, Any] = {}

    def turn(dial: str, value: int) -> None:
        *sections, key = dial.split(".")
        place = values
        for name in sections:
            place = place.setdefault(name, {})
        place[key] = value
        yaml.dump(values, Path("params.yaml"))

    for dial in dials():
        turn(dial, 0)
    subprocess.run(["git", "init", "--quiet"], check=True)
    with Repo.init() as made:
        made.reproduce()
    for dial in dials():
        readers = {name for name, params in reads.items() if any(f"{dial}.".startswith(f"{param}.") for param in params)}
        if not readers and dial.split(".")[0] not in reads:
            continue
        Path("ran").write_text("")
        turn(dial, 1)
        with Repo() as repo:
            repo.reproduce()
        assert set(Path("ran").read_text().split()) == readers, dial
