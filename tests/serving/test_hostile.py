"""Hostile files, each answered with the status that names its folder, and a good image answered right after it.

hostile/STATUS/*.http are whole requests, sent byte for byte. All other files are images, whole or not: sent as a raw body,
and in a batch between two good ones. A new fault is a new file here. python -m pytest tests/serving/test_hostile.py
"""

import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from test_serving import PNG, is_problem, make_engine, picture, serving, write_model

from src.images import images
from src.images.images import UndecodableError

UNREADABLE = "Invalid HTTP request received."  # uvicorn's own words for what never becomes a request with a route
FOLDER = Path(__file__).parent / "hostile"
REQUESTS = sorted(FOLDER.glob("*/*.http"))
IMAGES = sorted(set(FOLDER.glob("*/*")) - set(REQUESTS))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    engine = make_engine(write_model(tmp_path_factory.mktemp("hostile") / "model"))
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as opened:
        yield opened


def good(client: httpx.Client) -> bool:
    return client.post("/predict", files={"image": ("a.png", picture())}).json()["label"] == "red"


def answer(connection: socket.socket, content: bytes) -> httpx.Response:
    """Send bytes that no HTTP client would send; return the first answer."""
    connection.sendall(content)
    found = HTTPResponse(connection)
    found.begin()
    return httpx.Response(found.status, headers=found.getheaders(), content=found.read())


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_hostile_request_gets_its_status_and_the_next_good_one_its_label(client: httpx.Client, path: Path) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        found = answer(connection, path.read_bytes())
    assert found.status_code == int(path.parent.name), found.text
    assert found.status_code == 200 or found.text == UNREADABLE or is_problem(found)
    assert good(client)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_a_hostile_image_gets_its_status_alone_and_in_a_batch(client: httpx.Client, path: Path) -> None:
    content, expected = path.read_bytes(), int(path.parent.name)
    alone = client.post("/predict", content=content, headers=PNG)
    batch = client.post("/predict_batch", files=[("images", ("x", one)) for one in (picture(), content, picture())])
    assert (alone.status_code, batch.status_code) == (expected, 200 if expected == 200 else 400), alone.text
    assert expected == 200 or (is_problem(alone) and is_problem(batch) and batch.json()["indices"] == [1])
    assert good(client)


TAKEN_BY_TRAINING_ALONE = "jpeg_of_thousands_of_passes.jpg"  # harmless where nobody waits for the answer


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_training_takes_the_images_that_the_service_takes(path: Path) -> None:
    try:
        images.decode(path.read_bytes(), 4_000_000)
        taken = True
    except UndecodableError:
        taken = False
    assert taken == (path.parent.name == "200" or path.name == TAKEN_BY_TRAINING_ALONE)
