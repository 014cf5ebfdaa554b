"""The OpenAPI document is true of the service that runs: python -m pytest tests/serving/test_openapi.py

schemathesis reads the document, asks the real service what it says can be asked, and what it says cannot.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE, ROOT
from test_serving import SERVICE, make_engine, served, serving, wait_ready, write_model

from src.serving.http import openapi

KEY = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("openapi") / "model")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[httpx.Client]:
    with serving(make_engine(model)) as url, httpx.Client(base_url=url, timeout=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Any:
    return client.get("/docs.json").json()


def operations(document: Any) -> dict[str, Any]:
    return {path: operation for path, item in document["paths"].items() for operation in item.values()}


def test_the_document_is_valid_and_tells_what_this_model_and_these_settings_bound(model: Path, document: Any) -> None:
    import schemathesis  # takes seconds

    unloaded = openapi(make_engine(model, load=False, demo=False))
    for found in (document, unloaded):
        schemathesis.openapi.from_dict(found).validate()
        for kind, name in re.findall(r'"#/components/(\w+)/([\w-]+)"', json.dumps(found)):
            assert name in found["components"][kind]
    told = operations(document)
    assert not {"/demo", "/explain"} & {*operations(unloaded)}
    closed = {path for path, operation in told.items() if operation.get("security")}
    assert closed == {*told} - {"/demo", "/livez", "/readyz", "/metrics"}
    assert closed == {path for path, operation in told.items() if "401" in operation["responses"]}
    assert told["/predict"]["parameters"][0]["schema"] == {"type": "integer", "minimum": 1, "maximum": 3, "default": 3}


@pytest.mark.journey
def test_schemathesis_finds_nothing_in_the_service_as_it_runs(model: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"tester: {KEY}")
    (tmp_path / "keys").chmod(0o600)
    given = {"SERVE_MODEL": str(model), "SERVE_MAX_BATCH": "4", "SERVE_ACCESS_LOG": "1"}
    given["SERVE_API_KEYS_FILE"] = str(tmp_path / "keys")
    with served(tmp_path / "home", SERVICE, ROOT, **given) as (process, url):
        wait_ready(url)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/docs.json", "--checks", "all", "--no-color"]
        command += ["--max-time", "20", "--max-examples", "20", "--seed", "1", "--continue-on-failure"]
        command += ["--header", f"X-API-Key:{KEY}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "SCHEMATHESIS_HOOKS": "openapi_hooks"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert "10 selected / 10 total" in done.stdout
        assert "No issues found" in done.stdout
        process.terminate()
        told = process.communicate(timeout=PATIENCE)[0].splitlines()
    assert [line for line in told if not line.startswith('{"time": "')] == []  # parent and workers, to the end
    assert KEY not in "".join(told)
