"""Which files a change touches, as GitHub lists them, and whether the model depends on any of them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github.api import ApiError, GitHub
from src.system.judged import Inputs

MOST_OF_A_PULL_REQUEST = 3000  # files; GitHub lists no more, and then anything may have changed
ANYTHING = "files that GitHub does not list"
_MOST_OF_A_COMPARISON = 300
_ALWAYS = (
    r"\.dvc/config",
    r"dvc\.(yaml|lock)",
    r"(params|reference|metrics|manifest)\.(yaml|json)",
    r"requirements/(run|yours|torch)\.txt",
    r".*\.dvc",
    r"src/(core/significance|release/storage|system/(reproduce|worktree))\.py",
    r"src/(reporting|judging)/.*",
    r"starter/project/manifest\.json",
    r"\.github/workflows/report\.yml",
)
_WITHOUT_LINEAGE = (r"src/(?!github/).*",)


def of_pull_request(github: GitHub, number: int) -> list[str]:
    """Return the paths that a pull request changes, both names of a renamed file; ANYTHING where GitHub does not answer."""
    return _listed(lambda: github.pages(f"pulls/{number}/files"), MOST_OF_A_PULL_REQUEST)


def between(github: GitHub, base: str, head: str) -> list[str]:
    """Return the paths that a commit changes since it left another; ANYTHING where GitHub does not answer."""
    return _listed(lambda: github.get(f"compare/{base}...{head}")["files"], _MOST_OF_A_COMPARISON)


def _listed(ask: Callable[[], Iterable[Mapping[str, Any]]], most: int) -> list[str]:
    try:
        entries = list(ask())
    except ApiError as error:
        print(f"::warning::the changed files could not be listed ({error}): anything may have changed")
        return [ANYTHING]
    names = {entry[key] for entry in entries for key in ("filename", "previous_filename") if entry.get(key)}
    return sorted(names) if len(entries) < most else [*sorted(names), ANYTHING]


def relevant(paths: Iterable[str], manifest: Path = Path("manifest.json")) -> list[str]:
    """Return those paths that the model, or the verdict on it, depends on.

    `manifest` is the lineage of the model that was judged last; without one all of src/ counts.
    """
    try:
        inputs = Inputs.from_json(json.loads(manifest.read_text())["inputs"], str(manifest))
        known = {name for stage in inputs.stages.values() for name in stage.deps}
    except (OSError, ValueError, KeyError, TypeError, UserError):
        known = set()
    patterns = _ALWAYS if known else (*_ALWAYS, *_WITHOUT_LINEAGE)
    folders = tuple(f"{name}/" for name in known)
    return [
        path for path in paths
        if path in {ANYTHING, *known} or path.startswith(folders) or any(re.fullmatch(pattern, path) for pattern in patterns)
    ]  # fmt: skip
