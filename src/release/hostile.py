"""Requests that no client should send, each to be refused with a status from 400 to 499 and without harm."""

import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from src.release.client import Request, form

_SIDE = 16_000  # pixels: 256 megapixels in some 40 kB, three times as many as Pillow warns of
_POURED = 64 * 2**20  # bytes; the service's own limit is 10 MiB
_PNG = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Hostile:
    """One of them, by a name that completes `it answered ...`; to an endless body hanging up is an answer too."""

    name: str
    request: Request
    may_hang_up: bool = False


def requests(image: bytes, url: str) -> list[Hostile]:
    """Return them all; `image` is one that the service takes, `url` one that it must not fetch."""
    bomb = decompression_bomb()
    return [
        Hostile("garbage bytes", Request("POST", "/predict", bytes(range(256)) * 8, _PNG)),
        Hostile("an image cut off in the middle", Request("POST", "/predict", image[: len(image) // 2], _PNG)),
        Hostile("an empty body", Request("POST", "/predict", b"", _PNG)),
        Hostile("an empty file", form("/predict", [("image", "image.png", b"")])),
        Hostile("a text where a file should be", form("/predict", [("image", None, url.encode())])),
        Hostile("a text where several files should be", form("/predict_batch", [("images", None, url.encode())])),
        Hostile("a file under another name", form("/predict", [("file", "image.png", image)])),
        Hostile("two files for one", form("/predict", [("image", "a.png", image), ("image", "b.png", image)])),
        Hostile("a batch with garbage in it", form("/predict_batch", [("images", "a", image), ("images", "b", b"\0" * 99)])),
        Hostile("top=0", Request("POST", "/predict?top=0", image, _PNG)),
        Hostile("a decompression bomb", Request("POST", "/predict", bomb, _PNG)),
        Hostile("a decompression bomb as a form", form("/predict", [("image", "image.png", bomb)])),
        Hostile("a pickle", Request("POST", "/predict", b"\x80\x04N.", {"Content-Type": "application/vnd.bentoml+pickle"})),
        Hostile("an unknown path", Request("GET", "/../../etc/passwd")),
        Hostile(
            "a body announced as 4 GiB", Request("POST", "/predict", _some(1), {**_PNG, "Content-Length": f"{2**32}"}), True
        ),
        Hostile("a body of 64 MiB in chunks", Request("POST", "/predict", _some(_POURED >> 16), _PNG), True),
    ]


def _some(pieces: int) -> Iterator[bytes]:
    piece = bytes(2**16)
    return (piece for _ in range(pieces))


def decompression_bomb() -> bytes:
    """Return a valid PNG, small as a file, whose pixels would need hundreds of megabytes."""
    packer, row = zlib.compressobj(6), bytes(1 + _SIDE // 8)
    data = b"".join([*(packer.compress(row * 100) for _ in range(_SIDE // 100)), packer.flush()])
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 1, 0, 0, 0, 0)  # one bit of grey a pixel
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Trap:
    """A port of this machine that nobody has a reason to connect to, reachable also from inside a container."""

    def __init__(self) -> None:
        self._socket = socket.create_server((_own_address(), 0))
        self._socket.setblocking(False)

    @property
    def url(self) -> str:
        """Return an address that leads into it."""
        host, port = self._socket.getsockname()
        return f"http://{host}:{port}/image.png"

    def was_entered(self) -> bool:
        """Return whether somebody connected."""
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()


def _own_address() -> str:
    """Return this machine's address in its network; loopback, where it has none, is another one inside a container."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # RFC 5737: an address of nobody; for UDP connecting sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"
