"""The service answers rightly, refuses what it must, and breaks on nothing.

python -m pytest tests/serving/test_serving.py
"""

import contextlib
import json
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
import uvicorn
from conftest import PATIENCE, ROOT, encode, until
from onnx import TensorProto, helper
from PIL import Image
from ports import free_port
from ruamel.yaml import YAML
from test_pipeline import copy_repository, python, require_success

from src.core.command import UserError
from src.core.files import read_json, sha256, write_json
from src.images import images
from src.images.prepare_params import image_spec
from src.serving import forms, identity, logs, serve, settings
from src.serving.engine import Engine
from src.serving.http import Application
from src.serving.problems import ProblemError
from src.system.params import load

CLASSES = ["red", "grün/green", "blue"]


def write_model(folder: Path, size: int = 8, classes: list[str] = CLASSES) -> Path:
    """Write a model that tells red, green and blue pictures apart by their mean colour, with its card."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [0.02]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(classes)})
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    card = {"classes": classes, "spec": image_spec((size, size)).to_json(), "network": "colours", "width": 1}
    write_json(folder / "card.json", {**card, "model_sha256": sha256(folder / "model.onnx")})
    return folder


def picture(colour: tuple[int, int, int] = (250, 10, 10), side: int = 12, kind: str = "PNG", **options: Any) -> bytes:
    return encode(Image.new("RGB", (side, side), colour), kind, **options)


async def rest(scope: Any, receive: Any, send: Any) -> None:
    """Stand where BentoML's own application is."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Run the application on a free port of this machine, as BentoML runs it."""
    config = uvicorn.Config(Application(rest, engine), lifespan="off", log_config=None, server_header=False)
    server, listening = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=[[listening]])
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def make_engine(folder: Path, *, load: bool = True, **changes: Any) -> Engine:
    limits = dict[str, Any](max_body=1_000_000, max_pixels=4_000_000, max_batch=4, timeout=5.0, concurrency=64, threads=2)
    engine = Engine(replace(settings.read({}), model=folder, **limits | changes))
    if load:
        engine.load()
    return engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return make_engine(model)


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as opened:
        yield opened


def is_problem(answer: httpx.Response) -> bool:
    """Say whether an answer is problem details, and tells nothing of what lies behind."""
    content = answer.json()
    known = {"type", "title", "status", "detail", "request_id"} <= set(content)
    leaks = re.search(r"Traceback|File \"|/tmp/|/home/|site-packages|0x[0-9a-f]{6}", answer.text)
    told = answer.headers["content-type"] == "application/problem+json" and answer.headers["x-request-id"]
    return known and not leaks and told == content["request_id"] and content["status"] == answer.status_code


def test_an_upload_and_a_raw_body_get_the_same_answer(client: httpx.Client) -> None:
    upload = client.post("/predict", files={"image": ("a.png", picture())})
    raw = client.post("/predict", content=picture(), headers={"content-type": "image/png"})
    assert upload.status_code == raw.status_code == 200
    assert upload.json() == raw.json()
    told = upload.json()
    assert told["label"] == "red"
    assert told["probabilities"][0]["label"] == "red"
    assert sum(entry["probability"] for entry in told["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert (told["model_version"], told["manifest"]) == ("unregistered", None)
    assert upload.headers["x-model-version"] == "unregistered"


def test_a_batch_is_answered_in_order_and_as_single_images_are(client: httpx.Client) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    answer = client.post("/predict_batch", files=[("images", ("x.png", picture(colour))) for colour in colours])
    assert [entry["label"] for entry in answer.json()["predictions"]] == CLASSES
    for colour, entry in zip(colours, answer.json()["predictions"], strict=True):
        single = client.post("/predict", files={"image": ("x.png", picture(colour))}).json()
        assert entry == {key: single[key] for key in ("label", "probabilities")}


@pytest.mark.parametrize("kind", images.FORMATS)
def test_serving_sees_the_pixels_that_training_saw_in_every_format_whatever_the_name_says(
    client: httpx.Client, kind: str, random: np.random.Generator
) -> None:
    content = encode(random.integers(0, 256, (37, 21, 3), dtype=np.uint8), kind)
    pixels = images.encode(content, image_spec((8, 8)), 10**6)[0]
    logits = pixels.reshape(-1, 3).astype(np.float32).mean(0) * 0.02
    expected = np.exp(logits) / np.exp(logits).sum()
    sent = {"image": ("x.exe", content, "application/octet-stream")}
    told = client.post("/predict", files=sent).json()["probabilities"]
    assert [entry["probability"] for entry in told] == pytest.approx(sorted(map(float, expected), reverse=True), abs=1e-5)


PNG = {"content-type": "image/png"}


def form(*parts: bytes, end: bytes = b"--edge--\r\n") -> bytes:
    return b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + end


def part(name: bytes, content: bytes, more: bytes = b"; filename=x.png") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content


@pytest.mark.parametrize("chunked", [True, False])
def test_an_endless_body_is_refused_before_it_ends_and_the_client_can_read_why(url: str, chunked: bool) -> None:
    def forever() -> Iterator[bytes]:
        for _ in range(80):
            yield bytes(64 * 1024)

    headers = {"content-type": "image/png", "connection": "close"}
    content: Any = forever() if chunked else bytes(5_000_000)
    answer = httpx.post(f"{url}/predict", content=content, headers=headers)
    assert answer.status_code == 413
    assert is_problem(answer)
    assert "1 MB" in answer.json()["detail"]


def test_a_text_that_is_an_address_is_never_fetched(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        for content in ({"image": address}, {"url": address}):
            form_data = client.post("/predict", files={key: (None, value) for key, value in content.items()})
            assert form_data.status_code in (400, 422)
            assert client.post("/predict", json=content).status_code == 415
        assert client.post("/predict", files={"image": ("x.png", address.encode())}).status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_client_that_goes_away_harms_nobody(url: str, client: httpx.Client) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as sock:
            sock.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\nPNG")
    assert client.post("/predict", files={"image": ("a.png", picture())}).status_code == 200


def test_with_all_places_taken_a_request_is_told_when_to_come_again(model: Path) -> None:
    engine = make_engine(model, concurrency=1)
    with serving(engine) as url, httpx.Client(base_url=url) as client:
        engine.admit()
        full = client.post("/predict", files={"image": ("a.png", picture())})
        assert full.status_code == 429
        assert full.headers["retry-after"] == "1"
        assert is_problem(full)
        assert client.get("/metrics").status_code == client.get("/livez").status_code == 200
        engine.release(0)
        assert client.post("/predict", files={"image": ("a.png", picture())}).status_code == 200
        assert client.post("/predict", files={"image": ("a.png", b"")}).status_code == 400
        assert client.post("/predict", files={"image": ("a.png", picture())}).status_code == 200  # the place was given back


def test_large_bodies_together_take_only_so_much_memory(model: Path) -> None:
    engine = make_engine(model, max_body=200_000)
    content = picture(kind="BMP", side=250)  # 187,554 bytes, of which 65,536 are not counted
    with serving(engine) as url, httpx.Client(base_url=url) as client:
        engine.hold(4 * 200_000 - (len(content) - 65_536) + 1)
        full = client.post("/predict", content=content, headers=PNG)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert client.post("/predict", content=picture(), headers=PNG).status_code == 200  # a small one still fits
        engine._held -= 1
        for _ in range(5):  # each is let go when it is answered, refused or not
            assert client.post("/predict", content=content, headers=PNG).status_code == 200
            assert client.post("/predict", content=content[:-9], headers=PNG).status_code == 400


def test_work_for_which_nobody_waits_is_not_done(model: Path) -> None:
    engine = make_engine(model, threads=1, timeout=0.4)
    assert engine.model
    hold = threading.Event()
    for _ in range(2):
        engine.model._decoder._threads.submit(hold.wait, 20)
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as client:
        began = time.monotonic()
        late = client.post("/predict", files={"image": ("a.webp", picture(kind="WEBP"))})
        assert time.monotonic() - began < 15, "it waited for the thread"
        hold.set()
        assert late.status_code == 504
        assert is_problem(late)
        assert client.post("/predict", files={"image": ("a.png", picture())}).status_code == 200


def test_before_the_model_is_loaded_predictions_wait_and_the_rest_answers(model: Path) -> None:
    engine = make_engine(model, load=False)
    with serving(engine) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/predict", files={"image": ("a.png", picture())})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/model").status_code == 503
        assert client.get("/docs.json").status_code == client.get("/").status_code == 200
        assert not engine.ready
        engine.load()
        assert engine.ready
        assert client.post("/predict", files={"image": ("a.png", picture())}).status_code == 200


def test_a_model_that_gives_no_numbers_is_a_fault_of_the_service_that_tells_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(model)
    assert engine.model
    nothing = np.full((1, 3), math.nan, np.float32)
    monkeypatch.setattr(engine.model._batcher, "_compute", lambda images: nothing)
    with serving(engine) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/predict", files={"image": ("a.png", picture())})
    assert answer.status_code == 500
    assert is_problem(answer)


def test_refusals_leave_no_traceback_and_no_payload_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    lines: queue.Queue[Any] = queue.Queue()
    handler = QueueHandler(lines)
    with caplog.at_level("INFO", logger="bentoml.image_classifier"):
        logs._requests.addHandler(handler)
        client.post("/predict", files={"image": (None, "my secret text")})
        client.post("/predict", content=b"my secret bytes", headers=PNG)
        told = [lines.get(timeout=PATIENCE) for _ in range(2)]  # an answer leaves before its line is written
        logs._requests.removeHandler(handler)
    assert all(record.exc_info is None for record in caplog.records)
    assert all(record.detail for record in told)
    assert "secret" not in caplog.text + str([vars(record) for record in told])


def test_a_request_id_is_passed_on_if_it_is_harmless_and_made_otherwise(client: httpx.Client) -> None:
    assert client.get("/model", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 65, "<script>"):
        assert re.fullmatch(r"[0-9a-f]{16}", client.get("/model", headers={"x-request-id": odd}).headers["x-request-id"])


def test_metrics_count_predictions_and_unknown_paths_are_one_route(model: Path) -> None:
    with serving(make_engine(model)) as url, httpx.Client(base_url=url) as client:
        for _ in range(3):
            client.post("/predict", files={"image": ("a.png", picture())})
        for i in range(50):
            client.get(f"/made-up-{i}")
        text = client.get("/metrics").text
    assert 'model_predictions_total{label="red",model_version="unregistered"} 3.0' in text
    assert 'model_predictions_total{label="blue",model_version="unregistered"} 0.0' in text
    assert "model_prediction_confidence_count 3.0" in text
    assert 'http_requests_total{route="other",status="404"} 50.0' in text
    assert re.search(r'model_info\{.*version="unregistered"\} 1.0', text)
    assert "made-up" not in text


def test_a_large_image_is_taken_one_at_a_time_and_within_the_limit(client: httpx.Client) -> None:
    large = encode(Image.new("RGB", (1900, 1900), (250, 0, 0)))
    assert client.post("/predict", files={"image": ("a.png", large)}).json()["label"] == "red"
    over = client.post("/predict", files={"image": ("a.png", encode(Image.new("L", (2001, 2000))))})
    assert over.status_code == 413
    assert over.json()["detail"] == "too large: 4.002 megapixels, the limit is 4"


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert "://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


# Which model


def test_the_release_names_the_model_and_every_answer_carries_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_json(model / "card.json", made_by="train")
    release = {"name": "x", "version": "7", "manifest": "f" * 64, "model_sha256": card["model_sha256"], "commit": "c",
               "pull_request": 5, "data": "d", "verdict": "pass", "metrics": {"accuracy": 0.9}}  # fmt: skip
    write_json(tmp_path / "out" / "release" / "identity.json", release)
    monkeypatch.setattr("src.serving.engine.ROOT", tmp_path)
    with serving(make_engine(model)) as url, httpx.Client(base_url=url) as client:
        good = client.post("/predict", files={"image": ("a.png", picture())})
        bad = client.post("/predict_batch", files={"images": ("a.png", b"")})
        told = client.get("/model").json()
    assert (good.json()["model_version"], good.json()["manifest"]) == ("7", "f" * 64)
    for answer in (good, bad):
        assert (answer.headers["x-model-version"], answer.headers["x-manifest"]) == ("7", "f" * 64)
    assert {key: told[key] for key in release} == release
    assert (told["classes"], told["spec"]["shape"], told["network"]) == (CLASSES, [8, 8, 3], "colours")


@pytest.mark.parametrize("fault", ["missing", "changed", "no card", "damaged card"])
def test_a_model_that_cannot_be_trusted_is_refused_in_one_sentence(model: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    if fault == "missing":
        (folder / "model.onnx").unlink()
    elif fault == "changed":
        content = bytearray((folder / "model.onnx").read_bytes())
        content[-1] ^= 1
        (folder / "model.onnx").write_bytes(content)
    elif fault == "no card":
        (folder / "card.json").unlink()
    else:
        (folder / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.onnx|card\.json"):
        identity.read(folder, tmp_path)
    assert not make_engine(folder).ready


# Settings


@pytest.mark.parametrize("name", ["SERVE_WORKERS", "SERVE_THREADS", "SERVE_TIMEOUT", "SERVE_MAX_BATCH", "SERVE_CONCURRENCY"])
@pytest.mark.parametrize("value", ["0", "many", "nan"])
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name} is '{value}'"):
        settings.read({name: value})


# What goes into the image


def test_a_form_keeps_every_byte_of_a_file() -> None:
    content = b"\r\n--edg\r\n\r\n--edge-\x00\xff\r\n".replace(b"--edge-", b"--edg")
    kind = b'multipart/form-data; boundary="edge"'
    assert forms.files(form(part(b"image", content)), kind, "image", 1) == [content]
    for before in (b"\r\n", b"words\r\n", b"\r\nwords - more\r\n"):  # RFC 2046, section 5.1.1
        assert forms.files(before + form(part(b"image", content)), kind, "image", 1) == [content]


def test_a_form_has_as_many_files_as_it_may_and_not_one_more_and_a_field_too_many_is_named() -> None:
    kind = b"multipart/form-data; boundary=edge"
    for count in (1, 2, 3):
        assert forms.files(form(*[part(b"a", b"x")] * count), kind, "a", 3) == [b"x"] * count
    with pytest.raises(ProblemError, match="at most 3"):
        forms.files(form(*[part(b"a", b"x")] * 4), kind, "a", 3)
    with pytest.raises(ProblemError, match="there is a field 'note'"):
        forms.files(form(part(b"image", b"x"), part(b"note", b"a text", b"")), kind, "image", 1)


def versions(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_the_image_gets_the_versions_of_the_lock_with_hashes_and_without_what_trains() -> None:
    mine, all_of_it = versions("serving.txt"), versions("run.txt")
    assert {name: version for name, version in mine.items() if all_of_it.get(name, version) != version} == {}
    assert not {"torch", "mlflow", "dvc", "scikit-learn", "pandas", "onnx", "matplotlib"} & set(mine)
    text = (ROOT / "requirements" / "serving.txt").read_text()
    assert "://" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", text.strip()))


PROGRAM = """
import sys
from src.serving import service
watching = set(sys.modules)
from src.serving import model
print(" ".join(sorted(name.replace(".", "/") + ".py" for name in sys.modules if name.startswith("src."))))
print(sorted({"torch", "mlflow", "dvc", "sklearn", "pandas", "onnx", "matplotlib", "tqdm"} & set(sys.modules)))
print(sorted({"numpy", "onnxruntime", "PIL", "prometheus_client"} & watching))
"""


@pytest.mark.journey
def test_the_service_imports_what_the_image_holds_and_nothing_that_trains() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    modules, trains, heavy = done.stdout.splitlines()
    include = YAML(typ="safe").load((ROOT / "bentofile.yaml").read_text())["include"]
    held = {path.relative_to(ROOT).as_posix() for pattern in include for path in ROOT.glob(pattern)}
    files = {path for path in modules.split() if (ROOT / path).is_file()}
    assert files <= held
    folders = {str(Path(path).parent) for path in files} - {"src"}
    assert {pattern for pattern in include if pattern.startswith("src/")} == {
        *("src/__init__.py", "src/serving/demo.html", "src/serving/openapi.json", "src/serving/swagger.html"),
        *(f"{folder}/*.py" for folder in folders),
    }
    assert f"src/{load(ROOT / 'params.yaml').kind}/*.py" in include  # BentoML fills nothing in
    assert trains == "[]"
    assert heavy == "[]", "the process that only watches over the other imports what it does not need"


# As it really runs


@contextlib.contextmanager
def served(
    home: Path, command: list[str], cwd: Path, before: Sequence[str] = (), **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a real server process, by what stands `before` it, and stop it at the end, with all that it started."""
    port = free_port()
    variables = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", **environment}
    command = [*before, sys.executable, "-m", *command, "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        stop_all(process)
        process.communicate(timeout=PATIENCE)


def stop_all(process: subprocess.Popen[str]) -> None:
    """Kill a server and its workers, each of which BentoML puts into a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def wait_ready(url: str) -> None:
    def is_ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
        return False

    until(is_ready, 180)


GRACE = ["--timeout-graceful-shutdown", "10"]
SERVICE = ["bentoml", "serve", "src.serving.service:ImageClassifier", "--host", "127.0.0.1", *GRACE]


@pytest.mark.journey
def test_bentoml_serves_it_with_page_document_health_and_metrics(model: Path, tmp_path: Path) -> None:
    with served(tmp_path, SERVICE, ROOT, SERVE_MODEL=str(model), SERVE_WORKERS="2") as (_, url):
        wait_ready(url)
        with httpx.Client(base_url=url) as client:
            page = client.get("/")
            for address in re.findall(r'(?:src|href)="\./([^"]+)"', page.text):
                assert client.get(f"/{address}").status_code == 200, address
            assert "./docs.json" in client.get("/static_content/swagger-initializer.js").text
            assert client.get("/docs.json").json()["openapi"] == "3.1.0"
            assert client.get("/livez").status_code == 200
            for _ in range(5):
                assert client.post("/predict", files={"image": ("a.png", picture())}).json()["label"] == "red"
            text = client.get("/metrics").text
            assert 'model_predictions_total{label="red",model_version="unregistered"} 5.0' in text
            assert re.search(r"^model_info\{.*\} 1\.0$", text, re.MULTILINE)
            assert client.get("/static_content/../../etc/passwd").status_code == 404
            assert client.get("/schema.json").status_code == 404


def unprivileged(command: list[str]) -> list[str]:
    """Return a command that may not read what its user may not, even where root runs it."""
    if os.geteuid() != 0:
        return command
    away = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={away}", f"--inh-caps={away}", *command]


@pytest.mark.journey
@pytest.mark.parametrize("fault", ["unreadable", "cut short", "setting"])
def test_what_cannot_be_served_ends_the_server_with_one_sentence(model: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    file = folder / "model.onnx"
    if fault == "unreadable":
        file.chmod(0)
    elif fault == "cut short":
        os.truncate(file, file.stat().st_size // 2)
    variables = {**os.environ, "SERVE_MODEL": str(folder), "SERVE_TIMEOUT": "soon" if fault == "setting" else "5"}
    variables |= {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    command = unprivileged([sys.executable, "-m", *SERVICE, "--port", str(free_port())])
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.fullmatch(r"serve: (\S*model\.onnx (is|cannot be read)|SERVE_TIMEOUT is) ?[^\n]+\n", done.stdout + done.stderr)


@pytest.mark.journey
def test_make_serve_says_where_and_answers_as_the_golden_examples_say(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "project")
    require_success(python(folder, "dvc", "pull"))
    golden = folder / "out" / "evaluation" / "golden"
    with served(tmp_path, ["src", "serve"], folder) as (process, url):
        wait_ready(url)
        told = json.loads((golden / "golden.json").read_text())
        with httpx.Client(base_url=url) as client:
            for example in told["examples"]:
                content = (golden / example["file"]).read_bytes()
                answer = client.post(
                    "/predict", params={"top": len(told["classes"])}, files={"image": ("x", content)}
                ).json()
                assert answer["label"] == example["prediction"]
                given = {entry["label"]: entry["probability"] for entry in answer["probabilities"]}
                assert [given[label] for label in told["classes"]] == pytest.approx(example["probabilities"], abs=1e-5)
        stop_all(process)
        assert process.stdout
        assert url in process.stdout.readline()


@pytest.mark.parametrize(("given", "home"), [(None, ROOT / "out" / "bentoml"), ("/elsewhere", Path("/elsewhere"))])
def test_serve_keeps_the_files_of_bentoml_out_of_the_home_folder(
    model: Path, given: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"BENTOML_HOME": given} if given else {})
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.setattr(os, "execv", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["serve", "--model", str(model), "--port", str(free_port())])
    serve.main()
    assert os.environ["BENTOML_HOME"] == str(home)


@pytest.mark.journey
def test_serve_refuses_a_taken_port_and_a_missing_model_in_one_sentence(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, sentence in (
            (["--model", str(model), "--port", port], f"serve: port {port} of 127.0.0.1 cannot be used"),
            (["--model", str(tmp_path)], f"serve: {tmp_path}/card.json is missing"),
        ):
            command = [sys.executable, "-m", "src", "serve", *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert done.stderr.startswith(sentence)
