"""What SERVE_DEVICE changes of a release: the packages of its image, and what its container is given.

    SERVE_DEVICE=cuda make image

The image for cuda gets requirements/serving-gpu.txt, the same versions with the GPU build of ONNX Runtime, and tells the
service to compute there: it then starts on a machine with a GPU only, and never falls back to the CPU.
"""

import os
from collections.abc import Mapping

from src.system.variables import filled, word

VARIABLE = "SERVE_DEVICE"
LOCKS = {"cpu": "requirements/serving.txt", "cuda": "requirements/serving-gpu.txt"}
# docs.docker.com/engine/containers/gpu and podman.io: Podman names devices by CDI, which `nvidia-ctk cdi generate` writes
_ACCESS = {"docker": ("--gpus=all",), "podman": ("--device=nvidia.com/gpu=all",)}


def read(environment: Mapping[str, str] = os.environ) -> str:
    """Return cpu or cuda, as SERVE_DEVICE says; cpu where it is not set.

    Raises:
        UserError: it is another word.
    """
    return word(filled(environment), VARIABLE, tuple(LOCKS)) or "cpu"


def access(engine: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the options by which `docker run` or `podman run` gives a container the GPUs of the machine, if it needs them.

    Args:
        engine: docker or podman.
        environment: what the container is told.
    """
    return _ACCESS[engine] if read(environment) == "cuda" else ()
