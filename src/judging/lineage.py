"""What came from what: digests of everything a model was made of, and manifest.json, which is reviewed and kept in Git.

The input digest covers what decides a model: the command, dependencies and parameters of each stage as dvc.lock records
them, and the locked environment. Two commits with one input digest ask for one model.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.core import results
from src.core.command import UserError
from src.core.files import read_json, sha256

MODEL = "out/model/model.onnx"
EVALUATION = "metrics.json"
TEST_ROWS = "out/manifest.parquet"
ENVIRONMENT = ("requirements/run.txt", "requirements/yours.txt", "requirements/torch.txt")
JUDGING = (  # what decides how models are judged
    "src/judging/gates.py",
    "src/core/inference.py",
    "src/judging/request.py",
    "src/judging/lineage.py",
    "src/core/metrics.py",
    "src/judging/precision.py",
    "src/judging/quantization.py",
    "src/judging/quantize.py",
    "src/judging/compare.py",
    "src/judging/judge.py",
    "src/core/results.py",
    "src/core/significance.py",
    "src/core/slices.py",
    "src/judging/speed.py",
    "src/evaluation/evaluate.py",
    "src/system/worktree.py",
    "starter/project/manifest.json",  # by its data main's model is the template's example, or a fork's own
)
_KEYS = ("inputs", "outputs", "data", "commit", "metrics", "verdict")


def inputs(root: Path) -> dict[str, Any]:
    """Return what dvc.lock and the locked environment say the model is made of, with the digest of it all.

    Raises:
        UserError: dvc.lock is missing or damaged.
    """
    lock = _yaml(root / "dvc.lock")
    stages = {
        name: {
            "cmd": stage["cmd"],
            "deps": {dep["path"]: dep["md5"] for dep in stage.get("deps", [])},
            "params": stage.get("params", {}),
        }
        for name, stage in lock.get("stages", {}).items()
    }
    environment = {name: sha256(root / name) for name in ENVIRONMENT if (root / name).is_file()}
    content = {"environment": environment, "stages": stages}
    return {"digest": digest(content), **content}


def digest(content: Any) -> str:
    """Return the SHA-256 of canonical JSON: sorted keys, no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stale(root: Path) -> list[str]:
    """Return what in the working tree differs from what dvc.lock records: paths, `params.yaml: section`, `stage: command`.

    An empty list means: the outputs that dvc.lock names are those of this working tree. Only inputs are looked at, which
    takes no data and no DVC.
    """
    wiring, lock = _yaml(root / "dvc.yaml")["stages"], _yaml(root / "dvc.lock").get("stages", {})
    params = _yaml(root / "params.yaml")
    made = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    differs: set[str] = set()
    for name, stage in wiring.items():
        recorded = lock.get(name)
        if recorded is None or recorded["cmd"].split() != stage["cmd"].split():
            differs.add(f"{name}: command")
            continue
        locked = {dep["path"]: dep["md5"] for dep in recorded.get("deps", [])}
        differs |= {path for path in stage["deps"] if locked.get(path) != _digest_now(root, path, made)}
        differs |= {path for path in locked if path not in stage["deps"]}
        values = recorded.get("params", {}).get("params.yaml", {})
        sections = stage.get("params", [])
        differs |= {f"params.yaml: {section}" for section in sections if values.get(section) != _param(params, section)}
    return sorted(differs)


def _param(params: Any, name: str) -> Any:
    """Return a section of params.yaml, or one value of it by its dotted name."""
    for part in name.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def moved(reviewed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two `inputs`: paths, `params.yaml: section`, `stage: command`."""
    differs = _unequal(reviewed["environment"], now["environment"])
    nothing: dict[str, Any] = {"cmd": "", "deps": {}, "params": {}}
    for name in {*reviewed["stages"], *now["stages"]}:
        one, other = reviewed["stages"].get(name, nothing), now["stages"].get(name, nothing)
        differs |= {f"{name}: command"} if one["cmd"].split() != other["cmd"].split() else set()
        differs |= _unequal(one["deps"], other["deps"])
        for file in {*one["params"], *other["params"]}:
            sections = _unequal(one["params"].get(file, {}), other["params"].get(file, {}))
            differs |= {f"{file}: {section}" for section in sections}
    return sorted(differs)


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


def _digest_now(root: Path, path: str, made: Mapping[str, str]) -> str | None:
    """Return the MD5 that DVC would record: an output's recorded one, tracked data's from the .dvc file, a file's own.

    Of a folder of code DVC sees the Python files alone (.dvcignore).
    """
    if path in made:
        return made[path]
    if (root / f"{path}.dvc").is_file():
        found: str = _yaml(root / f"{path}.dvc")["outs"][0]["md5"]
        return found
    if (root / path).is_dir():
        return _md5_of_folder(root / path, "*.py")
    return _md5(root / path) if (root / path).is_file() else None


def is_as_recorded(root: Path, output: str) -> bool:
    """True when an output, a file or every file of a folder, has the MD5 that dvc.lock records, read anew.

    DVC itself trusts a read-only file of its cache without reading it. A folder's digest is that of its sorted list.
    """
    return md5(root / output) == recorded(root).get(output)


def md5(output: Path) -> str:
    """Return the digest that DVC gives a file or a folder."""
    return _md5(output) if output.is_file() else _md5_of_folder(output)


def recorded(root: Path) -> dict[str, str]:
    """Return the MD5 of each output as dvc.lock records it."""
    stages = _yaml(root / "dvc.lock").get("stages", {}).values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def _md5_of_folder(folder: Path, pattern: str = "*") -> str:
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob(pattern) if path.is_file())
    listed = [{"md5": _md5(path), "relpath": name} for name, path in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def model_inputs(root: Path) -> set[str]:
    """Return the files of the repository that the model depends on; data by the name of its .dvc file."""
    stages = _yaml(root / "dvc.yaml")["stages"].values()
    made = {next(iter(out)) if isinstance(out, dict) else out for stage in stages for out in stage.get("outs", [])}
    paths = {path for stage in stages for path in stage["deps"]} - made
    named = {f"{path}.dvc" if (root / f"{path}.dvc").is_file() else path for path in paths}
    return {*named, *ENVIRONMENT, "dvc.yaml", "params.yaml"}


# ---------------------------------------------------------------------------------------------------------------------
# manifest.json
# ---------------------------------------------------------------------------------------------------------------------


def manifest(root: Path, told: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the lineage of the model that lies in `root`.

    `told` adds what files do not know: commit, pull_request, verdict, hardware, training_seconds, throughput, run_url,
    anchor (the best model so far) and looks (how many models these test examples have judged). A
    previous manifest of the same inputs, outputs, verdict and basis is returned as it is, so that judging again changes no
    file.
    """
    metrics = read_json(root / EVALUATION, made_by="evaluate")
    card = read_json(root / MODEL.replace("model.onnx", "card.json"), made_by="train", keys=("network", "parameters"))
    outputs = {"evaluation_sha256": sha256(root / EVALUATION), "model_sha256": sha256(root / MODEL)}
    facts = {
        "inputs": inputs(root),
        "outputs": outputs,
        "data": _data(root, metrics),
        "metrics": {name: metrics[name] for name in ("accuracy", "macro_f1", "log_loss", "ece")},
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


def _data(root: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    classes = sorted(metrics["per_class"])
    record = root / "data.dvc"
    found = _yaml(record)["outs"][0]["md5"] if record.is_file() else None
    rows = root / TEST_ROWS
    test = test_digest(results.test_rows(rows)) if rows.is_file() else None
    return {"classes": classes, "digest": found, "test_images": metrics["images"], "test_sha256": test}


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
    found: dict[str, Any] = read_json(path, made_by="evaluate", keys=_KEYS)
    return found


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """Read the text of a manifest.json that lies at `where`, as in another commit.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(key in found for key in _KEYS):
        raise UserError(f"{where} is no lineage of a model: restore it, or remove it and let the next report write it")
    return found


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
    yield "accuracy", f"{found['metrics']['accuracy']:.2%} of {found['data']['test_images']} test images"
    network = found.get("network") or {}
    yield "network", f"{network.get('network')}, {network.get('parameters', 0):,} parameters, seed {network.get('seed')}"
    yield "data", found["data"]["digest"] or "not tracked"
    yield "inputs", found["inputs"]["digest"]
    yield "environment", ", ".join(f"{name} {value[:12]}" for name, value in found["inputs"]["environment"].items())
    yield "compared with", (found.get("main") or {}).get("model_sha256") or "no model of main"
    machine = hardware.get("accelerator") or hardware.get("processor") or "unknown machine"
    yield "trained on", machine + (f", {seconds:.0f} s" if seconds else "")
    yield "run", found.get("run_url") or "not in CI"


def _yaml(path: Path) -> Any:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run make reproduce, or restore it with git checkout") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())[:200]}): git checkout {path}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds nothing of DVC's: restore it with git checkout {path}")
    return content
