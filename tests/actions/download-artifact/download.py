"""What actions/download-artifact does for an artifact of the same run; run by action.yml beside it."""

import io
import os
import sys
import urllib.error
import urllib.request
import zipfile
from urllib.parse import quote


def main() -> None:
    name = os.environ["NAME"]
    address = f"{os.environ['GITHUB_SERVER_URL']}/_runtime/{os.environ['GITHUB_RUN_ID']}/{quote(name, safe='')}"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {os.environ['STANDIN_RUNTIME_TOKEN']}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            blob = answer.read()
    except urllib.error.HTTPError:
        sys.exit(f"Unable to download artifact(s): Artifact not found for name: {name}")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        archive.extractall(os.environ["FOLDER"])
    print(f"artifact {name}: {len(blob)} bytes unpacked into {os.environ['FOLDER']}")


if __name__ == "__main__":
    main()
