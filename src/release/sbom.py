"""What an image is made of, as a CycloneDX 1.6 bill of materials: Python and Debian packages, and the model.

The same image gives the same text but for the time in it.
"""

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def hashes(requirements: Path) -> dict[tuple[str, str], list[str]]:
    """Return the SHA-256 that a hashed lock allows, by name and version of the package."""
    found: dict[tuple[str, str], list[str]] = {}
    package = None
    for line in requirements.read_text().splitlines():
        pinned = _PINNED.match(line)
        if pinned:
            package = (_normal(pinned[1]), pinned[2])
            found[package] = []
        if package:
            found[package] += _HASH.findall(line)
    return found


def write(
    inside: Mapping[str, Any], locked: Mapping[tuple[str, str], list[str]], identity: Mapping[str, Any], key: str
) -> str:
    """Return the bill of materials as JSON.

    Args:
        inside: what src/release/inside.py printed; `packages` and `debian` are enough.
        locked: from `hashes`.
        identity: of the service: name, version, model_sha256, metrics; precision and served_sha256 of the file that answers.
        key: of the image; it decides the serial number.
    """
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, key))
    bom.metadata.timestamp = datetime.now(UTC)
    image = Component(name=identity["name"], version=str(identity["version"]), type=ComponentType.CONTAINER, bom_ref="image")
    bom.metadata.component = image
    parts = [
        _model(identity),
        *_python(inside["packages"], locked),
        *_debian(inside.get("debian", []), inside.get("system", {})),
    ]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(image, parts)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _model(identity: Mapping[str, Any]) -> Component:
    metrics = identity.get("metrics") or {}
    told = {f"metric:{name}": value for name, value in metrics.items()}
    names = ("manifest", "data", "commit", "precision", "served_sha256")
    told |= {name: identity[name] for name in names if identity.get(name)}
    return Component(
        name=f"{identity['name']}.onnx",
        version=str(identity["version"]),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        hashes=_sha256([identity["model_sha256"]]),
        properties=[Property(name=name, value=str(value)) for name, value in sorted(told.items())],
    )


def _python(packages: list[dict[str, str]], locked: Mapping[tuple[str, str], list[str]]) -> list[Component]:
    licences = LicenseFactory()
    return [
        Component(
            name=package["name"],
            version=package["version"],
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi/{package['name']}@{package['version']}",
            purl=PackageURL("pypi", None, _normal(package["name"]), package["version"]),
            hashes=_sha256(locked.get((_normal(package["name"]), package["version"]), [])),
            licenses=[licences.make_from_string(package["licence"])] if package.get("licence") else [],
        )
        for package in packages
    ]


def _debian(packages: list[dict[str, str]], system: Mapping[str, str]) -> list[Component]:
    vendor = system.get("name") or "debian"
    return [
        Component(
            name=package["name"],
            version=package["version"],
            type=ComponentType.LIBRARY,
            bom_ref=f"deb/{package['name']}:{package['architecture']}@{package['version']}",
            purl=PackageURL("deb", vendor, package["name"], package["version"], {"arch": package["architecture"]}),
        )
        for package in packages
    ]


def _sha256(values: list[str]) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=value) for value in values]


def _normal(name: str) -> str:
    """Return a package name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
