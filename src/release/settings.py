"""How this host deploys, read from environment variables; docs/deploy.md lists them all.

The defaults need nothing set up: Docker on this machine, the proxy on port 8080, state under the account's own folder.
"""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.core.command import UserError
from src.system.variables import filled, number, word

STRATEGIES = ("bluegreen", "canary", "shadow")
ENGINES = ("docker", "podman")
ENVIRONMENTS = ("production", "staging")


@dataclass(frozen=True)
class Settings:
    """Everything a deployment may be told. Times are seconds, memory is bytes, shares are 0 to 1."""

    environment: str  # production, or staging: apart from it, with ports and a folder of its own, and no aliases moved
    name: str  # of the registered model, the image and the containers
    home: Path  # state, journal, lock, proxy, golden examples
    port: int  # of the proxy; the versions behind it listen on the ports after it
    address: str  # that the proxy listens on
    engine: str | None  # None: whatever there is
    strategy: str
    ready: float  # how long a new version may take until /readyz
    watch: float  # how long it is watched after the switch
    latency_ms: float  # p95 of one image, at most
    tolerance: float  # largest difference of a probability from the reviewed one
    memory: int  # of one container, at most
    cpus: float | None  # of one container; None: no limit
    drain: float  # how long requests in flight may take when a version is stopped
    canary_share: float
    canary_requests: int  # of the new version, before it is judged
    canary_seconds: float  # how long they may take to come in

    @property
    def ports(self) -> range:
        """Return the loopback ports for the versions behind the proxy."""
        return range(self.port + 1, self.port + 20)

    @property
    def url(self) -> str:
        """Return the proxy's address, from this machine."""
        return f"http://127.0.0.1:{self.port}"


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables.

    Raises:
        UserError: one of them is no number, or none of the words it may be.
    """
    given = filled(environment)
    stage = word(given, "DEPLOY_ENVIRONMENT", ENVIRONMENTS) or "production"
    name = given.get("MODEL_NAME", "image-classifier")
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9._-]{0,60}[a-z0-9])?", name):
        raise UserError(f"MODEL_NAME is {name!r}: use small letters, digits, dots and hyphens, as an image name has them")
    staging = stage == "staging"
    return Settings(
        environment=stage,
        name=name,
        home=_home(given, name) / ("staging" if staging else "production"),
        port=int(number(given, "DEPLOY_PORT", 8080, 1, 65500)) + (20 if staging else 0),
        address=given.get("DEPLOY_ADDRESS", "127.0.0.1"),
        engine=word(given, "DEPLOY_ENGINE", ENGINES),
        strategy=word(given, "DEPLOY_STRATEGY", STRATEGIES) or "bluegreen",
        ready=number(given, "DEPLOY_READY_SECONDS", 45, 1, 3600),
        watch=number(given, "DEPLOY_WATCH_SECONDS", 20, 0, 86400),
        latency_ms=number(given, "DEPLOY_LATENCY_MS", 250, 0.001, 1e6),
        tolerance=number(given, "DEPLOY_TOLERANCE", 0.001, 0, 1),
        memory=int(number(given, "DEPLOY_MEMORY_MB", 768, 64, 1e6)) * 2**20,
        cpus=number(given, "DEPLOY_CPUS", 0, 0, 1024) or None,
        drain=number(given, "DEPLOY_DRAIN_SECONDS", 30, 0, 3600),
        canary_share=number(given, "CANARY_SHARE", 0.1, 0.001, 0.9),
        canary_requests=int(number(given, "CANARY_REQUESTS", 200, 1, 1e9)),
        canary_seconds=number(given, "CANARY_SECONDS", 600, 1, 86400),
    )


def _home(given: Mapping[str, str], name: str) -> Path:
    """Return where this host keeps what it deployed.

    The account's folder is asked of the system, not of HOME: a runner may set HOME anew for each job, and what runs in
    production has to be found again by the next one.
    """
    if "DEPLOY_HOME" in given:
        return Path(given["DEPLOY_HOME"]).expanduser().absolute()
    try:
        account = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container's user without an entry
        account = Path.home()
    return Path(given.get("XDG_STATE_HOME", account / ".local" / "state")) / name
