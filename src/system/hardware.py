"""What machine this is."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from src.core.command import cores
from src.core.files import rounded


def describe() -> dict[str, Any]:
    """Return accelerator (None without one), cores this process may use, machine, memory in GiB, and processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "accelerator": _accelerator(),
        "cores": cores(),
        "machine": platform.machine(),
        "memory_gib": rounded(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "processor": names[0] if names else platform.processor(),
    }


def _accelerator() -> str | None:
    """Ask the driver's own tool: importing torch for this would take seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = asked.stdout.strip().splitlines() if asked.returncode == 0 else []
    if not names:
        return None
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
