"""The structure holds: what each folder may import, DVC's dependencies are the real imports, README and help tell the truth.

python -m pytest tests/test_structure.py
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, WORKING_TREE

from src import model
from src.__main__ import VERBS
from src.system import dvc_lock

# What a folder or file of src/ may import beside itself, by the start of its path. `*_params.py` may be imported from every
# folder but core, and imports core and its kind alone.
ZONES: dict[str, tuple[str, ...]] = {
    "core": (),
    "system": ("core/",),
    "data.py": ("core/",),
    "model.py": ("core/",),
    "images": ("core/", "data.py"),
    "validation": ("core/", "images/"),
    "training": ("core/", "images/", "model.py"),
    "evaluation": ("core/", "images/", "training/classifier.py", "model.py"),
    "judging": ("core/", "system/"),
    "reporting": ("core/", "system/", "judging/"),
    "github": ("core/", "system/"),  # what of them is standard library: a test looks
    "release": (
        *("core/", "system/", "judging/"),
        *(f"github/{client}.py" for client in ("api", "deployments", "git", "labels", "status")),
    ),
    "serving": ("core/", "images/", "system/"),
    "lab": ("",),
    "__main__.py": ("",),  # it hands to a stage what lies outside of it
    "__init__.py": (),
}
WITHOUT_TORCH = ("core", "system", "judging", "reporting", "github", "release", "serving")
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py"))
COMMANDS = {verb: f"src/{module.replace('.', '/')}.py" for verb, module, _ in VERBS}


@cache
def imports(module: str, *, lazily: bool = True) -> set[str]:
    """Return the files under src/ that a module imports: anywhere in it, or only what Python runs with it."""
    return imports_of(ROOT / module, lazily=lazily)


def imports_of(path: Path, *, lazily: bool = True) -> set[str]:
    names = {name for name in imported_names(path, lazily=lazily) if name.split(".")[0] == "src"}
    return {path for name in names for path in files_of(name)}


def packages(module: str, *, lazily: bool = True) -> set[str]:
    """Return the top-level names of what a module imports from outside of src/."""
    return {name.split(".")[0] for name in imported_names(ROOT / module, lazily=lazily)} - {"src"}


def imported_names(path: Path, *, lazily: bool = True) -> set[str]:
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text()), lazily=lazily):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def nodes(tree: ast.AST, *, lazily: bool) -> Iterator[ast.AST]:
    """Yield every node; without what runs later in a function, or for a type checker alone, where nothing lazy is wanted."""
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if lazily or not (later or typing):
            yield node
            yield from nodes(node, lazily=lazily)


def files_of(name: str) -> set[str]:
    """Return what Python runs to import a module: the file, and the packages on the way to it."""
    parts = name.split(".")
    packages = ["/".join(parts[:i]) + "/__init__.py" for i in range(1, len(parts) + 1)]
    return {path for path in [*packages, "/".join(parts) + ".py"] if (ROOT / path).is_file()}


@cache
def reach(module: str, *, lazily: bool = True) -> set[str]:
    """Return a module and all it imports, directly or not."""
    seen, todo = set(), [module, *files_of(module.removesuffix(".py").replace("/", "."))]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imports(path, lazily=lazily)
    return seen


def place(module: str) -> str:
    """Return the folder of src/ in which a module lies, or the file of src/ that it is."""
    return module.split("/")[1]


@pytest.mark.journey
def test_tests_use_the_model_of_the_template_whatever_the_fork_has() -> None:
    code = "import importlib.util; print(importlib.util.find_spec('src.model').origin)"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert model.__file__ == other.stdout.strip() == str(ROOT / "src" / "model.py")
    assert (ROOT / "src" / "model.py").read_bytes() == (ROOT / "starter" / "project" / "src" / "model.py").read_bytes()


def test_tests_have_no_data_but_those_of_the_starter() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("?*.dvc")}
    assert found == {"data.dvc", "starter/project/data.dvc"}


@pytest.mark.template
def test_the_starter_holds_the_project_as_it_is() -> None:
    project = ROOT / "starter" / "project"
    for path in project.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (WORKING_TREE / path.relative_to(project)).read_bytes(), path


STAGES = dvc_lock.wiring(ROOT)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_depends_on_exactly_the_folders_that_a_stage_imports(stage: str) -> None:
    assert STAGES[stage]["cmd"].split()[:4] == ["python", "-m", "src", stage]
    listed = {path for path in STAGES[stage]["deps"] if path.startswith("src/")}
    imported_here = {f"src/{place(path)}" for path in reach(COMMANDS[stage])} - {"src/__init__.py"}
    assert imported_here <= listed
    # src/data.py and src/model.py are the template's here; the fork's own may lead to files of its own
    yours = {"src/data.py", "src/model.py"} & listed
    fork = [imports_of(WORKING_TREE / name) for name in yours]
    assert listed - imported_here - yours <= {path for found in fork for name in found for path in reach(name)}


def test_no_stage_imports_what_changes_for_other_reasons() -> None:
    for stage in STAGES:
        assert not [path for path in reach(COMMANDS[stage]) if path.startswith("src/system/")], stage


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_a_dependency_or_an_output(stage: str) -> None:
    entries = [*STAGES[stage]["deps"], *STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]
    known = {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}
    words = STAGES[stage]["cmd"].split()[4:]
    options = ("--checkpoints", "--manifest", "out/checkpoints", "out/history")  # what no two runs agree on is no output
    assert [word for word in words if word not in known and word not in options] == []


def test_a_module_imports_only_what_its_folder_may() -> None:
    assert {module: forbidden(module) for module in MODULES if forbidden(module)} == {}


def forbidden(module: str) -> set[str]:
    """Return what a module imports against ZONES."""
    may = ("core/",) if types_params(module) else (f"{place(module)}/", *ZONES[place(module)])
    found = set()
    for other in imports(module):
        params = types_params(other) and place(module) != "core"
        package = other.endswith("/__init__.py")  # on the way to what is asked about by itself
        if not (params or package or other.removeprefix("src/").startswith(may)):
            found.add(other)
    return found


def types_params(module: str) -> bool:
    return module.endswith("_params.py") and module not in COMMANDS.values()


def test_every_folder_is_a_zone_and_has_its_tests() -> None:
    assert {place(module) for module in MODULES} == set(ZONES)
    folders = {path.name for path in (ROOT / "src").iterdir() if (path / "__init__.py").is_file()}
    assert {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} == folders


def test_nobody_imports_the_lab_or_a_command() -> None:
    commands = set(COMMANDS.values())
    shared = {  # the words of a comment
        "src/github/fork_words.py": {"src/github/comment.py"},
    }
    for module in set(MODULES) - {"src/__main__.py"}:
        assert imports(module) & commands == shared.get(module, set()), module
        assert place(module) == "lab" or not [path for path in imports(module) if place(path) == "lab"], module


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_torch_is_for_stages_and_the_lab(folder: str) -> None:
    for module in MODULES:
        if place(module) == folder:
            assert "torch" not in packages(module), module
            assert not [path for path in reach(module, lazily=False) if "torch" in packages(path, lazily=False)], module


@pytest.mark.journey
def test_what_runs_beside_a_write_token_or_before_setup_needs_no_package() -> None:
    files = [ROOT / "Makefile", *(ROOT / ".github/workflows").glob("*.yml")]
    verbs = {verb for path in files for verb in re.findall(r"(?:python3|\$PYTHON\W) -m src ([a-z-]+)", path.read_text())}
    assert {"plan", "publish", "fork-report", "update", "doctor"} <= verbs
    modules = {module for module in MODULES if place(module) == "github"} | {COMMANDS[verb] for verb in verbs}
    names = [module.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for module in sorted(modules)]
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {*sys.stdlib_module_names, "src", "__main__"}
    for module in modules:  # inside of functions, too
        assert packages(module) <= set(sys.stdlib_module_names), module


def test_there_is_no_circle() -> None:
    for module in MODULES:
        assert all(module not in reach(other) for other in imports(module)), module


def test_every_module_says_what_it_is() -> None:
    for module in MODULES:
        assert ast.get_docstring(ast.parse((ROOT / module).read_text())), module


def test_nothing_is_pickled() -> None:
    for module in MODULES:
        text = (ROOT / module).read_text()
        assert not re.search(r"\b(joblib|cloudpickle|pickle\.loads?|allow_pickle=True)\b", text), module
        assert text.count("torch.load(") == text.count("weights_only=True"), module


def pins(name: str) -> dict[str, str]:
    """Return {package: version} of a file of requirements/."""
    text = (ROOT / "requirements" / name).read_text()
    found = re.findall(r"^([\w.-]+)(?:\[.*?\])?==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("name", ["run", "check", "uv", "yours"])
def test_a_lock_holds_what_is_asked_for_with_hashes_and_no_address(name: str) -> None:
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert pins(f"{name}.in").items() <= pins(f"{name}.txt").items()
    assert "://" not in lock
    packages = re.findall(r"^[a-z0-9](?:.*\n)(?: .*\n)*", lock, re.MULTILINE)
    assert all("--hash=sha256:" in package for package in packages)
    assert not re.search(r"^(torch|nvidia-(?!ml-py)[\w-]+)==", lock, re.MULTILINE)  # ml-py asks the driver, no more


def test_the_locks_of_one_environment_agree() -> None:
    run, check = pins("run.txt"), pins("check.txt")
    assert {name: version for name, version in check.items() if run.get(name, version) != version} == {}


def test_what_is_imported_is_declared() -> None:
    """src is held to run.in, the tests to run.in and check.in: what others need may go with their next version."""
    distributions = metadata.packages_distributions()
    run = {*pins("run.in"), *pins("torch.txt")}
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"src", "tests"} | set(sys.stdlib_module_names)
    for folder, declared in (
        ("src", run | set(pins("yours.in"))),
        ("tests", run | set(pins("check.in")) | set(pins("yours.in"))),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            for module in {name.partition(".")[0] for name in imported_names(path)} - own:
                packages = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions.get(module, [module])}
                assert packages & declared, f"{path.relative_to(ROOT)} imports {module}, which no requirements/*.in names"


def help_lines() -> dict[str, str]:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^  make (\S+)\s+(.+)$", printed, re.MULTILINE))


@pytest.mark.journey
def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    assert set(help_lines()) == targets
    assert targets == set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))


@pytest.mark.journey
def test_help_names_only_options_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target, line in help_lines().items():
        assert not re.search(r"ARGS=--[a-z-]+ (?!or )", line), f"{target}: a shell ends ARGS at the space"
        for example in re.findall(r'ARGS=("[^"]+"|[^ ),]+)', line):
            recipe = makefile.split(f"\n{target}: ")[1].split("\n\n")[0]
            module = COMMANDS[re.search(r"-m src ([a-z0-9-]+)", recipe)[1]]
            sources = [(ROOT / path).read_text() for path in reach(module)]
            for option in re.findall(r"--[a-z-]+", example):
                made = (f'"{option}"', 'add_argument(f"--{')  # the second: one for each of several names
                assert any(word in source for source in sources for word in made), f"{target} has no {option}"


@pytest.mark.template
def test_the_readme_names_only_targets_and_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = help_lines()
    for target in re.findall(r"(?:`|^)make ([a-z0-9-]+)", readme, re.MULTILINE):
        assert target in targets, target
    tree = re.search(r"```text\n(.+?)```", readme, re.DOTALL)
    assert tree
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in tree[1].splitlines():
        path = line.split()[0].rstrip("/")
        made = path in ("data", "out")
        assert made or any(fnmatch(file, path) or file.startswith(path + "/") for file in tracked), path
    assert len(readme.splitlines()) <= 250


@pytest.mark.template
def test_links_in_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "starter" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.journey
def test_every_file_and_module_of_src_that_a_text_names_exists() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    records = (
        "starter/",
        "tests/",
        "docs/decisions.md",
        "dvc.lock",
        "manifest.json",
        "template.json",
    )  # history, and what tests make up
    for path in tracked:
        if path.startswith(records) or not (ROOT / path).is_file():
            continue
        text = (ROOT / path).read_text(errors="ignore")
        for name in re.findall(r"(?<![\w./-])src/[\w/]+(?:\.py\b|(?=[/\s`,;:)\"']))", text):
            assert (ROOT / name).exists(), f"{path} names {name}"
        for name in re.findall(r"(?<![\w./-])src(?:\.[a-z_]\w*)+", text):
            assert exists(name), f"{path} names {name}"


def exists(name: str) -> bool:
    """True for the dotted name of a folder or module of src/, or of what is in a module."""
    parts = name.split(".")
    modules = [parts[:end] for end in range(len(parts), 1, -1) if (ROOT / f"{'/'.join(parts[:end])}.py").is_file()]
    return bool(modules) or (ROOT / "/".join(parts)).is_dir()
