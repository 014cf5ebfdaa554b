"""Say what serves on this host: version, since when, from which pull request, and what a rollback would bring back.

    python -m src status

Reads the state, the engine, the proxy and the registry, and changes nothing. Exits with 1 when something is wrong.
"""

import argparse
import sys
from pathlib import Path

from src.core.command import UserError, table
from src.release import journal, reviewed
from src.release import settings as all_settings
from src.release.client import KEYS, Client
from src.release.journal import Journal, Running
from src.release.settings import Settings
from src.release.site import Site
from src.system.registry import Registry


def status(settings: Settings) -> tuple[str, list[str]]:
    """Return what is live and what was before, laid out for a person, and a sentence for each thing that is wrong.

    Raises:
        UserError: the state is damaged, or the engine does not answer.
    """
    notes = Journal(settings)
    live, previous = notes.state.live, notes.state.previous
    if live is None:
        return "nothing is deployed on this host yet: make deploy", []
    site = Site(settings, notes)
    wrong = _faults(site, live)
    aliases = _aliases(settings, live, wrong) if settings.environment == "production" else {}
    serving = site.client(live).ready()
    rows = [_row(site, "live", live, serving=serving)]
    rows += [_row(site, "previous", previous) if previous else ("previous", "nothing", "", "", "", "")]
    header = (settings.environment, "model", "is", "live", "pull request", "verdict")
    facts = {
        "commit": live.record.commit,
        "manifest": live.manifest,
        "image": live.image.image,
        "aliases": ", ".join(f"{alias} {number}" for alias, number in aliases.items() if number),
        "address": settings.url,
    }
    lines = [table(header, rows), "", *(f"{name:<10}{value}" for name, value in facts.items())]
    return "\n".join(lines), wrong


def _row(site: Site, name: str, running: Running, *, serving: bool = False) -> tuple[str, ...]:
    release = reviewed.load(Path(running.folder))
    doing = "serving" if serving else "running" if site.state(running).running else "stopped"
    verdict = release.verdict + (f", overridden by {release.override.by}" if release.override else "")
    pull_request = f"#{release.pull_request}" if release.pull_request else "none"
    return name, f"version {running.version}", doing, f"since {running.since}", pull_request, verdict


def _faults(site: Site, live: Running) -> list[str]:
    found = []
    intent = site.journal.state.intent
    if intent:
        found.append(
            f"a {intent.what} of version {intent.new.version} is under way, or was cut off while {intent.step}: then make "
            "deploy ends it"
        )
    if not site.state(live).running:
        found.append(f"the live version {live.version} ({live.name}) does not run: make deploy starts it")
    elif not site.client(live).ready():
        found.append(f"the live version {live.version} ({live.name}) is not ready: look at its log, or make rollback")
    route = site.proxy.route()
    if not site.proxy.running():
        found.append("the proxy does not run: make deploy starts it")
    elif route is None or route.live != live.port:
        found.append(f"the proxy does not send its traffic to version {live.version}: make deploy mends it")
    elif Client(site.settings.url, keys=live.environment.get(KEYS)).model().get("version") != live.version:
        found.append(f"the answers of {site.settings.url} are not of version {live.version}: make deploy mends it")
    return found


def _aliases(settings: Settings, live: Running, wrong: list[str]) -> dict[str, str | None]:
    try:
        registry = Registry.connect(journal.registry_uri(settings), name=settings.name)
        found = {alias: registry.alias(alias) for alias in ("champion", "challenger", "previous")}
    except UserError as error:
        wrong.append(str(error))
        return {}
    numbers = {alias: version.number if version else None for alias, version in found.items()}
    if numbers["champion"] != live.version:
        said = f"the alias champion is at version {numbers['champion']}, the traffic at {live.version}: make deploy mends it"
        wrong.append(said)
    return numbers


def main() -> None:
    """Tell; exit with 1 when something is wrong."""
    argparse.ArgumentParser(description="Say what serves on this host.").parse_args()
    text, wrong = status(all_settings.read())
    print("\n".join([text, *([""] if wrong else []), *(f"wrong: {sentence}" for sentence in wrong)]))
    if wrong:
        sys.exit(1)
