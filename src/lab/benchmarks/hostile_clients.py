"""Other protocols, and clients that stop, wait, or never do."""

import itertools
from collections.abc import Iterator

from src.lab.benchmarks.exchange import Sent
from src.lab.benchmarks.hostile_kinds import CANARY, CHUNKED, Random, get, head, pick, picture, post, request

# ---------------------------------------------------------------------------------------------------------------------
# Other protocols
# ---------------------------------------------------------------------------------------------------------------------


_POSTGRES = b"\0\0\0\x08\x04\xd2\x16\x2f"
_PROXY = b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /model HTTP/1.1\r\nHost: x\r\n\r\n"


@request(400, silent=True)
def greeting_of_another_protocol(random: Random) -> bytes:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.bytes(508)
    words = (hello, b"SSH-2.0-x\r\n", b"EHLO x\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x03\0\0\x13\x0e\xe0", _POSTGRES, _PROXY)
    return pick(random, words) + b"\r\n\r\n"


@request(400, silent=True)
def http_2_from_the_start(random: Random) -> bytes:
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5) + random.bytes(40)


@request(200, 400, 404, 405, 426)
def upgrade_to_another_protocol(random: Random) -> bytes:
    socket = [b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13"]
    h2c = [b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    path = pick(random, (b"/", b"/predict", b"/model", b"/livez"))
    lines = pick(random, (socket, h2c, [b"Upgrade: TLS/1.0"], [b"Upgrade: x"]))
    return head(b"GET " + path + b" HTTP/1.1", b"Host: x", b"Connection: Upgrade", *lines) + random.bytes(20)


@request(400, silent=True)
def nothing_but_noise(random: Random) -> bytes:
    return random.bytes(int(random.integers(1, 100_000))) + b"\r\n\r\n"


@request(400, 431, silent=True)
def empty_lines_without_end(random: Random) -> bytes:
    return b"\r\n" * int(random.integers(10_000, 1_000_000)) + b"X"


# ---------------------------------------------------------------------------------------------------------------------
# Clients that stop, wait, or never do
# ---------------------------------------------------------------------------------------------------------------------


def _drip(content: bytes) -> Iterator[bytes]:
    return (content[i : i + 1] for i in range(len(content)))


@request(408, silent=True, slow=True)
def client_that_says_nothing(_: Random) -> Sent:
    return Sent([])


@request(408, slow=True)
def headers_that_drip(random: Random) -> Sent:
    return Sent(_drip(get(b"/model", b"X: " + b"a" * int(random.integers(2000, 3000)))), pause=0.1)


@request(408, slow=True)
def body_that_drips(random: Random) -> Sent:
    content = post(picture(random, side=60))
    start = content.index(b"\r\n\r\n") + 4
    return Sent(itertools.chain([content[:start]], _drip(content[start:])), pause=0.1)


@request(408, slow=True)
def body_that_never_comes(random: Random) -> Sent:
    expect = [b"Expect: 100-continue"] if random.random() < 0.5 else []
    length = int(random.integers(1, 10**6))
    return Sent(
        [head(b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", b"Content-Length: %d" % length, *expect)]
    )


@request(408, slow=True)
def chunk_that_never_comes(random: Random) -> Sent:
    return Sent([CHUNKED + pick(random, (b"5\r\nhel", b"ffff\r\n" + CANARY, b"5;a", b"5\r\nhello\r\n0\r\nX: y"))])


@request(400, 417, 200)
def strange_expectation(random: Random) -> bytes:
    return post(picture(random), b"Expect: " + pick(random, (b"200-ok", b"100-Continue, x", b"a" * 3000)))


@request(400, 408, silent=True)
def half_a_request_and_half_a_connection(random: Random) -> Sent:
    content = post(picture(random))
    return Sent([content[: int(random.integers(1, len(content) - 1))]], end="half")


@request(200, silent=True)
def whole_request_on_half_a_connection(random: Random) -> Sent:
    return Sent([post(picture(random))], end="half")


@request(200, 400, 408, silent=True)
def connection_that_is_reset(random: Random) -> Sent:
    content = post(picture(random, side=200))
    return Sent([content[: int(random.integers(1, len(content)))]], end="reset")


@request(200, 400, 404, 429, silent=True)
def thousands_of_requests_at_once(random: Random) -> Sent:
    one = pick(
        random,
        (
            b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n",
            post(picture(random), close=False),
        ),
    )
    return Sent([one * int(random.integers(1000, 5000))], answers=100_000)


@request(200, 429, silent=True, slow=True)
def client_that_never_reads(random: Random) -> Sent:
    return Sent([_GREEDY * int(random.integers(15, 30))], end="deaf", answers=100)


_GREEDY = b"GET /static_content/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
