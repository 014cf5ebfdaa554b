"""Put a release into production: start it beside the old one, try it, switch, watch, promote. Any fault goes back by itself.

    python -m src deploy out/release [--again | --unchanged]

Reads the folder that verify, register and build filled; with --unchanged it reads none, and sees that what is live serves.
What happens is kept in the folder of `DEPLOY_HOME`: state.json and journal.jsonl. The same image again changes nothing.
Killed at any step and run again, it ends whole.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.release import canary, journal, probes, reviewed
from src.release import settings as all_settings
from src.release.client import KEYS, Client
from src.release.golden import FaultError
from src.release.journal import Journal, Origin, Running
from src.release.outcome import RefusedError, telling
from src.release.probes import Life, Limits
from src.release.proxy import Route
from src.release.reviewed import ImageFile, RegisteredFile, Release
from src.release.site import Site


class Deployment:
    """One version on its way into production."""

    def __init__(self, site: Site, release: Release, new: Running) -> None:
        self.site, self.release, self.new = site, release, new
        self.settings, self.journal = site.settings, site.journal
        self.old = site.journal.state.live
        self.golden = Path(new.folder) / "golden"
        self.look = partial(site.state, new)
        self.limits = Limits(self.settings.latency_ms, self.settings.tolerance, self.settings.memory)
        self._phase = "refused"

    def run(self) -> None:
        """Go all the way.

        Raises:
            RefusedError: a fault was found; the old version serves and nothing else has changed.
        """
        site, new, old = self.site, self.new, self.old
        try:
            self.journal.intend("deploy", "starting", new, old)
            if self.settings.environment == "production":
                site.registry()  # one that does not answer is found out before anything has changed
            site.proxy.ensure()  # likewise a port that is taken
            self._say("start", f"starting version {new.version} beside {_named(old)}")
            self._say("ready", f"ready after {site.start(new):.1f} s")
            found = probes.smoke(site.client(new), self.golden, self.release, new.version, self.limits, self.look)
            self._say("tried", "answers as reviewed", numbers=found)

            self._phase = "taken back from its share of the traffic"
            if old and self.settings.strategy != "bluegreen":
                self._expose(old)

            self._phase = "taken back after the switch"
            self.journal.intend("deploy", "switching", new, old)
            site.switch(new, backup=old)
            self._say("switched", f"traffic goes to version {new.version}; watching it for {self.settings.watch:g} s")
            through = Client(self.settings.url, keys=new.environment.get(KEYS))
            found = probes.watch(
                through, site.client(new), self.golden, new.version, self.limits, self.settings.watch, self.look
            )  # fmt: skip
            self._say("watched", "no fault while it was watched", numbers=found)

            self._phase = "taken back while it was promoted"
            site.promote("deploy", new, old, f"deployed from commit {self.release.commit[:12]}")
        except BaseException as error:
            self._go_back(error)
            raise
        site.clean()

    def _say(self, step: str, said: str, **facts: Any) -> None:
        self.journal.note(step, self.new, said, **facts)

    def _expose(self, old: Running) -> None:
        """Give the new version a share of the traffic, or a copy of it, and judge it once it had its requests."""
        settings, new, log = self.settings, self.new, self.site.proxy.log
        mirror = settings.strategy == "shadow"
        share = 1.0 if mirror else settings.canary_share
        offset = log.stat().st_size if log.is_file() else 0
        route = Route(old.port, old.version, candidate=new.port, candidate_version=new.version, share=share, mirror=mirror)
        self.site.proxy.point(route)
        wanted = f"{settings.canary_requests} requests, for at most {settings.canary_seconds:g} s"
        what = "a copy of the traffic" if mirror else f"{share:.0%} of the traffic"
        self._say("exposed", f"version {new.version} gets {what} until it had {wanted}")
        until, life = time.monotonic() + settings.canary_seconds, Life(self.look)
        while True:
            life.check()
            verdict = canary.judge(*canary.read(log, offset), settings)
            if verdict.ok is not None or time.monotonic() > until:
                break
            time.sleep(0.5)
        if not verdict.ok:
            raise FaultError("; ".join(verdict.reasons))
        self._say("compared", "no worse than the live version on its traffic", numbers=verdict.numbers)

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
            logs = self.settings.home / "logs" / f"{self.new.name}.log"
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
    release = reviewed.read(folder)
    registered, image = RegisteredFile.of(folder, release), ImageFile.of(folder, release)
    if registered.version != image.version:
        said = f"the image is of version {image.version}, registered is version {registered.version}"
        raise RefusedError("tampered", said, f"run python -m src build {folder} again")
    with journal.locked(settings, f"deploy of version {image.version}") as notes:
        site = Site(settings, notes)
        healthy = site.recover()
        old = notes.state.live
        target = {"version": image.version, "manifest": release.manifest, "image_digest": image.digest}
        record |= journal.begin("deploy", settings, release, target, old, settings.strategy)
        if healthy and old and (old.image.digest, old.version) == (image.digest, image.version):
            _keep_in_step(site, record)
            return notes.end(record, "unchanged", f"version {old.version} is live already", started)
        _refuse_rolled_back(notes, release, image, again=again)
        name = f"{settings.name}-{settings.environment}-v{image.version}-{image.digest[-8:]}"
        previous = notes.state.previous
        new = Running(
            name=name,
            image=image,
            port=previous.port if previous and previous.name == name else site.free_port(),
            version=image.version,
            manifest=release.manifest,
            folder=str(site.keep_release(folder, image)),
            since=journal.now(),
            environment={name: value for name, value in os.environ.items() if name.startswith("SERVE_")},
            record=Origin(record["who"], release.commit),
        )
        notes.save(registry=registered.uri)
        try:
            Deployment(site, release, new).run()
        except UserError as error:
            notes.end(record, "returned", str(error), started)
            raise
        _keep_in_step(site, record)
        site.prune()
        said = f"version {new.version} is live at {settings.url}" + (f"; before it was version {old.version}" if old else "")
        return notes.end(record, "deployed", said, started, running=new.to_json())


def look_after(record: dict[str, Any]) -> None:
    """See that the live version serves, with proxy and aliases in step, as after a commit that changes nothing of it.

    Raises:
        RefusedError: nothing is live, or it does not come up.
    """
    started = time.monotonic()
    settings = all_settings.read()
    with journal.locked(settings, "deploy of what is live") as notes:
        site = Site(settings, notes)
        healthy = site.recover()
        live = notes.state.live
        if live is None or not healthy:
            said = f"version {live.version} does not come up" if live else "nothing is live on this host"
            raise RefusedError("host", said, "make deploy builds and deploys it anew")
        release = reviewed.load(Path(live.folder))
        record |= journal.begin("deploy", settings, release, live.short(), live, settings.strategy)
        _keep_in_step(site, record)
        notes.end(record, "unchanged", f"unchanged: version {live.version} is live already", started)


def _refuse_rolled_back(notes: Journal, release: Release, image: ImageFile, *, again: bool) -> None:
    """A push to main must not bring back by itself a model that a person took out, in whatever image; a person may."""
    why = notes.state.rolled_back.get(release.manifest)
    if why is not None and not again and os.environ.get("GITHUB_EVENT_NAME") == "push":
        said = f"version {image.version} was rolled back ({why}) and main still holds it"
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
