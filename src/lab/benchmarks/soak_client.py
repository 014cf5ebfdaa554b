"""Good requests in every way in which a picture can be sent, and the processes that send them for a long time."""

import io
import json
import multiprocessing
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from src.core.command import UserError

_EDGE = b"soak-edge"
_TIMEOUT = 30.0
_FRESH = 10  # of so many requests one opens a connection of its own
_TRIES = 5  # of a request that is told to come again later
_THREADS = 4  # of one process
_KEPT = 5_000  # latencies that one process remembers, each of its latest


class Question(NamedTuple):
    """A whole request, and the labels that its answer must name in this order (none before it was asked once)."""

    content: bytes
    labels: tuple[str, ...] = ()


class Report(NamedTuple):
    """What one process counted: answered requests, those answered only later (429), failures by kind, latencies in ms."""

    answered: int
    later: int
    failures: Counter[str]
    latencies: list[float]


def questions(size: tuple[int, int], channels: int, random: np.random.Generator) -> list[Question]:
    """Return requests for pictures of several formats and sizes, in every way.

    Args:
        size: height and width that the model takes.
        channels: that it takes.
        random: draws the pictures.
    """
    files = [_picture(random, kind, side) for kind in ("PNG", "JPEG") for side in (8, 32, 64, 128)]
    files += [_picture(random, kind, 96) for kind in ("WEBP", "BMP", "GIF", "TIFF")]
    asked = [request(b"/predict", b"image/png", content) for content in files]
    asked += [request(b"/predict?top=1", _FORM, _form(b"image", [content])) for content in files]
    asked += [request(b"/predict_batch", _FORM, _form(b"images", files[start : start + 4])) for start in (0, 4, 8)]
    asked.append(request(b"/predict_batch", b"application/octet-stream", random.bytes(8 * size[0] * size[1] * channels)))
    return [Question(content) for content in asked]


def _picture(random: np.random.Generator, kind: str, side: int) -> bytes:
    small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(target, kind)
    return target.getvalue()


_FORM = b"multipart/form-data; boundary=" + _EDGE


def _form(name: bytes, files: Sequence[bytes]) -> bytes:
    head = b"--" + _EDGE + b'\r\nContent-Disposition: form-data; name="' + name + b'"; filename="x"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in files) + b"--" + _EDGE + b"--\r\n"


def request(path: bytes, media: bytes, body: bytes) -> bytes:
    """Return a whole request."""
    head = b"POST %s HTTP/1.1\r\nHost: soak\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (path, media, len(body)) + body


class Connection:
    """One connection of a client, opened when it is needed."""

    def __init__(self, place: tuple[str, int]) -> None:
        self._place = place
        self._socket: socket.socket | None = None

    def ask(self, content: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body of its answer.

        Raises:
            OSError: the connection broke.
        """
        if self._socket is None:
            self._socket = socket.create_connection(self._place, timeout=_TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(content)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            self._receive(received)
        head = bytes(received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(received) < end + 4 + length:
            self._receive(received)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), bytes(received[end + 4 :])

    def _receive(self, received: bytearray) -> None:
        assert self._socket
        piece = self._socket.recv(65_536)
        if not piece:
            raise ConnectionResetError("closed before an answer")
        received += piece

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def labels(body: bytes) -> tuple[str, ...]:
    """Return the labels that an answer names.

    Raises:
        ValueError, KeyError: it is no answer to a prediction.
    """
    told: dict[str, Any] = json.loads(body)
    return tuple(entry["label"] for entry in told.get("predictions", [told]))


def learn(place: tuple[str, int], asked: Sequence[Question]) -> list[Question]:
    """Ask everything once, and expect the same labels from then on.

    Raises:
        UserError: the service does not answer.
    """
    with closing(Connection(place)) as connection:
        learnt = []
        for question in asked:
            status, body = connection.ask(question.content)
            if status != 200:
                raise UserError(f"the service answers a good request with {status}: {body.decode(errors='replace')[:200]}")
            learnt.append(Question(question.content, labels(body)))
    return learnt


class _Client:
    """What the threads of one process share."""

    def __init__(self, place: tuple[str, int], asked: Sequence[Question], requests: int, answered: Any) -> None:
        self._place, self._asked, self._requests, self._shared = place, asked, requests, answered
        self._lock = threading.Lock()
        self._numbers = iter(range(requests))
        self.answered, self.later = 0, 0
        self.failures: Counter[str] = Counter()
        self.latencies: list[float] = []

    def run(self, start: int) -> None:
        """Ask until all requests of the process are asked; threads begin with different ones."""
        questions_ = cycle([*self._asked[start:], *self._asked[:start]])
        with closing(Connection(self._place)) as kept:
            for number in self._next():
                connection = Connection(self._place) if number % _FRESH == 0 else kept
                self._one(connection, next(questions_))
                if connection is not kept:
                    connection.close()

    def _next(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            yield number

    def _one(self, connection: Connection, question: Question) -> None:
        began = time.perf_counter()
        fault, tries = "", 0
        try:
            status, body = connection.ask(question.content)
            while status == 429 and tries < _TRIES:
                tries += 1
                time.sleep(1)
                status, body = connection.ask(question.content)
            if status != 200:
                fault = f"status {status}"
            elif labels(body) != question.labels:
                fault = "another label than before"
        except (OSError, ValueError, KeyError) as error:
            fault = f"{type(error).__name__}: {error}"
            connection.close()
        with self._lock:
            self.later += bool(tries)
            self.answered += not fault
            self.failures.update([fault] if fault else [])
            if self.answered % max(1, self._requests // _KEPT) == 0:
                self.latencies.append((time.perf_counter() - began) * 1000)
        with self._shared.get_lock():
            self._shared.value += 1


def _process(place: tuple[str, int], asked: Sequence[Question], requests: int, answered: Any, reports: Any) -> None:
    client = _Client(place, asked, requests, answered)
    threads = [
        threading.Thread(target=client.run, args=(start * len(asked) // _THREADS,), daemon=True) for start in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reports.put(Report(client.answered, client.later, client.failures, client.latencies))


class Clients:
    """Processes that ask good questions; `answered` counts while they run."""

    def __init__(self, place: tuple[str, int], asked: Sequence[Question], requests: int, count: int) -> None:
        """Prepare them.

        Args:
            place: host and port of the service.
            asked: what to ask, with the labels to expect.
            requests: of all together.
            count: of processes, each with four connections.
        """
        spawn = multiprocessing.get_context("spawn")  # what a thread holds is not copied
        self._counted = spawn.Value("q", 0)
        self._reports = spawn.Queue()
        each = [requests // count + (number < requests % count) for number in range(count)]
        self._processes = [
            spawn.Process(target=_process, args=(place, asked, share, self._counted, self._reports), daemon=True)
            for share in each
        ]

    def answered(self) -> int:
        """Return how many requests have an end, good or bad."""
        return int(self._counted.value)

    def start(self) -> None:
        """Begin."""
        for process in self._processes:
            process.start()

    def join(self) -> Report:
        """Wait for the end; return what all counted together."""
        reports = [self._reports.get() for _ in self._processes]
        for process in self._processes:
            process.join()
        failures: Counter[str] = sum((report.failures for report in reports), Counter())
        latencies = [value for report in reports for value in report.latencies]
        return Report(sum(r.answered for r in reports), sum(r.later for r in reports), failures, latencies)
