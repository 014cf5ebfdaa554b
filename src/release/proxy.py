"""The proxy in front of the versions: an nginx of this account, whose file route.conf says who gets the traffic.

Used by deploy, rollback and status. <home>/proxy/nginx.conf and the route.conf that it includes are filled from the files of
the same names beside this module. The first line of route.conf is the route, so that it survives a reboot and a person can
read it. It is replaced in one step, after nginx has tried it; then nginx is told, and the call returns when no connection
opened from then on can reach the old route.

Answers close their connection. Over a kept one a client may send its next request in the very moment in which nginx, told
to read its file anew, closes the idle connection. Measured with 8 clients under 50 switches: 252 of 10,500 requests were cut
off with connections kept, none of 9,900 with closed ones, which cost a request 0.5 ms (4.8 instead of 4.3; 2 cores).
nginx 1.27.4 could wait instead (keepalive_min_timeout); the ones that distributions ship cannot.
"""

import hashlib
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from jinja2 import StrictUndefined, Template

from src.core.command import UserError, cores
from src.core.files import write_bytes
from src.core.records import Record
from src.release.client import Client
from src.release.settings import Settings

_PLACES = ("/usr/sbin", "/usr/local/sbin")  # of nginx, beside PATH, which has them only for root
_PATIENCE = 10.0  # seconds until a new route must serve
_CONNECTIONS = 512  # of one address at once, with a request on each
_LARGEST_LOG = 10 * 2**20  # bytes; then it starts anew
_FILES = ("nginx.conf", "route.conf")


@dataclass(frozen=True)
class Route(Record):
    """Who gets the traffic, as loopback ports. `live` None: nothing is deployed, every request gets a 503.

    `backup` answers what live drops. A `candidate` gets a `share` (0 to 1) of the requests; with `mirror` a copy of every
    prediction instead, and its answers are thrown away.
    """

    live: int | None
    version: str
    backup: int | None = None
    candidate: int | None = None
    candidate_version: str | None = None
    share: float = 0.0
    mirror: bool = False


class Proxy:
    """The nginx of one environment. Only one process at a time may point it: the lock of the deployment sees to that."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.home / "proxy"
        self.file = self.folder / "route.conf"
        self.log = self.folder / "requests.log"  # JSON lines, written while there is a candidate

    def ensure(self) -> None:
        """Make nginx run with the configuration of this code and the route that it has.

        Raises:
            UserError: there is no nginx, its port is taken, or it refuses the configuration.
        """
        self.point(self.route() or Route(None, ""))

    def point(self, route: Route) -> None:
        """Send the traffic there; return when every connection that is opened from now on goes there.

        Requests that came before are answered where they are. When it fails, the old route stays.

        Raises:
            UserError: as `ensure`, or nginx did not follow within ten seconds.
        """
        nginx = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES)))
        if nginx is None:
            raise UserError("nginx is not on this machine: sudo apt-get install nginx, then run the same command again")
        texts = render(self.settings, route)
        paths = [self.folder / name for name in _FILES]
        before = [path.read_text() if path.is_file() else "" for path in paths]
        if texts != before:
            self._try(nginx, texts)
            for log in (self.folder / "error.log", *([] if route.candidate else [self.log])):
                if log.is_file() and log.stat().st_size > _LARGEST_LOG:
                    os.truncate(log, 0)  # nginx goes on at its end, wherever that is
            _write(paths, texts)
        try:
            self._take_effect(nginx, identity=texts[1].partition('$route { default "')[2][:16])
        except UserError:
            if all(before) and texts != before:
                _write(paths, before)
                self._signal(signal.SIGHUP)
            raise

    def route(self) -> Route | None:
        """Read the route back from the file; None without one.

        Raises:
            UserError: the first line of the file is not as it was written.
        """
        if not self.file.is_file():
            return None
        with self.file.open() as file:
            first = file.readline()
        try:
            return Route.parse(first.removeprefix("# route "), str(self.file))
        except UserError:
            raise UserError(f"{self.file} does not begin with its route: delete it, then run make deploy again") from None

    def running(self) -> bool:
        """True when nginx runs here and is in command of its workers."""
        return _master(self._processes()) is not None

    def stop(self) -> None:
        """End nginx; requests in flight are answered for as long as a version may drain, then they are cut off."""
        for number, seconds in ((signal.SIGQUIT, self.settings.drain), (signal.SIGKILL, _PATIENCE)):
            if self._signal(number) and _wait(lambda: not self._processes(), seconds):
                return

    # -----------------------------------------------------------------------------------------------------------------
    # The files take effect
    # -----------------------------------------------------------------------------------------------------------------

    def _try(self, nginx: str, texts: list[str]) -> None:
        """Let nginx read the new files before they take their place."""
        for name in ("body", "proxy", "other"):
            (self.folder / "temp" / name).mkdir(parents=True, exist_ok=True)
        trial = self.folder / "next"
        _write([trial / name for name in _FILES], texts)
        said = self._call(nginx, trial / "nginx.conf", "-t", "-q")
        shutil.rmtree(trial)
        if said is not None:
            raise UserError(f"nginx refuses its new configuration ({said}): the old route stays. Check DEPLOY_ADDRESS")

    def _take_effect(self, nginx: str, identity: str) -> None:
        old = self._processes()
        before = set[int]()
        if _master(old) is None:
            self._start(nginx, leftover=bool(old))
        elif self._served() != identity:
            before = _accepting(old)
            self._signal(signal.SIGHUP)

        def is_settled() -> bool:
            # no worker with an older route takes connections, not even one that a killed deployment left so
            accepting = _accepting(self._processes())
            return not accepting & before and len(accepting) <= _workers()

        if not _wait(lambda: self._served() == identity and is_settled(), _PATIENCE):
            log = self.folder / "error.log"
            why = _reason(log.read_text(errors="replace")[-4000:] if log.is_file() else "")
            raise UserError(
                f"nginx did not follow to the new route within {_PATIENCE:g} s ({why}): the old route stays. Check that "
                f"port {self.settings.port} of {self.settings.address} is free (ss -ltnp), then run the same command again"
            )

    def _start(self, nginx: str, *, leftover: bool) -> None:
        if leftover:  # its master was killed; the workers serve on, hold the port and follow no more
            self._signal(signal.SIGQUIT)
            _wait(lambda: not _accepting(self._processes()), _PATIENCE)
        said = self._call(nginx, self.folder / "nginx.conf")
        if said is not None:
            raise UserError(
                f"nginx does not start ({said}): port {self.settings.port} of {self.settings.address} must be above 1023 "
                "and not taken by another program (ss -ltnp shows which): stop that, or set another DEPLOY_PORT"
            )

    def _call(self, nginx: str, file: Path, *options: str) -> str | None:
        """Run nginx with a configuration; return None when it is content, else the reason that it gives.

        Nothing of our environment goes along: the proxy outlives this process, secrets are none of its business, and a
        runner ends at the end of a job all processes that carry the job's mark.
        """
        command = [nginx, "-p", f"{self.folder}/", "-c", str(file), "-e", str(self.folder / "error.log"), *options]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        try:
            done = subprocess.run(
                command, cwd="/", env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False
            )
        except subprocess.TimeoutExpired:
            return "it did not end within 30 s"
        return _reason(done.stderr.decode(errors="replace")) if done.returncode else None

    def _served(self) -> str:
        """Ask, over a new connection, which configuration answers."""
        return Client(self.settings.url, timeout=2).send("GET", "/.route").text

    def _processes(self) -> dict[int, str]:
        """Return process id and title of our nginx processes: those with a file of our folder open.

        No file with a process id can go stale, and workers whose master was killed are found too.
        """
        folder, found = f"{self.folder.resolve()}/", {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith("nginx: ") and any(file.path.startswith(folder) for file in process.open_files()):
                    found[process.pid] = title
        return found

    def _signal(self, number: signal.Signals) -> bool:
        """Tell nginx; its workers too where they have no master, or none that would tell them. False: none is there."""
        processes = self._processes()
        master = _master(processes)
        for pid in [master] if master and number != signal.SIGKILL else processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(processes)


def _write(paths: list[Path], texts: list[str]) -> None:
    for path, text in zip(paths, texts, strict=True):
        write_bytes(path, text.encode())


def _master(processes: dict[int, str]) -> int | None:
    return next((pid for pid, title in processes.items() if title.startswith("nginx: master")), None)


def _accepting(processes: dict[int, str]) -> set[int]:
    """Return the workers that may take a new connection: nginx renames one just before it stops to."""
    return {pid for pid, title in processes.items() if title.startswith("nginx: worker") and not title.endswith("down")}


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def _reason(text: str) -> str:
    """Return the first line at which nginx gave up, without its decoration."""
    lines = [line for line in text.splitlines() if "[emerg]" in line] or text.splitlines()[-1:] or ["no reason given"]
    return re.sub(r"^.*?\[emerg\] (?:\d+#\d+: )?", "", lines[0])[:300]


# ---------------------------------------------------------------------------------------------------------------------
# The configuration
# ---------------------------------------------------------------------------------------------------------------------


def render(settings: Settings, route: Route) -> list[str]:
    """Return nginx.conf and route.conf; both together are named by the route's `$route`, which /.route answers.

    Raises:
        UserError: DEPLOY_ADDRESS is no address of a network interface.
    """
    facts = {
        "route": route,
        "first_line": json.dumps(asdict(route)),
        "id": "@ID@",
        "user": pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None,
        "workers": _workers(),
        "connections": _CONNECTIONS,
        "addresses": _addresses(settings),
    }
    sources = [Path(__file__).with_name(name).read_text() for name in _FILES]
    texts = [Template(text, undefined=StrictUndefined, keep_trailing_newline=True).render(facts) for text in sources]
    return [text.replace("@ID@", hashlib.sha256("".join(texts).encode()).hexdigest()[:16]) for text in texts]


def _workers() -> int:
    return min(max(cores(), 2), 4)


def _addresses(settings: Settings) -> list[str]:
    """Return what to listen on: always loopback too, where this host's own checks ask."""
    given, own = settings.address.strip("[]"), f"127.0.0.1:{settings.port}"
    if given in ("*", "0.0.0.0", "::"):  # noqa: S104 (only when DEPLOY_ADDRESS says so)
        return [f"0.0.0.0:{settings.port}", *([f"[::]:{settings.port} ipv6only=on"] if socket.has_dualstack_ipv6() else [])]
    try:
        address = ipaddress.ip_address("127.0.0.1" if given == "localhost" else given)
    except ValueError:
        raise UserError(f"DEPLOY_ADDRESS is {given!r}: use an IP address of this machine, or 0.0.0.0 for all") from None
    text = f"[{address}]" if address.version == 6 else str(address)
    return list(dict.fromkeys([own, f"{text}:{settings.port}"]))
