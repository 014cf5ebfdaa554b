"""Say what serves on this host: version, since when, from which pull request, and what a rollback would bring back.

    python -m src status [--json]

Reads the state, the engine, the proxy and the registry, and changes nothing. Exits with 1 when something is wrong.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from src.core.command import UserError, table
from src.release import journal, reviewed
from src.release import settings as all_settings
from src.release.client import KEYS
from src.release.journal import Journal, Running
from src.release.probes import Client
from src.release.settings import Settings
from src.release.site import Site
from src.system.registry import Registry


def status(settings: Settings) -> dict[str, Any]:
    """Return what is live, what was before, and what is wrong.

    Raises:
        UserError: the state is damaged, or the engine does not answer.
    """
    notes = Journal(settings)
    state = notes.state
    told: dict[str, Any] = {"environment": settings.environment, "url": settings.url, "wrong": []}
    told |= {"live": None, "previous": None, "aliases": {}}
    if state.live is None:
        return told
    site = Site(settings, notes)
    told["live"] = _describe(site, state.live) | {"ready": site.client(state.live).ready()}
    told["previous"] = _describe(site, state.previous) if state.previous else None
    told["wrong"] += _faults(site, state.live)
    if settings.environment == "production":
        told |= _aliases(settings, state.live, told["wrong"])
    return told


def _describe(site: Site, running: Running) -> dict[str, Any]:
    release = reviewed.load(Path(running.folder))
    return {
        **running.short(),
        "container": running.name,
        "running": site.state(running).running,
        "since": running.since,
        "pull_request": release.pull_request,
        "commit": release.commit,
        "verdict": release.verdict,
        "override": release.override,
        "accuracy": release.metrics.get("accuracy"),
        "image": running.image["image"],
        "who": running.record["who"],
    }


def _faults(site: Site, live: Running) -> list[str]:
    found = []
    intent = site.journal.state.intent
    if intent:
        found.append(f"a {intent.what} of version {intent.new.version} is under way, or was cut off while {intent.step}")
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


def _aliases(settings: Settings, live: Running, wrong: list[str]) -> dict[str, Any]:
    try:
        registry = Registry.connect(journal.registry_uri(settings), name=settings.name)
        found = {alias: registry.alias(alias) for alias in ("champion", "challenger", "previous")}
    except UserError as error:
        wrong.append(str(error))
        return {"aliases": {}}
    numbers = {alias: version.number if version else None for alias, version in found.items()}
    if numbers["champion"] != live.version:
        said = f"the alias champion is at version {numbers['champion']}, the traffic at {live.version}: make deploy mends it"
        wrong.append(said)
    return {"aliases": numbers, "registry": registry.shown}


def show(told: dict[str, Any]) -> str:
    """Lay it out for a person."""
    if told["live"] is None:
        return "nothing is deployed on this host yet: make deploy"
    rows = []
    for name in ("live", "previous"):
        found = told[name]
        if found is None:
            rows.append((name, "nothing", "", "", "", ""))
            continue
        pull_request = f"#{found['pull_request']}" if found["pull_request"] else "none"
        verdict = found["verdict"] + (f", overridden by {found['override']['by']}" if found["override"] else "")
        doing = "serving" if found.get("ready") else "running" if found["running"] else "stopped"
        rows.append((name, f"version {found['version']}", doing, f"since {found['since']}", pull_request, verdict))
    header = (told["environment"], "model", "is", "live", "pull request", "verdict")
    lines = [table(header, rows), ""]
    live = told["live"]
    lines += [
        f"{label:<10}{live[key]}" for label, key in (("commit", "commit"), ("manifest", "manifest"), ("image", "image"))
    ]
    lines += [f"{'aliases':<10}" + ", ".join(f"{alias} {number}" for alias, number in told["aliases"].items() if number)]
    lines += [f"{'address':<10}{told['url']}"]
    lines += ["", *(f"wrong: {sentence}" for sentence in told["wrong"])] if told["wrong"] else []
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and tell."""
    parser = argparse.ArgumentParser(description="Say what serves on this host.")
    parser.add_argument("--json", action="store_true", help="for a program")
    args = parser.parse_args()
    told = status(all_settings.read())
    print(json.dumps(told, indent=2, sort_keys=True) if args.json else show(told))
    if told["wrong"]:
        sys.exit(1)
