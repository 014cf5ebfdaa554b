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
    """Return the bill as JSON; one image, by its `key`, gives one text but for the time in it.

    Args:
        inside: what src/release/inside.py printed; `packages`, `debian` and `system` are enough.
        identity: of the service: name, version, model_sha256; manifest, data and commit where they are known.
        key: of the image.
    """
    name, version, system = str(identity["name"]), str(identity["version"]), inside["system"]
    digests = [HashType(alg=HashAlgorithm.SHA_256, content=identity["model_sha256"])]
    facts = [Property(name=field, value=identity[field]) for field in ("commit", "data", "manifest") if identity[field]]
    kind = ComponentType.MACHINE_LEARNING_MODEL
    model = Component(name=f"{name}.onnx", version=version, type=kind, bom_ref="model", hashes=digests, properties=facts)
    image = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref="image")
    urls = [PackageURL("pypi", None, name, version) for name, version in inside["packages"]]
    urls += [PackageURL("deb", system, name, version, {"arch": arch}) for name, version, arch in inside["debian"]]
    parts = [model, *(Component(name=url.name, version=url.version, purl=url, bom_ref=str(url)) for url in urls)]
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, key), components=parts)
    bom.metadata.component = image
    bom.register_dependency(image, parts)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"
