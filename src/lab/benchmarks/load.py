"""Load on one server: by wrk where it is installed, which takes least of the cores it shares, else by our own client.

Our own is one process of one thread with plain sockets. Each connection is kept open and sends the next file as soon as
it has its answer; what is under way at the end is not counted.
"""

import json
import multiprocessing
import re
import selectors
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError

_PATIENCE = 120  # seconds that a client may take longer than it should
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_PIECE = 262_144
_ATTEMPTS = 100  # connections that may fail before the server counts as gone

# https://github.com/wg/wrk/blob/master/SCRIPTING: percentiles are exact, in microseconds; status counts what is over 399
_SCRIPT = """
local requests, turn = {}, 0
function init(args)
  for number = 2, #args do
    local file = assert(io.open(args[number], "rb"))
    requests[number - 1] = wrk.format("POST", nil, {["Content-Type"] = args[1]}, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local failed, text = summary.errors, '{"requests": %d, "seconds": %f, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f, '
  text = text .. '"failures": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}'
  local p50, p95, p99 = latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000
  io.write("\\n" .. string.format(text, summary.requests, summary.duration / 1e6, p50, p95, p99, failed.connect,
    failed.read, failed.write, failed.status, failed.timeout) .. "\\n")
end
"""


class Load(NamedTuple):
    """What came of it: answers, the seconds they took, latencies in ms (None without any answer), failures by kind."""

    requests: int
    seconds: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    failures: dict[str, int]


def generator() -> str:
    """Name what makes the load."""
    return "wrk" if shutil.which("wrk") else "own client (wrk is not installed)"


def put(url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    """Ask from so many connections, each with one request at a time.

    Args:
        url: where to POST.
        media: Content-Type of the bodies.
        files: the bodies, sent in turns.
        connections: at once, kept open.
        seconds: for how long.

    Raises:
        UserError: the client failed, because the server answers nothing for instance.
    """
    try:
        if wrk := shutil.which("wrk"):
            return _by_wrk(wrk, url, media, files, connections, seconds)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply_async(_by_own_client, (url, media, files, connections, seconds)).get(seconds + _PATIENCE)
    except (subprocess.TimeoutExpired, multiprocessing.TimeoutError):
        raise UserError("the load did not end in time: look whether this machine is overloaded") from None
    except (ValueError, OSError) as error:
        raise UserError(f"no load could be put on {url} ({str(error)[:200]}): look at the log of that server") from None


def _by_wrk(wrk: str, url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    script = files[0].parent / "load.lua"
    script.write_text(_SCRIPT)
    command = [wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_PATIENCE}s", "--script", str(script), url, "--", media, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _PATIENCE)
    last = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()[-1]
    try:
        told: dict[str, Any] = json.loads(last.replace("-nan", "null").replace("nan", "null"))
    except ValueError:
        raise ValueError((done.stderr.strip() or last).splitlines()[-1]) from None
    failures = {kind: count for kind, count in told.pop("failures").items() if count}
    if not told["requests"]:
        told |= {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    return Load(**told, failures=failures)


def _by_own_client(url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    place, requests = urlsplit(url), []
    for body in (file.read_bytes() for file in files):
        lines = [f"POST {place.path} HTTP/1.1", f"Host: {place.netloc}", f"Content-Type: {media}"]
        requests.append("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    return _Client((place.hostname or "", place.port or 80), requests).run(connections, seconds)


class _Connection:
    """One connection with one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.began = 0.0
        self._unsent = memoryview(b"")
        self._received = bytearray()

    def begin(self, request: bytes) -> bool:
        """Send a request; return whether it is gone."""
        self._received.clear()
        self._unsent, self.began = memoryview(request), time.perf_counter()
        return self.send()

    def send(self) -> bool:
        """Send on; return whether all is gone."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        return not self._unsent

    def receive(self) -> int | None:
        """Read what has come; return the status of a whole answer, None while there is more to come.

        Raises:
            OSError: the server has closed the connection, or the answer does not say how long it is.
        """
        piece = self.socket.recv(_PIECE)
        if not piece:
            raise ConnectionResetError("the connection was closed before an answer came")
        self._received += piece
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self._received, 0, end)
        if length is None:
            raise OSError("an answer without its length")
        whole = len(self._received) >= end + 4 + int(length[1])
        return int(self._received[9:12]) if whole else None


class _Client:
    """Some connections that ask for a time, and what came of it."""

    def __init__(self, address: tuple[str, int], requests: list[bytes]) -> None:
        self._address, self._requests = address, cycle(requests)
        self._selector = selectors.DefaultSelector()
        self._latencies: list[float] = []
        self._failures: Counter[str] = Counter()

    def run(self, connections: int, seconds: float) -> Load:
        """Ask; return what was counted."""
        started = time.perf_counter()
        for _ in range(connections):
            self._open()
        while (now := time.perf_counter()) < started + seconds:
            for key, _ in self._selector.select(started + seconds - now):
                self._go_on(key.data)
        spent = time.perf_counter() - started
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()
        latencies = np.array(self._latencies or [np.nan]) * 1000
        p50, p95, p99 = (None if np.isnan(value) else float(value) for value in np.percentile(latencies, (50, 95, 99)))
        return Load(len(self._latencies), spent, p50, p95, p99, dict(self._failures))

    def _open(self) -> None:
        if self._failures.total() > _ATTEMPTS and not self._latencies:
            raise ConnectionError(f"it answers nothing: {self._failures.most_common(1)[0][0]}")
        connection = _Connection(self._address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._next(connection)

    def _next(self, connection: _Connection) -> None:
        if not connection.begin(next(self._requests)):
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _go_on(self, connection: _Connection) -> None:
        try:
            if self._selector.get_key(connection.socket).events & selectors.EVENT_WRITE:
                if not connection.send():
                    return
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                return
            status = connection.receive()
            if status is not None:
                self._count(connection, status)
                self._next(connection)
        except OSError as error:
            self._failures[str(error)] += 1
            self._selector.unregister(connection.socket)
            connection.socket.close()
            self._open()

    def _count(self, connection: _Connection, status: int) -> None:
        self._latencies.append(time.perf_counter() - connection.began)
        if status != 200:
            self._failures[f"status {status}"] += 1
