"""What actions/attest does but for the signature: it hands GitHub a statement about a digest; action.yml runs it."""

import json
import os
import re
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    name, digest, sbom = os.environ["NAME"], os.environ["DIGEST"], os.environ["SBOM"]
    if not name or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        sys.exit(f"Error: subject-digest must be in the format sha256:<hex>, and subject-name given ({name!r}, {digest!r})")
    content = json.loads(Path(sbom).read_text()) if sbom else None
    if sbom and "bomFormat" not in content and "spdxVersion" not in content:
        sys.exit("Error: Unsupported SBOM format")
    kind = "https://cyclonedx.org/bom" if sbom else "https://slsa.dev/provenance/v1"
    bundle = {"name": name, "digest": digest, "predicateType": kind, "workflow": os.environ.get("GITHUB_REF", "")}
    number = send({"bundle": bundle})
    with Path(os.environ["GITHUB_OUTPUT"]).open("a") as file:
        file.write(f"attestation-id={number}\n")
    print(f"attestation {number} of {name}@{digest}: {kind}")


def send(body: object) -> int:
    url = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/attestations"
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        return int(json.loads(answer.read())["id"])


if __name__ == "__main__":
    main()
