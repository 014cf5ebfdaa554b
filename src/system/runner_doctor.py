"""Check a GPU machine that is to train pull requests, and say what is missing: `make runner-doctor`, on that machine.

Reads what runner/install.sh put in place (/opt/ml-runner, /etc/ml-runner, /etc/systemd/system, /srv/ml-runner) and calls
nvidia-smi, docker, systemctl and iptables. Changes nothing. Standard library only.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.core.command import UserError, table

REPOSITORY = Path(__file__).parents[2]
LEVELS = ("pull-request", "deploy")
# PyTorch's wheels are built for one CUDA, and it needs a driver: (CUDA, lowest driver), from the wheel's metadata
# (Requires-Dist: cuda-toolkit) and docs.nvidia.com/deploy/cuda-compatibility.
DRIVER_FOR_TORCH = {"2.13": ("13.0", 580)}
RUNNER_DAYS = 30  # GitHub gives no jobs to a runner whose successor has been out for longer than this


@dataclass(frozen=True)
class Line:
    """One finding: the check's name, ok, warn or fail, what was seen, and what to do next."""

    name: str
    level: str
    seen: str
    todo: str = ""


def main() -> None:
    """Print one line a check.

    Raises:
        UserError: at least one check fails.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path("/"), help="look below this folder instead of /")
    lines = list(examine(parser.parse_args().root, datetime.now(UTC)))
    print(table(["", "check", "seen"], [[line.level, line.name, line.seen] for line in lines]))
    print("".join(f"\n{line.level} {line.name}: {line.todo}" for line in lines if line.todo))
    failed = [line.name for line in lines if line.level == "fail"]
    if failed:
        raise UserError(f"{len(failed)} of {len(lines)} checks fail ({', '.join(failed)}); mend them in this order")


def examine(root: Path, now: datetime) -> Iterator[Line]:
    """Yield every finding, from the hardware up to the settings."""
    yield driver()
    yield from docker(now)
    yield from installed(root)
    yield key(root)
    yield from trust_level(root, "pull-request")
    if (root / "etc/systemd/system/multi-user.target.wants/ml-runner@deploy.service").is_symlink():
        yield from trust_level(root, "deploy")
    yield labels_apart(root)
    code, text = call("iptables", "--wait", "--list-rules", "ML-RUNNER")
    if code == 0 and "169.254.0.0/16" in text:
        yield Line("network", "ok", "cloud metadata is out of reach")
    else:
        todo = "run this with sudo, then: systemctl enable --now ml-runner-network"
        yield Line("network", "fail", "jobs can reach the cloud's metadata, or the firewall was not read", todo)


def call(*command: str) -> tuple[int | None, str]:
    """Run a command that only looks; return exit code (None: there is no such command, or it does not end) and output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return done.returncode, (done.stdout or done.stderr).strip()


def driver() -> Line:
    """Compare the NVIDIA driver with what the pinned PyTorch needs."""
    pin = re.search(r"^torch==(\d+\.\d+)", (REPOSITORY / "requirements/torch.txt").read_text(), re.MULTILINE)
    cuda, lowest = DRIVER_FOR_TORCH[pin[1] if pin else ""]
    _, text = call("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    found = re.match(r"(.+), (\d+)\.[\d.]+$", text, re.MULTILINE)
    if not found:
        todo = (
            "install the driver (docs/runner.md, step 1), and reboot after an update. Without a GPU, leave TRAIN_RUNNER "
            "unset: GitHub's CPUs then train"
        )
        return Line("GPU", "fail", f"nvidia-smi says: {(text.splitlines() or ['nothing: no NVIDIA driver'])[0][:120]}", todo)
    if int(found[2]) < lowest:
        return Line("GPU", "fail", found[0], f"PyTorch is built for CUDA {cuda}, which needs driver {lowest} or newer")
    return Line("GPU", "ok", found[0])


def docker(now: datetime) -> Iterator[Line]:
    """Check Docker, the age of the runner in the image, and that a container as the unit starts it sees the GPU."""
    code, text = call("docker", "info", "--format", "{{json .Runtimes}} {{json .CDISpecDirs}}")
    if code != 0 or "nvidia" not in text:
        seen = "Docker does not know the NVIDIA container toolkit" if code == 0 else "docker is not installed or not running"
        todo = "docs/runner.md, step 2: nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
        yield Line("containers", "fail", seen, todo)
        return
    yield Line("containers", "ok", "Docker with the NVIDIA container toolkit")
    wanted = '{{.Created}} {{index .Config.Labels "ml-runner.version"}}'
    code, text = call("docker", "image", "inspect", "--format", wanted, "ml-runner:current")
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\S* ([\d.]+)", text)
    if code != 0 or found is None:
        todo = "build it: runner/build.sh (docs/runner.md, step 3)"
        yield Line("image", "fail", "there is no image ml-runner:current", todo)
        return
    days = (now - datetime.fromisoformat(found[1] + "+00:00")).days
    level = "fail" if days >= RUNNER_DAYS else "warn" if days >= RUNNER_DAYS - 7 else "ok"
    renew = "put the current release into runner/pins.env and run runner/build.sh; GitHub gives an old runner no jobs"
    yield Line("image", level, f"runner {found[2]}, {days} days old", "" if level == "ok" else renew)
    fenced = ("--rm", "--gpus=all", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    code, text = call("docker", "run", *fenced, "--entrypoint=nvidia-smi", "ml-runner:current", "--list-gpus")
    if code == 0 and text.startswith("GPU 0"):
        yield Line("GPU in a job", "ok", f"{len(text.splitlines())} reached")
    else:
        todo = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker; after a driver update, reboot"
        yield Line("GPU in a job", "fail", f"a container sees none: {(text.splitlines() or ['nothing'])[-1][:120]}", todo)


def installed(root: Path) -> Iterator[Line]:
    """Check that what root runs and what decides about jobs is root's and this clone's, and keeps jobs in a container."""
    hooks = [root / "opt/ml-runner/hooks" / name for name in ("job-started.sh", "job_started.py", "job-completed.sh")]
    scripts = [root / "opt/ml-runner" / name for name in ("jit_config.py", "network.sh")]
    units = [root / "etc/systemd/system" / name for name in ("ml-runner@.service", "ml-runner-network.service")]
    for name, paths in (("hooks", hooks), ("scripts", scripts), ("units", units)):
        yield guarded(root, name, paths)
    if others := sorted((root / "etc/systemd/system").glob("actions.runner.*.service")):
        todo = "remove it (./svc.sh uninstall, ./config.sh remove): it takes the same jobs, without container or hook"
        yield Line("other runners", "fail", f"{others[0]} belongs to a runner outside a container", todo)


def guarded(root: Path, name: str, paths: list[Path]) -> Line:
    """Check files and the folders above them: who can write a folder can replace what is in it."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        return Line(name, "fail", f"{missing[0]} is missing", "install it: sudo runner/install.sh")
    chain = {parent for path in paths for parent in (path, *path.parents) if parent.is_relative_to(root)}
    if weak := sorted(path for path in chain if not is_safe(path, root)):
        todo = f"a job could decide what runs as root, or that it is allowed: chown root: {weak[0]} && chmod go-w {weak[0]}"
        return Line(name, "fail", f"{weak[0]} can be changed by other users than root", todo)
    for path in paths:
        source = REPOSITORY / "runner" / ("hooks" if path.parent.name == "hooks" else "") / path.name
        if path.read_bytes() != source.read_bytes():
            todo = "it may open the host to jobs: install this clone's by sudo runner/install.sh, also after git pull"
            return Line(name, "fail", f"{path} is not the one in this clone", todo)
    return Line(name, "ok", f"{len(paths)} files, root's alone")


def is_safe(path: Path, root: Path, mask: int = 0o022) -> bool:
    """Return True where only the owner of the root folder, on a real machine root, can change a path."""
    state = path.lstat()
    return not path.is_symlink() and state.st_uid == root.stat().st_uid and not state.st_mode & mask


def key(root: Path) -> Line:
    """Check that what may register runners is filled in and root's secret."""
    path = root / "etc/ml-runner/github.json"
    try:
        config = json.loads(path.read_text())
        names = [config[name] for name in ("private_key", "token_file") if config.get(name)]
    except (OSError, ValueError, AttributeError):
        return Line("key", "fail", f"{path} cannot be read, or is not JSON", "run this with sudo; docs/runner.md, step 5")
    secrets = [path, *(root / str(name).lstrip("/") for name in names)]
    if config.get("repository") == "owner/name" or not all(secret.is_file() for secret in secrets):
        return Line("key", "fail", f"{path} is not filled in, or its key file is missing", "docs/runner.md, step 5")
    if loose := [secret for secret in secrets if not is_safe(secret, root, 0o077)]:
        todo = f"it leads to the repository's settings: chown root: {loose[0]} && chmod 600 {loose[0]}"
        return Line("key", "fail", f"{loose[0]} can be read by others than root", todo)
    return Line("key", "ok", "root's alone")


def read_settings(path: Path) -> dict[str, str]:
    """Read NAME=value lines as systemd does."""
    lines = path.read_text() if path.is_file() else ""
    return dict(re.findall(r"^([A-Z_]+)=(\S*)$", lines, re.MULTILINE))


def trust_level(root: Path, level: str) -> Iterator[Line]:
    """Check one trust level: who may use it, what it may write, its cache, its service."""
    yield allowed(root, level)
    if level == "deploy" and read_settings(root / "etc/ml-runner/deploy.env").get("REMOTE_MODE") != "ro":
        todo = "set REMOTE_MODE=ro: a deploy job reads what was reviewed, and must not change it"
        yield Line("deploy: settings", "fail", "REMOTE_MODE is not ro", todo)
    yield cache(root, level)
    active = (call("systemctl", "is-active", f"ml-runner@{level}.service")[1].splitlines() or ["unknown"])[0]
    todo = f"start it: systemctl enable --now ml-runner@{level}; why it stopped: journalctl --unit ml-runner@{level}"
    yield Line(f"{level}: service", *(("ok", active) if active == "active" else ("fail", active, todo)))


def allowed(root: Path, level: str) -> Line:
    """Check the list by which the hook lets jobs in."""
    name, path = f"{level}: allowed", root / f"etc/ml-runner/{level}.allowed.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        numbers, events = dict(config["repositories"]), set(config["events"])
    except (OSError, ValueError, KeyError, TypeError):
        todo = f"start again from runner/etc/{level}.allowed.json"
        return Line(name, "fail", f"{path} is missing or not of its form", todo)
    if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers.values()):
        todo = "name the repository with its number: gh api repos/OWNER/NAME --jq .id"
        return Line(name, "fail", f"{path} is not filled in", todo)
    if not is_safe(path, root):
        todo = f"the hook refuses every job: chown root: {path} && chmod 644 {path}"
        return Line(name, "fail", f"{path} is not root's alone", todo)
    if level == "deploy" and (not config.get("refs") or "pull_request" in events):
        todo = "list refs (refs/heads/main) and no pull_request: labels are in the workflow, which a pull request can edit"
        return Line(name, "fail", f"{path} lets pull requests into the deploy level", todo)
    return Line(name, "ok", ", ".join(sorted(numbers)))


def cache(root: Path, level: str) -> Line:
    """Check that a level's DVC cache is its own."""
    name, path = f"{level}: cache", root / f"srv/ml-runner/{level}/dvc-cache"
    if not path.is_dir() or path.is_symlink() or path.resolve() != root.resolve() / path.relative_to(root):
        todo = "give each level a folder of its own (sudo runner/install.sh): who writes a cache chooses the model"
        return Line(name, "fail", f"{path} is missing or leads elsewhere", todo)
    if path.stat().st_mode & 0o077:
        return Line(name, "fail", f"{path} is open to other users", f"chmod 700 {path}")
    return Line(name, "ok", "its own")


def labels_apart(root: Path) -> Line:
    """Check that a job of a pull request cannot land on the deploy level by its labels."""
    sets = [set(read_settings(root / f"etc/ml-runner/{level}.env").get("LABELS", "").split(",")) for level in LEVELS]
    own = sets[0] - {"self-hosted", "linux", "x64", "arm64", ""}
    if shared := ", ".join(sorted(own & sets[1])):
        todo = "take it from LABELS in deploy.env: GitHub gives a job to any runner that has its labels"
        return Line("labels", "fail", f"both levels have {shared}", todo)
    return Line("labels", "ok", f"TRAIN_RUNNER is to be {json.dumps(['self-hosted', *sorted(own)], separators=(',', ':'))}")
