"""Ask GitHub for the configuration of one runner that does one job. Run as root on the host by ml-runner@.service.

Reads /etc/ml-runner/github.json (who may ask: a GitHub App's key, or a fine-grained token in a file) and writes the answer
to a file that only the container's user can read. The key never leaves the host. Standard library and openssl.

    python3 -I jit_config.py --level pull-request --labels self-hosted,gpu --out /run/ml-runner/x/jitconfig --uid 1001

The requests: docs.github.com/en/rest/actions/self-hosted-runners (just-in-time runners) and
docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app (the App's signed token, RS256, 10 minutes).
"""

# ruff: noqa: INP001  a script beside others, copied to the runner's machine: no package

import argparse
import base64
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

CONFIG = Path("/etc/ml-runner/github.json")
KEYS = {"api", "repository", "organization", "runner_group_id", "app_id", "installation_id", "private_key", "token_file"}
ADVICE = {
    401: "the key or token is not valid (any more): make a new one, docs/runner.md, step 5",
    403: "the App or token lacks the right: Administration (write) of the repository, or Self-hosted runners (write) of the "
    "organisation; or GitHub limits the requests for a while",
    404: "GitHub does not know this name, or the App is not installed there: correct github.json",
    422: "GitHub does not take the labels or the runner group: correct LABELS in the level's .env, or runner_group_id",
}


class FaultError(Exception):
    """What the owner of the machine can mend; the text says what and how."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key's token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def main() -> None:
    """Write the configuration, or exit 1 with one sentence."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--level", required=True, help="trust level, part of the runner's name")
    parser.add_argument("--labels", required=True, help="with commas between")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--uid", type=int, required=True, help="the container's user")
    arguments = parser.parse_args()
    try:
        config = read_config(arguments.config)
        name = f"{socket.gethostname()[:30]}-{arguments.level[:20]}-{secrets.token_hex(4)}"
        write(arguments.out, ask(config, token(config), name, arguments.labels.split(",")), arguments.uid)
    except FaultError as fault:
        sys.exit(f"jit-config: {fault}")
    except OSError as error:
        sys.exit(f"jit-config: {error.filename or 'a file'}: {error.strerror or error}; check its owner and mode")
    print(f"jit-config: {name} is registered for one job")


def read_config(path: Path) -> dict[str, Any]:
    """Read github.json and check what can be checked without asking GitHub."""
    try:
        config = json.loads(read_secret(path))
    except ValueError as error:
        raise FaultError(f"{path} is not valid JSON ({error}): start again from runner/etc/github.json") from None
    if not isinstance(config, dict) or set(config) - KEYS:
        unknown = sorted(set(config) - KEYS) if isinstance(config, dict) else "no object"
        raise FaultError(f"{path} has unknown keys ({unknown}): start again from runner/etc/github.json")
    place = config.get("repository") or config.get("organization") or ""
    pattern = r"[\w.-]+/[\w.-]+" if config.get("repository") else r"[\w.-]+"
    if bool(config.get("repository")) == bool(config.get("organization")) or not re.fullmatch(pattern, place):
        raise FaultError(f'{path} needs either "repository": "owner/name" or "organization": "name"')
    if not config.get("token_file") and not all(config.get(key) for key in ("app_id", "installation_id", "private_key")):
        raise FaultError(f"{path} needs app_id, installation_id and private_key, or a token_file: docs/runner.md, step 5")
    url = urllib.parse.urlsplit(config.get("api", ""))
    if url.scheme != "https" and url.hostname != "127.0.0.1":
        raise FaultError(f'{path} needs an "api" that begins with https://, such as https://api.github.com')
    return config


def read_secret(path: Path) -> str:
    """Read a file that no other user may read: it is, or leads to, the right to change the repository's settings."""
    if path.stat().st_mode & 0o077:
        raise FaultError(f"{path} can be read by other users: chown root: {path} && chmod 600 {path}")
    return path.read_text()


def token(config: dict[str, Any]) -> str:
    """Return the token to ask with: the one in the file, or one of the App's that can only do this and ends in an hour."""
    if config.get("token_file"):
        return read_secret(Path(config["token_file"])).strip()
    name = config.get("repository")
    body = {"repositories": [name.split("/")[1]], "permissions": {"administration": "write"}} if name else {}
    body = body or {"permissions": {"organization_self_hosted_runners": "write"}}
    path = f"/app/installations/{config['installation_id']}/access_tokens"
    return str(post(config, path, signed(config), body, "token"))


def signed(config: dict[str, Any]) -> str:
    """Sign the App's claim (JSON Web Token, RS256) with openssl, since the standard library has no RSA."""
    key = Path(config["private_key"])
    read_secret(key)
    now = int(time.time())
    claim = {"iat": now - 60, "exp": now + 540, "iss": str(config["app_id"])}
    text = b".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claim))
    command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
    try:
        made = subprocess.run(command, input=text, capture_output=True, check=False)
    except FileNotFoundError:
        raise FaultError("openssl is not installed, and the App's key needs it: apt install openssl") from None
    if made.returncode:
        raise FaultError(f"{key} is not a private key that openssl can use: download a new one from the App's page")
    return (text + b"." + encoded(made.stdout)).decode()


def encoded(content: bytes) -> bytes:
    """Encode as base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def ask(config: dict[str, Any], bearer: str, name: str, labels: list[str]) -> str:
    """Return the encoded configuration of a new runner: of the repository, or of the organisation's runner group."""
    place = f"repos/{config['repository']}" if config.get("repository") else f"orgs/{config['organization']}"
    body = {"name": name, "runner_group_id": config.get("runner_group_id", 1), "labels": labels, "work_folder": "_work"}
    return str(post(config, f"/{place}/actions/runners/generate-jitconfig", bearer, body, "encoded_jit_config"))


def post(config: dict[str, Any], path: str, bearer: str, body: dict[str, Any], field: str) -> Any:
    """Send a request and return one field of the answer."""
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {bearer}",
        "Content-Type": "application/json",
        "User-Agent": "ml-runner",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    url = config["api"].rstrip("/") + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")  # noqa: S310  checked above
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=30) as answer:
            return json.loads(answer.read(2**20))[field]
    except urllib.error.HTTPError as error:
        advice = ADVICE.get(error.code, "the next try is in 15 seconds; githubstatus.com says whether GitHub has a fault")
        raise FaultError(f"POST {path} was answered with {error.code}: {advice}") from None
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise FaultError(f"POST {url} got no usable answer ({reason}): check network, DNS, proxy and clock") from None


def write(path: Path, content: str, uid: int) -> None:
    """Write the file anew for `uid` alone, who may also remove it.

    The folder was the last container's to write, so nothing in it is followed or opened: a link there could name any file.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w") as file:
        os.fchown(descriptor, uid, uid)
        file.write(content)
    os.chown(path.parent, uid, uid)


if __name__ == "__main__":
    main()
