"""Load from connections that are kept open, where wrk is not installed: one process, one thread, plain sockets.

python -m src bench-client http://127.0.0.1:3000/predict --type image/png --connections 8 --seconds 3 a.png b.png

Each connection sends the next file as soon as it has its answer. The last line on stdout is JSON: requests, seconds, p50_ms,
p95_ms, p99_ms, and failures by kind. What is under way at the end is not counted.
"""

import argparse
import json
import re
import selectors
import socket
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_PIECE = 262_144
_ATTEMPTS = 100  # connections that may fail before the server counts as gone


class Connection:
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


class Load:
    """Some connections that ask for a time, and what came of it."""

    def __init__(self, address: tuple[str, int], requests: list[bytes]) -> None:
        self._address, self._requests = address, cycle(requests)
        self._selector = selectors.DefaultSelector()
        self._latencies: list[float] = []
        self._failures: Counter[str] = Counter()

    def run(self, connections: int, seconds: float) -> dict[str, Any]:
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
        return self._told(spent)

    def _open(self) -> None:
        if self._failures.total() > _ATTEMPTS and not self._latencies:
            raise UserError(f"{':'.join(map(str, self._address))} answers nothing: {self._failures.most_common(1)[0][0]}")
        connection = Connection(self._address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        if not connection.begin(next(self._requests)):
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _go_on(self, connection: Connection) -> None:
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

    def _count(self, connection: Connection, status: int) -> None:
        self._latencies.append(time.perf_counter() - connection.began)
        if status != 200:
            self._failures[f"status {status}"] += 1

    def _told(self, seconds: float) -> dict[str, Any]:
        percentiles = np.percentile(np.array(self._latencies) * 1000, (50, 95, 99)) if self._latencies else [None] * 3
        named = {f"p{name}_ms": value and float(value) for name, value in zip((50, 95, 99), percentiles, strict=True)}
        return {"requests": len(self._latencies), "seconds": seconds, **named, "failures": dict(self._failures)}


def _request(url: str, media: str, body: bytes) -> bytes:
    place = urlsplit(url)
    lines = [
        f"POST {place.path} HTTP/1.1",
        f"Host: {place.netloc}",
        f"Content-Type: {media}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server from several connections at once, without a pause.")
    parser.add_argument("url")
    parser.add_argument("files", type=Path, nargs="+", help="the bodies, sent in turns")
    parser.add_argument("--type", required=True, help="the Content-Type of the bodies")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    place = urlsplit(args.url)
    requests = [_request(args.url, args.type, file.read_bytes()) for file in args.files]
    load = Load((place.hostname or "", place.port or 80), requests)
    print(json.dumps(load.run(args.connections, args.seconds)))
