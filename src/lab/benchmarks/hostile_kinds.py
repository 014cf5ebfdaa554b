"""The lists of hostile files and requests, and what they are made of. Each kind varies with its random numbers."""

import functools
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from src.lab.benchmarks.exchange import Sent

Random = np.random.Generator
T = TypeVar("T")

CANARY = b"c4n4ry-of-the-payload"  # is in what no log may hold
BAD, LARGE, EITHER, ODD = (frozenset(s) for s in ((400,), (413,), (400, 413), (200, 400, 413)))  # what may answer a file


class File(NamedTuple):
    """How to make a file, and which statuses may answer it alone; 200 is among them where a picture is still in it."""

    make: Callable[[Random], bytes]
    may: frozenset[int]


FILES: dict[str, File] = {}


def file(may: frozenset[int]) -> Callable[[Callable[[Random], bytes]], Callable[[Random], bytes]]:
    """Put a kind of file on the list, under the name of the function that makes it."""

    def put(make: Callable[[Random], bytes]) -> Callable[[Random], bytes]:
        FILES[make.__name__.replace("_", " ")] = File(make, may)
        return make

    return put


def pick(random: Random, things: Sequence[T]) -> T:
    """Return one of some things."""
    return things[int(random.integers(len(things)))]


def picture(random: Random, kind: str = "PNG", side: int = 0, **options: Any) -> bytes:
    """Return a good picture of noise, whose every byte matters."""
    side = side or int(random.integers(16, 64))
    target = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(target, kind, **options)
    return target.getvalue()


def zeros(random: Random) -> bytes:
    """Return some kilobytes that unpack to as many megabytes."""
    return _packed(int(random.integers(2, 7)))


@functools.cache
def _packed(times: int) -> bytes:
    return zlib.compress(bytes(times * 10_000_000), 9)


class Request(NamedTuple):
    """How to make a request, and which statuses may answer it.

    Attributes:
        make: makes it.
        may: 200 is among them where it is no fault that the service need see.
        silent: whether a connection closed without a word is right.
        slow: whether it keeps its connection until the service gives up on it.
    """

    make: Callable[[Random], Sent]
    may: frozenset[int]
    silent: bool
    slow: bool


REQUESTS: dict[str, Request] = {}
Maker = Callable[[Random], Sent | bytes]


def request(*may: int, silent: bool = False, slow: bool = False) -> Callable[[Maker], Maker]:
    """Put a kind of request on the list, under the name of the function that makes it."""

    def put(make: Maker) -> Maker:
        name = make.__name__.replace("_", " ")
        REQUESTS[name] = Request(functools.partial(_sent, make), frozenset(may), silent, slow)
        return make

    return put


def _sent(make: Maker, random: Random) -> Sent:
    made = make(random)
    return made if isinstance(made, Sent) else Sent([made])


def post(
    content: bytes, *headers: bytes, path: bytes = b"/predict", media: bytes = b"image/png", close: bool = True
) -> bytes:
    """Return a whole request with a body."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: " + media, b"Content-Length: %d" % len(content)]
    return head(*lines, *headers, *([b"Connection: close"] if close else [])) + content


def get(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    """Return a whole request without a body."""
    return head(method + b" " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers)


def head(*lines: bytes) -> bytes:
    """Return the lines of a head, and the empty one that ends it."""
    return b"\r\n".join([*lines, b"", b""])


def form(*parts: bytes, separator: bytes = b"edge", end: bytes = b"--") -> bytes:
    """Return a body of multipart/form-data out of whole parts."""
    return b"".join(b"--" + separator + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + separator + end + b"\r\n"


def part(name: bytes, content: bytes, more: bytes = b'; filename="x.png"') -> bytes:
    """Return one part of a form."""
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content


def post_form(body: bytes, path: bytes = b"/predict", media: bytes = b"multipart/form-data; boundary=edge") -> bytes:
    """Return a whole request with a form."""
    return post(body, path=path, media=media)


def send_file(content: bytes, random: Random) -> Sent:
    """Send a file in one of the ways in which a picture can be sent."""
    way = int(random.integers(4))
    if way == 0:
        return Sent([post(content, media=pick(random, (b"image/png", b"image/jpeg", b"image/x-unknown")))])
    if way == 1:
        return Sent([post_form(form(part(b"image", content), separator=b"e" * 69 + b"#"), media=_LONG_EDGE)])
    if way == 2:
        return Sent([post(content, path=b"/explain")])
    files = [part(b"images", one) for one in (picture(random), content, picture(random))]
    return Sent([post_form(form(*files, separator=b"e" * 69 + b"#"), b"/predict_batch", _LONG_EDGE)])


_LONG_EDGE = b'multipart/form-data; boundary="' + b"e" * 69 + b'#"'


def all_of(pieces: Iterable[bytes]) -> bytes:
    """Join pieces, for whoever looks at a request instead of sending it; of an endless one, the first megabytes."""
    return b"".join(itertools.islice(pieces, 2000))


CHUNKED = head(b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", b"Transfer-Encoding: chunked")
WORDS = (
    b"../../etc/passwd",
    b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"..%00.png",
    b"<script>alert(1)</script>",
    b"'; DROP TABLE x;--",
)
