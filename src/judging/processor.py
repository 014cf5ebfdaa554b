"""Which processor this is, and what it has for 8-bit integers: that decides what INT8 gains."""

import platform
import subprocess
from pathlib import Path
from typing import Any

from src.system import hardware

# as Linux spells them: of Intel and AMD, then of Arm
_INTEGER = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_APPLE = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}


def describe() -> dict[str, Any]:
    """Return name, machine, and those of VNNI, AMX and Arm's dot products that it has, by Linux's names."""
    told = hardware.describe()
    name = told["processor"] or told["machine"]
    return {"name": name, "machine": told["machine"], "integer": integer_features()}


def integer_features(information: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the instructions for 8-bit products that the system names; none is also the answer where it does not tell."""
    if not information.is_file():
        return _of_apple() if platform.system() == "Darwin" else []
    lines = information.read_text().splitlines()
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    return [name for name in _INTEGER if name in words]


def _of_apple() -> list[str]:
    try:
        asked = subprocess.run(
            ["sysctl", *_APPLE], capture_output=True, text=True, timeout=10, check=False
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_APPLE[name] for name, _, value in (line.partition(": ") for line in asked) if value == "1" and name in _APPLE]
