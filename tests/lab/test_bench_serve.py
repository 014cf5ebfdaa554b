"""The benchmark of the service counts what happened, by its right name: python -m pytest tests/lab/test_bench_serve.py"""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_serving import write_model

from src.core.command import UserError
from src.core.inference import Model
from src.lab.benchmarks import load, questions


class Handler(BaseHTTPRequestHandler):
    """Hangs up on every fifth request; counts what comes."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        if self.asked % 5 == 0:
            self.close_connection = True
            return
        self.send_response(200 if body == b"x" * len(body) else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.mark.journey
def test_answers_and_failures_are_counted_once(tmp_path: Path) -> None:
    Handler.asked = 0
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/predict"
        found = load.put(url, "image/png", [tmp_path / "a.png"], 1, 1)
        server.shutdown()
    failed = sum(found.failures.values())
    assert abs(failed - Handler.asked // 5) <= 1, found
    assert found.requests > failed > 0
    assert found.p50_ms is not None
    with pytest.raises(UserError, match="no load could be put on http"):
        load.put(url, "image/png", [tmp_path / "a.png"], 1, 1)


# What is asked, and whether an answer is right


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model(folder)


def answers(model: Model, row: np.ndarray) -> dict[str, bytes]:
    """Answer as each kind of server does."""
    label, probability = model.classes[int(row.argmax())], float(row.max())
    named = {"label": label, "probability": probability}
    return {
        "service": json.dumps({"label": label, "probabilities": [named]}).encode(),
        "bentoml": json.dumps(named).encode(),
        "textbook": json.dumps({"probabilities": [row.tolist()]}).encode(),
    }


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_right_answers_pass_and_those_of_another_image_do_not(model: Model, tmp_path: Path, kind: str) -> None:
    contents = questions.uploads(kind, 32, model, 6)
    for name in ("service", "bentoml", "textbook"):
        asked = questions.ask(name, contents, kind, model, tmp_path / name)
        assert len(set(asked.expected.argmax(axis=1))) == 3, "the uploads do not tell the classes apart"
        for index, row in enumerate(asked.expected):
            given = answers(model, row)[name]
            assert asked.is_right(200, given, index)
            assert not asked.is_right(500, given, index)
            assert not asked.is_right(200, given, (index + 1) % 3)
            assert not asked.is_right(200, b"[]", index)


@pytest.mark.journey
def test_the_benchmark_measures_three_services_with_a_network_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src", "bench-serve", "--network", "--seconds", "1", "--rounds", "1", "--out"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    servers = json.loads((tmp_path / "serve.json").read_text())["servers"]
    assert set(servers) == {"service", "textbook", "bentoml"}
    assert all(at["requests"] > 0 and not at["failed"] for server in servers.values() for at in server["at"].values())
    assert "| this service | 64 |" in (tmp_path / "serve.md").read_text()
