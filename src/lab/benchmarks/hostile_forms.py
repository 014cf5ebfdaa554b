"""Forms and other bodies that no honest client sends."""

import gzip
import itertools

from src.lab.benchmarks.exchange import Sent
from src.lab.benchmarks.hostile_kinds import (
    CANARY,
    CHUNKED,
    WORDS,
    Random,
    form,
    head,
    part,
    pick,
    picture,
    post,
    post_form,
    request,
)

# ---------------------------------------------------------------------------------------------------------------------
# Forms
# ---------------------------------------------------------------------------------------------------------------------


@request(400)
def form_of_another_boundary(random: Random) -> bytes:
    return post_form(form(part(b"image", picture(random)), separator=b"other"))


@request(400)
def form_without_boundary(random: Random) -> bytes:
    odd = (b"", b"; boundary=", b'; boundary=""', b"; boundary=" + b"x" * 71, b"; boundary=" + b"x" * 9000, b"; boundary")
    return post_form(form(part(b"image", picture(random))), media=b"multipart/form-data" + pick(random, odd))


@request(400)
def form_of_two_boundaries(random: Random) -> bytes:
    body = form(part(b"image", picture(random)), separator=b"second")
    return post_form(body, media=b"multipart/form-data; boundary=first; boundary=second")


@request(400)
def form_of_repeated_parts(random: Random) -> bytes:
    return post_form(form(*[part(b"image", picture(random))] * int(random.integers(2, 60))))


@request(400)
def form_of_thousands_of_parts(random: Random) -> bytes:
    return post_form(form(*[part(b"images", b"x")] * int(random.integers(1000, 50_000))), b"/predict_batch")


@request(400)
def form_of_empty_lines(random: Random) -> bytes:
    return post_form(b"\r\n" * int(random.integers(1000, 2_000_000)))


@request(400)
def form_of_almost_boundaries(random: Random) -> bytes:
    return post_form(b"--edge\r\n" + part(b"image", b"\r\n--edg" * int(random.integers(1000, 500_000))))


@request(400)
def part_without_name(random: Random) -> bytes:
    odd = (b"form-data", b"form-data; filename=x", b"attachment; name=image", b"form-data; name", b"", b"; ; ;=")
    return post_form(form(b"Content-Disposition: " + pick(random, odd) + b"\r\n\r\n" + picture(random)))


@request(400)
def part_of_two_names(random: Random) -> bytes:
    return post_form(form(b"Content-Disposition: form-data; name=image; filename=x\r\n" + part(b"other", picture(random))))


@request(400)
def form_in_a_form(random: Random) -> bytes:
    inner = form(part(b"image", picture(random)), separator=b"inner")
    return post_form(form(b"Content-Type: multipart/mixed; boundary=inner\r\n" + part(b"image", inner)))


@request(400)
def part_of_endless_headers(random: Random) -> bytes:
    return post_form(form(b"X: " + b"y" * int(random.integers(5000, 3_000_000)) + b"\r\n" + part(b"image", picture(random))))


@request(400)
def part_of_thousands_of_parameters(random: Random) -> bytes:
    more = b"; a=b" * int(random.integers(100_000, 500_000)) + b'; filename="' + b'\\"' * 100_000
    return post_form(form(part(b"image", picture(random), more)))


@request(400)
def part_without_a_blank_line(random: Random) -> bytes:
    return post_form(form(b'Content-Disposition: form-data; name="image"; filename=x\r\n' + CANARY + random.bytes(9)))


@request(400)
def form_that_never_ends(random: Random) -> bytes:
    return post_form(form(part(b"image", picture(random)), end=pick(random, (b"", b"-", b" --"))))


@request(400)
def form_with_a_part_too_many(random: Random) -> bytes:
    return post_form(form(part(b"image", picture(random)), part(b"note", CANARY, b"")))


@request(400)
def form_of_bare_line_feeds(random: Random) -> bytes:
    return post_form(form(part(b"image", picture(random))).replace(b"\r\n", b"\n"))


@request(200, 400)
def form_with_words_around_it(random: Random) -> bytes:
    return post_form(CANARY * pick(random, (0, 1000)) + form(part(b"image", picture(random))) + CANARY * 1000)


@request(400, 422)
def text_where_a_file_should_be(random: Random) -> bytes:
    words = (b"http://127.0.0.1:9/" + CANARY, b"file:///etc/passwd", b"data:image/png;base64,AAAA", CANARY, b"s3://x/y")
    return post_form(form(part(b"image", pick(random, words), pick(random, (b"", b'; filename="x.png"')))))


@request(200, 400)
def name_of_a_file_that_leads_elsewhere(random: Random) -> bytes:
    more = b'; filename="' + pick(random, (*WORDS, b"\0", b"a" * 3000, "\u202e".encode())) + b'"'
    return post_form(form(part(b"image", picture(random), more)))


@request(400)
def part_in_base64(random: Random) -> bytes:
    way = pick(random, (b"base64", b"quoted-printable", b"x-uuencode"))
    return post_form(form(b"Content-Transfer-Encoding: " + way + b"\r\n" + part(b"image", b"iVBORw0KGgo=")))


# ---------------------------------------------------------------------------------------------------------------------
# Bodies and their types
# ---------------------------------------------------------------------------------------------------------------------


@request(415)
def body_of_a_wrong_type(random: Random) -> bytes:
    types = (b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"application/vnd.bentoml+pickle",
             b"application/x-python-pickle", b"text/html", b"multipart/mixed; boundary=edge", b"", b"image", b";;;",
             b"application/grpc", b"application/octet-stream", b"x" * 9000, b"\xff\xfe", b"*/*")  # fmt: skip
    return post(b'{"image": "http://127.0.0.1:9/' + CANARY + b'"}', media=pick(random, types))


@request(400, 415)
def type_with_control_characters(random: Random) -> bytes:
    return post(picture(random), media=b"image/png" + pick(random, (b"\0", b"\x01", b"\x7f", b"\x0b")) + b"x")


@request(400, 415)
def two_types(random: Random) -> bytes:
    return post(CANARY, b"Content-Type: application/json", media=b"image/png" if random.random() < 0.5 else b"text/plain")


@request(415)
def compressed_body(random: Random) -> bytes:
    way = pick(random, (b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip", b"GZIP", b"x" * 2000))
    return post(gzip.compress(bytes(30_000_000), 1, mtime=0), b"Content-Encoding: " + way)


@request(400)
def array_of_a_wrong_length(random: Random) -> bytes:
    content = random.bytes(int(pick(random, (0, 1, 7, 9_999, 100_003))))
    return post(content, path=b"/predict_batch", media=b"application/octet-stream")


@request(413)
def body_over_the_limit(random: Random) -> bytes:
    return post(bytes(10_000_001 + int(random.integers(2_000_000))))


@request(413)
def length_over_the_limit_and_nothing_behind(random: Random) -> bytes:
    length = b"Content-Length: %d" % int(random.integers(10**8, 2**62))
    return head(b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", length)


@request(413)
def chunks_without_end(random: Random) -> Sent:
    size = int(random.integers(1000, 65_536))
    return Sent(itertools.chain([CHUNKED], itertools.repeat(b"%x\r\n" % size + bytes(size) + b"\r\n", 40_000_000 // size)))


@request(400, 413)
def chunks_of_one_byte(random: Random) -> bytes:
    return CHUNKED + b"1\r\nx\r\n" * int(random.integers(1000, 200_000)) + b"0\r\n\r\n"


@request(400, 408, 413, silent=True)
def chunk_of_an_impossible_size(random: Random) -> bytes:
    sizes = (b"-1", b"FFFFFFFFFFFFFFFF", b"1" + b"0" * 40, b"0x10", b"zz", b"", b" 5", b"5 ", b"+5", b"1_0", b"\0", b"5\n\n")
    return CHUNKED + pick(random, sizes) + b"\r\nhello\r\n0\r\n\r\n"


@request(400, 431)
def flood_of_chunk_extensions(random: Random) -> bytes:
    more = b";a=b" * int(random.integers(20_000, 500_000))
    return CHUNKED + b"5" + more + b"\r\nhello\r\n" * int(random.integers(1, 3)) + b"0\r\n\r\n"


@request(400, 431)
def flood_of_small_chunk_extensions(random: Random) -> bytes:
    return CHUNKED + (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * int(random.integers(1000, 5000)) + b"0\r\n\r\n"


@request(400, 431)
def flood_of_trailers(random: Random) -> bytes:
    return CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X-A: b\r\n" * int(random.integers(1000, 100_000)) + b"\r\n"
