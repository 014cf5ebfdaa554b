"""Who has a valid key may ask, and keys rotate without a restart: python -m pytest tests/serving/test_keys.py"""

import hashlib
import logging
import re
from pathlib import Path

import pytest

from src.core.command import UserError
from src.serving import keys
from src.serving.keys import Keys

OLD, NEW = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", f"# of two shops\nnorth: {OLD}\n\n{NEW}  # without a name\n")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file at each request, not once a second."""
    monkeypatch.setattr(keys, "_EVERY", 0.0)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Put a file in its place in one step."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text.encode("latin-1"))
    fresh.chmod(mode)
    fresh.replace(path)
    return path


def bearer(found: Keys, key: str) -> str | None:
    return found.name_of(f"Bearer {key}".encode(), b"")


def test_a_key_is_taken_from_either_header_and_known_by_its_name(file: Path) -> None:
    found = Keys(file)
    assert found.required
    assert bearer(found, OLD) == found.name_of(b"", OLD.encode()) == "north"
    assert bearer(found, NEW) == found.name_of(b"bEARER  " + NEW.encode(), b"") == "key-4"
    assert found.name_of(b"Basic eDp5", OLD.encode()) == "north"  # of a proxy on the way


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        (b"", b""),
        (b"Bearer", OLD.encode()[:-1]),
        (OLD.encode(), b""),
        (b"Bearer " + OLD.encode() + b"0", b""),
        (b"Bearer wrong", OLD.encode()),  # what says Bearer is what counts
        (b"Bearer north: " + OLD.encode(), b"north"),
        (b"Bearer " + hashlib.sha256(OLD.encode()).hexdigest().encode(), b""),
    ],
)
def test_anything_else_is_nobodys(file: Path, authorization: bytes, x_api_key: bytes) -> None:
    assert Keys(file).name_of(authorization, x_api_key) is None


def test_no_key_is_kept_in_memory(file: Path) -> None:
    assert OLD not in repr(vars(Keys(file)))


def test_two_keys_are_valid_while_a_client_changes_and_then_one(file: Path) -> None:
    found = Keys(file)
    write(file, f"shop: {NEW}")
    assert (bearer(found, OLD), bearer(found, NEW)) == (None, "shop")
    write(file, f"shop: {NEW}\nshop: {OLD}")
    assert (bearer(found, OLD), bearer(found, NEW)) == ("shop", "shop")


@pytest.mark.parametrize("fault", ["gone", "empty", "short", "folder", "open"])
def test_a_file_that_is_damaged_later_changes_no_key_and_is_told_once(
    file: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = Keys(file)
    content = {"empty": "", "short": "hunter2", "open": NEW}.get(fault)
    if content is not None:
        write(file, content, 0o622 if fault == "open" else 0o600)
    else:
        file.unlink()
        if fault == "folder":
            file.mkdir()
    with caplog.at_level(logging.INFO):
        assert [bearer(found, OLD) for _ in range(5)] == ["north"] * 5
    (told,) = caplog.messages
    assert "stay valid" in told
    assert not re.search(f"hunter2|{OLD}|{re.escape(str(file))}", told)
    if fault != "folder":
        write(file, f"mended: {OLD}")
        assert bearer(found, OLD) == "mended"


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ("", 0o600, "holds 0 keys"),
        ("tooshort", 0o600, "under 16 characters in line 1: .*openssl rand -hex 32"),
        (f"{OLD}\nkey with blanks in it", 0o600, "other letters .* in line 2"),
        (f"{OLD[:20]}é", 0o600, "other letters"),
        (f"a name: {OLD}", 0o600, "bad name in line 1"),
        ("\n".join(f"{i}{OLD}" for i in range(17)), 0o600, "holds 17 keys"),
        ("#" * 70_000, 0o600, "larger than 65536 bytes"),
        (OLD, 0o640, "mode 640, so that others can read it: chmod 600"),
        (OLD, 0o620, "others can write"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_what_to_do_and_without_a_key(
    tmp_path: Path, text: str, mode: int, sentence: str
) -> None:
    path = write(tmp_path / "keys", text, mode)
    with pytest.raises(UserError, match=sentence) as caught:
        Keys(path)
    assert str(caught.value).startswith(f"SERVE_API_KEYS_FILE ({path})")
    assert not any(word in str(caught.value) for word in text.split() if len(word) > 7)
