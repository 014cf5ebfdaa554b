"""A host while it changes: start, switch, promote, undo, and end whatever a killed process left. Used under the lock.

The order keeps three things true at every instant: some version serves, a version is live only after it answered rightly,
and the alias `champion` follows the traffic, never leads it.
"""

import os
import shutil
import socket
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from src.core.command import UserError
from src.release import journal as journals
from src.release import probes
from src.release.client import KEYS, Client
from src.release.containerize import choose
from src.release.containers import Containers, State, open_host
from src.release.golden import FaultError
from src.release.journal import Journal, Running
from src.release.outcome import RefusedError
from src.release.proxy import Proxy, Route
from src.release.reviewed import ImageFile
from src.release.settings import Settings
from src.system.registry import Registry

_KEPT = 10  # releases whose golden examples stay for a later rollback


class Site:
    """One environment of this host. `registry` is opened when an alias moves; staging moves none."""

    def __init__(self, settings: Settings, journal: Journal, host: Containers | None = None) -> None:
        self.settings, self.journal = settings, journal
        self.host, self.proxy = host or open_host(settings), Proxy(settings)
        self._registry: Registry | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # One version
    # -----------------------------------------------------------------------------------------------------------------

    def client(self, running: Running) -> Client:
        """Return a client of this very version, beside the proxy."""
        return Client(f"http://127.0.0.1:{running.port}", keys=running.environment.get(KEYS))

    def state(self, running: Running) -> State:
        """Return what the engine says of it."""
        return self.host.state(running.name)

    def free_port(self) -> int:
        """Return a port for a new version that neither live nor previous version nor a stranger has.

        Raises:
            RefusedError: all are taken.
        """
        ours, ports = {running.port for running in self.journal.state.known}, self.settings.ports
        for port in ports:
            if port not in ours and _is_free(port):
                return port
        said = f"all ports from {ports[0]} to {ports[-1]} are taken"
        raise RefusedError("host", said, "free one, or set another DEPLOY_PORT")

    def start(self, running: Running, *, quickly: bool = False) -> float:
        """Start it, or wake it where it is only stopped; return after how many seconds it was ready.

        Raises:
            FaultError: it died or took too long.
        """
        known = self.state(running)
        if known.running and quickly:
            return 0.0
        if known.exists and quickly:
            self.host.resume(running.name)
        else:
            self.host.pull(running.image)
            self.host.start(running.name, running.image, running.port, running.environment)
        return probes.wait_ready(self.client(running), self.settings.ready, partial(self.state, running))

    def keep_release(self, folder: Path, image: ImageFile) -> Path:
        """Copy what a later rollback needs to know of a release; the oldest ones go."""
        kept = self.settings.home / "releases" / f"{image.version}-{image.digest[-12:]}"
        if not kept.is_dir():
            fresh = kept.with_name(f".{kept.name}.{os.getpid()}")
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(folder, fresh, ignore=shutil.ignore_patterns("model", "report", "evaluation", "sbom.json"))
            fresh.rename(kept)
        used = {Path(running.folder).name for running in self.journal.state.known}
        for path in sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True)
        return kept

    # -----------------------------------------------------------------------------------------------------------------
    # The switch, and the way back
    # -----------------------------------------------------------------------------------------------------------------

    def switch(self, new: Running, backup: Running | None = None) -> None:
        """Send the traffic to a version; while it is watched the old one takes what it drops."""
        self.proxy.ensure()
        self.proxy.point(Route(new.port, new.version, backup=backup.port if backup else None))

    def promote(self, what: str, new: Running, old: Running | None, why: str) -> None:
        """Let aliases and state follow the traffic: `previous` first, `champion` last.

        Raises:
            UserError: the registry does not answer.
        """
        self.journal.intend(what, "promoting", new, old)
        self.move_aliases(new, old, why)
        rolled_back = {name: told for name, told in self.journal.state.rolled_back.items() if name != new.manifest}
        if what == "rollback" and old:
            rolled_back[old.manifest] = why
        live = replace(new, since=journals.now())
        intent = journals.Intent(what, "cleaning", live, old)
        self.journal.save(live=live, previous=old, intent=intent, rolled_back=rolled_back)
        self.journal.note("promoted", new)

    def move_aliases(self, live: Running, previous: Running | None, why: str) -> None:
        """Move `previous`, then `champion`, where they are not there yet."""
        if self.settings.environment != "production":
            return
        registry, by = self.registry(), journals.who()
        for alias, running in (("previous", previous), ("champion", live)):
            found = registry.alias(alias)
            if running and (found is None or found.number != running.version):
                registry.move(alias, running.version, why=why, who=by)
                self.journal.note(f"{alias} moved", running)

    def registry(self) -> Registry:
        """Open the registry that this host's versions are in, once."""
        if self._registry is None:
            self._registry = Registry.connect(journals.registry_uri(self.settings), name=self.settings.name)
        return self._registry

    def clean(self, *, wait: bool = True) -> None:
        """End a change: only the live version behind the proxy, the old one stopped, older ones gone."""
        state = self.journal.state
        if state.live:
            self.switch(state.live)
        if state.previous and state.live and state.previous.name != state.live.name:
            self.host.stop(state.previous.name, wait=wait)
        for name in set(self.host.names()) - {running.name for running in state.known}:
            self.host.remove(name)
        self.journal.save(intent=None)
        self.journal.note("cleaned", state.live)

    def prune(self) -> None:
        """Remove images beyond the newest five, but those of the live and the previous version; no fault if it fails."""
        with suppress(UserError, OSError):
            kept = {running.image.id or running.image.image for running in self.journal.state.known}
            choose(self.host.kind).prune(self.settings.name, kept)

    def undo(self, new: Running, old: Running | None) -> None:
        """Give the traffic back to the old version, then remove the new one; what that printed stays in the folder logs."""
        if old:
            with suppress(FaultError, UserError):  # even an unwell old version is the only one there is
                self.start(old, quickly=True)
            self.switch(old)
        elif self.proxy.running():
            self.proxy.point(Route(None, ""))
        previous = self.journal.state.previous
        if previous and previous.name == new.name:  # a rollback that failed: the version stays what it was
            self.host.stop(new.name)
        else:
            with suppress(UserError):
                logs = self.settings.home / "logs"
                logs.mkdir(parents=True, exist_ok=True)
                (logs / f"{new.name}.log").write_text(self.host.logs(new.name, 500))
            self.host.remove(new.name)
        self.journal.save(intent=None)
        self.journal.note("undone", new)

    # -----------------------------------------------------------------------------------------------------------------
    # After a kill or a reboot
    # -----------------------------------------------------------------------------------------------------------------

    def recover(self) -> bool:
        """End what a killed process began, and make host and proxy what the state says; False: nothing serves then.

        Before the promotion a change is undone, from there on it is completed.

        Raises:
            UserError: the registry is needed and does not answer.
        """
        intent = self.journal.state.intent
        if intent:
            said = f"the {intent.what} of version {intent.new.version} was cut off while {intent.step}: ending it"
            self.journal.note("recovering", intent.new, said)
            if intent.step in ("starting", "switching"):
                self.undo(intent.new, intent.old)
            if intent.step == "promoting":
                self.promote(intent.what, intent.new, intent.old, f"{intent.what}, completed after it was cut off")
            if self.journal.state.intent:
                self.clean()
        return self.heal()

    def heal(self) -> bool:
        """Make the live version serve, if it does not; False when it cannot."""
        live = self.journal.state.live
        if live is None:
            return False
        try:
            self.start(live, quickly=True)
            healthy = self.client(live).ready()
        except (FaultError, UserError) as error:
            self.journal.note("unwell", live, f"the live version {live.version} does not come up: {error}")
            return False
        if not self.proxy.running() or self.proxy.route() != Route(live.port, live.version):
            self.switch(live)
        return healthy

    def check_aliases(self) -> None:
        """Bring the aliases in step with the traffic, as after a change in which the registry did not answer."""
        state = self.journal.state
        if state.live:
            self.move_aliases(state.live, state.previous, "in step with the traffic again")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
