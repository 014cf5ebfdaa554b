"""The structure holds: two floors, DVC's dependencies are the real imports, README and help tell the truth.

python -m pytest tests/test_structure.py
"""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT, WORKING_TREE
from ruamel.yaml import YAML

from src import model

FOLDERS_OF_VERBS = (
    "src/stages/",
    "src/lab/datasets/",
    "src/lab/benchmarks/",
    "src/lab/experiments/",
    "src/reporting/",
    "src/github/",
    "src/judging/",
    "src/release/",
    "src/serving/",
)
VERBS = (
    *FOLDERS_OF_VERBS,
    "src/system/reproduce.py",
    "src/system/environment.py",
    "src/release/storage.py",
    "src/system/update.py",
    "src/system/runner_doctor.py",
)
# clients, and the schema that writer and reader share
NOUNS_AMONG_THEM = {
    *(f"src/github/{name}.py" for name in ("api", "deployments", "git", "labels", "numbers")),
    "src/release/client.py",
    "src/release/production.py",
}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py"))


@cache
def imports(module: str) -> set[str]:
    """Return the files under src/ that a module imports anywhere in it, also inside functions."""
    return imports_of(ROOT / module)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names = {name for name in found if name.split(".")[0] == "src"}
    return {path for name in names for path in files_of(name)}


def files_of(name: str) -> set[str]:
    """Return what Python runs to import a module: the file, and the packages on the way to it."""
    parts = name.split(".")
    packages = ["/".join(parts[:i]) + "/__init__.py" for i in range(1, len(parts) + 1)]
    return {path for path in [*packages, "/".join(parts) + ".py"] if (ROOT / path).is_file()}


@cache
def reach(module: str) -> set[str]:
    """Return a module and all it imports, directly or not."""
    seen, todo = set(), [module, *files_of(module.removesuffix(".py").replace("/", "."))]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imports(path)
    return seen


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


STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_depends_on_exactly_what_a_stage_imports(stage: str) -> None:
    module = re.search(r"-m (src\.stages\.\w+)", STAGES[stage]["cmd"])
    assert module
    listed = {path for path in STAGES[stage]["deps"] if path.startswith("src/")}
    imported_here = reach(module[1].replace(".", "/") + ".py")
    assert imported_here <= listed
    # src/data.py and src/model.py are the template's here; the fork's own may lead to files of its own
    fork = [imports_of(WORKING_TREE / name) for name in ("src/data.py", "src/model.py") if name in listed]
    assert listed - imported_here <= {path for found in fork for name in found for path in reach(name)}


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_a_dependency_or_an_output(stage: str) -> None:
    entries = [*STAGES[stage]["deps"], *STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]
    known = {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}
    words = STAGES[stage]["cmd"].split()[3:]
    options = ("--checkpoints", "--manifest", "out/checkpoints", "out/history")  # what no two runs agree on is no output
    assert [word for word in words if word not in known and word not in options] == []


def test_what_a_report_shows_makes_no_stage_stale() -> None:
    assert not [name for stage in STAGES.values() for name in stage["params"] if name.split(".")[0] == "report"]


def test_the_stage_that_costs_has_only_cached_outputs() -> None:
    assert STAGES["train"]["outs"] == ["out/model"]
    assert "metrics" not in STAGES["train"]


def test_nouns_do_not_import_verbs_and_verbs_meet_through_files() -> None:
    for module in MODULES:
        for other in imports(module):
            if other.startswith(VERBS) and not other.endswith("__init__.py") and other not in NOUNS_AMONG_THEM:
                same_folder = Path(other).parent == Path(module).parent != Path("src/stages")
                assert same_folder, f"{module} imports {other}"
                assert not is_command(other), f"{module} imports the command {other}"


def is_command(module: str) -> bool:
    return 'if __name__ == "__main__":' in (ROOT / module).read_text()


def test_what_runs_beside_a_write_token_needs_no_package() -> None:
    allowed = {"src/__init__.py", "src/core/command.py", "src/core/files.py"}
    for module in MODULES:
        if module.startswith("src/github/"):
            assert {path for path in reach(module) if not path.startswith("src/github/")} <= allowed, module
            assert packages(module) <= set(sys.stdlib_module_names), module


def packages(module: str) -> set[str]:
    """Return the top-level names of what a module imports from outside of src/."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found} - {"src"}


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
            for module in imported(ast.parse(path.read_text())) - own:
                packages = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions.get(module, [module])}
                assert packages & declared, f"{path.relative_to(ROOT)} imports {module}, which no requirements/*.in names"


def imported(tree: ast.AST) -> set[str]:
    """Return the top names of what a module imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def help_lines() -> dict[str, str]:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^  make (\S+)\s+(.+)$", printed, re.MULTILINE))


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    assert set(help_lines()) == targets
    assert targets == set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))


def test_help_names_only_options_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target, line in help_lines().items():
        assert not re.search(r"ARGS=--[a-z-]+ (?!or )", line), f"{target}: a shell ends ARGS at the space"
        for example in re.findall(r'ARGS=("[^"]+"|[^ ),]+)', line):
            recipe = makefile.split(f"\n{target}: ")[1].split("\n\n")[0]
            module = re.search(r"-m (src[.\w]+)", recipe)[1].replace(".", "/") + ".py"
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
        assert made or any(file == path or file.startswith(path + "/") for file in tracked), path
    assert len(readme.splitlines()) <= 250


@pytest.mark.template
def test_the_readme_shows_the_pipeline_as_dvc_draws_it() -> None:
    readme = (ROOT / "README.md").read_text()
    for stage in STAGES:
        assert re.search(rf"\b{stage}\b", readme)


@pytest.mark.template
def test_links_in_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "starter" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
