"""Tell of packages with known vulnerabilities: `python3 -m src audit DIR`, the last job of audit.yml.

DIR holds what pip-audit wrote of each lock, as NAME.txt.json beside requirements/NAME.txt. pip-audit may leave a package
out and still end well, so every pin must be in what it wrote. One issue stands open while something is found.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from src.core.command import UserError
from src.github import stopped
from src.github.api import GitHub
from src.system.escaping import prose

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)([^\\\n]*)", re.MULTILINE)


def found(requirements: Path, results: Path) -> list[str]:
    """Return one line for each vulnerable package of the locks.

    Raises:
        UserError: a lock, or a package of one, was not looked at.
    """
    lines: set[str] = set()
    for lock in sorted(requirements.glob("*.txt")):
        lines.update(_of_lock(lock, results / f"{lock.name}.json"))
    return sorted(lines)


def _of_lock(lock: Path, result: Path) -> Iterator[str]:
    try:
        packages = json.loads(result.read_text())["dependencies"]
        seen = {(_normal(one["name"]), one["version"]) for one in packages if "vulns" in one}
        missed = [f"{name}=={version}" for name, version, rest in _PIN.findall(lock.read_text()) if ";" not in rest
                  and (_normal(name), version) not in seen]  # fmt: skip
        if missed:
            raise UserError(f"pip-audit left out {len(missed)} packages of {lock}, such as {missed[0]}: see its log")
        for one in packages:
            for vulnerability in one.get("vulns", []):
                fixed = " or ".join(vulnerability["fix_versions"]) or "no version yet"
                yield f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {fixed}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"pip-audit left no result of {lock} ({type(error).__name__} in {result}): see its log, run it again"
        ) from None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tell(github: GitHub, lines: list[str]) -> None:
    """Open, update or close the issue.

    Raises:
        ApiError: GitHub refuses, or does not answer.
    """
    if not lines:
        stopped.close(github, "audit", "No package of the locks has a known vulnerability any more.")
        return
    listed = "\n".join(f"- {prose(line)}" for line in lines)
    then = (
        "Raise each in `requirements/*.in`, or merge the pull request of Dependabot that does; a package of a package moves "
        "with `uv pip compile --upgrade-package` or by a line of its own. Then run `make lock`."
    )
    plural = "package has a known vulnerability" if len(lines) == 1 else "packages have known vulnerabilities"
    stopped.tell(github, "audit", f"{len(lines)} {plural}", f"{listed}\n\n**Next:** {then}")


def main() -> None:
    """Parse the command line, read, tell."""
    parser = argparse.ArgumentParser(description="Tell of packages with known vulnerabilities.")
    parser.add_argument("results", type=Path, help="the folder that pip-audit wrote into")
    lines = found(Path("requirements"), parser.parse_args().results)
    print("\n".join(lines) or "no package of the locks has a known vulnerability")
    tell(GitHub.from_environment(), lines)
