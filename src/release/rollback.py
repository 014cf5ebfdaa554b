"""Bring an earlier version back: traffic first, then the aliases. Seconds where its container is still there.

    python -m src rollback --reason "wrong labels for dark images" [--version 4]

Without --version it is the one that served before. Nothing is tried that takes time: the version was live already.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.release import journal, probes, reviewed
from src.release import settings as all_settings
from src.release.golden import FaultError
from src.release.journal import Journal, Running
from src.release.outcome import RefusedError, telling
from src.release.site import Site


def rollback(version: str | None, reason: str, record: dict[str, Any]) -> None:
    """Bring the version back, and write into `record` what became of it.

    Raises:
        RefusedError: there is nothing to go back to, or it does not come up; what was live stays so. Or the traffic is
            back, but the registry does not answer.
    """
    started = time.monotonic()
    settings = all_settings.read()
    with journal.locked(settings, "rollback") as notes:
        if not notes.state.intent:
            _target(notes, version)  # before the engine is asked for: there may be nothing to go back to
        site = Site(settings, notes)
        if notes.state.intent:
            site.recover()
        live, target = notes.state.live, _target(notes, version)
        release = reviewed.load(Path(target.folder))
        record |= journal.begin("rollback", settings, release, target.short(), live, "rollback") | {"reason": reason}
        if live and (live.version, live.image.digest) == (target.version, target.image.digest):
            site.heal()
            return notes.end(record, "unchanged", f"version {live.version} is live already", started)
        notes.intend("rollback", "starting", target, live)
        try:
            site.start(target, quickly=True)
            golden = Path(target.folder) / "golden"
            probes.quick(site.client(target), golden, target.version, settings.tolerance)
            notes.intend("rollback", "switching", target, live)
            site.switch(target)
        except BaseException as error:
            site.undo(target, live)
            if isinstance(error, FaultError):
                said = f"version {target.version} does not come back: {error}"
                raise RefusedError("fault", said, "what was live stays so; name another with VERSION=") from None
            raise
        seconds = time.monotonic() - started
        notes.note("switched", target, f"version {target.version} answers again, after {seconds:.1f} s")
        try:
            site.promote("rollback", target, live, reason)
        except UserError as error:  # a registry that does not answer takes no traffic away from what was asked for
            said = f"traffic is back at version {target.version}, but the aliases could not follow ({error})"
            then = "start the registry, then run make rollback or make deploy, which ends it"
            raise RefusedError("registry", said, then) from None
        site.clean(wait=False)
        instead = f" instead of version {live.version}" if live else ""
        return notes.end(record, "rolled back", f"version {target.version} is live{instead}: {reason}", started)


def _target(notes: Journal, version: str | None) -> Running:
    """Return the version to go back to; an older one that this host has released starts from its image."""
    state = notes.state
    if state.live is None:
        raise RefusedError("missing", "nothing is deployed on this host yet", "make deploy")
    if version is None:
        if state.previous is None:
            said = f"version {state.live.version} is the first one on this host: there is nothing to go back to"
            raise RefusedError("missing", said, "deploy another version, or revert the pull request that brought this one")
        return state.previous
    released = notes.released()
    found = next((running for running in state.known if running.version == version), released.get(version))
    if found is None:
        offer = ", ".join(sorted(released, key=lambda number: (len(number), number)))
        raise RefusedError("missing", f"version {version} was never live on this host", f"name one of {offer}")
    return found


def main() -> None:
    """Parse the command line and roll back."""
    parser = argparse.ArgumentParser(description="Bring an earlier version back into production.")
    parser.add_argument("--version", help="number of the registered version; without it the one before")
    parser.add_argument("--reason", default="", help="why; it is kept with the record")
    args = parser.parse_args()
    with telling("rollback", Path("out/release")) as record:
        rollback(args.version or None, args.reason.strip() or "no reason given", record)
