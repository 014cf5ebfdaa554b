"""How the report writes numbers: sensible digits, a sign on every difference, a unit where there is one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from src.system.judged import Hardware

Writer = Callable[[float], str]


def percent(share: float) -> str:
    """0.9974 is 99.74%."""
    return f"{share:.2%}"


def points(difference: float) -> str:
    """0.0077 is +0.77 points (of a hundred)."""
    return f"{signed(difference * 100)} points"


def signed(number: float, digits: int = 2) -> str:
    """Always with its sign; what rounds to nothing is +0."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def change(number: float) -> str:
    """A difference of four decimals."""
    return signed(number, 4)


def whole(number: float) -> str:
    """12345 is 12,345."""
    return f"{number:,.0f}"


def decimals(number: float) -> str:
    """Four decimals."""
    return f"{number:.4f}"


def milliseconds(number: float) -> str:
    """Milliseconds with three digits that count."""
    digits = 3 if number < 1 else 2 if number < 10 else 1
    return f"{number:,.{digits}f} ms"


def mebibytes(number: float) -> str:
    """0.67 is 0.67 MiB."""
    return f"{number:,.2f} MiB"


def general(number: float) -> str:
    """Four digits that count, no more."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def chance(p: float) -> str:
    """A p value, of which tiny ones are only called so."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


NUMBERS: tuple[Writer, ...] = (percent, points, change, whole, decimals, milliseconds, mebibytes, general, chance, duration)


def written(value: Any, write: Writer) -> str | None:
    """Write a number that one side may not have; None where it has none."""
    return write(value) if isinstance(value, int | float) and math.isfinite(value) else None


def count(number: int, noun: str, several: str = "") -> str:
    """1 image, 2 images, 2 classes."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def listed(names: Sequence[str], largest: int = 8) -> str:
    """Join names; what does not fit is counted."""
    rest = len(names) - largest
    return ", ".join(names[:largest]) + (f" and {rest} more" if rest > 0 else "")


def place(path: str, row: int) -> str:
    """Name an example as a person finds it: the file, or the shard and the row in it."""
    return path if row < 0 else f"{path}#{row}"


def machine(found: Hardware | None) -> str:
    """Name a machine: accelerator, processor, cores, memory, as far as they are known."""
    told = [name for name in (found.accelerator, found.processor) if name] if found else []
    told += [count(found.cores, "core")] if found and found.cores else []
    told += [f"{found.memory_gib:.1f} GiB"] if found and found.memory_gib else []
    return ", ".join(told) or "hardware unknown"
