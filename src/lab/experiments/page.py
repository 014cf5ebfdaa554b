"""The pages of studies: Markdown with tables that also read without their pictures, and CSV beside them."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.core.files import write_bytes
from src.lab.experiments.crossed import Effect


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


def points(found: Effect) -> str:
    """Say a difference of accuracy in points of a hundred, with its interval."""
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def signed(found: Effect) -> str:
    """Say a difference with its interval."""
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
