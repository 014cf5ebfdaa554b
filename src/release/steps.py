"""Run verify, register, build and deploy one after another: `make deploy`. A second one in this working tree waits.

    python -m src.release.steps out/release

Workflows run the same four commands, each where it belongs.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from src.command import run
from src.locks import locked

_STEPS = {"verify": [], "register": [], "build": ["--push"], "deploy": ["--again"]}


def steps(folder: Path) -> int:
    """Run the steps; return the exit status of the first that fails, which has said why."""
    # another run would replace the folder in between
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock, lambda: f"waiting: another make deploy uses {folder}"):
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
