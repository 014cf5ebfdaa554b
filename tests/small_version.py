"""One version as a process, by the contract of the service, with faults by name: python tests/small_version.py FOLDER PORT

FOLDER holds release.json, golden/, `version`, and `faults`, one a line, read again all the time: what it says can change.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a version inherits nothing from who starts it

from small_service import Service

from src.release import reviewed

HOG: list[bytes] = []


def obey(service: Service, folder: Path) -> None:
    """Take up the faults of the file, and those that are of a process: dies, leaks."""
    while True:
        service.faults = set((folder / "faults").read_text().split("\n"))
        if "dies" in service.faults:
            os._exit(3)
        if "leaks" in service.faults:
            HOG.append(os.urandom(2**20) * 30)
        time.sleep(0.02)


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    faults = (folder / "faults").read_text().split("\n")
    if "cannot start" in faults:
        sys.exit("no model here")
    if "starts slowly" in faults:
        time.sleep(60)
    examples = json.loads((folder / "golden" / "golden.json").read_text())["examples"]
    answers = {(folder / "golden" / entry["file"]).read_bytes(): entry["probabilities"] for entry in examples}
    version, release = (folder / "version").read_text(), reviewed.load(folder)
    service = Service(answers, *faults, port=port, version=version, release=release)
    threading.Thread(target=obey, args=(service, folder), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
