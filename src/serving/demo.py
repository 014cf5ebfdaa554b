"""The page of GET /demo: drop an image, see the classes and where the model looked. One document, nothing from outside.

Reads demo.html beside this file. Its one script and one style are allowed by their SHA-256; whatever else gets into the
page does not run. See https://www.w3.org/TR/CSP3/#external-hash and https://www.w3.org/TR/trusted-types/.
"""

import base64
import hashlib
import re
from pathlib import Path


def policy(page: str) -> str:
    """Return the Content-Security-Policy under which a page's own scripts and styles work, and nothing else.

    Images are `data:` for the icon alone: pictures are drawn on a canvas.
    """
    script, style = (_sources(page, element) for element in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _sources(page: str, element: str) -> str:
    contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_TEXT = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
PAGE = _TEXT.encode()
PAGE_HEADERS = (
    (b"content-security-policy", policy(_TEXT).encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
