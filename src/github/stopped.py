"""The one issue that stands open while deployments or rollbacks are stopped, or packages are vulnerable; never a second one.

It is known by its first line and by its author. An edit notifies nobody, so each further text is a comment as well.
"""

from typing import Any

from src.github.api import ApiError, GitHub
from src.github.git import BOT
from src.github.status import run_url, shortened
from src.system.escaping import prose

_MARKERS = {
    "deploy": "<!-- deployment-stopped -->",
    "rollback": "<!-- rollback-failed -->",
    "audit": "<!-- vulnerable-packages -->",
}
_TITLES = {"deploy": "Deployment stopped", "rollback": "Rollback failed", "audit": "Vulnerable packages"}
_AGAIN = {"deploy": "Stopped again", "rollback": "Stopped again", "audit": "Found now"}
_LONGEST = 120  # characters of a title
_OFF = (404, 410)  # issues are switched off, as in every fork


def tell(github: GitHub, what: str, sentence: str, body: str) -> None:
    """Open the issue, or update the one that is open; the same text is not told twice.

    Raises:
        ApiError: GitHub refuses for another reason than that issues are switched off.
    """
    text = f"{_MARKERS[what]}\n{body}\n\nIt is updated while this lasts, and closes by itself afterwards.\n"
    plain = "".join(sign if sign.isprintable() else " " for sign in sentence).replace("@", "@\u200b")
    title = shortened(f"{_TITLES[what]}: {plain}", _LONGEST)
    try:
        ours = _open(github, what)
        if ours is None:
            issue = github.post("issues", {"title": title, "body": text})
        elif (ours["body"] or "").strip() == text.strip():
            issue = ours
        else:
            issue = github.patch(f"issues/{ours['number']}", {"title": title, "body": text})
            again = f"{_AGAIN[what]}: {prose(sentence)}. [The run]({run_url()})"
            github.post(f"issues/{ours['number']}/comments", {"body": again})
    except ApiError as error:
        _unless_off(error)
    else:
        print(f"issue: {issue['html_url']}")


def close(github: GitHub, what: str, said: str) -> None:
    """Close the issue with a comment, if one is open; a deployment that went well also ends what a rollback failed at.

    Raises:
        ApiError: GitHub refuses for another reason than that issues are switched off.
    """
    try:
        for kind in ("deploy", "rollback") if what == "deploy" else (what,):
            if ours := _open(github, kind):
                github.post(f"issues/{ours['number']}/comments", {"body": said})
                github.patch(f"issues/{ours['number']}", {"state": "closed", "state_reason": "completed"})
                print(f"issue closed: {ours['html_url']}")
    except ApiError as error:
        _unless_off(error)


def _unless_off(error: ApiError) -> None:
    if error.status not in _OFF:
        raise error
    print("issues are switched off in this repository, so there is none: the summary of the run has it all")


def _open(github: GitHub, what: str) -> Any:
    for issue in github.pages("issues", state="open", creator=BOT, sort="created", direction="asc"):
        author = (issue.get("user") or {}).get("login")
        marked = (issue.get("body") or "").partition("\n")[0].strip() == _MARKERS[what]
        if author == BOT and marked and "pull_request" not in issue:
            return issue
    return None
