"""nginx follows the route, and nobody notices: python -m pytest tests/release/test_proxy.py

A real nginx on free ports, with small versions behind it that say their name.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, until
from ports import free_port

from src.core.command import UserError
from src.release import proxy as proxies
from src.release import settings
from src.release.proxy import Proxy, Route, render

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin"))) is None,
    reason="nginx is not on this machine: apt-get install nginx",
)


class Version(ThreadingHTTPServer):
    """A version that answers every request with its name; /predict?wait=0.3 takes its time, /predict?status=500 fails."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.seen: list[dict[str, str]] = []
        self.status = 200
        self.headers: dict[str, str] = {}  # of each answer, more than those that every version has
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    timeout = 6

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append(dict(self.headers))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = dict(part.split("=") for part in self.path.partition("?")[2].split("&") if part)
        time.sleep(float(asked.get("wait", 0.001)))
        body = server.name.encode()
        self.send_response(int(asked.get("status", server.status)))
        told = {"Content-Length": len(body), "X-Model-Version": server.name, "X-Prediction": "7", **server.headers}
        for name, value in told.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 (the name that http.server looks for)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def versions() -> Iterator[tuple[Version, Version]]:
    old, new = Version("1"), Version("2")
    yield old, new
    old.close()
    new.close()


@contextmanager
def proxy_at(home: Path, **given: Any) -> Iterator[Proxy]:
    environment = {"DEPLOY_HOME": str(home), "DEPLOY_PORT": str(free_port()), "DEPLOY_DRAIN_SECONDS": "3"}
    proxy = Proxy(settings.read({**environment, **given}))
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def proxy(tmp_path: Path, versions: tuple[Version, Version]) -> Iterator[Proxy]:
    """A proxy that is stopped before its versions are."""
    with proxy_at(tmp_path / 'a b;"$x" ä') as proxy:  # nobody need mind its letters
        yield proxy


def ask(proxy: Proxy, path: str = "/predict", method: str = "POST", body: bytes = b"", **headers: str) -> Any:
    """Return status, headers and body of an answer over a new connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.settings.port, timeout=PATIENCE)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def ask_raw(proxy: Proxy, content: bytes) -> Any:
    with socket.create_connection(("127.0.0.1", proxy.settings.port), timeout=PATIENCE) as connection:
        connection.sendall(content)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), json.loads(body)


def logged(proxy: Proxy) -> list[dict[str, Any]]:
    time.sleep(0.05)  # nginx writes the line after the answer
    return [json.loads(line) for line in proxy.log.read_text().splitlines()]


def workers(proxy: Proxy) -> set[int]:
    return {pid for pid, title in proxy._processes().items() if "worker" in title}


def master(proxy: Proxy) -> int:
    found = proxies._master(proxy._processes())
    assert found
    return found


# The route


@pytest.mark.journey
@needs_nginx
def test_a_route_serves_and_is_read_back_from_the_file(
    proxy: Proxy, versions: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = versions
    assert proxy.route() is None
    assert not proxy.running()
    monkeypatch.setenv("RUNNER_TRACKING_ID", "github_0001")  # a runner ends what carries it
    monkeypatch.setenv("REGISTRY_TOKEN", "hunter2")
    proxy.ensure()
    for path in ("/predict", "/readyz"):
        status, headers, body = ask(proxy, path)
        assert (status, headers["Content-Type"], headers["Retry-After"]) == (503, "application/problem+json", "5")
        assert "no version is deployed: make deploy" in json.loads(body)["detail"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    for version in (old, new, old):
        route = Route(version.port, version.name)
        proxy.point(route)
        assert proxy.running()
        assert Proxy(proxy.settings).route() == route
        status, headers, body = ask(proxy)
        assert (status, body, headers["X-Model-Version"]) == (200, version.name, version.name)
    for pid in (master(proxy), *workers(proxy)):
        told = Path(f"/proc/{pid}/environ").read_bytes()
        assert not [word for word in (b"github_0001", b"hunter2") if word in told]
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    with ThreadPoolExecutor() as pool:
        count = len(old.seen)
        answer = pool.submit(ask, proxy, "/predict?wait=0.3")
        until(lambda: len(old.seen) > count)
        proxy.stop()
    assert answer.result()[::2] == (200, "1")
    assert not proxy.running()
    assert proxy.route() == Route(old.port, "1")


@pytest.mark.journey
@needs_nginx
def test_only_known_paths_reach_a_version(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    proxy.point(Route(versions[0].port, "1"))
    for path in (
        "/",
        "/predict?top=3",
        "/predict_batch",
        "/explain?label=a",
        "/demo",
        "/model",
        "/docs.json",
        "/livez",
        "/readyz",
        "/static_content/a.js",
    ):
        assert ask(proxy, path, "GET")[2] == "1", path
    count = len(versions[0].seen)
    admin = ("/healthz", "/schema.json", "/metrics/", "/metrics?x=/predict", "/%6detrics", "/static_content/../metrics")
    for path in (
        *admin,
        "/metrics",
        "/nope",
        "/predict/",
        "/.copy",
        "/.problem/503",
        "/static",
        "//metrics",
        "/predict/../metrics",
    ):
        status, headers, body = ask(proxy, path, "GET")
        assert (status, headers["Content-Type"]) == (404, "application/problem+json"), path
        assert json.loads(body)["request_id"] == headers["X-Request-ID"]
    assert len(versions[0].seen) == count


@pytest.mark.journey
@needs_nginx
def test_every_error_is_a_problem_in_json(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    proxy.point(Route(versions[0].port, "1"))
    assert json.loads(ask(proxy, body=b"x" * 12_000_000)[2])["status"] == 413
    assert json.loads(ask(proxy, method="TRACE")[2])["status"] == 405
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
    for sent, status in (
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (head + b"X-A: a\r\n" * 9000 + b"\r\n", 431),
        (head + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (head + b"Host: b\r\n\r\n", 400),
        (head + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
    ):
        found, told, problem = ask_raw(proxy, sent)
        assert found == problem["status"] == status
        assert "application/problem+json" in told
    assert versions[0].seen == []
    for given in (400, 413, 429, 500, 503, 504):  # an error of the version itself passes unchanged
        assert ask(proxy, f"/predict?status={given}")[::2] == (given, "1")
    proxy.point(Route(free_port(), "2", backup=versions[0].port))
    assert [ask(proxy)[::2] for _ in range(5)] == [(200, "1")] * 5  # the backup answers what live drops
    proxy.point(Route(free_port(), "1"))
    status, headers, body = ask(proxy)
    assert (status, json.loads(body)["title"]) == (502, "Bad Gateway")
    assert headers["Server"] == "nginx"


@pytest.mark.journey
@needs_nginx
def test_headers_are_for_browsers_and_hide_who_answered_and_no_other_site_may_ask(
    proxy: Proxy, versions: tuple[Version, Version]
) -> None:
    cors = [f"Access-Control-{name}" for name in ("Allow-Origin", "Allow-Credentials", "Allow-Methods", "Expose-Headers")]
    own = {"Content-Security-Policy": "default-src 'self'", "X-Frame-Options": "ALLOWALL", "Server": "uvicorn 1"}
    versions[0].headers = {**dict.fromkeys(cors, "*"), **own}
    proxy.point(Route(versions[0].port, "1"))
    asks = [("/demo", "GET", 200), ("/metrics", "GET", 404)]
    asks += [("/predict", method, 405) for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "BREW")]
    for path, method, expected in asks:
        status, headers, _ = ask(
            proxy, path, method, Origin="https://elsewhere.example", Access_Control_Request_Method="POST"
        )
        assert status == expected
        assert not [name for name in headers if name.startswith("Access-Control")]
        assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
        assert (headers["Referrer-Policy"], headers["Server"], len(headers["X-Request-ID"])) == ("no-referrer", "nginx", 32)
        assert headers.get("Allow") == ("GET, HEAD, POST" if expected == 405 else None)
    assert ask(proxy, "/demo", "GET")[1]["Content-Security-Policy"] == "default-src 'self'"
    for given, kept in (("abc-123-DEF", True), ("short", False), ('"};{drop', False), ("x" * 65, False)):
        headers = ask(proxy, X_Request_ID=given)[1]
        assert versions[0].seen[-1]["X-Request-ID"] == headers["X-Request-ID"]
        assert (headers["X-Request-ID"] == given) is kept
    ask(proxy, Host="shop.example:8443")
    assert versions[0].seen[-1]["Host"] == "shop.example:8443"


@pytest.mark.journey
@needs_nginx
def test_keys_go_through_and_into_no_log(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    old, new = versions
    proxy.point(Route(old.port, "1", candidate=free_port(), candidate_version="2", share=0.5, backup=new.port))
    for _ in range(20):
        assert ask(proxy, Authorization="Bearer a-secret-key-1", X_API_Key="a-secret-key-2")[0] == 200
    ask(proxy, body=b"x" * 12_000_000, Authorization="Bearer a-secret-key-1")
    proxy.point(Route(free_port(), "3"))
    assert ask(proxy, Authorization="Bearer a-secret-key-1")[0] == 502
    assert {(seen["Authorization"], seen["X-API-Key"]) for seen in old.seen} == {("Bearer a-secret-key-1", "a-secret-key-2")}
    assert "Connection refused" in (proxy.folder / "error.log").read_text()
    assert [file for file in proxy.folder.rglob("*.*") if "a-secret" in file.read_text()] == []


@pytest.mark.journey
@needs_nginx
def test_one_address_cannot_take_all_places(
    proxy: Proxy, versions: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "_CONNECTIONS", 1)
    proxy.point(Route(versions[0].port, "1"))
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.settings.port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/predict?wait=0.5", b"x")
        proxies._wait(lambda: len(versions[0].seen) > 0, 5)
        status, headers, body = ask(proxy)
        assert (status, headers["Retry-After"], json.loads(body)["status"]) == (429, "1", 429)
        assert connection.getresponse().status == 200


# The switch


def _load(proxy: Proxy, switch: Callable[[], None], clients: int = 8) -> tuple[int, list[str]]:
    """Ask from several clients, each over one connection as long as it lives, while `switch` runs."""
    stop = threading.Event()
    failures: list[str] = []
    answers = [0] * clients

    def client(number: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", proxy.settings.port, timeout=PATIENCE)) as connection:
            while not stop.is_set():
                try:
                    connection.request("POST", "/predict", b"x" * 2000)
                    response = connection.getresponse()
                    response.read()
                    answers[number] += response.status == 200
                    if response.status != 200:
                        failures.append(f"status {response.status}")
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
                    connection.close()
                time.sleep(0.002 * number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        switch()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sum(answers), failures


def _switch(proxy: Proxy, versions: tuple[Version, Version], times: int) -> None:
    for i in range(times):
        version = versions[(i + 1) % 2]
        proxy.point(Route(version.port, version.name))
        assert {ask(proxy)[2] for _ in range(10)} == {version.name}, f"switch {i}"


@pytest.mark.journey
@needs_nginx
def test_a_switch_under_load_fails_no_request_and_new_connections_only_meet_the_new_version(
    proxy: Proxy, versions: tuple[Version, Version]
) -> None:
    proxy.point(Route(versions[0].port, "1"))
    answered, failures = _load(proxy, lambda: _switch(proxy, versions, 10))
    assert failures == []
    assert answered > 200


@pytest.mark.journey
@needs_nginx
def test_a_request_in_flight_is_answered_by_the_version_that_has_it(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    proxy.point(Route(versions[0].port, "1"))
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.settings.port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/predict?wait=0.8", b"x")
        until(lambda: versions[0].seen)
        proxy.point(Route(versions[1].port, "2"))
        assert ask(proxy)[2] == "2"
        assert connection.getresponse().read() == b"1"


# Canary and shadow


@pytest.mark.journey
@needs_nginx
def test_a_candidate_gets_its_share_and_the_log_tells_who_answered(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    old, new = versions
    route = Route(old.port, "1", candidate=new.port, candidate_version="2", share=0.3)
    proxy.point(route)
    assert proxy.route() == route
    answers = [ask(proxy)[2] for _ in range(200)]
    ask(proxy, "/readyz", "GET")
    assert ask(proxy, body=b"x" * 12_000_000)[0] == 413  # which counts against no version
    lines = logged(proxy)
    assert 30 <= answers.count("2") <= 90  # 60 expected; 4.6 standard deviations
    assert [line["version"] for line in lines] == answers
    assert {(line["target"], line["version"]) for line in lines} == {("live", "1"), ("candidate", "2")}
    first = lines[0]
    assert (first["status"], first["answered"], first["prediction"], first["path"]) == (200, 200, "7", "/predict")
    assert abs(first["time"] - time.time()) < 60
    assert 0 < first["seconds"] < 5


@pytest.mark.journey
@needs_nginx
@pytest.mark.parametrize("fault", ["dead", "failing"])
def test_clients_see_nothing_of_a_candidates_failures_but_the_log_does(
    proxy: Proxy, versions: tuple[Version, Version], fault: str
) -> None:
    old, new = versions
    candidate = free_port() if fault == "dead" else new.port
    new.status = 500
    proxy.point(Route(old.port, "1", candidate=candidate, candidate_version="2", share=0.5))
    assert {ask(proxy)[::2] for _ in range(30)} == {(200, "1")}
    tried = [line for line in logged(proxy) if line["target"] == "candidate"]
    assert len(tried) >= 3
    assert {(line["status"], line["answered"], line["prediction"]) for line in tried} == {
        (502 if fault == "dead" else 500, 200, "")
    }


@pytest.mark.journey
@needs_nginx
def test_a_shadow_gets_a_copy_and_its_answers_are_thrown_away(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    old, new = versions
    route = Route(old.port, "1", candidate=new.port, candidate_version="2", share=1, mirror=True)
    proxy.point(route)
    assert proxy.route() == route
    assert {ask(proxy, "/predict_batch", body=b"image")[2] for _ in range(5)} == {"1"}
    lines = logged(proxy)
    assert sorted((line["target"], line["version"]) for line in lines) == [("candidate", "2")] * 5 + [("live", "1")] * 5
    assert {line["path"] for line in lines} == {"/predict_batch"}
    assert {seen["Content-Length"] for seen in new.seen} == {"5"}
    proxy.point(Route(old.port, "1", candidate=free_port(), candidate_version="2", share=1, mirror=True))
    assert {ask(proxy)[::2] for _ in range(5)} == {(200, "1")}
    dead = [line for line in logged(proxy)[10:] if line["target"] == "candidate"]
    assert [(line["status"], line["answered"]) for line in dead] == [(502, 502)] * 5
    proxy.point(Route(free_port(), "1", candidate=new.port, candidate_version="2", share=1, mirror=True))
    assert ask(proxy)[0] == 502
    assert sorted((line["target"], line["status"]) for line in logged(proxy)[20:]) == [("candidate", 200), ("live", 502)]


# What can go wrong with nginx


@pytest.mark.journey
@needs_nginx
def test_a_configuration_that_nginx_refuses_leaves_the_old_route(proxy: Proxy, versions: tuple[Version, Version]) -> None:
    route = Route(versions[0].port, "1")
    proxy.point(route)
    given = {"DEPLOY_PORT": str(proxy.settings.port), "DEPLOY_ADDRESS": "203.0.113.7"}
    given |= {"DEPLOY_HOME": str(proxy.settings.home.parent)}
    with pytest.raises(UserError, match="nginx refuses its new configuration.*the old route stays"):
        Proxy(settings.read(given)).point(Route(versions[1].port, "2"))
    assert proxy.route() == route
    assert ask(proxy)[2] == "1"


@pytest.mark.journey
@needs_nginx
def test_a_port_that_a_stranger_has_is_named_and_the_old_route_stays(
    tmp_path: Path, proxy: Proxy, versions: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    route = Route(versions[0].port, "1")
    proxy.point(route)
    monkeypatch.setattr(proxies, "_PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        with (
            proxy_at(tmp_path / "other", DEPLOY_PORT=port) as other,
            pytest.raises(
                UserError, match=rf"port {port} of 127.0.0.1 must be above 1023 and not taken by another.*DEPLOY_PORT"
            ),
        ):
            other.ensure()
        moved = Proxy(settings.read({"DEPLOY_HOME": str(proxy.settings.home.parent), "DEPLOY_PORT": port}))
        with pytest.raises(UserError, match=r"did not follow.*Address already in use.*the old route stays"):
            moved.point(Route(versions[1].port, "2"))
    assert proxy.route() == route
    assert ask(proxy)[2] == "1"


@pytest.mark.journey
@needs_nginx
@pytest.mark.parametrize("killed", ["master", "all"])
def test_a_killed_nginx_comes_back_with_its_route(proxy: Proxy, versions: tuple[Version, Version], killed: str) -> None:
    proxy.point(Route(versions[0].port, "1"))
    if killed == "master":
        os.kill(master(proxy), signal.SIGKILL)
    else:
        for pid in (master(proxy), *workers(proxy)):
            os.kill(pid, signal.SIGKILL)
        # as after a reboot, when the number belongs to another process: this one
        (proxy.folder / "nginx.pid").write_text(f"{os.getpid()}\n")
    proxies._wait(lambda: not proxy.running(), 5)
    assert not proxy.running()
    proxy.ensure()
    assert proxy.running()
    assert ask(proxy)[2] == "1"
    proxy.point(Route(versions[1].port, "2"))
    assert {ask(proxy)[2] for _ in range(10)} == {"2"}


@pytest.mark.parametrize("address", ["example.org", "1.2.3", "127.0.0.1; return 200", "127.0.0.1:80"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    given = settings.read({"DEPLOY_HOME": str(tmp_path), "DEPLOY_ADDRESS": address})
    with pytest.raises(UserError, match="DEPLOY_ADDRESS is"):
        render(given, Route(None, ""))
