"""What SERVE_DEVICE changes of a release: the packages of its image, and what its container is given. Used by build, deploy.

    SERVE_DEVICE=cuda make image

The image for cuda gets requirements/serving-gpu.txt, the same versions with the GPU build of ONNX Runtime, and tells the
service to compute there: it then starts on a machine with a GPU only, and never falls back to the CPU.
"""

import os
from collections.abc import Mapping

from src.core.command import UserError
from src.system.variables import filled, word

VARIABLE = "SERVE_DEVICE"
_DEVICES = ("cpu", "cuda")
_LOCKS = {"cpu": "requirements/serving.txt", "cuda": "requirements/serving-gpu.txt"}
# docs.docker.com/engine/containers/gpu and podman.io: Podman names devices by CDI, which `nvidia-ctk cdi generate` writes
_ACCESS = {"docker": ("--gpus=all",), "podman": ("--device=nvidia.com/gpu=all",)}


def read(environment: Mapping[str, str] = os.environ) -> str:
    """Return cpu or cuda, as SERVE_DEVICE says; cpu where it is not set.

    Raises:
        UserError: it is another word.
    """
    return word(filled(environment), VARIABLE, _DEVICES) or "cpu"


def bentofile(text: str, device: str) -> str:
    """Return a bentofile.yaml whose image has the packages of a device, and whose service computes on it.

    Raises:
        UserError: the text does not name the packages of the CPU, which others are to take the place of.
    """
    if device == "cpu":
        return text
    if text.count(_LOCKS["cpu"]) != 1 or text.count("\nenvs:\n") != 1:
        raise UserError(
            f"bentofile.yaml does not name {_LOCKS['cpu']} and a list `envs` once each, so no image for {device} can be "
            f"made from it: restore both lines (git log bentofile.yaml), or set {VARIABLE}=cpu"
        )
    told = f'\nenvs:\n  - name: {VARIABLE}\n    value: "{device}"\n'
    return text.replace(_LOCKS["cpu"], _LOCKS[device]).replace("\nenvs:\n", told)


def access(engine: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the options by which `docker run` or `podman run` gives a container the GPUs of the machine, if it needs them.

    Args:
        engine: docker or podman.
        environment: what the container is told.
    """
    return _ACCESS[engine] if read(environment) == "cuda" else ()
