"""A small service by the contract of the real one, with faults by name, for tests of what asks it. Starts fast."""

import json
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from src.release.reviewed import Release

MIB = 2**20
CLASSES = ["cat", "dog", "fox"]
RELEASE = Release(
    manifest="a" * 64, model_sha256="b" * 64, commit="c" * 40, trained_commit="c" * 40, pull_request=None, data=None,
    inputs="d" * 64, verdict="pass", override=None, metrics={}, classes=CLASSES,
)  # fmt: skip
LARGEST = 10 * MIB


class Service(ThreadingHTTPServer):
    """A small service by the contract of the real one, with faults by name."""

    daemon_threads = True

    def __init__(
        self, answers: dict[bytes, list[float]], *faults: str, port: int = 0, version: str = "3", release: Release = RELEASE
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answers, self.faults, self.version, self.release = answers, set(faults), version, release
        self.asked = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers as the service does, but for the faults of its server."""

    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/livez":
            return self.answer(200, {})
        if self.path == "/readyz":
            return self.answer(503 if "never ready" in server.faults else 200, {})
        if self.path == "/model":
            release = server.release
            told = {"version": server.version, "manifest": release.manifest, "model_sha256": release.model_sha256}
            told |= {"precision": release.precision, "served_sha256": release.served_sha256}
            other = {"classes": ["cat"]} if "other classes" in server.faults else {}
            return self.answer(200, {**told, "classes": CLASSES, **other})
        return self.problem(404)

    def do_POST(self) -> None:
        self.server.asked += 1
        body = self.body()
        if body is None:
            return self.problem(413)
        place = urlsplit(self.path)
        if "every other" in self.server.faults and self.server.asked % 2:
            return self.problem(503)
        top = int(parse_qs(place.query).get("top", ["3"])[0])
        files = self.files(body, "images" if place.path == "/predict_batch" else "image")
        if files is None or top < 1:
            return self.problem(400)
        return self.predict(files, top, batch=place.path == "/predict_batch")

    def predict(self, files: list[bytes], top: int, *, batch: bool) -> None:
        server = self.server
        if any(file not in server.answers for file in files):
            if "dies of garbage" in server.faults:
                return self.hang_up()
            return self.problem(500 if "fails on garbage" in server.faults else 400)
        predictions = [self.prediction(server.answers[file], top) for file in files]
        told = {"model_version": server.version, "manifest": server.release.manifest}
        if batch:
            order = -1 if "batch in disorder" in server.faults else 1
            return self.answer(200, {"predictions": predictions[::order], **told})
        return self.answer(200, {**predictions[0], **told})

    def prediction(self, probabilities: list[float], top: int) -> dict[str, Any]:
        faults, values = self.server.faults, list(probabilities)
        if "wrong label" in faults:
            values = values[1:] + values[:1]
        if "a little off" in faults:
            values = [value + 0.01 for value in values]
        if "no number" in faults:
            values[1] = float("nan")
        ranked = sorted(zip(CLASSES, values, strict=True), key=lambda pair: -pair[1])[:top]
        return {"label": ranked[0][0], "probabilities": [{"label": name, "probability": value} for name, value in ranked]}

    def body(self) -> bytes | None:
        if "Content-Length" in self.headers:
            length = int(self.headers["Content-Length"])
            return self.rfile.read(length) if length <= LARGEST else None
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size + 2)[:-2]
            if len(content) > LARGEST:
                return None
        return content

    def files(self, body: bytes, field: str) -> list[bytes] | None:
        kind = self.headers["Content-Type"]
        if kind.startswith("image/"):
            return [body]
        if not kind.startswith("multipart/"):
            return None
        parts = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).get_payload()
        names = [part.get_param("name", header="content-disposition") for part in parts]
        if set(names) != {field} or (field == "image" and len(parts) > 1):
            return None
        if any(part.get_filename() is None for part in parts):
            return None
        return [part.get_payload(decode=True) for part in parts]

    def problem(self, status: int) -> None:
        self.answer(status, {"title": "no", "detail": "not like this"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        manifest = "f" * 64 if "other manifest" in self.server.faults else self.server.release.manifest
        for name, value in (("X-Model-Version", self.server.version), ("X-Manifest", manifest), ("Connection", "close")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def hang_up(self) -> None:
        self.close_connection = True
