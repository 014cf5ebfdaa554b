"""DVC, run from this environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

from src.command import UserError


def dvc(*arguments: str, capture: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run DVC; the commands of its stages then find this environment's Python as `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, env=environment, capture_output=capture, text=True, check=False)


def has_unrecorded_changes(folder: Path) -> bool:
    """True when the folder exists and its content is not what its .dvc file records: DVC has no copy of it.

    Raises:
        UserError: DVC cannot tell.
    """
    record = f"{folder}.dvc"
    if not folder.exists():
        return False
    if not Path(record).exists():
        return any(folder.iterdir())
    status = dvc("status", record, "--json", capture=True)
    if status.returncode:
        lines = status.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(
            f"dvc status {record} failed ({lines[-1]}): restore {record} with git checkout, or run dvc add {folder}"
        )
    changes = [
        entry for entries in json.loads(status.stdout or "{}").values() for entry in entries if isinstance(entry, dict)
    ]
    return "modified" in {state for entry in changes for outs in entry.values() for state in outs.values()}
