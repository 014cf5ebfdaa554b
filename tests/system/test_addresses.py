"""Addresses are shown without what opens them: python -m pytest tests/system/test_addresses.py"""

import pytest

from src.github.api import GitHub
from src.system.addresses import without_secrets
from src.system.worktree import reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@127.0.0.1:1/ is down", "http://127.0.0.1:1/ is down"),
        ("at 'https://hunter2@host/x', then", "at 'https://host/x', then"),
        ("ssh://me:hun/ter2@host and s3://bucket/dvc", "ssh://host and s3://bucket/dvc"),
        ("https://me:hun@ter2@host", "https://host"),
        ("https://host/x?page=2&token=hunter2#a", "https://host/x?page=2&token=***#a"),
        ("https://host/x?X-Amz-Signature=hunter2&X-Amz-Date=1", "https://host/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("mail me@example.org, see https://host:8080/a/b?page=2", "mail me@example.org, see https://host:8080/a/b?page=2"),
    ],
)
def test_an_address_is_shown_without_login_and_secret_values(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_messages_of_dvc_and_of_githubs_api_tell_no_password() -> None:
    advertisement = "\n\nHaving any troubles? Hit us up at https://dvc.org/support, we are always happy to help!"
    assert reason(f"ERROR: https://me:hunter2@host/dvc is not there{advertisement}") == "https://host/dvc is not there"
    with pytest.raises(Exception, match="GITHUB_SERVER_URL is 'ftp://host'"):
        GitHub("team/models", "token", "ftp://me:hunter2@host")
