"""Publish a verdict: pictures, the reviewed files as one commit, the statuses; and write the comment for the next job.

    python3 -m src publish DIR comment.md

DIR is the artifact `reviewed` of the job that trained: out/report, dvc.lock, metrics.json, manifest.json. Reads PLAN (what
src/github/plan.py found out), TRAINED (how that job ended) and REPORT_KEEP. Runs no model and imports no package, since it
holds the write token. Whatever is missing, the status says so: a gate that crashed has not passed. A change of the engine
passes with the label `engine: reviewed` alone, whatever the artifact says.
"""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

from src.core.command import UserError
from src.github import labels, pictures
from src.github.api import GitHub, start
from src.github.git import Remote, git, with_files
from src.github.labels import ENGINE, LABELS, OVERRIDE
from src.github.status import CONTEXT, run_url, set_status, summarize
from src.system.escaping import code, prose
from src.system.git_command import GitError
from src.system.judged import JudgedFile
from src.system.protection import RESULTS
from src.system.run_plan import RunPlan

_KEEP = 50
_PICTURE = re.compile(r"^!\[([^\]]*)\]\(pictures/([\w.-]+\.png)\)$", re.MULTILINE)
_DECIDES = {OVERRIDE: "to accept this model", ENGINE: "once you have read the protected files"}
_SYMBOLS = {"success": "✅", "failure": "❌", "pending": "🟡"}


@dataclass
class Outcome:
    """What is told: the status, its one line, and the comment."""

    state: str
    description: str
    markdown: str
    reviewed: bool = False


def publish(folder: Path, plan: RunPlan, trained: str, comment: Path) -> None:
    """Tell the commit and the summary what came out, and write what the pull request is told.

    Raises:
        UserError: a status could not be set.
    """
    github, remote = GitHub.from_environment(), Remote.from_environment()
    outcome = outcome_of(folder, plan, trained)
    outcome.markdown = _with_pictures(outcome.markdown, folder / "out/report/pictures", plan, remote)
    heads = [plan.sha]
    if outcome.reviewed:
        pushed = _push_reviewed(folder, plan, remote, outcome)
        heads += [pushed] if pushed else []
    summarize(f"{_SYMBOLS[outcome.state]} {CONTEXT}: {outcome.state}\n\n{outcome.markdown}")
    comment.write_text(outcome.markdown, encoding="utf-8")
    for sha in heads:
        set_status(github, sha, outcome.state, outcome.description)
    print(f"{CONTEXT}: {outcome.state} on {', '.join(sha[:12] for sha in heads)}: {outcome.description}")
    if len(heads) > 1:  # a commit pushed by a workflow starts none, so the check `all-green` would be missing on it for ever
        start(github, "ci.yml", plan.branch)


# ---------------------------------------------------------------------------------------------------------------------
# What came out
# ---------------------------------------------------------------------------------------------------------------------


def outcome_of(folder: Path, plan: RunPlan, trained: str) -> Outcome:
    """Read what the training job left; every way in which it can have gone wrong is a failure with its reason."""
    if plan.lane == "unchanged":
        return _unchanged(plan)
    if plan.lane == "bump":
        return _bump(plan)
    try:
        path = folder / "out/report/verdict.json"
        verdict = JudgedFile.parse(path.read_text(), path.name)
        markdown = (folder / "out/report/report.md").read_text()
        if trained != "success" and _has_model(verdict):
            # what was reviewed may lie nowhere, so that nothing could be deployed
            said = (
                f"judged {verdict.verdict}, but the job ended with {trained or 'nothing'}: data and model may not be stored"
            )
            advice = f"See [the run]({run_url()}), mend the store (`DVC_REMOTE_URL`), run it again."
            text = f"{markdown}\n> [!CAUTION]\n> **{said[0].upper()}{said[1:]}.** {advice}\n"
            return Outcome("failure", said, text)
        outcome = _judged(verdict, markdown, plan, folder)
    except (OSError, ValueError, KeyError, UserError) as error:
        what = "there is no report" if isinstance(error, OSError) else "the report cannot be read"
        why = f"{what}: the job that trains and judges ended with `{trained or 'nothing'}`"
        text = (
            f"## ❌ fail: the gate could not judge this change\n\n{why[0].upper()}{why[1:]}. See [the run]({run_url()}); "
            "mend what it names and push again, or run it again if the machine was at fault. Nothing was deployed and no "
            "file of the branch was changed.\n"
        )
        return Outcome("failure", f"the gate crashed: {why.replace('`', '')}", text)
    # let no verdict pass a change of the engine that nobody has read: verdict.json is the work of the change's own code
    if plan.protected and not plan.engine_reviewed:
        outcome.markdown += f"\n> [!WARNING]\n> {_engine(plan)}\n"
        if outcome.state == "success":
            outcome.state, outcome.description = "pending", labels.wanted(plan.protected)
    return outcome


def _judged(verdict: JudgedFile, markdown: str, plan: RunPlan, folder: Path) -> Outcome:
    word, lacking = verdict.verdict, [LABELS[key] for key in verdict.lacking]
    reasons = "; ".join(verdict.reasons) or "every gate holds"
    state = {"pass": "success", "fail": "failure", "investigate": "pending"}[word]
    description = f"{word}: {reasons}"
    claimed = [key for key in LABELS if getattr(verdict, key)]
    # verdict.json is the work of the branch's own code: who gave a label is what plan has asked GitHub for
    if word != "pass" and verdict.accepted and claimed and all(getattr(plan, key) for key in claimed):
        people = dict.fromkeys(getattr(plan, key).by for key in claimed)
        state, description = "success", f"{word}, accepted by {' and '.join(people)}: {reasons}"
    elif word == "investigate" and lacking:
        description = f"investigate: a reviewer may add the label {' and '.join(lacking)}; {reasons}"
    reviewed = bool(plan.branch) and all((folder / name).is_file() for name in RESULTS) and _has_model(verdict)
    started = word == "investigate" or bool(claimed)
    return Outcome(state, description, _with_hints(markdown, lacking if started else [], plan), reviewed)


def _engine(plan: RunPlan) -> str:
    """Name the protected files, and say what is to be done."""
    files = ", ".join(map(code, plan.protected))
    what = f"reads them and adds the label `{ENGINE}`, which counts for this commit; a later push ends it"
    refused = plan.refused.get("engine_reviewed", "")
    why = f" Not yet: {prose(refused)}." if refused else ""
    return f"**This change touches the engine: {files}.** `{CONTEXT}` waits until a person with write access {what}.{why}"


def _has_model(verdict: JudgedFile) -> bool:
    """False after a failed pipeline and for a preview: the files beside the verdict are then those of an earlier model."""
    gates = {gate.name: gate.outcome for gate in verdict.gates}
    return bool(gates) and "pipeline" not in gates and gates.get("budget", "pass") == "pass"


def _with_hints(markdown: str, lacking: list[str], plan: RunPlan) -> str:
    """Say what a person can do next, where the machine has no more to say; `lacking` are the labels that would do."""
    hints = []
    if lacking:
        named = " and ".join(f"`{label}` {_DECIDES[label]}" for label in lacking)
        hints.append(
            f"`model-gate` waits until a person with write access decides: add the label {named} (your name goes into the "
            "report and the lineage; it counts for this commit, and a later push ends it), or push a better one."
        )
    if plan.fork:
        run, repository = os.environ.get("GITHUB_RUN_ID", ""), os.environ.get("GITHUB_REPOSITORY", "")
        download = f"gh run download {run} --repo {repository} --name reviewed --dir reviewed"
        commit = f"cp {' '.join('reviewed/' + name for name in RESULTS)} . && git commit --all -m 'Reviewed model'"
        hints.append(
            "Trained here from a fork's commit, at a maintainer's request. To keep this model, its author commits its "
            f"files: `{download}`, then `{commit}`; a maintainer then starts this run again, which trains nothing."
        )
    if plan.branch:
        hints.append(
            "If GitHub says that this branch has conflicts, it starts no workflow: run `make update` in it and push."
        )
    return markdown + "".join(f"\n> {hint}\n" for hint in hints)


def _unchanged(plan: RunPlan) -> Outcome:
    files = "\n".join(f"- {code(path)}" for path in plan.changed)
    told = "nothing that the model depends on changed: nothing was trained"
    rest = f"The model of `{plan.base}` stays as it is. Changed files:\n\n{files}\n\n[Run]({run_url()})\n"
    reviewed = plan.engine_reviewed
    if plan.protected and not reviewed:
        return Outcome("pending", labels.wanted(plan.protected), f"## 🔎 investigate: {told}\n\n{_engine(plan)}\n\n{rest}")
    by = f"; the engine was read by {reviewed.by if reviewed else ''}" if plan.protected else ""
    return Outcome("success", told + by, f"## ✅ pass: {told}{by}\n\n{rest}")


def _bump(plan: RunPlan) -> Outcome:
    """Leave a bump to the person who reads it: what that person starts has the secrets that Dependabot's run has not."""
    text = (
        "## 🟡 new versions of packages: nothing was trained yet\n\nA run that Dependabot starts holds no secret, and new "
        "packages meet no machine of yours before a person has read them. When you have, this resolves their locks, commits "
        "them here, and starts CI and the report, which pushes its results onto this branch too:\n\n"
        f"```bash\ngh workflow run lock.yml -f branch={plan.branch}\n```\n"
    )
    return Outcome("pending", "new packages: read them, then start lock.yml, as the comment says", text)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def _with_pictures(markdown: str, folder: Path, plan: RunPlan, remote: Remote) -> str:
    """Put addresses into the picture lines, or take the lines out: the report reads without them."""
    if not _PICTURE.search(markdown) or not folder.is_dir():
        return _PICTURE.sub("", markdown)
    run, attempt = os.environ.get("GITHUB_RUN_ID") or "0", os.environ.get("GITHUB_RUN_ATTEMPT", "1")
    name = f"{run}-{attempt}-{plan.number or 'branch'}"
    text, keep = os.environ.get("REPORT_KEEP") or str(_KEEP), _KEEP
    if text.isdecimal() and int(text) >= 1:
        keep = int(text)
    else:
        print(f"::warning::REPORT_KEEP is {text!r}, which is no number of reports: {_KEEP} are kept")
    try:
        address = pictures.push(remote, folder, name, keep)
    except GitError as error:
        print(f"::warning::the pictures could not be pushed to the branch {pictures.BRANCH}: {error}")
        note = (
            f"The pictures are missing: the branch `{pictures.BRANCH}` refused them (see the log). They are in the artifact"
        )
        return _PICTURE.sub("", markdown) + f"\n{note} `reviewed` of [the run]({run_url()}).\n"
    return _PICTURE.sub(rf"![\1]({address}\2?raw=true)", markdown)


# ---------------------------------------------------------------------------------------------------------------------
# The reviewed files, as one commit
# ---------------------------------------------------------------------------------------------------------------------


def _push_reviewed(folder: Path, plan: RunPlan, remote: Remote, outcome: Outcome) -> str:
    """Commit the reviewed files onto the reviewed commit and push; empty where nothing changed or the branch moved on."""
    here, sha = Path(), plan.sha
    try:
        remote.run(here, "fetch", "--quiet", "--no-tags", "--depth", "1", remote.url, sha)
        tree = with_files(here, sha, {name: folder / name for name in RESULTS})
        if tree == git(here, "rev-parse", f"{sha}^{{tree}}"):
            return ""
        subject = f"Reviewed model: {outcome.description.partition(':')[0]}"
        message = f"{subject}\n\n{outcome.description}\n\nTrained and judged at {sha} by {run_url()}\n"
        commit = git(here, "commit-tree", tree, "-p", sha, text=message)
        remote.run(here, "push", "--quiet", remote.url, f"{commit}:refs/heads/{plan.branch}")
    except GitError as error:
        print(f"::warning::the reviewed files could not be pushed to {plan.branch}: {error}")
        outcome.markdown += (
            f"\nThe reviewed `dvc.lock`, `metrics.json` and `manifest.json` could not be pushed to `{plan.branch}`: has "
            f"the branch moved on, or is it protected? They are in the artifact `reviewed` of [the run]({run_url()}).\n"
        )
        return ""
    return commit


def main() -> None:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description="Publish a verdict on the pull request that it is about.")
    parser.add_argument("reviewed", type=Path, help="the artifact of the job that trained")
    parser.add_argument("comment", type=Path, help="the comment, a file to write")
    args = parser.parse_args()
    text = os.environ.get("PLAN", "")
    if not text:
        raise UserError("there is no plan: the job Plan crashed, see its log")
    publish(args.reviewed, RunPlan.parse(text, "PLAN"), os.environ.get("TRAINED", ""), args.comment)
