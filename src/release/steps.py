"""Run verify, register, build and deploy one after another: `make deploy`. A second one in this working tree waits.

    python -m src.release.steps out/release

Workflows run the same four commands, each where it belongs.
"""

import argparse
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.command import run

_STEPS = {"verify": [], "register": [], "build": ["--push"], "deploy": ["--again"]}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against another run, which would replace it in between."""
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another make deploy uses {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def steps(folder: Path) -> int:
    """Run the steps; return the exit status of the first that fails, which has said why."""
    with _alone(folder):
        for step, options in _STEPS.items():
            print(f"\n--- {step}", flush=True)
            done = subprocess.run([sys.executable, "-m", f"src.release.{step}", str(folder), *options], check=False)
            if done.returncode:
                return done.returncode
    return 0


def main() -> None:
    """Parse the command line and run the steps."""
    parser = argparse.ArgumentParser(description="Verify, register, build and deploy the model of this commit.")
    parser.add_argument("folder", type=Path, help="where the steps meet, such as out/release")
    sys.exit(steps(parser.parse_args().folder))


if __name__ == "__main__":
    run("release", main)
