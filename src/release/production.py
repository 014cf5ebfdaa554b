"""Which commit is deployed: its rules judge the next one, and its model is what that is compared with.

On GitHub Actions GitHub is asked, elsewhere this host's state, then the registry. That nothing was ever deployed is an
answer too; who cannot be asked has given none.
"""

import os
from dataclasses import dataclass

from src.core.command import UserError
from src.github import deployments
from src.github.api import GitHub
from src.release import settings
from src.release.journal import Journal, registry_uri
from src.system.git_command import git, has
from src.system.registry import Registry

MODEL = ("manifest.json", "metrics.json", "reference.json", "dvc.lock", "dvc.yaml", "*.dvc")  # or asks for another one
ENGINE = (  # what ships in the image, or decides how it is judged, built and deployed
    ".github/workflows/deploy.yml",
    "bentofile.yaml",
    "deploy",
    "params.yaml",
    "requirements",
    "src",
)


@dataclass(frozen=True)
class Deployed:
    """The last deployed commit, None where nothing ever was; `why` is not empty where that could not be found out."""

    commit: str | None
    why: str = ""


def is_unchanged(deployed: Deployed, commit: str) -> bool:
    """True when a commit brings neither another model nor another engine than the deployed one."""
    if not deployed.commit:
        return False
    return not git("diff", "--name-only", deployed.commit, commit, "--", *MODEL, *ENGINE)


def find() -> Deployed:
    """Find out which commit is deployed."""
    try:
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # whoever may write can make a deployment inactive: that must not look as if nothing had ever been deployed
            github = GitHub.from_environment()
            live = deployments.live(github) if os.environ.get("DEPLOY_RUNNER") else None
            commit = str(live["commit"]) if live else deployments.last_built(github)
        else:
            commit = _on_this_host()
    except (UserError, OSError) as error:
        return Deployed(None, f"what is deployed could not be found out: {error}")
    except (KeyError, TypeError, ValueError):
        return Deployed(
            None, "what is deployed could not be found out: GitHub's answer has another form: check GITHUB_SERVER_URL"
        )
    if commit and not has(commit):
        why = f"the deployed commit {commit[:12]} is not in this clone: run git fetch --unshallow (in CI: fetch-depth: 0)"
        return Deployed(None, why)
    return Deployed(commit)


def _on_this_host() -> str | None:
    told = settings.read()
    live = Journal(told).state.live
    if live:
        return live.record.commit
    champion = Registry.connect(registry_uri(told), name=told.name).alias("champion")
    if champion and "commit" not in champion.tags:
        raise UserError(
            f"version {champion.number} at the alias champion of {told.name} has no tag commit: set it to the commit "
            "that it is of, or remove the alias"
        )
    return champion.tags["commit"] if champion else None
