"""Refuse a file beside src/ that Python could import in place of a package: torch.py, onnxruntime.py, json.py."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from src.core.command import UserError

_MODULES = (".py", ".pyc", ".so")


def refuse_shadows(root: Path) -> None:
    """Refuse to run where the repository's root or the current folder holds a module that is named as a package elsewhere.

    The order of the path is not enough: a file wins over a namespace package such as `ruamel`, and processes that a package
    starts by `python -c` have the folder that they stand in first.

    Raises:
        UserError: there is such a file or folder.
    """
    folders = {str(root), os.getcwd()}
    elsewhere = [path for path in sys.path if os.path.abspath(path) not in folders]
    for folder in sorted({os.path.abspath(path) for path in sys.path} & folders):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = entry.name.partition(".")[0]
            module = entry.name.endswith(_MODULES) or os.path.isfile(os.path.join(entry.path, "__init__.py"))
            if module and name != "src" and (name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere)):
                raise UserError(
                    f"{entry.path} could be imported in place of the package {name}: rename it, or move it into src/"
                )
