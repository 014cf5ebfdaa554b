"""Ports for tests: nobody else is given them, neither another test nor an outgoing connection."""

import subprocess
import sys
from pathlib import Path

import pytest
from ports import BLOCK, free_port, free_ports

CHILD = "import ports, sys; print(*(ports.free_port() for _ in range(3)), ports.free_ports(), flush=True); sys.stdin.read()"


def test_no_two_processes_are_given_the_same_ports() -> None:
    command = [sys.executable, "-c", CHILD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": Path(__file__).parent}
    given = [[free_port(), free_port(), free_port(), free_ports()]]
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for child in (one, other):
            assert child.stdout is not None
            given.append([int(port) for port in child.stdout.readline().split()])
        for child in (one, other):
            child.communicate(b"")
    ports = [port for *singles, first in given for port in (*singles, *range(first, first + BLOCK))]
    assert len(set(ports)) == len(ports) == 3 * (3 + BLOCK)


def test_no_outgoing_connection_is_given_one() -> None:
    own = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not own.exists():
        pytest.skip("this system is not Linux")
    low, high = map(int, own.read_text().split())
    first = free_ports()
    assert first + BLOCK <= low or high < first
