"""Run verify, register, build and deploy one after another: `make deploy`. A second one in this working tree waits.

    python -m src release out/release [--again]

Where neither model nor engine has changed since what is deployed, the live version is only looked after. Workflows run the
same four commands, each where it belongs.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from src.core.locks import locked
from src.release import settings as all_settings
from src.release.containers import open_host
from src.release.reviewed import RELEASE


def steps(folder: Path, *, again: bool) -> int:
    """Run the steps; return the exit status of the first that fails, which has said why.

    Raises:
        UserError: neither Docker nor Podman answers; nothing has run then.
    """
    open_host(all_settings.read())  # without a container engine the last step fails, after minutes
    # another run would replace the folder in between
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock, f"process {os.getpid()}", lambda holder: f"waiting: another make deploy uses {folder}: {holder}"):
        code = _step("verify", folder, *(["--again"] if again else []))
        if code == 0 and not (folder / RELEASE).is_file():
            if _step("deploy", folder, "--unchanged") == 0:
                return 0
            code = _step("verify", folder, "--again")
        return code or _step("register", folder) or _step("build", folder, "--push") or _step("deploy", folder, "--again")


def _step(name: str, folder: Path, *options: str) -> int:
    print(f"\n--- {name}", flush=True)
    return subprocess.run([sys.executable, "-m", "src", name, str(folder), *options], check=False).returncode


def main() -> None:
    """Parse the command line and run the steps."""
    parser = argparse.ArgumentParser(description="Verify, register, build and deploy the model of this commit.")
    parser.add_argument("folder", type=Path, help="where the steps meet, such as out/release")
    parser.add_argument("--again", action="store_true", help="also where nothing has changed")
    args = parser.parse_args()
    sys.exit(steps(args.folder, again=args.again))
