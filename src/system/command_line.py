"""How a command of this project starts and fails: one sentence for a user's mistake, never a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Callable

from src.core.command import Stopped, UserError


def run(name: str, main: Callable[[], None]) -> None:
    """Run `main` and exit: 0 when it returns, 1 with one sentence on a user's mistake or a failing disk.

    Ctrl-C exits with 130 and SIGTERM with 143, one sentence each.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt:
        _fail(name, "interrupted; no output was changed. Run the same command again", 128 + signal.SIGINT)
    except Stopped:
        _fail(name, "stopped by SIGTERM; no output was changed. Run the same command again", 128 + signal.SIGTERM)
    except UserError as error:
        _fail(name, str(error), 1)
    except OSError as error:
        _fail(name, _explain(error), 1)


def _stop(*_: object) -> None:
    raise Stopped


def _fail(name: str, sentence: str, code: int) -> None:
    print(f"{name}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def _explain(error: OSError) -> str:
    """Turn an operating-system error into what happened, to which file, and what to do next."""
    where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run again",
        errno.EFBIG: "a file would grow past this system's limit: raise it (ulimit -f) and run again",
        errno.EROFS: "the file system is read-only: use another folder",
        errno.EACCES: "permission denied: check the owner and mode of the file",
        errno.ENOENT: "there is no such file: run the stage that makes it (`dvc repro`), or `dvc pull`",
        errno.ENOTDIR: "a file stands where a folder is needed: move it away",
        errno.EEXIST: "a file stands where a folder is needed: move it away",
        errno.EISDIR: "a folder stands where a file is needed: move it away",
        errno.EMFILE: "too many open files: raise the limit (ulimit -n) and run again",
    }
    return f"{advice.get(error.errno or 0, error.strerror or str(error))}{where}"
