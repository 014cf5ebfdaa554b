"""The image and the container for a GPU: python -m pytest tests/release/test_device.py"""

import re

import pytest
from conftest import ROOT

from src.release.containers import Containers
from src.release.settings import read


def versions(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_both_images_get_the_same_versions_but_for_the_runtime() -> None:
    cpu, gpu = versions("serving.txt"), versions("serving-gpu.txt")
    runtimes = {"onnxruntime", "onnxruntime-gpu"}
    assert {name: (cpu[name], gpu[name]) for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {}
    assert cpu.keys() - gpu.keys() - runtimes <= {"cffi", "pycparser"}  # of PyPy alone: the other lock is for one platform
    assert all(name.startswith("nvidia-") for name in gpu.keys() - cpu.keys() - runtimes)
    assert cpu["onnxruntime"].split(".")[0] == gpu["onnxruntime-gpu"].split(".")[0]


def test_the_lock_for_a_gpu_has_the_gpu_build_alone_with_cuda_cudnn_and_hashes() -> None:
    locked = versions("serving-gpu.txt")
    assert "onnxruntime" not in locked
    assert {"nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cufft"} <= locked.keys()
    assert any(name.startswith("nvidia-cudnn-cu") for name in locked)
    text = (ROOT / "requirements" / "serving-gpu.txt").read_text()
    assert "://" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", text.strip()))


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_only_a_service_for_a_gpu_gets_the_gpus(engine: str) -> None:
    host = Containers(read({}), engine)

    def options(**environment: str) -> set[str]:
        return set(host.options("x", 1, environment))

    more = options(SERVE_DEVICE="cuda") - options()
    assert len(more) == 1
    assert re.match("--gpus=all|--device=nvidia.com/gpu=all", more.pop())
    assert options(SERVE_DEVICE="cpu") == options(SERVE_DEVICE="") == options()
