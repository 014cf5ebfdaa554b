"""Judge a commit's model again, by the rules of main as it was before that model came. Used by verify.

The rules are those of an earlier commit: its code that measures and judges (`src.lineage.JUDGING`) and the sections gates,
evaluate and quantize of its params.yaml. So no change can weaken the gate that judges it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from src import lineage
from src.files import read_json, write_json
from src.release.outcome import RefusedError
from src.worktree import checked_out, git

_SECTIONS = ("gates", "evaluate", "quantize")
_WISH = ("quantize", "release")  # it weakens no gate, and is the commit's own
_SECRETS = ("GITHUB_TOKEN", "GH_TOKEN")  # of this job: nothing that judges needs them


class CannotJudgeError(Exception):
    """The rules cannot be used on this model; the text is the reason they gave."""


@dataclass(frozen=True)
class Rules:
    """Whose code and parameters measure and judge; `before` is the commit they come from, None for the model's own."""

    before: str | None
    measuring: Path  # folder with src/: the commit's own code, the judging files replaced by earlier ones
    params: Path  # the commit's own, the judging sections replaced by earlier ones
    judging: Path  # folder with src/ of which only the judge runs: all of it earlier
    gates: Path  # params.yaml of `judging`

    @property
    def name(self) -> str:
        """Return what to call them in a sentence."""
        return f"main before this model ({self.before[:12]})" if self.before else "this commit"


# ---------------------------------------------------------------------------------------------------------------------
# Which rules
# ---------------------------------------------------------------------------------------------------------------------


def before(commit: str, given: str) -> str | None:
    """Return the commit whose rules judge: `given`, or the first parent, and back from there to before this model came.

    A commit that holds the very same model is no judge of it: a model that was refused would else pass with the next commit
    on top. None where nothing came before it.

    Raises:
        RefusedError: the history is cut off (a shallow clone).
    """
    start, model = _sha(given) or _sha(f"{commit}^1"), _model_of(commit)
    if start and _model_of(start) != model:
        return start
    for changed in git("log", "--first-parent", "--format=%H", start, "--", "dvc.lock").splitlines() if start else []:
        parent = _sha(f"{changed}^1")
        if parent and _model_of(parent) != model:
            return parent
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise RefusedError(
            "missing",
            f"this clone does not hold the commits before {commit[:12]}, whose gates judge",
            "run git fetch --unshallow, or check out with fetch-depth: 0",
        )
    return None


def _sha(name: str) -> str:
    return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}") if name else ""


def _model_of(commit: str) -> str | None:
    """Return what dvc.lock of a commit records as its model; None where there is none, or none that can be read."""
    try:
        content = YAML(typ="safe", pure=True).load(git("show", f"{commit}:dvc.lock"))
        outputs = content["stages"]["train"]["outs"]
        return next((str(out["md5"]) for out in outputs if out["path"] == "out/model"), None)
    except Exception:  # an earlier commit may hold anything
        return None


@contextmanager
def rules(tree: Path, earlier: str | None) -> Iterator[Rules]:
    """Yield the rules of an earlier commit for the checked-out commit `tree`; without one, the commit's own."""
    if earlier is None:
        yield Rules(None, tree, tree / "params.yaml", tree, tree / "params.yaml")
        return
    with checked_out(earlier) as old, TemporaryDirectory(prefix="rules-") as holder:
        mixed = Path(holder)
        shutil.copytree(tree / "src", mixed / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in lineage.JUDGING:
            if (old / name).is_file():
                shutil.copyfile(old / name, mixed / name)
        _mix(tree / "params.yaml", old / "params.yaml", mixed / "params.yaml")
        judging = old if (old / "src/report/judge.py").is_file() else mixed
        yield Rules(earlier, mixed, mixed / "params.yaml", judging, judging / "params.yaml")


def _mix(own: Path, old: Path, target: Path) -> None:
    yaml = YAML()
    content = yaml.load(own.read_text())
    try:
        theirs = yaml.load(old.read_text()) if old.is_file() else {}
        content |= _sections(content, theirs)
    except Exception:  # an earlier commit may hold anything; its sections are then not there
        theirs = {}
    with target.open("w") as file:
        yaml.dump(content, file)


def _sections(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that judge: earlier ones, but for the wish, and for INT8 what the earlier did not know yet."""
    found = {name: theirs[name] for name in _SECTIONS if name in theirs}
    section, key = _WISH
    known = found.pop(section, {})
    if section in own:
        found[section] = {**own[section], **known, key: own[section][key]}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


def judge(tree: Path, commit: str, manifest: Mapping[str, Any], by: Rules, out: Path) -> dict[str, Any]:
    """Evaluate, compare and judge in the pulled tree; fill the folder `out` and return the verdict.

    Raises:
        CannotJudgeError: one of the rules' commands failed on this model.
    """
    out.mkdir(exist_ok=True)
    environment = _environment(commit, manifest)
    _write_run(out / "run.json", manifest)
    evaluated = [str(out / name) for name in ("metrics.json", "evaluation", "timings.json")]
    inputs = ["out/arrays", "out/manifest.parquet", "out/model"]
    _run("src.stages.evaluate", [*inputs, *evaluated, "--params", str(by.params)], by.measuring, tree, environment)
    verdict = _verdict(tree, by, out, environment)
    if _refusing(verdict) == {"latency"}:  # a busy machine is no fault of the model
        print("only the latency gate does not pass: measuring once more")
        verdict = _verdict(tree, by, out, environment)
    return verdict


def quantize(tree: Path, commit: str, manifest: Mapping[str, Any], by: Rules, out: Path) -> dict[str, Any]:
    """Quantise the reviewed model in the pulled tree into the folder `out`; return the table with its verdict.

    Raises:
        CannotJudgeError: it cannot be quantised, or the rules are older than INT8.
    """
    made = ["out/arrays", "out/model", str(out), "--params", str(by.params)]
    _run("src.release.quantize", made, by.measuring, tree, _environment(commit, manifest))
    found: dict[str, Any] = read_json(out / "quantization.json", made_by="quantize", keys=("verdict", "reasons"))
    return found


def _environment(commit: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    plan = {"sha": commit, "number": manifest.get("pull_request"), "run_url": manifest.get("run_url")}
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return {**kept, "PLAN": json.dumps(plan), "GIT_TERMINAL_PROMPT": "0"}


def _write_run(path: Path, manifest: Mapping[str, Any]) -> None:
    hosted = os.environ.get("RUNNER_ENVIRONMENT") == "github-hosted"
    told = {
        "budget": None,
        "failed": None,
        "hardware": manifest.get("hardware"),
        "lane": {"comparable": not hosted, "name": "hosted CPU" if hosted else "deploy"},
        "said": "",
        "seconds": {"train": manifest.get("training_seconds")},
    }
    write_json(path, told)


def _verdict(tree: Path, by: Rules, out: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    main = str(out / "main")
    pulled = ["--arrays", "out/arrays", "--manifest", "out/manifest.parquet", "--model", "out/model"]
    params = ["--params", str(by.params)]
    _run("src.report.compare", [by.before or "0" * 40, main, *pulled, *params], by.measuring, tree, environment)
    _settle(out / "main" / "facts.json", by)
    made = [main, str(out / "run.json"), str(out / "report" / "verdict.json"), str(out / "judged.json")]
    made += ["--metrics", str(out / "metrics.json"), "--evaluation", str(out / "evaluation")]
    made += ["--manifest", "out/manifest.parquet", "--validation", "out/validation.json", "--params", str(by.gates)]
    _run("src.report.judge", made, by.judging, tree, environment)
    found: dict[str, Any] = read_json(out / "report" / "verdict.json", made_by="evaluate", keys=("verdict", "reasons"))
    return found


def _settle(path: Path, by: Rules) -> None:
    """What changed beside the model was settled by the review: the rules are the earlier ones, the inputs the reviewed."""
    facts = read_json(path, made_by="evaluate")
    if by.before is None:
        facts["why"] = "it is the first one of main"
    write_json(path, {**facts, "judging_changed": [], "moved_inputs": [], "ref": "main"})


def _refusing(verdict: Mapping[str, Any]) -> set[str]:
    gates = verdict.get("gates", [])
    return {gate["name"] for gate in gates if gate["level"] == "enforce" and gate["outcome"] in ("fail", "investigate")}


def report(tree: Path, manifest: Mapping[str, Any], verdict: Mapping[str, Any], out: Path) -> None:
    """Write the report of a verdict beside it, with the commit's own words.

    Raises:
        CannotJudgeError: it cannot be written.
    """
    write_json(out / "report" / "verdict.json", verdict)
    made = {"metrics": "metrics.json", "evaluation": "evaluation", "run": "run.json", "main": "main"}
    paths = {name: str(out / path) for name, path in made.items()}
    paths |= {"verdict": str(out / "report" / "verdict.json"), "out": str(out / "report")}
    paths |= {"model": "out/model", "manifest": "out/manifest.parquet", "arrays": "out/arrays", "profile": "out/profile"}
    paths |= {
        "validation": "out/validation.json",
        "lineage": "manifest.json",
        "params": "params.yaml",
        "history": "out/history",
    }
    arguments = [word for name, path in paths.items() for word in (f"--{name}", path)]
    _run("src.report.write", arguments, tree, tree, _environment(str(manifest["commit"]), manifest))


def _run(module: str, arguments: list[str], code: Path, tree: Path, environment: Mapping[str, str]) -> None:
    """Run a command of `code` in the tree, whose own code stays out of it (-P)."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    variables = {**environment, "PYTHONPATH": str(code)}
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise CannotJudgeError(f"{module}: {lines[-1][:300].replace(f'{tree}/', '')}")
