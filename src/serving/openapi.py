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

_FILE = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_MODEL = {"model_version": _TEXT, "manifest": _NULLABLE}
_PREDICTION = {
    "label": {"type": "string", "description": "the most probable label"},
    "probabilities": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Probability"}},
}
_PROBLEMS = {
    400: "The request or an image in it cannot be used; `indices` names the images of a batch, counted from 0",
    401: "No key, or none that is valid",
    408: "The request did not come in time",
    413: "The body or the image is too large",
    414: "The address is too long",
    415: "The media type is not taken",
    422: "A text is where a file should be",
    429: "All places are taken: try again after Retry-After seconds",
    431: "The headers are too many or too long",
    500: "A fault of the service",
    503: "The model is not loaded yet, or there are too many connections",
    504: "Not computed in time",
}
_ANYWHERE = (400, 408, 414, 431, 500, 503)  # whatever is asked for
_AGAIN = (429, 503, 504)  # with Retry-After

Document = dict[str, Any]


def document(settings: Settings, identity: Identity | None) -> Document:
    """Return the OpenAPI 3.1 document, true for these settings and this model."""
    limits = f"up to {settings.max_body / 1e6:g} MB, {settings.max_pixels / 1e6:g} megapixels an image"
    asked = settings.keys is not None
    components: Document = {"schemas": _schemas(), "headers": _headers()}
    if asked:
        key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}, "key": key}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image classifier",
            "description": f"PNG, JPEG, WebP, BMP, TIFF or GIF; {limits}. Errors are RFC 9457 problem details. "
            "What answers GET answers HEAD too.",
            "version": identity.version if identity else "not loaded",
        },
        "servers": [{"url": "."}],
        "paths": {**_predictions(settings, identity, asked), **_pages(settings, asked), **_operation()},
        "components": components,
    }


# ---------------------------------------------------------------------------------------------------------------------
# What can be asked
# ---------------------------------------------------------------------------------------------------------------------


def _predictions(settings: Settings, identity: Identity | None, asked: bool) -> Document:
    classes = identity.card["classes"] if identity else []
    most = max(len(classes), 1)
    top = _parameter("top", "how many labels", {"type": "integer", "minimum": 1, "maximum": most, "default": min(5, most)})
    label = _parameter(
        "label", "for which it looks, else the most probable", {"type": "string", **({"enum": classes} if classes else {})}
    )
    one = {"multipart/form-data": {"schema": _form({"image": _FILE})}, "image/*": {"schema": _FILE}}
    files = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": settings.max_batch}
    many = {"multipart/form-data": {"schema": _form({"images": files})}, "application/octet-stream": _pixels(identity)}
    paths = {
        "/predict": _post("Classify one image", "Prediction", [top], one, asked, "X-Prediction"),
        "/predict_batch": _post("Classify several images, as files or as pixels", "Predictions", [top], many, asked),
    }
    if settings.demo:
        paths["/explain"] = _post("Where the model looks in one image", "Explanation", [label], one, asked)
    return {path: {"post": post} for path, post in paths.items()}


def _pages(settings: Settings, asked: bool) -> Document:
    page, read = _content("text/html", _TEXT), (_content("application/json", {"type": "object"}))
    paths = {
        "/model": _get("Which model answers, and where it came from", _json("Model"), asked),
        "/docs.json": _get("This document", read, asked),
        "/": _get("This document, to read and to try", page, asked),
    }
    return paths | ({"/demo": _get("A page to drop an image on", page, asked=False)} if settings.demo else {})


def _operation() -> Document:
    told = _content("text/plain", _TEXT)
    health = {"Whether the process lives": "/livez", "Whether predictions are answered": "/readyz"}
    paths = {path: _told(summary, {200: ("Yes", told, []), 503: ("No", told, [])}) for summary, path in health.items()}
    paths["/metrics"] = _told("Metrics for Prometheus", {200: ("Metrics", told, ["X-Request-ID"]), **_problems([])})
    return {path: {"get": get} for path, get in paths.items()}


def _post(summary: str, schema: str, parameters: list[Any], content: Document, asked: bool, *headers: str) -> Document:
    signed = ["X-Request-ID", "X-Model-Version", "X-Manifest", *headers]
    answers = {
        200: ("The answer", _json(schema), signed),
        **_problems([status for status in _PROBLEMS if asked or status != 401]),
    }
    told = _told(summary, answers, asked)
    return {**told, "parameters": parameters, "requestBody": {"required": True, "content": content}}


def _get(summary: str, content: Document, asked: bool) -> Document:
    answers = {200: ("The answer", content, ["X-Request-ID"]), **_problems([401] if asked else [])}
    return {"get": _told(summary, answers, asked)}


def _told(summary: str, answers: dict[int, tuple[str, Document, list[str]]], asked: bool = False) -> Document:
    """Return an operation; `answers` are of each status its description, content and headers."""
    responses = {
        str(status): {
            "description": description,
            "content": content,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        }
        for status, (description, content, headers) in answers.items()
    }
    return {"summary": summary, "responses": responses} | ({"security": [{"bearer": []}, {"key": []}]} if asked else {})


def _problems(more: list[int]) -> dict[int, tuple[str, Document, list[str]]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    own = {401: ["WWW-Authenticate"], **{status: ["Retry-After"] for status in _AGAIN}}
    return {
        status: (_PROBLEMS[status], content, ["X-Request-ID", *own.get(status, [])])
        for status in sorted({*_ANYWHERE, *more})
    }


def _parameter(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _pixels(identity: Identity | None) -> Document:
    height, width, channels = (*identity.card["size"], identity.card["channels"]) if identity else ("H", "W", "C")
    shape = f"{height} x {width} x {channels}"
    return {"schema": {**_FILE, "description": f"n x {shape} uint8: the pixels of n images, one after the other"}}


def _content(media: str, schema: Document) -> Document:
    return {media: {"schema": schema}}


def _json(schema: str) -> Document:
    return _content("application/json", {"$ref": f"#/components/schemas/{schema}"})


# ---------------------------------------------------------------------------------------------------------------------
# What is answered
# ---------------------------------------------------------------------------------------------------------------------


def _object(properties: Document, required: tuple[str, ...] | None = None) -> Document:
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}


def _form(properties: Document) -> Document:
    return {**_object(properties), "additionalProperties": False}


def _schemas() -> Document:
    heat = {
        "type": "array",
        "items": {"type": "array", "items": _SHARE},
        "description": "rows x columns, from top to bottom",
    }
    problem = {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT, "request_id": _TEXT}
    indices = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    number = {"type": "integer", "minimum": 1}
    return {
        "Probability": _object({"label": _TEXT, "probability": _SHARE}),
        "Prediction": _object({**_PREDICTION, **_MODEL}),
        "Predictions": _object({"predictions": {"type": "array", "items": _object(_PREDICTION)}, **_MODEL}),
        "Explanation": _object(
            {"label": _TEXT, "probability": _SHARE, "rows": number, "columns": number, "heat": heat, **_MODEL}
        ),
        "Model": _model(),
        "Problem": _object({**problem, "indices": indices}, tuple(problem)),
    }


def _model() -> Document:
    numbers = {"type": "array", "items": {"type": "integer"}}
    known = {
        "version": _TEXT,
        "classes": {"type": "array", "items": _TEXT},
        "size": {**numbers, "description": "height and width that images are brought to"},
        "channels": {"type": "integer"},
        "fit": {"type": "string", "enum": ["crop", "pad", "stretch"], "description": "how images are brought to it"},
        "network": _TEXT,
        "model_sha256": _TEXT,
        "precision": {"type": "string", "enum": ["fp32", "int8"]},
        "served_sha256": {"type": "string", "description": "of the file that answers"},
    }
    texts = dict.fromkeys(("name", "manifest", "commit", "data", "verdict"), _NULLABLE)
    return _object(
        {**known, **texts, "pull_request": {"type": ["integer", "null"]}, "metrics": {"type": ["object", "null"]}}
    )


def _headers() -> Document:
    told = {
        "X-Request-ID": "yours, if it is up to 64 letters, digits, . _ -; the log has it too",
        "X-Model-Version": "which version of the model answered",
        "X-Manifest": "SHA-256 of its manifest; without one there is no such header",
        "X-Prediction": "the most probable label, percent-encoded",
        "WWW-Authenticate": "Bearer",
    }
    headers = {name: {"description": text, "required": name != "X-Manifest", "schema": _TEXT} for name, text in told.items()}
    again = {"description": "seconds to wait", "required": True, "schema": {"type": "integer", "minimum": 0}}
    return {**headers, "Retry-After": again}
