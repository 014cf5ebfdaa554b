"""Several processes on this machine for one training: `train.processes` in params.yaml. Over machines: torchrun.

launch("src", ["train", *sys.argv[1:]], 2)
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from src.core.command import UserError
from src.training.world import LIFELINE, LOST, TOLD

_HOST = "127.0.0.1"
_PATIENCE = 5.0  # seconds for a process to leave when it is asked to


def launched() -> bool:
    """Tell whether this process is one of several already, started by `launch` or by torchrun."""
    return "RANK" in os.environ


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m module arguments` in so many processes of one world (src/training/world.py), and wait for their end.

    None of them outlives this process, however it ends. When one is lost, the others are ended.

    Raises:
        UserError: a process was lost. Where one has already said what the user can mend, SystemExit with status 1.
    """
    listener = socket.create_server((_HOST, 0))  # PyTorch by itself would listen to the whole network
    port = listener.getsockname()[1]
    store = TCPStore(_HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            children.append(_start([sys.executable, "-m", module, *arguments], rank, processes, port))
        lost = _wait(children)
    finally:
        told = store.add(TOLD, 1) > 1  # from here on this process speaks for all
        _end(children)
    if lost is not None and told:
        sys.exit(1)
    if lost is not None:
        raise UserError(
            f"process {lost} of {processes} (counted from 0) {_how(children[lost].returncode)}, and the others were ended; "
            "the last checkpoint is kept. Run the same command again, and training goes on from there"
        )


def _start(command: Sequence[str], rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    """Start one process; its standard input is a pipe that closes when this process ends."""
    place = dict.fromkeys(("RANK", "LOCAL_RANK"), rank) | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), size)
    numbers = {name: str(value) for name, value in {**place, "MASTER_PORT": port, LIFELINE: 1}.items()}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**loopback, **os.environ, "MASTER_ADDR": _HOST, **numbers}
    # in a session of its own: Ctrl-C is for this process, which asks the others to leave, and says so once
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return None when all have ended well; else, at once, the rank that was lost."""
    since = None
    while True:
        failed = {rank: status for rank, child in enumerate(children) if (status := child.poll())}
        # one that misses another may be seen to end before the one that it misses
        causes = [rank for rank, status in failed.items() if status != LOST]
        if failed and since is None:
            since = time.monotonic()
        if causes or (since is not None and time.monotonic() - since > _PATIENCE):
            return next(iter(causes or failed))
        if not failed and all(child.returncode == 0 for child in children):
            return None
        time.sleep(0.05)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to leave, and kill those that do not."""
    for child in children:
        child.terminate()  # does nothing to one that has ended
    until = time.monotonic() + _PATIENCE
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin:
            child.stdin.close()


def _how(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL; by the system, if memory ran out: `dmesg` tells)"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"failed with exit status {status} (its own message stands above)"
