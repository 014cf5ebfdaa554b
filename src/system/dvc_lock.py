"""What dvc.lock records of the pipeline, and what of the working tree differs from it, by digests that DVC would compute.

The input digest covers what decides a model: the command, dependencies and parameters of each stage as dvc.lock records
them, and the locked environment. Two commits with one input digest ask for one model. Nothing here takes data or runs DVC.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import digest, sha256
from src.core.yaml_files import read_yaml

ENVIRONMENT = ("requirements/run.txt", "requirements/yours.txt", "requirements/torch.txt")


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


def wiring(root: Path) -> dict[str, Any]:
    """Return the stages of dvc.yaml with each `${key}` filled from params.yaml, as DVC does: `src/${kind}`."""
    params = _yaml(root / "params.yaml")
    stages: dict[str, Any] = _filled(_yaml(root / "dvc.yaml")["stages"], params)
    return stages


def _filled(content: Any, params: Mapping[str, Any]) -> Any:
    if isinstance(content, dict):
        return {_filled(key, params): _filled(value, params) for key, value in content.items()}
    if isinstance(content, list):
        return [_filled(value, params) for value in content]
    if isinstance(content, str):
        return re.sub(r"\$\{\s*([\w.]+)\s*\}", lambda found: str(_param(params, found[1])), content)
    return content


def stale(root: Path) -> list[str]:
    """Return what in the working tree differs from what dvc.lock records: paths, `params.yaml: section`, `stage: command`.

    An empty list means: the outputs that dvc.lock names are those of this working tree. Only inputs are looked at, which
    takes no data and no DVC.
    """
    lock, params = _yaml(root / "dvc.lock").get("stages", {}), _yaml(root / "params.yaml")
    made = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    differs: set[str] = set()
    for name, stage in wiring(root).items():
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
    """Return the MD5 that DVC would record: an output's recorded one, tracked data's, else that of what is there.

    Below src/ DVC sees the Python files alone (.dvcignore).
    """
    if digest := made.get(path) or tracked(root, path):
        return digest
    if (root / path).is_dir():
        return _md5_of_folder(root / path, "*.py" if path.startswith("src/") else "*")
    return _md5(root / path) if (root / path).is_file() else None


def tracked(root: Path, path: str) -> str | None:
    """Return the MD5 of a file or folder that DVC tracks, as its .dvc file records it; None where there is no such file."""
    record = root / f"{path}.dvc"
    return _yaml(record)["outs"][0]["md5"] if record.is_file() else None


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
    """Return the files and folders of the repository that the model depends on; data by the name of its .dvc file."""
    stages = wiring(root).values()
    made = {next(iter(out)) if isinstance(out, dict) else out for stage in stages for out in stage.get("outs", [])}
    paths = {path for stage in stages for path in stage["deps"]} - made
    named = {f"{path}.dvc" if (root / f"{path}.dvc").is_file() else path for path in paths}
    return {*named, *ENVIRONMENT, "dvc.yaml", "params.yaml"}


def _yaml(path: Path) -> Any:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run make reproduce, or restore it with git checkout") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds nothing of DVC's: restore it with git checkout {path}")
    return content
