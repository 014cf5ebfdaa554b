"""Judge a commit's model once more by the rules of the deployed commit: its `python -m src verdict`, run from its worktree.

So no change can weaken the gate that judges it, however many merges it takes. Used by verify.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import write_json
from src.core.yaml_files import parse_yaml
from src.release import int8
from src.release.outcome import RefusedError
from src.release.production import Deployed
from src.system.git_command import git
from src.system.judged import JudgedFile, Lineage
from src.system.params import filled
from src.system.worktree import bring, checked_out

_FORMAT = 1  # of request and answer, as src/judging has it
_VERDICTS = ("pass", "investigate", "fail")
_SECRETS = ("GITHUB_TOKEN", "GH_TOKEN")  # of this job: nothing that judges needs them


class CannotJudgeError(Exception):
    """A judge cannot be used on this model; the text is the reason it gave."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and whose rules gave it."""

    verdict: JudgedFile
    rules: str
    gates: str  # the verdict of the gates alone
    moved: str = ""  # why the rules are not the deployed ones; empty where they are, or where nothing was ever deployed


def judge(tree: Path, commit: str, manifest: Lineage, deployed: Deployed, out: Path) -> Judgement:
    """Judge the model of the pulled tree into the folder `out`.

    Where the deployed commit is unknown or its judge cannot be used, the commit's own code judges, and the verdict is
    investigate at best.

    Raises:
        RefusedError: nobody can judge it.
    """
    moved = deployed.why
    if deployed.commit and not moved:
        # the raw data too where the deployed model may take other images: they are prepared again for it
        here, there = (tree / "params.yaml").read_text(), git("show", f"{deployed.commit}:params.yaml")
        if _section(here, "prepare") != _section(there, "prepare"):
            bring(tree, ["data.dvc"])  # the judge says what is missing
        try:
            verdict = _ask(deployed.commit, tree, commit, manifest, deployed, out)
        except CannotJudgeError as error:
            moved = f"the judge of the deployed commit {deployed.commit[:12]} cannot judge it ({error})"
        else:
            return Judgement(verdict, f"the deployed commit {deployed.commit[:12]}", verdict.verdict)
    try:
        verdict = _ask(None, tree, commit, manifest, deployed, out)
    except CannotJudgeError as error:
        raise RefusedError("gates", f"the model cannot be judged ({error})", "mend what judges in a pull request") from None
    gates = verdict.verdict
    if moved:
        worst, reasons = max("investigate", gates, key=_VERDICTS.index), [f"judging moved: {moved}", *verdict.reasons]
        verdict = replace(verdict, verdict=worst, reasons=reasons)
    return Judgement(verdict, "this commit", gates, moved)


def _section(params: str, name: str) -> Any:
    try:
        return filled(parse_yaml(params, "params.yaml"))[name]
    except (UserError, KeyError, TypeError):  # an earlier commit may hold anything
        return None


def _ask(code: str | None, tree: Path, commit: str, manifest: Lineage, deployed: Deployed, out: Path) -> JudgedFile:
    """Run the judge of a commit, None for the tree's own, in the tree; return its verdict."""
    hosted = os.environ.get("RUNNER_ENVIRONMENT") == "github-hosted"
    facts = {
        "budget": None, "failed": None, "said": "", "hardware": manifest.hardware.to_json() if manifest.hardware else None,
        "lane": {"comparable": not hosted, "name": "hosted CPU" if hosted else "deploy"},
        "seconds": {"train": manifest.training_seconds},
    }  # fmt: skip
    write_json(out / "run.json", facts)
    request = {
        "format": _FORMAT,
        **{name: f"out/{name}" for name in ("arrays", "model")},
        "manifest": "out/manifest.parquet", "validation": "out/validation.json", "data": "data", "params": "params.yaml",
        "run": str(out / "run.json"),
        "deployed": deployed.commit if not deployed.why else None,
        "why": deployed.why,
        "quantize": int8.is_wanted(tree / "params.yaml"),
    }  # fmt: skip
    write_json(out / "request.json", request)
    (out / "verdict.json").unlink(missing_ok=True)
    with nullcontext(tree) if code is None else checked_out(code) as folder:
        _run("verdict", [str(out / "request.json"), str(out)], folder, tree, commit, manifest)
    if not (out / "verdict.json").is_file():
        raise CannotJudgeError("it wrote no verdict")
    try:
        answer = JudgedFile.read(out / "verdict.json", made_by="judge")
    except UserError as error:
        raise CannotJudgeError(f"its verdict has another format: {error}") from None
    if answer.format != _FORMAT or answer.verdict not in _VERDICTS:
        raise CannotJudgeError("its verdict has another format")
    return answer


def report(tree: Path, commit: str, manifest: Lineage, out: Path) -> None:
    """Write the report of out/report/verdict.json beside it, with the commit's own words.

    Raises:
        CannotJudgeError: it cannot be written.
    """
    paths = {name: str(out / name) for name in ("main", "report", "run.json")}
    arguments = ["--main", paths["main"], "--out", paths["report"], "--run", paths["run.json"]]
    arguments += ["--verdict", f"{paths['report']}/verdict.json", "--history", "out/history", "--profile", "out/profile"]
    arguments += ["--metrics", "metrics.json", "--evaluation", "out/evaluation", "--arrays", "out/arrays"]
    arguments += ["--model", "out/model", "--manifest", "out/manifest.parquet", "--validation", "out/validation.json"]
    arguments += ["--lineage", "manifest.json", "--params", "params.yaml"]
    _run("report", arguments, tree, tree, commit, manifest)


def _run(verb: str, arguments: list[str], code: Path, tree: Path, commit: str, manifest: Lineage) -> None:
    """Run a command of `code` in the tree, whose own code stays out of it; it gets no token of this job."""
    plan = {"sha": commit, "number": manifest.pull_request, "run_url": manifest.run_url}
    variables = {"PLAN": json.dumps(plan), "GIT_TERMINAL_PROMPT": "0", "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    done = subprocess.run(
        [sys.executable, "-m", "src", verb, *arguments], cwd=tree, env={**kept, **variables}, capture_output=True,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise CannotJudgeError(f"{verb}: {lines[-1][:300].replace(f'{tree}/', '')}")
