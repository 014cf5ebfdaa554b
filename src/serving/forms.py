"""Files of multipart/form-data, taken apart by python-multipart from a body of limited size: no disk is used."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from src.serving.problems import ProblemError

_ENCODINGS = (b"", b"binary", b"8bit", b"7bit")  # of a part: others are not for HTTP (RFC 7578, section 4.7)


class _Parts:
    """What the parser finds, as its callbacks: the files of one field."""

    def __init__(self, field: str, most: int) -> None:
        self.files: list[bytes] = []
        self.whole = False
        self._field, self._most = field, most
        self._name, self._headers, self._pieces = b"", dict[bytes, bytes](), list[bytes]()

    def on_part_begin(self) -> None:
        self._headers, self._pieces = {}, []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name = data[start:end].lower()
        if self._name in self._headers:
            raise ProblemError(400, "a part of the form has the same header twice")

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._name] = data[start:end]

    def on_headers_finished(self) -> None:
        """Refuse a part that is no file of the field before its content is read."""
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise ProblemError(400, "a part of the form needs Content-Disposition: form-data with a name")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _ENCODINGS:
            raise ProblemError(400, "Content-Transfer-Encoding is not for HTTP: send the file's bytes as they are")
        if (name := options[b"name"].decode("utf-8", "replace")) != self._field:
            raise ProblemError(400, f"there is a field {name[:40]!r}: send files in {self._field!r} and nothing else")
        if b"filename" not in options:
            raise ProblemError(
                422, f"{self._field!r} is a text, not a file: send the file itself; addresses are not fetched"
            )
        if len(self.files) == self._most:
            raise ProblemError(400, f"too many parts: send at most {self._most} in one request")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def on_part_end(self) -> None:
        self.files.append(b"".join(self._pieces))

    def on_end(self) -> None:
        self.whole = True


def files(body: bytes, content_type: bytes, field: str, most: int) -> list[bytes]:
    """Return the files of a form, all in fields of one name, at most so many.

    Args:
        body: whole.
        content_type: the header, which names the boundary.
        field: the name that each part must have.
        most: how many there may be.

    Raises:
        ProblemError: it is no whole form (400), holds something else (400), a text (422), no file or too many (400).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70 or content_type.lower().count(b"boundary=") > 1:
        sentence = "Content-Type multipart/form-data needs one boundary of 1 to 70 characters: let the client set it"
        raise ProblemError(400, sentence)
    begin = body.find(b"\r\n--" + boundary)
    if begin >= 0 and not body.startswith(b"--" + boundary):
        body = body[begin + 2 :]  # RFC 2046 lets words stand before the first boundary
    parts = _Parts(field, most)
    callbacks = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        sentence = (
            "the body is no form that can be read: it begins with the boundary of Content-Type, and each part has headers"
        )
        raise ProblemError(400, sentence) from None
    if not parts.whole:
        raise ProblemError(400, "the body ends before its closing boundary: send it again, whole")
    if not parts.files:
        raise ProblemError(400, f"the form is empty: send {'one file' if most == 1 else 'files'} in {field!r}")
    return parts.files
