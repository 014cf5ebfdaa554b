"""The pages of studies: Markdown with tables that also read without their pictures, and CSV beside them."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.core.files import write_bytes


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is words, the others are numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (header, rule, *rows))


def write(path: Path, blocks: Sequence[str]) -> None:
    """Write a page of blocks."""
    write_bytes(path, ("\n\n".join(block for block in blocks if block) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows that share their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
