"""A process beside a deployment that ends it properly if it dies; it holds the same lock, so nobody comes between."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DONE = b"."
COMMAND = [sys.executable, "-m", "src", "guard"]


@contextmanager
def guarded(home: Path, lock: int) -> Iterator[None]:
    """Run what is inside under the eyes of a guard; it acts only when this process does not come to its end."""
    theirs, ours = os.pipe()
    # a runner ends all processes of a job that carry its mark; this one has to outlive the job
    environment = {name: value for name, value in os.environ.items() if name != "RUNNER_TRACKING_ID"}
    command = [*COMMAND, str(lock), str(theirs)]
    with (home / "guard.log").open("ab") as output:
        process = subprocess.Popen(
            command, pass_fds=(lock, theirs), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    os.close(theirs)
    try:
        yield
    finally:  # also after a failure: it was undone already
        os.write(ours, DONE)
        os.close(ours)
        process.wait()
