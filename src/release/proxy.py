"""The proxy in front of the versions: an nginx of this account, whose one configuration file says who gets the traffic.

Used by deploy, rollback and status. The file is <home>/proxy/nginx.conf, its first line the route, so that it survives a
reboot and a person can read it. It is replaced in one step, after nginx has tried it; then nginx is told, and whoever
pointed it goes on only when no connection that is opened from now on can reach the old route.

Answers close their connection. Over a kept one a client may send its next request in the very moment in which nginx, told
to read its file anew, closes the idle connection. Measured with 8 clients under 50 switches: 252 of 10,500 requests were cut
off with connections kept, none of 9,900 with closed ones, which cost a request 0.5 ms (4.8 instead of 4.3; 2 cores).
nginx 1.27.4 could wait instead (keepalive_min_timeout); the ones that distributions ship cannot.
"""

import hashlib
import http.client
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from src.core.command import UserError, cores
from src.core.files import write_bytes
from src.release.settings import Settings

_PATHS = ("/", "/demo", "/explain", "/model", "/docs.json", "/livez", "/readyz")
_PREDICTIONS = ("/predict", "/predict_batch")  # by which a candidate is judged
_SWAGGER = "/static_content/"  # where BentoML keeps the files of its page
_PLACES = ("/usr/sbin", "/usr/local/sbin")  # of nginx, beside PATH, which has them only for root
_PATIENCE = 10.0  # seconds until a new route must serve
_CONNECTIONS = 512  # of one address at once, with a request on each
_METHODS = ("GET", "HEAD", "POST")
_LARGEST_LOG = 10 * 2**20  # bytes; then it starts anew
_PROBLEMS = {
    400: ("Bad Request", "this is no HTTP request that can be read"),
    404: ("Not Found", "there is nothing here: GET / shows what there is"),
    405: ("Method Not Allowed", f"this method is not known here: use {', '.join(_METHODS)}"),
    408: ("Request Timeout", "the request came too slowly"),
    413: ("Content Too Large", "the upload is too large: send smaller images, or fewer of them"),
    414: ("URI Too Long", "the address of the request is too long"),
    429: ("Too Many Requests", "too many requests from one address: wait for the answers"),
    431: ("Request Header Fields Too Large", "the headers of the request are too large"),
    500: ("Internal Server Error", "the proxy failed: try again"),
    501: ("Not Implemented", "this transfer coding is not known here: send the length of the body, or chunked"),
    502: ("Bad Gateway", "the model does not answer: try again"),
    503: ("Service Unavailable", "no version is deployed: make deploy"),
    504: ("Gateway Timeout", "the model did not answer in time: try again"),
    505: ("HTTP Version Not Supported", "this version of HTTP is not spoken here: use HTTP/1.1"),
}


@dataclass(frozen=True)
class Route:
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
        self.file = self.folder / "nginx.conf"
        self.log = self.folder / "requests.log"  # JSON lines, written while there is a candidate

    def ensure(self) -> None:
        """Make nginx run with the configuration of this code and the route that it has.

        Raises:
            UserError: there is no nginx, its port is taken, or it refuses the configuration.
        """
        self._apply(self.route() or Route(None, ""))

    def point(self, route: Route) -> None:
        """Send the traffic there; return when every connection that is opened from now on goes there.

        Requests that came before are answered where they are. When it fails, the old route stays.

        Raises:
            UserError: as `ensure`, or nginx did not follow within ten seconds.
        """
        self._apply(route)

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
            return Route(**json.loads(first.removeprefix("# route ")))
        except (ValueError, TypeError):
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
    # One file takes effect
    # -----------------------------------------------------------------------------------------------------------------

    def _apply(self, route: Route) -> None:
        nginx, text = _nginx(), render(self.settings, route)
        before = self.file.read_text() if self.file.is_file() else None
        if before != text:
            self._try(nginx, text)
            self._cut_logs(route)
            write_bytes(self.file, text.encode())
        try:
            self._take_effect(nginx, text)
        except UserError:
            if before is not None and before != text:
                write_bytes(self.file, before.encode())
                self._signal(signal.SIGHUP)
            raise

    def _try(self, nginx: str, text: str) -> None:
        """Let nginx read the new file before it takes its place."""
        for name in ("body", "proxy", "other"):
            (self.folder / "temp" / name).mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "nginx.next.conf"
        fresh.write_text(text)
        said = self._call(nginx, fresh, "-t", "-q")
        fresh.unlink()
        if said is not None:
            raise UserError(f"nginx refuses its new configuration ({said}): the old route stays. Check DEPLOY_ADDRESS")

    def _take_effect(self, nginx: str, text: str) -> None:
        old = self._processes()
        identity, before = _identity(text), set[int]()
        if _master(old) is None:
            self._start(nginx, leftover=bool(old))
        elif self._served() != identity:
            before = _accepting(old)
            self._signal(signal.SIGHUP)
        if not _wait(lambda: self._served() == identity and self._is_settled(before), _PATIENCE):
            raise UserError(
                f"nginx did not follow to the new route within {_PATIENCE:g} s ({self._last_error()}): the old route stays. "
                f"Check that {self._address()} is free (ss -ltnp), then run the same command again"
            )

    def _start(self, nginx: str, *, leftover: bool) -> None:
        if leftover:  # its master was killed; the workers serve on, hold the port and follow no more
            self._signal(signal.SIGQUIT)
            _wait(lambda: not _accepting(self._processes()), _PATIENCE)
        said = self._call(nginx, self.file)
        if said is None:
            return
        if "Address already in use" in said or "(98:" in said:
            raise UserError(
                f"{self._address()} is taken by another program (ss -ltnp 'sport = :{self.settings.port}' shows which): "
                "stop it, or set another DEPLOY_PORT"
            )
        if "(13:" in said:
            raise UserError(f"nginx may not do what it needs ({said}): use a DEPLOY_PORT above 1023, and check the owner")
        raise UserError(f"nginx does not start ({said}): see {self.folder / 'error.log'}, then run the same command again")

    def _call(self, nginx: str, file: Path, *options: str) -> str | None:
        """Run nginx with a configuration; return None when it is content, else the reason that it gives.

        Nothing of our environment goes along: the proxy outlives this process, and a runner ends at the end of a job all
        processes that carry the job's mark.
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

    def _served(self) -> str | None:
        """Ask, over a new connection, which configuration answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=2)
        try:
            connection.request("GET", "/.route")
            response = connection.getresponse()
            return response.read(64).decode() if response.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def _is_settled(self, before: set[int]) -> bool:
        """True when no worker with an older route takes connections, not even one that a killed deployment left so."""
        accepting = _accepting(self._processes())
        return not accepting & before and len(accepting) <= _workers()

    def _processes(self) -> dict[int, str]:
        """Return process id and title of our nginx processes: those with a file of our folder open.

        No file with a process id can go stale, and workers whose master was killed are found too.
        """
        folder, namespace = f"{self.folder.resolve()}/", _link("/proc/self/ns/pid")
        found = {}
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
                if title.startswith("nginx: ") and _link(f"/proc/{pid}/ns/pid") == namespace and _has_open(pid, folder):
                    found[int(pid)] = title
        return found

    def _signal(self, number: signal.Signals) -> bool:
        """Tell nginx; its workers too where they have no master, or none that would tell them. False: none is there."""
        processes = self._processes()
        master = _master(processes)
        for pid in [master] if master and number != signal.SIGKILL else processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(processes)

    def _cut_logs(self, route: Route) -> None:
        """Start a log anew that has grown large; nginx goes on at its end, wherever that is."""
        logs = [self.folder / "error.log", *([] if route.candidate else [self.log])]
        for log in logs:
            if log.is_file() and log.stat().st_size > _LARGEST_LOG:
                os.truncate(log, 0)

    def _last_error(self) -> str:
        log = self.folder / "error.log"
        return _reason(log.read_text(errors="replace")[-4000:] if log.is_file() else "")

    def _address(self) -> str:
        return f"{self.settings.address}:{self.settings.port}"


def _nginx() -> str:
    found = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES)))
    if found is None:
        raise UserError("nginx is not on this machine: sudo apt-get install nginx, then run the same command again")
    return found


def _master(processes: dict[int, str]) -> int | None:
    return next((pid for pid, title in processes.items() if title.startswith("nginx: master")), None)


def _accepting(processes: dict[int, str]) -> set[int]:
    """Return the workers that may take a new connection: nginx renames one just before it stops to."""
    return {pid for pid, title in processes.items() if title.startswith("nginx: worker") and not title.endswith("down")}


def _has_open(pid: str, folder: str) -> bool:
    return any(_link(f"/proc/{pid}/fd/{name}").startswith(folder) for name in os.listdir(f"/proc/{pid}/fd"))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it was closed in the meantime, or belongs to another user
        return ""


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


def render(settings: Settings, route: Route) -> str:
    """Return the whole configuration; its paths are relative to the folder of the proxy.

    Raises:
        UserError: DEPLOY_ADDRESS is no address of a network interface.
    """
    body = "\n".join((_process(), _http(settings, route)))
    first = "# route " + json.dumps(asdict(route))
    text = f"{first}\n# Written by src/release/proxy.py at every switch: changes by hand are lost.\n{body}"
    return text.replace("@ID@", hashlib.sha256(text.encode()).hexdigest()[:16])


def _identity(text: str) -> str:
    """Return what the configuration answers at /.route."""
    found = re.search(r'return 200 "([0-9a-f]{16})"', text)
    assert found
    return found[1]


def _workers() -> int:
    return min(max(cores(), 2), 4)


def _process() -> str:
    # under root nginx would run its workers as nobody, who may not enter the folder of the account
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
    return f"""{user}worker_processes {_workers()};
worker_rlimit_nofile 8192;
worker_shutdown_timeout 30s;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 2048; }}"""


def _http(settings: Settings, route: Route) -> str:
    return f"""http {{
    server_tokens off;
    keepalive_timeout 0;
    client_max_body_size 11m;  # the service refuses what is above 10 MB in its own words
    client_body_buffer_size 128k;
    client_header_timeout 10s;  # for all headers
    large_client_header_buffers 4 8k;
    limit_conn_zone $binary_remote_addr zone=addresses:1m;
    limit_conn_status 429;
    client_body_timeout 10s;
    send_timeout 10s;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/other;
    uwsgi_temp_path temp/other;
    scgi_temp_path temp/other;
    default_type application/problem+json;
    access_log off;

    map $http_x_request_id $id {{
        "~^[A-Za-z0-9._-]{{8,64}}$" $http_x_request_id;
        default $request_id;
    }}
    map $http_host $asked_host {{ "" $host; default $http_host; }}
    map $request_uri $path {{ "~^(?<asked>[^?]*)" $asked; }}
    map $path $is_prediction {{ {" ".join(f"{path} 1;" for path in _PREDICTIONS)} default 0; }}
    map "$is_prediction:$upstream_status" $is_logged {{ "~^1:." 1; default 0; }}  # what reached a version
    geo $is_near {{ default 0; 127.0.0.0/8 1; ::1 1; }}
    {_indent(_upstreams(route), 4)}
    {_indent(_server(settings, route), 4)}
}}
"""


def _upstreams(route: Route) -> str:
    """Return the groups of versions and the choice between them, which is made anew for each request."""
    if route.live is None:
        return 'map "" $target { default none; }'
    kept = "keepalive 32; keepalive_timeout 4s;"  # the service closes idle connections after 5 s
    backup = f" server 127.0.0.1:{route.backup} backup;" if route.backup else ""
    lines = [f"upstream live {{ server 127.0.0.1:{route.live} max_fails=1 fail_timeout=2s;{backup} {kept} }}"]
    if route.candidate:
        # every request of its share is tried on it, so that the log tells all its failures; live helps out
        helper = "" if route.mirror else f" server 127.0.0.1:{route.live} backup;"
        lines.append(f"upstream candidate {{ server 127.0.0.1:{route.candidate} max_fails=0;{helper} {kept} }}")
    if route.candidate and not route.mirror:
        lines.append(f"split_clients $request_id $target {{ {route.share * 100:.2f}% candidate; * live; }}")
    else:
        lines.append('map "" $target { default live; }')
    for name, target in (("request", "$target"), ("copy", "candidate")) if route.candidate else ():
        lines.append(f"log_format {name} escape=json '{_log_line(target)}';")
    return "\n".join(lines)


def _log_line(target: str) -> str:
    fields = {
        "route": "@ID@",
        "target": target,
        "upstream_status": "$upstream_status",  # of every version that was tried, such as "502, 200"
        "upstream_time": "$upstream_response_time",  # seconds, likewise
        "prediction": "$upstream_http_x_prediction",
        "version": "$upstream_http_x_model_version",
        "path": "$path",
        "method": "$request_method",
    }
    words = ",".join(f'"{name}":"{value}"' for name, value in fields.items())
    return f'{{"time":$msec,"status":$status,{words}}}'


def _server(settings: Settings, route: Route) -> str:
    listen = "\n".join(f"listen {address};" for address in _addresses(settings))
    # a candidate's own failures are repeated on live; live's own are answers, such as 503 when it is full
    own = "" if route.mirror or not route.candidate else " http_500 http_502 http_503 http_504"
    pages = "\n".join(f"error_page {status} /.problem/{status};" for status in _PROBLEMS)
    log = "access_log requests.log request if=$is_logged;" if route.candidate else ""
    locations = "\n".join((*_locations(route), *_problems()))
    return f"""server {{
    {_indent(listen, 4)}
    server_name localhost;  # what a version hears as Host where the client sends none
    {_indent(_HEADERS, 4)}
    {_indent(pages, 4)}
    error_page 494 =431 /.problem/431;  # how nginx calls it within
    {log}
    limit_conn addresses {_CONNECTIONS};
    if ($request_method !~ ^({"|".join(_METHODS)})$) {{ return 405; }}

    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $asked_host;
    proxy_set_header X-Request-ID $id;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    {_indent(_hidden(), 4)}
    proxy_connect_timeout 2s;
    proxy_read_timeout 6s;  # the service itself gives up after 5 s, and says so
    proxy_next_upstream error timeout non_idempotent{own};  # a prediction may be asked for twice
    proxy_next_upstream_tries 2;

    {_indent(locations, 4)}
}}"""


_HEADERS = """add_header X-Request-ID $id always;
add_header X-Content-Type-Options nosniff always;
add_header X-Frame-Options DENY always;
add_header Referrer-Policy no-referrer always;"""


def _hidden() -> str:
    """Return what a version may not say: what is said here for all, and who else than this site's own pages may ask."""
    ours = [line.split()[1] for line in _HEADERS.splitlines()]
    cors = [f"Access-Control-{name}" for name in ("Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers")]
    return "\n".join(f"proxy_hide_header {name};" for name in (*ours, *cors, "Access-Control-Expose-Headers"))


def _locations(route: Route) -> list[str]:
    """Return one line for each path that is known; any other is a 404, /metrics too."""
    go = "return 503;" if route.live is None else "proxy_pass http://$target;"
    copy = " mirror /.copy;" if route.candidate and route.mirror else ""
    lines = [f"location = {path} {{ {go}{copy} }}" for path in _PREDICTIONS]
    lines += [f"location = {path} {{ {go} }}" for path in _PATHS]
    lines += [f"location ^~ {_SWAGGER} {{ {go} }}", "location / { return 404; }"]
    lines += ['location = /.route { if ($is_near = 0) { return 404; } default_type text/plain; return 200 "@ID@"; }']
    if copy:
        # with an error page of its own it has none of those for failures: they end here, where they are logged
        lines.append(
            "location = /.copy { internal; proxy_pass http://candidate$request_uri; proxy_next_upstream off; "
            "error_page 404 /.problem/404; log_subrequest on; access_log requests.log copy; }"
        )
    return lines


def _problems() -> list[str]:
    lines = []
    for status, (title, detail) in _PROBLEMS.items():
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": "$id"}
        more = {405: f'Allow "{", ".join(_METHODS)}"', 429: "Retry-After 1", 503: "Retry-After 5"}.get(status)
        said = f"add_header {more} always; {' '.join(_HEADERS.splitlines())} " if more else ""
        lines.append(f"location = /.problem/{status} {{ internal; {said}return {status} '{json.dumps(problem)}'; }}")
    return lines


def _addresses(settings: Settings) -> list[str]:
    """Return what to listen on: always loopback too, where this host's own checks ask."""
    port, given = settings.port, settings.address.strip("[]")
    if given in ("*", "0.0.0.0", "::"):  # noqa: S104 (only when DEPLOY_ADDRESS says so)
        both = Path("/proc/net/if_inet6").is_file()
        return [f"0.0.0.0:{port}", *([f"[::]:{port} ipv6only=on"] if both else [])]
    try:
        address = ipaddress.ip_address("127.0.0.1" if given == "localhost" else given)
    except ValueError:
        raise UserError(f"DEPLOY_ADDRESS is {given!r}: use an IP address of this machine, or 0.0.0.0 for all") from None
    own = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return [own] if own == f"127.0.0.1:{port}" else [f"127.0.0.1:{port}", own]


def _indent(text: str, columns: int) -> str:
    return text.replace("\n", "\n" + " " * columns)
