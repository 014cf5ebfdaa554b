"""Bring a branch up to date with main: `make update`.

    python3 -m src update [origin/main]

Two judged pull requests conflict in dvc.lock, metrics.json and manifest.json, and GitHub starts no workflow where a branch
conflicts. This merges main and takes its three files: the report of the pull request makes them anew. Standard library only.
"""

import argparse

from src.core.command import UserError
from src.system.git_command import GitError, run_git
from src.system.protection import RESULTS


def update(base: str) -> None:
    """Fetch `base`, a REMOTE/BRANCH, and merge it into the branch that is checked out; print what to do next.

    Raises:
        UserError: the branch cannot be merged now, or files conflict that only a person can merge; the text says which.
    """
    branch = _require_ready(base)
    remote, _, name = base.partition("/")
    _git("fetch", "--quiet", "--no-tags", remote, f"+refs/heads/{name}:refs/remotes/{base}")
    if _try("merge-base", "HEAD", base):
        hint = f"name the branch that this one left, or run `git fetch --unshallow {remote}` where the clone is shallow"
        raise UserError(f"{branch} and {base} have no commit in common: {hint}; then run again")
    behind = int(_git("rev-list", "--count", f"HEAD..{base}"))
    if not behind:
        print(f"{branch} holds all of {base} already: there is nothing to merge")
        return
    before = _git("rev-parse", "HEAD")
    # a file of both sides can also merge line by line, into one of no run
    both = all(
        _git("diff", "--name-only", f"{one}...{other}", "--", *RESULTS) for one, other in ((base, before), (before, base))
    )
    refusal = _try("merge", "--ff", "--no-commit", base)
    if refusal and not _is_merging():
        raise UserError(f"{base} cannot be merged into {branch}, and nothing was changed. Git says: {refusal}")
    if both:
        for path in RESULTS:
            there = not _try("cat-file", "-e", f"{base}:{path}")
            _git(*(("checkout", base, "--") if there else ("rm", "--quiet", "--force", "--ignore-unmatch", "--")), path)
    if conflicts := _git("diff", "--name-only", "--diff-filter=U").splitlines():
        data = (
            " data.dvc names one side's data: keep yours with `git checkout --ours data.dvc`, or take main's with `git "
            "checkout --theirs data.dvc` and `.venv/bin/dvc pull data.dvc`; put the other side's images into data/ and run "
            "`.venv/bin/dvc add data`."
        )
        raise UserError(
            f"{', '.join(conflicts)}: changed here and in {base}, so the merge waits for you. Edit them, `git add` them and "
            f"run `git commit --no-edit`; or give up with `git merge --abort`.{data if 'data.dvc' in conflicts else ''}"
        )
    if _is_merging() and (refusal := _try("commit", "--no-edit", "--quiet")):
        raise UserError(
            f"{base} is merged but not committed: mend what Git names, then run `git commit --no-edit`: {refusal}"
        )
    print(f"{branch}: merged {base} ({behind} commit{'s' if behind > 1 else ''})")
    if both:
        print("Both had changed dvc.lock, metrics.json or manifest.json: all three are main's now.")
    print("Next: git push. The pull request's report makes dvc.lock, metrics.json and manifest.json anew, and commits them.")
    if _git("diff", "--name-only", before, "HEAD", "--", "data.dvc"):
        print("The data have changed too: `.venv/bin/dvc pull data.dvc` brings them, before you run `make reproduce` here.")


def _require_ready(base: str) -> str:
    """Return the name of the branch that is checked out, if a merge can begin."""
    remote, _, name = base.partition("/")
    if _try("rev-parse", "--git-dir"):
        raise UserError("this folder is no Git repository: run it in your clone")
    if not name:
        raise UserError(f"BASE is {base!r}: name a remote and its branch, as in `make update BASE=origin/main`")
    if remote not in _git("remote").splitlines():
        raise UserError(
            f"there is no Git remote {remote}: run `git remote add {remote} ADDRESS`, or name another: BASE=REMOTE/main"
        )
    if _is_merging():
        raise UserError(
            "a merge is under way: end it with `git commit`, or give it up with `git merge --abort`; then run again"
        )
    if _try("symbolic-ref", "--quiet", "HEAD"):
        raise UserError(
            "no branch is checked out (detached HEAD): `git switch BRANCH` to the one to bring up to date, and run again"
        )
    branch = _git("symbolic-ref", "--short", "HEAD")
    if branch == name and _git("for-each-ref", "--format=%(upstream:short)", f"refs/heads/{branch}") in ("", base):
        raise UserError(
            f"this is {name} itself: `git pull` brings it up to date; switch to a pull request's branch and run again"
        )
    if changed := _git("status", "--porcelain", "--untracked-files=no"):
        names = [line.split(maxsplit=1)[1] for line in changed.splitlines()]
        made = set(names) <= set(RESULTS)  # the report makes them anew, so that nothing is lost
        advice = (
            f"drop them with `git restore --staged --worktree {' '.join(names)}`"
            if made
            else "commit them, or `git stash` them"
        )
        raise UserError(
            f"{', '.join(names[:5])}{' and more' if names[5:] else ''}: changed and not committed: {advice}; then run again"
        )
    return branch


def _is_merging() -> bool:
    return not _try("rev-parse", "--verify", "--quiet", "MERGE_HEAD")


def _try(*arguments: str) -> str:
    """Run Git; return "" where it succeeds, else why not."""
    try:
        run_git(*arguments)
    except GitError as error:
        return str(error)
    return ""


def _git(*arguments: str) -> str:
    """Run Git; return what it prints, stripped."""
    return run_git(*arguments).strip()


def main() -> None:
    """Read the command line and update."""
    parser = argparse.ArgumentParser(description="Merge main into this branch; take its results where both have some.")
    parser.add_argument("base", nargs="?", default="origin/main", help="REMOTE/BRANCH to merge (default: origin/main)")
    update(parser.parse_args().base)
