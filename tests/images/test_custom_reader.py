"""examples() of src/data.py reads any raw format, and its faults become sentences.

python -m pytest tests/images/test_custom_reader.py
"""

import csv
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import encode

from src import data
from src.core.command import UserError
from src.core.example import Example
from src.images.prepare import prepare
from src.system.params import Params

MakeParams = Callable[..., Params]
SHIPPED = data.examples


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Write the body of examples(root) as a team does in src/data.py."""

    def go(body: str) -> None:
        path = tmp_path / "src" / "data.py"
        code = "def examples(root):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
        names: dict[str, Any] = {"Example": Example}
        exec(compile(code, str(path), "exec"), names)
        monkeypatch.setattr(data, "examples", names["examples"])

    return go


@pytest.fixture
def root(tmp_path: Path, random: np.random.Generator) -> Path:
    """Two folders of pictures whose names are no labels, 40 in all."""
    for number in range(40):
        path = tmp_path / "data" / f"camera{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
    return tmp_path / "data"


def run(root: Path, params: Params) -> pd.DataFrame:
    out = root.parent / "out"
    prepare(root, out / "arrays", out / "manifest.parquet", params.prepare)
    return pq.read_table(out / "manifest.parquet").to_pandas()


def test_the_worked_example_reads_a_csv_of_labels(root: Path, write: Callable[[str], None], params: MakeParams) -> None:
    documented = inspect.getdoc(SHIPPED)
    assert documented
    write(documented[documented.index("    import csv") : documented.index("For images inside an archive")])
    rows = [(f"camera{n % 2}/{n:02}.png", f"kind {n % 3}", f"patient {n // 4}", "test" if n < 12 else "") for n in range(40)]
    for columns in (4, 2):
        with (root / "labels.csv").open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("path", "label", "group", "split")[:columns], *(row[:columns] for row in rows)])
        manifest = run(root, params(prepare__image_size=8))
        assert manifest["fault"].isna().all()
        assert list(manifest["path"]) == [row[0] for row in rows]
        assert list(manifest["label"]) == [row[1] for row in rows]
        if columns == 4:
            assert list(manifest["group"]) == [row[2] for row in rows]
            assert (manifest["split"] == "test").tolist()[:12] == [True] * 12


def test_it_prepares_the_same_files_as_the_built_in_reader(
    root: Path, write: Callable[[str], None], params: MakeParams
) -> None:
    def outputs() -> dict[str, bytes]:
        run(root, params(prepare__image_size=8))
        return {path.name: path.read_bytes() for path in (root.parent / "out").rglob("*") if path.is_file()}

    built_in = outputs()
    write("return (Example(path.relative_to(root), path.parent.name) for path in sorted(root.rglob('*.png')))")
    assert outputs() == built_in


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        ("Example('none.png', 'a')", "no such file below data/"),
        ("Example('camera0', 'a')", "not a regular file"),
        ("Example('camera0/00.png', float('nan'))", "no label: src/data.py yields none"),
        ("Example('camera0/00.png', ['a'])", "label that src/data.py yields is of type list, expected text"),
        ("Example('camera0/00.png', 'a', split='later')", "unknown split 'later': expected train, validation or test"),
        ("Example('../outside.png', 'a')", "outside data/: src/data.py has to yield a path below data/"),
        ("Example(str(root.resolve() / 'camera0/00.png'), 'a')", "outside data/: .* relative to it"),
        ("Example('x.tar', 'a', content=b'')", "empty image"),
        ("Example('x.tar', 'a', content='camera0/00.png')", "content that src/data.py .* expected bytes, or None"),
        ("Example('x.tar', 'a', content=b'x', row=2**63)", "row that src/data.py .* expected a number from 0 to 2"),
        ("Example('camera0/00.png', 'a', fault='label in doubt')", "label in doubt"),
    ],
)
def test_a_fault_of_one_example_is_a_row_and_loses_no_other(
    example: str, fault: str, root: Path, write: Callable[[str], None], params: MakeParams
) -> None:
    write(f"""
        paths = sorted(root.rglob("*.png"))
        for path in paths[1:21]:
            yield Example(path.relative_to(root).as_posix(), "a")
        yield {example}
        for path in paths[21:]:
            yield Example(path.relative_to(root).as_posix(), "b")
    """)
    (root.parent / "outside.png").write_bytes((root / "camera0" / "00.png").read_bytes())
    manifest = run(root, params(prepare__image_size=8))
    assert len(manifest) == 40
    assert list(manifest["fault"].notna()) == [place == 20 for place in range(40)]
    assert manifest["fault"].str.contains(fault, regex=True)[20]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('label')", "src/data.py, line 2: KeyError: 'label': correct examples"),
        (
            "yield Example('camera0/00.png', 'a')\n{}['label']",
            "src/data.py, line 3: KeyError: 'label' after 1 examples, the last of them camera0/00.png: correct",
        ),
        ("yield 'camera0/00.png', 'a'", r"yields a tuple as example 1, expected Example\(path, label\)"),
        ("return []", "src/data.py yields no example of .*data: correct examples"),
        (
            "(root / str(len(list(root.iterdir())))).touch()\nreturn [Example(path.name, 'a') for path in root.iterdir()]",
            "yields other examples of .*data when it is called again .3 at first.: yield the same ones",
        ),
    ],
)
def test_a_fault_of_the_function_stops_with_its_line_and_changes_no_output(
    body: str, message: str, root: Path, write: Callable[[str], None], params: MakeParams
) -> None:
    run(root, params(prepare__image_size=8))
    before = {path: path.stat().st_mtime_ns for path in (root.parent / "out").rglob("*")}
    write(body)
    with pytest.raises(UserError, match=message):
        run(root, params(prepare__image_size=8))
    assert {path: path.stat().st_mtime_ns for path in (root.parent / "out").rglob("*")} == before
