"""Addresses in messages, without what opens them: `user:password@`, and values such as `?token=...`."""

import re

_LOGIN = re.compile(r"(?<=://)([^\s/@'\"]*:[^\s'\"]*|[^\s/@'\"]+)@")
_VALUE = re.compile(r"([?&][\w.-]*(?:credential|key|passw|secret|sig|token)[\w.-]*=)[^&#\s'\"]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return a text whose addresses hold neither login nor secret values; everything else stays."""
    return _VALUE.sub(r"\1***", _LOGIN.sub("", text))
