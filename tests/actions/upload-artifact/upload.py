"""What actions/upload-artifact does, with the stand-in for GitHub as the store; run by action.yml beside it."""

import io
import os
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import quote


def main() -> None:
    wanted = [line.strip() for line in os.environ["PATHS"].splitlines() if line.strip()]
    files = [file for pattern in wanted for file in found(pattern)]
    if not files:
        said = f"No files were found with the provided path: {', '.join(wanted)}. No artifacts will be uploaded."
        print(said)
        sys.exit(1 if os.environ["IF_NONE"] == "error" else 0)
    root = top(wanted, files)
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(root).as_posix())
    send(os.environ["NAME"], blob.getvalue())
    print(f"artifact {os.environ['NAME']}: {len(files)} files, {len(blob.getvalue())} bytes")


def found(pattern: str) -> list[Path]:
    """Return the files that a line of `path` names; a folder stands for all below it."""
    starts = sorted(Path().glob(pattern)) if set(pattern) & set("*?[") else [Path(pattern)]
    files = [file for start in starts for file in ([start] if start.is_file() else sorted(start.rglob("*")))]
    hidden = os.environ["HIDDEN"] == "true"
    return [file for file in files if file.is_file() and (hidden or not any(part.startswith(".") for part in file.parts))]


def top(wanted: list[str], files: list[Path]) -> Path:
    """Return the folder that names are relative to: what all lines share, or the folder of a single one."""
    starts = [Path(line) if Path(line).is_dir() else Path(line).parent for line in wanted]
    if len(wanted) == 1 and set(wanted[0]) & set("*?["):
        starts = [file.parent for file in files]
    return Path(os.path.commonpath([start.absolute() for start in starts])).relative_to(Path().absolute())


def send(name: str, blob: bytes) -> None:
    overwrite = "?overwrite" if os.environ["OVERWRITE"] == "true" else ""
    address = f"{os.environ['GITHUB_SERVER_URL']}/_runtime/{os.environ['GITHUB_RUN_ID']}/{quote(name, safe='')}{overwrite}"
    request = urllib.request.Request(address, blob, {"Authorization": f"Bearer {os.environ['STANDIN_RUNTIME_TOKEN']}"})
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        sys.exit(f"Failed to CreateArtifact: {error.code} {error.read().decode()}")


if __name__ == "__main__":
    main()
