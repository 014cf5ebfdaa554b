"""The label by which a person decides above the gates, and whether it counts: one rule for reports and deployments."""

from src.command import UserError
from src.github.api import ApiError, GitHub

OVERRIDE = "model-gate: override"
_MAY_WRITE = ("admin", "maintain", "write")  # triage may set labels too, but not decide what ships


class NotCountedError(UserError):
    """A label does not count; the text says why and what to do."""


def require_writer(github: GitHub, login: str, label: str) -> None:
    """Ask GitHub whether a person may write to the repository.

    Raises:
        NotCountedError: they may not, or GitHub does not say.
    """
    try:
        permission = github.get(f"collaborators/{login}/permission")["permission"]
    except ApiError as error:
        raise NotCountedError(
            f"the label {label} does not count, because the permission of {login} could not be read ({error}): remove the "
            "label and add it again"
        ) from None
    if permission not in _MAY_WRITE:
        raise NotCountedError(f"the label {label} does not count: {login} may not write to this repository")
