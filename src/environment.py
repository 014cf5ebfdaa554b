"""Make the virtual environment: `python3 src/environment.py`, or `make setup`. Does nothing when it is up to date.

Runs before anything is installed and perhaps on an old Python, so: standard library only, and no new syntax.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "installed")
LOG = os.path.join(VENV, "install.log")
LOCK = os.path.join(ROOT, "requirements", "lock.txt")
TORCH = os.path.join(ROOT, "requirements", "torch.txt")
OLDEST, NEWEST = (3, 11), (3, 13)


def main():
    # type: () -> None
    use_supported_python()
    require_git_clone()
    wanted = fingerprint()
    if not is_installed(wanted):
        make_venv()
        install("the locked packages", ["--require-hashes", "-r", LOCK])
        install("PyTorch", ["-r", TORCH])
        with open(STAMP, "w") as file:
            file.write(wanted)


def fail(sentence):
    # type: (str) -> None
    sys.exit("setup: " + sentence)


def use_supported_python():
    # type: () -> None
    """Go on in a supported Python: this one, or the newest that is on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        path = shutil.which("python3.%d" % minor)
        if path and subprocess.call([path, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            os.execv(path, [path, os.path.abspath(__file__)])
    fail(
        "Python %d.%d cannot run this project, which needs 3.11 to 3.13: install one of these, "
        "or name it: make PYTHON=/path/to/python3.12 setup" % sys.version_info[:2]
    )


def require_git_clone():
    # type: () -> None
    if shutil.which("git") is None:
        fail("git is not installed: install it (https://git-scm.com) and run this again; DVC versions data beside Git")
    asked = subprocess.run(
        ["git", "rev-parse", "--git-dir"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
    )
    if asked.returncode == 0:
        return
    if "dubious ownership" in asked.stderr:
        fail("git does not trust this folder, since another user owns it: git config --global --add safe.directory " + ROOT)
    fail(
        "%s is no Git clone, and DVC versions data beside Git: use git clone instead of a downloaded archive, "
        "or run git init && git add -A && git commit -m start" % ROOT
    )


def fingerprint():
    # type: () -> str
    """Digest of everything that decides what is installed."""
    state = hashlib.sha256(("%s %s" % (sys.version, VENV)).encode())
    for path in (LOCK, TORCH):
        with open(path, "rb") as file:
            state.update(file.read())
    return state.hexdigest()


def is_installed(wanted):
    # type: (str) -> bool
    try:
        with open(STAMP) as file:
            return file.read() == wanted
    except OSError:
        return False


def make_venv():
    # type: () -> None
    import venv

    print("setup: making .venv with Python %d.%d" % sys.version_info[:2], flush=True)
    if os.path.exists(STAMP):
        os.remove(STAMP)
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        hint = (
            "on Debian and Ubuntu: apt install python3-venv" if not has_ensurepip() else "check the disk and its permissions"
        )
        fail("the virtual environment %s could not be made (%s): %s" % (VENV, type(error).__name__, hint))


def has_ensurepip():
    # type: () -> bool
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return False
    return True


def install(what, arguments):
    # type: (str, list[str]) -> None
    """Run pip, telling what it is at; on failure say its last error in one sentence."""
    print("setup: installing %s" % what, flush=True)
    pip = [os.path.join(VENV, "bin", "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    last = ""
    with open(LOG, "a") as log:
        process = subprocess.Popen(
            pip + arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last = line.strip() if line.startswith("ERROR:") and not last else last
            tell(line)
    if process.wait() != 0:
        reason = re.sub(r"\s+", " ", last)[:300] or "pip gave no reason"
        fail(
            "%s could not be installed (%s): check network, proxy and disk, then run make setup again; log: %s"
            % (what, reason, LOG)
        )


def tell(line):
    # type: (str) -> None
    """Show on a terminal which package is at hand; elsewhere only that the long part has begun."""
    found = re.match(r"Collecting ([\w.-]+)", line)
    if found and sys.stdout.isatty():
        print("\r\033[K  %s" % found.group(1), end="", flush=True)
    elif line.startswith("Installing collected packages"):
        print("%s  unpacking" % ("\r\033[K" if sys.stdout.isatty() else ""), flush=True)


if __name__ == "__main__":
    main()
