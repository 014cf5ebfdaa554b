"""Take multipart/form-data apart, strictly and in linear time: RFC 7578, as browsers, curl and HTTP clients send it.

Written here and not taken from a framework, because a body whose size is already limited needs no spooling to disk, and
because a text in place of a file has to be told apart: BentoML would fetch it as an address.
"""

import re
from typing import NamedTuple

from src.serving.problems import ProblemError

_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_PARAMETER = re.compile(rb""";\s*(name|filename\*?)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))""", re.IGNORECASE)
_LONGEST_HEAD = 4096  # bytes of one part's headers


class Part(NamedTuple):
    """One field of a form. `is_file`: it has a file name, as an upload has and a text has not."""

    name: str
    is_file: bool
    content: bytes


def boundary(content_type: str) -> bytes:
    """Return what separates the parts, out of the header Content-Type.

    Raises:
        ProblemError: it names none, or one that the standard forbids.
    """
    found = _BOUNDARY.search(content_type)
    if not found:
        raise ProblemError(
            400, "Content-Type multipart/form-data has no boundary of 1 to 70 characters: let the client set it"
        )
    return (found[1] or found[2]).encode("latin-1")


def parse(body: bytes, separator: bytes, most: int) -> list[Part]:
    """Return the parts of a body, at most `most` of them.

    Raises:
        ProblemError: the body is no whole multipart body, or has more parts.
    """
    pieces = (b"\r\n" + body).split(b"\r\n--" + separator, most + 2)
    if len(pieces) < 2 or pieces[0] != b"":
        raise ProblemError(400, "the body does not begin with the boundary that Content-Type names")
    if len(pieces) == most + 3 or (len(pieces) == most + 2 and not pieces[-1].startswith(b"--")):
        raise ProblemError(400, f"too many parts: send at most {most} in one request")
    if not pieces[-1].startswith(b"--"):
        raise ProblemError(400, "the body ends before its closing boundary: send it again, whole")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, blank, content = piece.partition(b"\r\n\r\n")
    if not head.startswith(b"\r\n") or not blank or len(head) > _LONGEST_HEAD:
        raise ProblemError(400, "a part of the form has no headers, damaged ones, or too long ones")
    headers = [line.partition(b":") for line in head[2:].split(b"\r\n")]
    found = [value.strip() for name, _, value in headers if name.strip().lower() == b"content-disposition"]
    if len(found) != 1 or not found[0].lower().startswith(b"form-data"):
        raise ProblemError(400, "a part of the form needs exactly one Content-Disposition: form-data")
    for name, _, value in headers:
        if name.strip().lower() == b"content-transfer-encoding" and value.strip().lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise ProblemError(400, "Content-Transfer-Encoding is not for HTTP: send the file's bytes as they are")
    given = {key.lower(): quoted or bare for key, quoted, bare in _PARAMETER.findall(found[0])}
    if b"name" not in given:
        raise ProblemError(400, "a part of the form has no name: name it as the documentation says")
    return Part(given[b"name"].decode("utf-8", "replace"), b"filename" in given or b"filename*" in given, content)
