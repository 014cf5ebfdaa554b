"""What control groups of both versions grant and use: python -m pytest tests/core/test_cgroups.py"""

from pathlib import Path

import pytest

from src.core import cgroups
from src.core.command import cores


def kernel(root: Path, membership: str, files: dict[str, str], process: str = "self") -> Path:
    """Write what a kernel shows of a process and its control groups."""
    groups = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {f"proc/{process}/cgroup": f"9:pids:/x\n{membership}\n", **groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "membership", "share"),
    [
        ({"cpu.max": "50000 100000\n"}, "0::/", 0.5),
        ({"cpu.max": "max 100000\n"}, "0::/", None),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "25000 100000"}, "0::/a/b", 0.25),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "300000"}, "4:cpu,cpuacct:/docker/1", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", None),
        ({"cpu/d/cpu.cfs_quota_us": "10000", "cpu/d/cpu.cfs_period_us": "100000"}, "4:cpu:/d", 0.1),
        ({"cpu.max": "damaged"}, "0::/", None),
    ],
)
def test_the_processors_are_those_of_the_quota(tmp_path: Path, files: dict[str, str], membership: str, share: float) -> None:
    assert cgroups.processors(kernel(tmp_path, membership, files)) == (cores() if share is None else share)


@pytest.mark.parametrize(
    ("files", "membership", "limit", "left"),
    [
        ({"memory.max": "805306368\n"}, "0::/", 805306368, None),
        ({"a/memory.max": "max", "memory.max": "100", "memory.current": "300"}, "0::/a", 100, -200),
        ({"memory/d/memory.limit_in_bytes": "5000", "memory/d/memory.usage_in_bytes": "1000"}, "7:memory:/d", 5000, 4000),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, "7:memory:/", None, None),
        ({"memory.max": "50", "memory.current": "30", "memory.stat": "anon 1\ninactive_file 5"}, "0::/", 50, 25),
        ({"memory.high": "900", "memory.max": "5000", "memory.current": "100"}, "0::/", 5000, 800),
    ],
)
def test_the_memory_is_what_the_tightest_group_grants(
    tmp_path: Path, files: dict[str, str], membership: str, limit: int | None, left: int | None
) -> None:
    root = kernel(tmp_path, membership, files)
    assert (cgroups.memory_limit(root), cgroups.memory_left(root)) == (limit, left)


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert (cgroups.processors(tmp_path), cgroups.memory_limit(tmp_path)) == (cores(), None)


@pytest.mark.parametrize(
    ("line", "folder", "usage", "cache"),
    [
        ("4:cpu,memory:/docker/f00d", "memory/docker/f00d", "memory.usage_in_bytes", "total_inactive_file"),
        ("0::/system.slice/docker-f00d.scope", "system.slice/docker-f00d.scope", "memory.current", "inactive_file"),
    ],
)
def test_the_use_of_a_container_is_read_by_its_process(
    tmp_path: Path, line: str, folder: str, usage: str, cache: str
) -> None:
    root = kernel(tmp_path, line, {f"{folder}/{usage}": "5000", f"{folder}/memory.stat": f"anon 3\n{cache} 1200\n"}, "7")
    assert cgroups.memory_of(7, "f00d", root) == 3800
    assert cgroups.memory_of(7, "beef", root) is None
    assert cgroups.memory_of(8, "f00d", root) is None
