"""What an image is made of, as a CycloneDX 1.6 bill of materials: Python and Debian packages, and the model."""

import uuid
from collections.abc import Mapping
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def write(inside: Mapping[str, Any], identity: Mapping[str, Any], key: str) -> str:
    """Return the bill of materials as JSON; the same image gives the same text but for the time in it.

    Args:
        inside: what src/release/inside.py printed; `packages`, `debian` and `system` are enough.
        identity: of the service: name, version, model_sha256; manifest, data and commit where they are known.
        key: of the image; it decides the serial number.
    """
    name, version = str(identity["name"]), str(identity["version"])
    facts = {field: identity[field] for field in ("commit", "data", "manifest") if identity[field]}
    model = Component(
        name=f"{name}.onnx",
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=identity["model_sha256"])],
        properties=[Property(name=field, value=value) for field, value in facts.items()],
    )
    image = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref="image")
    urls = [PackageURL("pypi", None, package["name"], package["version"]) for package in inside["packages"]]
    urls += [
        PackageURL("deb", inside["system"], package["name"], package["version"], {"arch": package["architecture"]})
        for package in inside["debian"]
    ]
    parts = [
        Component(name=url.name, version=url.version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url)) for url in urls
    ]
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, key), components=[model, *parts])
    bom.metadata.component = image
    bom.register_dependency(image, [model, *parts])
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"
