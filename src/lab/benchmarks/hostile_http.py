"""HTTP that no honest client speaks: addresses, methods, headers, and requests that can be read in two ways."""

import itertools

from src.lab.benchmarks.exchange import Sent
from src.lab.benchmarks.hostile_kinds import CANARY, CHUNKED, WORDS, Random, get, head, pick, picture, post, request

# ---------------------------------------------------------------------------------------------------------------------
# Addresses, methods, headers
# ---------------------------------------------------------------------------------------------------------------------


@request(400, 404, 405, 414)
def address_that_leads_elsewhere(random: Random) -> bytes:
    words = (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/static_content/..%2f..%2fetc/passwd", b"/predict%00",
             b"//predict", b"/predict/", b"/./predict", b"/predict;x=1", b"/predict/../model", b"/PREDICT", b"\\model",
             b"/static_content/../../etc/passwd", b"/static_content/%2e%2e", b"/readyz/../model", b"/livez/" + b"a" * 3000,
             b"/%c0%ae%c0%ae/", b"/%ff", b"/schema.json", b"/admin", b"/.git/config", b"/.env", b"/static_content",
             b"/static_content/nothing.js", b"/model%0d%0aX-A:%20b", b"/model/%2e%2e/predict")  # fmt: skip
    return get(pick(random, words))


@request(400, 404, 405, silent=True)
def address_of_another_host(random: Random) -> bytes:
    words = (b"http://127.0.0.1:9/" + CANARY, b"http://evil/predict", b"https://x@y:z", b"http://", b"ftp://a/b", b"*", b"x")
    return get(pick(random, words), method=pick(random, (b"GET", b"OPTIONS", b"CONNECT")))


@request(400, 404)
def address_of_odd_letters(random: Random) -> bytes:
    odd = ("/grün".encode(), b"/\xff\xfe", b"/a b", b"/a\tb", b"/\x01", b"/a#b", b"/a\0b", b"/\x7f")
    return get(pick(random, odd))


@request(400, 414, 431, silent=True)
def address_without_end(random: Random) -> bytes:
    return get(b"/" + b"a" * int(random.integers(9_000, 5_000_000)))


@request(400, 414)
def flood_of_parameters(random: Random) -> bytes:
    return post(picture(random), path=b"/predict?" + b"&".join(b"a=%d" % i for i in range(int(random.integers(50, 2000)))))


@request(400, 414)
def strange_top(random: Random) -> bytes:
    words = (b"0", b"-1", b"1e1", b"", b"99999999999", b"%00", b"1%0a", b"%d9%a3", b"1&top=2", b"0x1", b"+1", b"1.0", b"nan",
             b"%f0%9f%98%80", b"1" * 7000, b"true", b"[]", b"1;2", b"%31%32%33%34%35%36%37")  # fmt: skip
    return post(picture(random), path=b"/predict?top=" + pick(random, words))


@request(400)
def strange_label(random: Random) -> bytes:
    words = (b"nothing", b"%00", b"a" * 3000, b"0&label=1", b"%ff", b"../x")
    return post(picture(random), path=b"/explain?label=" + pick(random, words))


@request(400, 405, silent=True)
def strange_method(random: Random) -> bytes:
    methods = (
        b"PUT",
        b"DELETE",
        b"PATCH",
        b"TRACE",
        b"OPTIONS",
        b"PROPFIND",
        b"PURGE",
        b"BREW",
        b"",
        b"GE\0T",
        b"get",
        b"G" * 9000,
    )
    return get(b"/predict", method=pick(random, methods))


@request(405)
def head_of_what_is_posted(_: Random) -> Sent:
    return Sent([get(b"/predict", method=b"HEAD")], bodyless=True)


@request(400, 431)
def flood_of_headers(random: Random) -> bytes:
    return get(b"/model", *[b"X-%d: %s" % (i, CANARY) for i in range(int(random.integers(200, 20_000)))])


@request(400, 431)
def flood_of_empty_headers(random: Random) -> bytes:
    return get(b"/model", *[b"A:"] * int(random.integers(200, 50_000)))


@request(400, 431)
def huge_header(random: Random) -> bytes:
    name = pick(random, (b"Cookie", b"Authorization", b"X-API-Key", b"X-Forwarded-For", b"Accept", b"User-Agent", b"Range"))
    return get(b"/model", name + b": " + CANARY * int(random.integers(2000, 200_000)))


@request(400, 431)
def huge_name_of_a_header(random: Random) -> bytes:
    return get(b"/model", b"X" * int(random.integers(40_000, 3_000_000)) + b": 1")


@request(400, 408, 431, silent=True)
def header_without_end(random: Random) -> Sent:
    line = pick(random, (b"X-A: b\r\n", b"a" * 1000, b"X: " + b"b" * 500 + b"\r\n"))
    return Sent(itertools.chain([b"GET /model HTTP/1.1\r\nHost: x\r\n"], itertools.repeat(line * 50, 500)))


@request(400)
def header_with_odd_letters(random: Random) -> bytes:
    odd = (
        b"X\0: 1",
        b"X : 1",
        b" X: 1",
        b"X",
        b": 1",
        b"X\t: 1",
        b"X: a\0b",
        b"X: a\nY",
        b"X(: 1",
        b"X: a\x0bb\x7f\x01",
        b"\xff: 1",
    )
    return get(b"/model", pick(random, odd))


@request(400)
def folded_header(_: Random) -> bytes:
    return get(b"/model", b"X-A: b", b" Transfer-Encoding: chunked", b"\tc")


@request(200, 400, 401)
def flood_of_keys(random: Random) -> bytes:
    keys = [
        pick(random, (b"Authorization: Bearer ", b"X-API-Key: ")) + CANARY + random.bytes(9).hex().encode()
        for _ in range(50)
    ]
    return get(b"/model", *keys)


@request(200, 400)
def request_id_that_is_a_trick(random: Random) -> bytes:
    return get(b"/model", b"X-Request-ID: " + pick(random, (*WORDS, b"a" * 5000, "ü".encode(), b"%0d%0aX: y")))


@request(200, 206, 400, 416)
def ranges(random: Random) -> bytes:
    flood = b",".join(b"%d-" % i for i in range(int(random.integers(10, 3000))))
    path = pick(random, (b"/docs.json", b"/static_content/swagger-ui.css"))
    return get(path, b"Range: bytes=" + pick(random, (flood, b"999999999-", b"-0", b"9-1", b"-" + b"9" * 30, b"x")))


@request(200, 304, 400, 412)
def conditions_of_all_sorts(random: Random) -> bytes:
    name = pick(random, (b"If-None-Match", b"If-Modified-Since", b"If-Range", b"If-Match", b"Accept-Encoding", b"TE"))
    never, nonsense = b"Fri, 01 Jan 2038 00:00:00 GMT", random.bytes(40).hex().encode() + b", *;q=nan"
    return get(b"/static_content/swagger-ui.css", name + b": " + pick(random, (never, nonsense, b"*")))


# ---------------------------------------------------------------------------------------------------------------------
# Two readings of one request (smuggling): see RFC 9112, sections 6 and 11.2
# ---------------------------------------------------------------------------------------------------------------------

_SECOND = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def _smuggle(*headers: bytes, body: bytes = b"0\r\n\r\n" + _SECOND) -> bytes:
    return head(b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", *headers) + body


@request(400)
def length_and_chunks(random: Random) -> bytes:
    both = [b"Content-Length: %d" % pick(random, (0, 5, 6, 50)), b"Transfer-Encoding: chunked"]
    return _smuggle(*(both if random.random() < 0.5 else both[::-1]))


@request(400)
def two_lengths(random: Random) -> bytes:
    return _smuggle(b"Content-Length: 5", b"Content-Length: " + pick(random, (b"5", b"6", b"0", b"5, 5")))


@request(400)
def length_that_is_no_number(random: Random) -> bytes:
    odd = (
        b"+5",
        b"-5",
        b"5 5",
        b"5, 5",
        b"0x5",
        b"5.0",
        b"",
        b"five",
        b"5\x0b",
        b"9" * 40,
        b"5_0",
        "\u0665".encode(),
        b"5;",
    )
    return _smuggle(b"Content-Length: " + pick(random, odd))


@request(400)
def coding_that_is_almost_chunked(random: Random) -> bytes:
    odd = (
        b"xchunked",
        b"chunked, identity",
        b"identity",
        b"gzip",
        b"chunked;q=1",
        b"\x0bchunked",
        b"chunked\0",
        b'"chunked"',
        b"",
    )
    return _smuggle(b"Transfer-Encoding: " + pick(random, odd))


@request(400)
def two_codings(random: Random) -> bytes:
    odd = (b"identity", b"x", b"gzip", b"cow")
    return _smuggle(b"Transfer-Encoding: chunked", b"Transfer-encoding: " + pick(random, odd))


@request(400)
def name_of_a_coding_that_is_bent(random: Random) -> bytes:
    odd = (
        b"Transfer-Encoding : chunked",
        b" Transfer-Encoding: chunked",
        b"Transfer-Encoding:\n chunked",
        b"X: y\nTransfer-Encoding: chunked",
    )
    return _smuggle(pick(random, odd), b"Content-Length: 5")


@request(400)
def second_request_in_a_body_of_no_length(random: Random) -> Sent:
    """The body of a request without a length is the next request, which is then asked for pictures that it has not."""
    first = head(b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png")
    return Sent([first + pick(random, (picture(random), b"\0\0", b"G\xffT / HTTP/1.1\r\n\r\n"))], answers=2)


@request(400, silent=True)
def bare_line_feeds(random: Random) -> bytes:
    return get(b"/model").replace(b"\r\n", pick(random, (b"\n", b"\r", b"\n\r", b"\r\r\n")))


@request(400)
def chunks_of_bare_line_feeds(random: Random) -> bytes:
    return CHUNKED + pick(
        random, (b"5\nhello\n0\n\n", b"5\r\nhello\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n")
    )


@request(400)
def no_host(random: Random) -> bytes:
    return pick(random, (b"GET /model HTTP/1.1\r\n\r\n", b"GET /model HTTP/1.1\r\nHosts: x\r\n\r\n"))


@request(400)
def two_hosts(_: Random) -> bytes:
    return get(b"/model", b"Host: y")


@request(200, 400)
def strange_host(random: Random) -> bytes:
    return get(b"/model").replace(
        b"Host: x", b"Host: " + pick(random, (b"evil@x", b"x:99999", b"[::1", b"a" * 5000, b"../x", b""))
    )


@request(400, 505, silent=True)
def strange_version(random: Random) -> bytes:
    return get(b"/model").replace(
        b"HTTP/1.1", pick(random, (b"HTTP/9.9", b"HTTP/3", b"HTTP/1.10", b"ICY", b"http/1.1", b"HTTP/1.2", b""))
    )
