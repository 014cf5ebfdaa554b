"""A command that fails says why in one sentence: python -m pytest tests/system/test_command_line.py"""

import errno
import os

import pytest

from src.core.command import Stopped, UserError
from src.system.command_line import run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("mend this"), 1, "demo: mend this"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
            1,
            "demo: the disk is full: free some space and run again (out/x)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "y"),
            1,
            "demo: permission denied: check the owner and mode of the file (y)",
        ),
        (OSError("odd"), 1, "demo: odd"),
        (KeyboardInterrupt(), 130, "demo: interrupted"),
        (Stopped(), 143, "demo: stopped by SIGTERM"),
    ],
)
def test_a_command_fails_with_one_sentence(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run("demo", main)
    assert caught.value.code == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("demo", main)
