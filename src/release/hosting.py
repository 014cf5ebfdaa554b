"""Where versions run on this machine: Docker or Podman. Used by deploy."""

import shutil
import subprocess

from src.core.command import UserError
from src.release.containers import Containers
from src.release.settings import Settings
from src.release.workload import ABSENT, Host, State, Workload

__all__ = ["ABSENT", "Host", "State", "Workload", "open_host"]

_PATIENCE = 10  # seconds an engine may take to say that it is there


def open_host(settings: Settings) -> Host:
    """Return the host that DEPLOY_ENGINE names; without it the one that runs versions already, else the first that answers.

    Raises:
        UserError: the engine that is wanted, or that has run versions here, does not answer, or there is none.
    """
    wanted, known = settings.engine, known_kind(settings)
    if wanted or known:
        kind = wanted or known
        reason = _silence(str(kind))
        if reason is None:
            return Containers(settings, str(kind))
        why = "DEPLOY_ENGINE wants it" if wanted else "the versions of this host run in it"
        raise UserError(
            f"{kind} does not answer ({reason}), and {why}: start it ({_START.get(str(kind), kind)}) and run the same "
            "command again; or set DEPLOY_ENGINE to docker or podman to go on with another"
        )
    silent = {kind: _silence(kind) for kind in _START}
    if answering := [kind for kind, reason in silent.items() if reason is None]:
        return Containers(settings, answering[0])
    raise UserError(
        f"deploying needs Docker or Podman: {', '.join(f'{kind}: {reason}' for kind, reason in silent.items())}. Install or "
        "start one of them and run the same command again; `make serve` serves the current model without either"
    )


_START = {"docker": "sudo systemctl start docker", "podman": "see podman info"}


def known_kind(settings: Settings) -> str | None:
    """Return the kind of host that ran the last version: a Docker that is down must not be taken for one that is absent."""
    path = settings.home / "engine"
    kind = path.read_text().strip() if path.is_file() else ""
    return kind if kind in ("docker", "podman") else None


def _silence(engine: str) -> str | None:
    """Return why an engine cannot be used, None when it can."""
    if shutil.which(engine) is None:
        return "there is no such command"
    try:
        done = subprocess.run([engine, "info"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PATIENCE} s"
    if done.returncode == 0 and "ERROR: Cannot connect" not in done.stderr:
        return None
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
