"""The OpenAPI document of the service, and the page that shows it with BentoML's copy of Swagger UI.

Reads openapi.json beside this file, which says all that can be asked; here it is made true of some settings and a model.
"""

import json
from pathlib import Path
from typing import Any

from src.serving.identity import Identity
from src.serving.settings import Settings

# BentoML's own page loads a tracker from another host; this one loads nothing from outside, and forbids it
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>Image classifier</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="icon" type="image/png" href="./static_content/favicon-light-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
"""
_POLICY = b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"
PAGE_HEADERS = ((b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer"))

_TEXT = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")


def document(settings: Settings, identity: Identity | None) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document, true for these settings and this model."""
    told: dict[str, Any] = json.loads(_TEXT)
    limits = f"Up to {settings.max_body / 1e6:g} MB, {settings.max_pixels / 1e6:g} megapixels an image."
    told["info"]["description"] += f" {limits}"
    posts = {path: item["post"] for path, item in told["paths"].items() if "post" in item}
    form = posts["/predict_batch"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"]["images"]["maxItems"] = settings.max_batch
    if identity:
        classes = identity.card.classes
        told["info"]["version"] = identity.version
        for path in ("/predict", "/predict_batch"):
            posts[path]["parameters"][0]["schema"] |= {"maximum": len(classes), "default": min(5, len(classes))}
        posts["/explain"]["parameters"][0]["schema"]["enum"] = classes
        pixels = posts["/predict_batch"]["requestBody"]["content"]["application/octet-stream"]["schema"]
        shape = " x ".join(map(str, identity.card.spec.shape))
        pixels["description"] = pixels["description"].replace("H x W x C", shape)
    if not settings.demo:
        del told["paths"]["/explain"], told["paths"]["/demo"]
    if settings.keys is None:
        del told["components"]["securitySchemes"], told["components"]["responses"]["401"]
        for operation in (operation for item in told["paths"].values() for operation in item.values()):
            operation.pop("security", None)
            operation["responses"].pop("401", None)
    return told
