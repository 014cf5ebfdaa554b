"""The OpenAPI document of the service, and the page that shows it with BentoML's copy of Swagger UI."""

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

_NULLABLE = {"type": ["string", "null"]}
_MODEL = {"model_version": {"type": "string"}, "manifest": _NULLABLE}
_PREDICTION = {
    "label": {"type": "string", "description": "the most probable label"},
    "probabilities": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Probability"}},
}
_PROBLEMS = {
    "400": "The request or an image in it cannot be used; `indices` names the images of a batch, counted from 0",
    "408": "The body did not come in time",
    "413": "The body or the image is too large",
    "415": "The media type is not taken",
    "422": "A text is where a file should be",
    "429": "All places are taken: try again after Retry-After seconds",
    "500": "A fault of the service",
    "503": "The model is not loaded yet",
    "504": "Not computed in time",
}


def document(settings: Settings, identity: Identity | None) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document, true for these settings and this model."""
    file = {"type": "string", "format": "binary"}
    one = {"multipart/form-data": {"schema": _object({"image": file})}, "image/*": {"schema": file}}
    several = {"type": "array", "items": file, "minItems": 1, "maxItems": settings.max_batch}
    many = {"multipart/form-data": {"schema": _object({"images": several})}}
    limits = f"up to {settings.max_body / 1e6:g} MB, {settings.max_pixels / 1e6:g} megapixels an image"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image classifier",
            "description": f"PNG, JPEG, WebP, BMP, TIFF or GIF; {limits}. Errors are RFC 9457 problem details.",
            "version": identity.version if identity else "not loaded",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/predict": {"post": _post("Classify one image", "Prediction", one, identity)},
            "/predict_batch": {"post": _post("Classify several images", "Predictions", many, identity)},
            "/model": {"get": _get("Which model answers, and where it came from", "Model", ["500", "503"])},
            "/livez": {"get": _health("Whether the process lives")},
            "/readyz": {"get": _health("Whether predictions are answered")},
            "/metrics": {"get": {"summary": "Metrics for Prometheus", "responses": {"200": {"description": "Metrics"}}}},
        },
        "components": {"schemas": _schemas()},
    }


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def _schemas() -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}}
    size = {"type": "array", "items": {"type": "integer"}, "description": "height and width that images are brought to"}
    model = {"version": {"type": "string"}, "manifest": _NULLABLE, "name": _NULLABLE, "classes": texts, "size": size}
    problem = {key: {"type": "string"} for key in ("type", "title", "detail", "request_id")}
    return {
        "Probability": _object({"label": {"type": "string"}, "probability": {"type": "number", "minimum": 0, "maximum": 1}}),
        "Prediction": _object({**_PREDICTION, **_MODEL}),
        "Predictions": _object({"predictions": {"type": "array", "items": _object(_PREDICTION)}, **_MODEL}),
        "Model": _object({**model, "channels": {"type": "integer"}, "network": {}, "model_sha256": {"type": "string"}}),
        "Problem": _object({**problem, "status": {"type": "integer"}}),
    }


def _post(summary: str, schema: str, content: dict[str, Any], identity: Identity | None) -> dict[str, Any]:
    classes = len(identity.card["classes"]) if identity else 1_000_000
    top = {"type": "integer", "minimum": 1, "maximum": classes, "default": min(5, classes)}
    return {
        **_get(summary, schema, list(_PROBLEMS)),
        "parameters": [{"name": "top", "in": "query", "description": "how many labels", "schema": top}],
        "requestBody": {"required": True, "content": content},
    }


def _get(summary: str, schema: str, problems: list[str]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": _told(summary, "application/json", schema)}
        | {status: _told(_PROBLEMS[status], "application/problem+json", "Problem") for status in problems},
    }


def _told(description: str, media: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _health(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "Yes"}, "503": {"description": "Not yet"}}}
