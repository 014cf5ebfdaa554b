"""A real S3 server for tests, SeaweedFS, with one bucket and one account; and what a job needs to install DVC's plug-in."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from itertools import count
from pathlib import Path
from typing import Self

from conftest import ROOT, until
from ports import free_ports

BUCKET = "models"
ROLES = ("master", "volume", "filer", "s3")


class S3:
    """`with S3(folder) as s3:` serves the bucket `models` at `s3.endpoint`; `s3.config` is for DVC_REMOTE_CONFIG."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = [f"{role}.port{kind}" for role in ROLES for kind in ("", ".grpc")]
        self.ports = dict(zip(names, count(free_ports()), strict=False))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.secret = "hunter2"
        self.config = f"endpointurl = {self.endpoint}\naccess_key_id = ci\nsecret_access_key = {self.secret}\n"

    def __enter__(self) -> Self:
        credentials = [{"accessKey": "ci", "secretKey": self.secret}]
        account = {"name": "ci", "credentials": credentials, "actions": ["Admin"]}
        self.folder.mkdir()
        (self.folder / "accounts.json").write_text(json.dumps({"identities": [account]}))
        options = {"dir": self.folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "bucket": BUCKET, **self.ports}
        options |= {"s3.config": self.folder / "accounts.json", "s3.port.iceberg": 0, "s3.port.lance": 0}
        options |= {"s3.autoCreateBucket": "false", "admin.ui": "false", "webdav": "false", "master.telemetry": "false"}
        weed = shutil.which("weed")
        assert weed, "weed is missing: it is part of the environment (make setup-checks)"
        with (self.folder / "log").open("w") as log:
            command = [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        until(self._is_ready)
        return self

    def _is_ready(self) -> bool:
        said = (self.folder / "log").read_text(errors="replace")
        assert self.process.poll() is None, said[-3000:]
        return f"created bucket {BUCKET}" in said

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        for port in self.ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink()


def make_project(folder: Path) -> Path:
    """Make a folder with this project's source and a virtual environment with its packages, where a test may install more.

    Returns:
        The environment's Python.
    """
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for name in ("src", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    venv.create(folder / ".venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / ".venv")}))
    (packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / ".venv" / "installed").touch()  # the mark of `make setup`
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        (folder / ".venv/bin/uv").symlink_to(uv)
    return folder / ".venv/bin/python"


def downloads() -> dict[str, str]:
    """Return the variables by which installers in a job find what this machine has downloaded already."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {"PIP_CACHE_DIR": str(folder / "pip"), "UV_CACHE_DIR": str(folder / "uv"), **settings}
