"""YOURS. The reader of your raw format, if data/ is neither class folders nor Parquet shards.

The engine does all else: it decodes on all cores with bounded memory, finds copies, splits and writes the manifest. This
file may import src/core and packages, and whatever it imports from src/ belongs into `dvc.yaml` beside it.
"""

from collections.abc import Iterator
from pathlib import Path

from src.core.example import Example


def examples(root: Path) -> Iterator[Example] | None:
    """Yield every example under `root`, which is data/; None means the built-in forms.

    The built-in forms are class folders, `data/<label>/<file>`, and Parquet shards in Hugging Face's image layout: `image`
    {bytes, path}, `label`, optional `group`, optional `split`. They may be mixed.

    For another form, replace `return None`. Images beside `data/labels.csv` with the columns path, label and, where you
    have them, group and split:

        import csv

        with (root / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                yield Example(row["path"], row["label"], row.get("group"), row.get("split"))

    For images inside an archive or a table, yield their bytes too, with the archive's path and the number in it:
    `Example("scans.tar", label, content=image_bytes, row=number)`.

    The function is called twice, to count and to read, so it yields the same examples in the same order each time, on every
    machine: sort what you list. An example without a label, or whose file is missing or damaged, becomes a row of the
    manifest with its fault, and `validate.max_corrupt` decides. An exception here stops the stage prepare.
    """
    return None
