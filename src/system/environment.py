"""Make the virtual environment: `python3 src/system/environment.py`, or `make setup`. Does nothing when it is up to date.

Runs before anything is installed and perhaps on an old Python, so: standard library only, and no new syntax.
DVC's plug-ins for the DVC remotes in use belong to it: .dvc/config, .dvc/config.local and DVC_REMOTE_URL name these.
--checks also installs what tests and lint need; --plugins installs the plug-ins alone, for CI, whose remote is told later.
--lock installs nothing, and resolves each requirements/*.in into its lock (`make lock`). --cache-key prints `key=...`, the
name under which CI may keep this machine's .venv.
"""

import argparse
import ast
import contextlib
import fcntl
import glob
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REQUIREMENTS = os.path.join(ROOT, "requirements")
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
PIP = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
PACKAGES = os.path.join(VENV, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
STAMP = os.path.join(VENV, "installed")
LOG = os.path.join(VENV, "install.log")  # the lock between two runs too, and the mark that this script made the folder
TORCH = "torch.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNFINISHED = "unfinished"
OLDEST, NEWEST = (3, 11), (3, 13)
UV_VARIABLES = {  # pip's setting: uv's variable
    "index-url": "UV_INDEX_URL",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
}


def main():
    # type: () -> None
    parser = argparse.ArgumentParser(prog="setup", description="Make the virtual environment .venv")
    parser.add_argument("--checks", action="store_true", help="also what tests and lint need")
    parser.add_argument("--plugins", action="store_true", help="DVC's plug-ins for the DVC remotes in use, and nothing else")
    parser.add_argument("--lock", action="store_true", help="resolve each requirements/*.in into its lock instead")
    parser.add_argument("--cache-key", action="store_true", help="print the name that .venv has in a cache of CI instead")
    options = parser.parse_args()
    try:
        use_supported_python()
        if options.cache_key:
            print("key=" + cache_key())
            return
        require_git_clone()
        if options.lock:
            resolve()
        else:
            install_locked(plugin_locks() if options.plugins else lock_names(options.checks))
    except KeyboardInterrupt:
        print("setup: stopped: run it again, and it goes on with what is downloaded", file=sys.stderr)
        sys.exit(130)


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
            os.execv(path, [path, os.path.abspath(__file__), *sys.argv[1:]])
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


# ---------------------------------------------------------------------------------------------------------------------
# What is wanted, and what is installed
# ---------------------------------------------------------------------------------------------------------------------


def lock_names(checks):
    # type: (bool) -> list[str]
    """Return the locks to install."""
    return ["run.txt", "yours.txt"] + plugin_locks() + (["check.txt", "uv.txt"] if checks else []) + [TORCH]


def plugin_locks():
    # type: () -> list[str]
    """Return the locks of DVC's plug-ins for the DVC remotes in use, by the schemes of their addresses."""
    text = "url = %s\n" % os.environ.get("DVC_REMOTE_URL", "")
    for path in glob.glob(os.path.join(ROOT, ".dvc", "config*")):
        with open(path) as file:
            text += file.read() + "\n"
    schemes = sorted(set(re.findall(r"^\s*url\s*=\s*[\"']?(\w+)://", text, re.MULTILINE)))
    locks = ["remote-%s.txt" % scheme for scheme in schemes]
    return [name for name in locks if os.path.exists(os.path.join(REQUIREMENTS, name))]


def torch_index():
    # type: () -> str
    """Return the index that PyTorch is to come from. Empty: pip's own, whose build for Linux brings CUDA."""
    has_nvidia = shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia")
    without_cuda = sys.platform.startswith("linux") and not has_nvidia
    return os.environ.get("TORCH_INDEX_URL") or (TORCH_CPU_INDEX if without_cuda else "")


def fingerprint(name, index=None):
    # type: (str, str | None) -> str
    """Return the digest of everything that decides what a lock installs: its text, Python and place; after @ the index."""
    with open(os.path.join(REQUIREMENTS, name), "rb") as file:
        content = file.read()
    digest = hashlib.sha256(("%d.%d %s " % ((*sys.version_info[:2], VENV))).encode() + content).hexdigest()
    return digest if index is None else digest + "@" + hashlib.sha256(index.encode()).hexdigest()


def cache_key():
    # type: () -> str
    """Return a name made of the system, of Python's version, and of a digest of all locks and the place of .venv."""
    locks = sorted(glob.glob(os.path.join(REQUIREMENTS, "*.txt")))
    prints = " ".join(fingerprint(os.path.basename(path)) for path in locks)
    digest = hashlib.sha256((prints + torch_index()).encode()).hexdigest()
    return "environment-%s-%s-%s-%s" % (platform.system(), platform.machine(), platform.python_version(), digest[:32])


def read_stamp():
    # type: () -> dict[str, str]
    """Return what is installed: {lock: fingerprint}."""
    try:
        with open(STAMP) as file:
            return dict(re.findall(r"^(\S+) (\S+)$", file.read(), re.MULTILINE))
    except OSError:
        return {}


def write_stamp(installed):
    # type: (dict[str, str]) -> None
    with open(STAMP + ".new", "w") as file:
        file.writelines("%s %s\n" % item for item in sorted(installed.items()))
    os.replace(STAMP + ".new", STAMP)


def outdated(names):
    # type: (list[str]) -> dict[str, str]
    """Return the locks that are not installed as they are now: {lock: fingerprint}."""
    installed = read_stamp()
    wanted = {name: fingerprint(name, torch_index() if name == TORCH else None) for name in names}
    if torch_index() == TORCH_CPU_INDEX and installed.get(TORCH) == fingerprint(TORCH, ""):
        wanted.pop(TORCH)  # the build with CUDA runs without a GPU as well
    return {name: digest for name, digest in wanted.items() if installed.get(name) != digest}


# ---------------------------------------------------------------------------------------------------------------------
# The environment
# ---------------------------------------------------------------------------------------------------------------------


def install_locked(names):
    # type: (list[str]) -> None
    """Bring the environment up to date with some locks; packages of other locks stay."""
    if not outdated(names):
        return
    with environment() as log:
        pending = outdated(names)  # another setup may have been at work until now
        locks = {name: digest for name, digest in pending.items() if name != TORCH}
        if locks:
            install(locks, log)
        if TORCH in pending:
            install_torch(pending[TORCH], log)


@contextlib.contextmanager
def environment():
    # type: () -> typing.Iterator[typing.IO[str]]
    """Hold the environment for this process alone, made where it is missing; yield the log. Refuses one that is not ours."""
    if os.path.islink(VENV):
        fail("%s is a link, which setup does not follow: remove it (rm .venv; its target stays), then run this again" % VENV)
    made_here = os.path.exists(LOG) or os.path.exists(STAMP)
    if os.path.exists(VENV) and not made_here and (not os.path.isdir(VENV) or os.listdir(VENV)):
        fail("%s was not made by setup, which leaves it as it is: mv .venv .venv-before, then run this again" % VENV)
    try:
        os.makedirs(VENV, exist_ok=True)
        log = open(LOG, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        fail("%s cannot be written (%s): check the disk and its permissions" % (VENV, error.strerror))
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("setup: another setup is at work in .venv: waiting for it", flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        if not is_usable():
            make_venv()
        yield log


def is_usable():
    # type: () -> bool
    """Return True where .venv was made here, by this version of Python, and no installation in it was interrupted."""
    try:
        with open(os.path.join(VENV, "pyvenv.cfg")) as file:
            written = file.read()
    except OSError:
        return False
    made_here = "version = %d.%d." % sys.version_info[:2] in written and written.rstrip().endswith(" " + VENV)
    whole = UNFINISHED not in read_stamp().values() and os.path.exists(STAMP)
    return made_here and whole and run_quietly([PYTHON, "-m", "pip", "--version"])


def run_quietly(command):
    # type: (list[str]) -> bool
    try:
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_venv():
    # type: () -> None
    import venv

    print("setup: making .venv with Python %d.%d" % sys.version_info[:2], flush=True)
    try:
        for name in set(os.listdir(VENV)) - {os.path.basename(LOG)}:
            path = os.path.join(VENV, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
        venv.create(VENV, with_pip=True)
        write_stamp({})
    except (OSError, subprocess.CalledProcessError) as error:
        fail(
            "the virtual environment %s could not be made (%s): check the disk and its permissions; on Debian and Ubuntu: "
            "apt install python3-venv" % (VENV, type(error).__name__)
        )


# ---------------------------------------------------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------------------------------------------------


def install(locks, log):
    # type: (dict[str, str], typing.IO[str]) -> None
    """Install locked packages with uv; where there is none or it fails, with pip."""
    installed = begin(locks)
    print("setup: installing the locked packages, which can take minutes (log: %s)" % LOG, flush=True)
    arguments = ["--no-deps", "--require-hashes"]  # a lock names all that its packages need, but for torch
    for name in locks:
        arguments += ["-r", os.path.join(REQUIREMENTS, name)]
    settings = pip_settings()
    uv, why = find_uv(log)
    if uv:
        offline = ["--no-index"] if "no-index" in settings else []
        why = run([uv, "pip", "install", "--python", PYTHON, *offline, *arguments], log, uv_environment(settings))
    if why:
        print("setup: uv could not do it (%s): pip does it, which takes longer" % why, flush=True)
        why = run(PIP + arguments, log)
    finish("the locked packages", why, installed, locks)


def install_torch(digest, log):
    # type: (str, typing.IO[str]) -> None
    """Install PyTorch with pip; on Linux without an NVIDIA GPU its CPU build, whose needs are locked packages."""
    # pip takes the same version of another index for installed
    if read_stamp().get(TORCH, "").startswith(fingerprint(TORCH)):
        run([PYTHON, "-m", "pip", "uninstall", "--yes", "torch"], log)
    installed = begin({TORCH: digest})
    path = os.path.join(REQUIREMENTS, TORCH)
    with open(path) as file:
        pins = re.findall(r"^([\w-]+)==([\w.]+)", file.read(), re.MULTILINE)
    why = ""
    if not pins or not all(
        glob.glob(os.path.join(PACKAGES, "%s-%s[.+]*" % (name.replace("-", "_"), pin))) for name, pin in pins
    ):
        arguments, index, note = ["-r", path], torch_index(), ""
        if index == TORCH_CPU_INDEX:
            silent = unreachable(index)
            if silent:
                index, note = "", " from pip's usual index: that of the CPU builds does not answer (%s)" % silent
            else:
                arguments.append("--no-deps")
                note = ", its CPU build: no NVIDIA GPU here (TORCH_INDEX_URL names another index)"
        print("setup: installing PyTorch" + note, flush=True)
        variables = one_index(pip_settings()) if index else None
        why = run(PIP + arguments + (["--index-url", index] if index else []), log, variables)
    finish("PyTorch", why, installed, {TORCH: digest})


def begin(locks):
    # type: (dict[str, str]) -> dict[str, str]
    """Record that some locks are being installed: a run that is interrupted leaves an environment that is made anew."""
    installed = read_stamp()
    installed.update(dict.fromkeys(locks, UNFINISHED))
    write_stamp(installed)
    return installed


def finish(what, why, installed, locks):
    # type: (str, str, dict[str, str], dict[str, str]) -> None
    """Record that some locks are installed, or fail with the reason."""
    if why:
        fail(
            "%s could not be installed (%s): check network, proxy and disk, then run make setup again; log: %s"
            % (what, why, LOG)
        )
    installed.update(locks)
    write_stamp(installed)


def resolve():
    # type: () -> None
    """Resolve each requirements/NAME.in into NAME.txt, with every hash, but for torch. Versions that NAME.txt has stay."""
    universal = ["--universal"]
    options = {
        "run": universal,
        "uv": universal,
        "audit": universal,
        "check": [*universal, "--constraints", "requirements/run.txt"],
        "serving": [*universal, "--constraints", "requirements/run.txt"],
        "serving-gpu": ["--python-platform", "x86_64-unknown-linux-gnu", "--constraints", "requirements/serving.txt"],
        "yours": [*universal, "--constraints", "requirements/run.txt", "--constraints", "requirements/check.txt"],
    }
    for path in sorted(glob.glob(os.path.join(REQUIREMENTS, "remote-*.in"))):
        options[os.path.basename(path)[: -len(".in")]] = options["check"]
    with environment() as log, tempfile.NamedTemporaryFile("w", suffix=".txt") as excludes:
        excludes.write("torch\ntorchaudio\ntorchvision\n")  # these come by torch.txt, as their builds go together
        excludes.flush()
        uv, why = find_uv(log)
        if why:
            fail("uv could not be installed (%s): check network and proxy, then run make lock again" % why)
        command = [uv, "pip", "compile", "--python-version", "3.11", "--generate-hashes", "--no-header", "--quiet"]
        command += ["--excludes", excludes.name]
        variables = uv_environment(pip_settings())
        for name, more in options.items():
            source, lock = "requirements/%s.in" % name, "requirements/%s.txt" % name
            why = run(command + more + [source, "--output-file", lock], log, variables)
            if why:
                fail("%s could not be resolved (%s): put its lines right, then run make lock again" % (source, why))


def pip_settings():
    # type: () -> dict[str, str]
    """Return pip's settings by name, as its files and the variables PIP_... give them."""
    listed = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True
    ).stdout
    settings = {}
    for section in ("global", "install", ":env:"):
        settings.update(re.findall(r"^%s\.([\w-]+)=(.+)$" % section, listed, re.MULTILINE))
    values = {name: " ".join(ast.literal_eval(value).split()) for name, value in settings.items()}
    return {name: value for name, value in values.items() if value.lower() not in ("", "0", "false", "no", "off")}


def one_index(settings):
    # type: (dict[str, str]) -> dict[str, str]
    """Return an environment in which pip has its settings but for further indexes: PyTorch, which has no hash, is of one."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_EXTRA_INDEX_URL"}
    kept = {name: value for name, value in settings.items() if name != "extra-index-url"}
    environment.update({"PIP_" + name.upper().replace("-", "_"): value for name, value in kept.items()})
    environment["PIP_CONFIG_FILE"] = os.devnull
    return environment


def uv_environment(settings):
    # type: (dict[str, str]) -> dict[str, str]
    """Return the environment in which uv takes packages from where pip takes them. What uv is given itself comes first."""
    environment = dict(os.environ)
    for name, variable in UV_VARIABLES.items():
        if name in settings:
            value = settings[name].replace(" ", ",") if name == "find-links" else settings[name]
            environment.setdefault(variable, value)
    # all indexes count, as for pip: every file has its hash
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    environment.setdefault("UV_SYSTEM_CERTS", "true")
    return environment


def find_uv(log):
    # type: (typing.IO[str]) -> tuple[str, str]
    """Return a uv that runs, and why there is none: the environment's, that on PATH, or one that pip brings by its hash."""
    own = os.path.join(VENV, "bin", "uv")
    for path in (own, shutil.which("uv")):
        if path and run_quietly([path, "--version"]):
            return path, ""
    why = run([*PIP, "--require-hashes", "-r", os.path.join(REQUIREMENTS, "uv.txt")], log)
    return ("", why) if why else (own, "")


def unreachable(index):
    # type: (str) -> str
    """Return why an index of packages does not answer, asked once; empty where it answers."""
    import ssl
    import urllib.request

    try:
        context = ssl.create_default_context(cafile=pip_settings().get("cert"))
        urllib.request.urlopen(index + "/torch/", timeout=5, context=context).close()  # noqa: S310 - it is https
    except Exception as error:  # whatever it is, there is another index
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


def run(command, log, environment=None):
    # type: (list[str], typing.IO[str], dict[str, str] | None) -> str
    """Run an installer, whose words go into the log. Return why it failed, in its own words; empty where it did not."""
    begun = os.path.getsize(LOG)
    code = subprocess.call(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[log.fileno()],  # killed, this script leaves the lock to an installer that goes on
    )
    if code == 0:
        return ""
    with open(LOG, "rb") as file:
        file.seek(begun)
        said = file.read().decode(errors="replace")
    reason = re.search(r"^(?:(?:ERROR|error):|\s+\u00d7 ).*", said, re.MULTILINE | re.DOTALL)
    words = " ".join(re.sub(r"[^\x20-\x7e]", " ", reason.group(0)).split()) if reason else ""
    return words[:300] or "it ended with code %d" % code


if __name__ == "__main__":
    main()
