"""Verify where an image comes from, before it runs: built by deploy.yml of this repository's main, on GitHub's own machine.

    python -m src attested out/release

Reads image.json and ATTESTED, whether the job before made an attestation. Runs `gh attestation verify`, which asks GitHub
and Sigstore. Where no attestation was made (a private repository without a plan for it) it says so and lets the
image pass, by its digest.
"""

import argparse
import base64
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import read_json, write_json
from src.github.api import login, program

WORKFLOW = ".github/workflows/deploy.yml"
_SECONDS = 300


def verify(image: Mapping[str, Any], made: str) -> str:
    """Return in words what was verified.

    Args:
        image: the content of image.json.
        made: `made` when there is an attestation, else how the job that attests ended.

    Raises:
        UserError: the image has no attestation of deploy.yml on the default branch, or this cannot be found out.
    """
    if made in ("skipped", "success"):  # success without one: the action stored nothing
        return "no attestation was made, since GitHub does not offer it here (variable ATTEST): the digest alone is checked"
    found = re.fullmatch(r"([^\s@]+)@(sha256:[0-9a-f]{64})", str(image["image"]))
    if made != "made" or not found:
        raise UserError(f"{image['image']!r} cannot be verified (attest: {made or 'unknown'}): run the workflow anew")
    with tempfile.TemporaryDirectory(prefix="registry-") as folder:
        # the login for the image's registry, in a folder that is removed afterwards
        user, token = os.environ.get("REGISTRY_USER", ""), os.environ.get("REGISTRY_TOKEN", "")
        secret = base64.b64encode(f"{user}:{token}".encode()).decode()
        auths = {found[1].partition("/")[0]: {"auth": secret}} if user and token else {}
        (Path(folder) / "config.json").touch(mode=0o600)
        (Path(folder) / "config.json").write_text(json.dumps({"auths": auths}))
        _run(found[0], Path(folder))
    return f"{found[0]} was built by {WORKFLOW} on GitHub's machines, from {os.environ.get('GITHUB_REF', '')}"


def command(image: str) -> list[str]:
    """Return the command that verifies an image named by its digest."""
    repository = os.environ.get("GITHUB_REPOSITORY", "")
    return [
        *(program(), "attestation", "verify", f"oci://{image}"),
        *("--repo", repository, "--signer-workflow", f"{repository}/{WORKFLOW}"),
        *("--source-ref", os.environ.get("GITHUB_REF", ""), "--deny-self-hosted-runners"),
    ]


def _run(image: str, folder: Path) -> None:
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    environment = {**login(server, os.environ.get("GITHUB_TOKEN", "")), "DOCKER_CONFIG": str(folder)}
    try:
        done = subprocess.run(command(image), env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{image}: its attestation was not verified within {_SECONDS} s: run the job again") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:] or "no reason given"
        raise UserError(
            f"{image} has no attestation that holds ({said}): it is not started. If GitHub or Sigstore did not answer, run "
            "the job again; else find out who pushed this image"
        )


def main() -> None:
    """Parse the command line, verify, and leave the outcome where deploy would."""
    parser = argparse.ArgumentParser(description="Verify the attestation of an image before it runs.")
    parser.add_argument("folder", type=Path, help="holds image.json, such as out/release")
    folder = parser.parse_args().folder
    try:
        print(verify(read_json(folder / "image.json", "evaluate", ["image"]), os.environ.get("ATTESTED", "")))
    except UserError as error:
        sentence, _, then = str(error).rpartition(": ")
        told = {"step": "deploy", "ok": False, "kind": "tampered", "sentence": sentence, "next": then, "record": None}
        write_json(folder.with_name(f"{folder.name}.outcome.json"), told)
        raise
