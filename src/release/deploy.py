"""Put a release into production: start it beside the old one, try it, switch, watch, promote. Any fault goes back by itself.

    python -m src deploy out/release [--again | --unchanged]

Reads the folder that verify, register and build filled; with --unchanged it reads none, and sees that what is live serves.
What happens is kept in the folder of `DEPLOY_HOME`: state.json and journal.jsonl. The same image again changes nothing.
Killed at any step and run again, it ends whole.
"""

import argparse
import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import read_json
from src.release import canary, journal, probes, reviewed
from src.release import settings as all_settings
from src.release.client import KEYS
from src.release.guarding import guarded
from src.release.journal import Journal, Running
from src.release.outcome import RefusedError, telling
from src.release.probes import Client, FaultError, Life, Limits
from src.release.proxy import Route
from src.release.reviewed import Release
from src.release.site import Site


class Deployment:
    """One version on its way into production."""

    def __init__(self, site: Site, release: Release, new: Running) -> None:
        self.site, self.release, self.new = site, release, new
        self.settings, self.journal = site.settings, site.journal
        self.old = site.journal.state.live
        self.golden = Path(new.folder) / "golden"
        self.state = partial(site.state, new)
        self._phase = "refused"

    def run(self) -> None:
        """Go all the way.

        Raises:
            RefusedError: a fault was found; the old version serves and nothing else has changed.
        """
        try:
            self._intend("starting")
            self._start()
            self._try()
            self._phase = "taken back from its share of the traffic"
            self._expose()
            self._phase = "taken back after the switch"
            self._intend("switching")
            self.site.switch(self.new, backup=self.old)
            self._say("switched", f"traffic goes to version {self.new.version}; watching it for {self.settings.watch:g} s")
            self._watch()
            self._phase = "taken back while it was promoted"
            self.site.promote("deploy", self.new, self.old, f"deployed from commit {self.release.commit[:12]}")
        except BaseException as error:
            self._go_back(error)
            raise
        self.site.clean()

    def _intend(self, step: str) -> None:
        self.journal.intend("deploy", step, self.new, self.old)

    def _say(self, step: str, said: str, **facts: Any) -> None:
        self.journal.note(step, self.new, said, **facts)

    def _start(self) -> None:
        if self.settings.environment == "production":
            self.site.registry()  # one that does not answer is found out before anything has changed
        self.site.proxy.ensure()  # likewise a port that is taken
        self._say("start", f"starting version {self.new.version} beside {_named(self.old)}")
        seconds = self.site.start(self.new)
        self._say("ready", f"ready after {seconds:.1f} s")

    def _try(self) -> None:
        """Try the version before any traffic reaches it."""
        against = self.site.client(self.old) if self.old and self.site.client(self.old).ready() else None
        limits = Limits(self.settings.latency_ms, self.settings.tolerance, self.settings.memory)
        client = self.site.client(self.new)
        found = probes.smoke(client, self.golden, self.release, self.new.version, limits, self.state, against)
        self._say("tried", "answers as reviewed", numbers=found)

    def _expose(self) -> None:
        """Give the new version a share of the traffic, or a copy of it, and compare."""
        settings, old, new = self.settings, self.old, self.new
        if settings.strategy == "bluegreen" or old is None:
            return
        mirror = settings.strategy == "shadow"
        share = 1.0 if mirror else settings.canary_share
        log = self.site.proxy.log
        offset = log.stat().st_size if log.is_file() else 0
        route = Route(old.port, old.version, candidate=new.port, candidate_version=new.version, share=share, mirror=mirror)
        self.site.proxy.point(route)
        wanted = f"{settings.canary_requests} requests, for at most {settings.canary_seconds:g} s"
        what = "a copy of the traffic" if mirror else f"{share:.0%} of the traffic"
        self._say("exposed", f"version {new.version} gets {what} until it had {wanted}")
        found = self._compare(log, offset)
        self._say("compared", "no worse than the live version on its traffic", numbers=found)

    def _compare(self, log: Path, offset: int) -> dict[str, Any]:
        """Wait until the new version had its requests, then judge it on them."""
        until, life = time.monotonic() + self.settings.canary_seconds, Life(self.state)
        while True:
            life.check()
            samples = canary.read(log, offset)
            verdict = canary.judge(samples["live"], samples["candidate"], self.settings)
            if verdict.ok is not None or time.monotonic() > until:
                break
            time.sleep(0.5)
        if not verdict.ok:
            raise FaultError("; ".join(verdict.reasons))
        return verdict.numbers

    def _watch(self) -> None:
        found = probes.watch(
            Client(self.settings.url, keys=self.new.environment.get(KEYS)),
            self.site.client(self.new), self.golden, self.new.version, self.settings.tolerance,
            self.settings.latency_ms, self.settings.watch, self.state, self.settings.memory,
        )  # fmt: skip
        self._say("watched", "no fault while it was watched", numbers=found)

    def _go_back(self, error: BaseException) -> None:
        """Undo everything, whatever the reason is; a fault becomes the sentence that a person reads."""
        intent = self.journal.state.intent
        if intent and intent.step == "cleaning":  # it is live: what is left to tidy up is left to the next run
            return
        self.site.undo(self.new, self.old)
        self._say("returned", f"back to {_named(self.old)}", why=str(error) or type(error).__name__)
        if intent and intent.step == "promoting":
            try:
                self.site.check_aliases()
            except UserError as why:
                self._say("apart", f"the aliases may be apart from the traffic until make deploy runs again: {why}")
        if isinstance(error, FaultError):
            logs = self.site.settings.home / "logs" / f"{self.new.name}.log"
            serves = f"version {self.old.version} serves as before" if self.old else "nothing serves, as before"
            said = f"version {self.new.version} was {self._phase}: {error}"
            raise RefusedError("fault", said, f"{serves}; what the new version printed is in {logs}") from None


def _named(running: Running | None) -> str:
    return f"version {running.version}" if running else "no other version"


# ---------------------------------------------------------------------------------------------------------------------
# What is deployed, and whether it is there already
# ---------------------------------------------------------------------------------------------------------------------


def deploy(folder: Path, record: dict[str, Any], *, again: bool) -> None:
    """Deploy the release of a folder, and write into `record` what became of it.

    Raises:
        RefusedError: the folder does not fit together, a fault was found, or the image was rolled back before.
    """
    started = time.monotonic()
    settings = all_settings.read()
    release, registered, image = _read(folder)
    with journal.locked(settings, f"deploy of version {image['version']}") as (notes, lock):
        site = Site(settings, notes)
        healthy = site.recover()
        old = notes.state.live
        target = {"version": image["version"], "manifest": release.manifest, "image_digest": image["digest"]}
        record |= journal.begin("deploy", settings, release, target, old) | {"strategy": settings.strategy}
        if healthy and old and (old.digest, old.version) == (image["digest"], image["version"]):
            _keep_in_step(site, record)
            return notes.end(record, "unchanged", f"version {old.version} is live already", started)
        _refuse_rolled_back(notes, release, image, again=again)
        new = _new(site, folder, release, image, record)
        notes.save(registry=registered["uri"])
        try:
            with guarded(settings.home, lock):
                Deployment(site, release, new).run()
        except UserError as error:
            notes.end(record, "returned", str(error), started)
            raise
        _keep_in_step(site, record)
        site.prune()
        said = f"version {new.version} is live at {settings.url}" + (f"; before it was version {old.version}" if old else "")
        return notes.end(record, "deployed", said, started, running=asdict(new))


def look_after(record: dict[str, Any]) -> None:
    """See that the live version serves, with proxy and aliases in step, as after a commit that changes nothing of it.

    Raises:
        RefusedError: nothing is live, or it does not come up.
    """
    started = time.monotonic()
    settings = all_settings.read()
    with journal.locked(settings, "deploy of what is live") as (notes, _):
        site = Site(settings, notes)
        healthy = site.recover()
        live = notes.state.live
        if live is None or not healthy:
            said = f"version {live.version} does not come up" if live else "nothing is live on this host"
            raise RefusedError("host", said, "make deploy builds and deploys it anew")
        release = reviewed.load(Path(live.folder))
        record |= journal.begin("deploy", settings, release, live.short(), live) | {"strategy": settings.strategy}
        _keep_in_step(site, record)
        notes.end(record, "unchanged", f"unchanged: version {live.version} is live already", started)


def _read(folder: Path) -> tuple[Release, dict[str, Any], dict[str, Any]]:
    """Read what verify, register and build made; they must speak of one release."""
    release = reviewed.read(folder)
    made = {}
    for name, command in (("registered", "register"), ("image", "build")):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise RefusedError("missing", f"{path} is missing", f"run python -m src {command} {folder}, which makes it")
        made[name] = read_json(path, made_by="evaluate", keys=("manifest", "version"))
        if made[name]["manifest"] != release.manifest:
            raise RefusedError(
                "tampered", f"{path} is of another release than {folder}/release.json", "run make deploy again"
            )
    registered, image = made["registered"], made["image"]
    if registered["version"] != image["version"]:
        said = f"the image is of version {image['version']}, registered is version {registered['version']}"
        raise RefusedError("tampered", said, f"run python -m src build {folder} again")
    return release, registered, image


def _new(site: Site, folder: Path, release: Release, image: dict[str, Any], record: dict[str, Any]) -> Running:
    name = f"{site.settings.name}-{site.settings.environment}-v{image['version']}-{str(image['digest'])[-8:]}"
    previous = site.journal.state.previous
    return Running(
        name=name,
        image=image,
        port=previous.port if previous and previous.name == name else site.free_port(),
        version=str(image["version"]),
        manifest=release.manifest,
        folder=str(site.keep_release(folder, image)),
        since=journal.now(),
        environment={name: value for name, value in os.environ.items() if name.startswith("SERVE_")},
        record=record,
    )


def _refuse_rolled_back(notes: Journal, release: Release, image: dict[str, Any], *, again: bool) -> None:
    """A push to main must not bring back by itself a model that a person took out, in whatever image; a person may."""
    why = notes.state.rolled_back.get(release.manifest)
    if why is not None and not again and os.environ.get("GITHUB_EVENT_NAME") == "push":
        said = f"version {image['version']} was rolled back ({why}) and main still holds it"
        raise RefusedError(
            "gates", said, "revert its pull request, or start this workflow by hand to deploy it all the same"
        )


def _keep_in_step(site: Site, record: dict[str, Any]) -> None:
    """Tell the registry which image serves the version, and where aliases are apart from traffic, mend it."""
    if site.settings.environment == "production":
        site.check_aliases()
        site.registry().tag(record["version"], image_digest=record["image_digest"])


def main() -> None:
    """Parse the command line and deploy."""
    parser = argparse.ArgumentParser(description="Put a verified, registered and built release into production.")
    parser.add_argument("folder", type=Path, help="what verify, register and build filled, such as out/release")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--again", action="store_true", help="also what was rolled back before")
    which.add_argument("--unchanged", action="store_true", help="no new version: see that the live one serves")
    args = parser.parse_args()
    with telling("deploy", args.folder) as record:
        look_after(record) if args.unchanged else deploy(args.folder, record, again=args.again)
