"""The service on its socket, asked byte by byte: python -m pytest tests/serving/test_http.py"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from test_hostile import answer
from test_serving import PNG, is_problem, make_engine, picture, serving, write_model

from src.release.client import Client

HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("http") / "model")


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """A service that waits half a second for whatever it waits for."""
    with serving(make_engine(model, timeout=0.5)) as address:
        yield address


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as sock:
        sock.settimeout(10)
        yield sock


SLOW = [b"content-length: 100\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]


@pytest.mark.parametrize("rest", SLOW, ids=["body", "chunks"])
def test_what_does_not_come_in_time_is_refused_with_a_reason_and_the_connection_ended(url: str, rest: bytes) -> None:
    with connected(url) as sock:
        found = answer(sock, HEAD + rest)
        assert (found.status_code, found.headers["connection"]) == (408, "close")
        assert is_problem(found)
        assert sock.recv(1) == b""


def test_expect_continue_is_answered_before_the_body_and_a_body_too_large_is_not_asked_for(url: str) -> None:
    content = picture()
    with connected(url) as sock:
        sock.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(content))
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(content)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    with connected(url) as sock:
        sock.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 999999999\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_the_clients_of_a_deployment_bring_a_key_where_the_service_asks_for_one(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# two\nshop: 0123456789abcdef\nother: fedcba9876543210\n")
    keys.chmod(0o600)
    with serving(make_engine(model, keys=keys)) as url:
        assert Client(url).predict(picture()).status == 401
        assert Client(url, keys=str(keys)).predict(picture()).status == 200
        assert Client(url, keys=str(keys)).model()["classes"]
        assert Client(url, keys=str(tmp_path / "none")).predict(picture()).status == 401


def test_slow_clients_do_not_hold_up_a_quick_one(model: Path) -> None:
    with serving(make_engine(model, timeout=3.0)) as url:
        slow = [socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) for _ in range(50)]
        for sock in slow:
            sock.sendall(HEAD + b"content-length: 100\r\n\r\nabc")
        with httpx.Client(base_url=url) as client:
            assert [client.post("/predict", content=picture(), headers=PNG).status_code for _ in range(20)] == [200] * 20
        for sock in slow:
            sock.close()
