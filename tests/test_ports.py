"""Ports for tests: nobody else is given them, neither another test nor an outgoing connection."""

import subprocess
import sys
from pathlib import Path

import ports
import pytest
from ports import BLOCK, free_ports

CHILD = "import ports, sys; print(ports.free_ports(), flush=True); sys.stdin.read()"


@pytest.mark.journey
def test_ports_of_a_process_are_given_to_no_other_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        first = int(other.stdout.readline())
        monkeypatch.setattr(ports, "FIRST", range(first, first + 1))
        with pytest.raises(RuntimeError, match=f"no {BLOCK} ports in a row are free"):
            free_ports()
        other.kill()
    assert free_ports() == first


def test_no_outgoing_connection_is_given_one() -> None:
    own = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not own.exists():
        pytest.skip("this system is not Linux")
    low, high = map(int, own.read_text().split())
    first = free_ports()
    assert first + BLOCK <= low or high < first
