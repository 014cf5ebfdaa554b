"""The starter data: 1,797 handwritten digits, 8x8 grey, as scikit-learn ships them.

    python -m src data-digits data

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998),
its test part; licence CC BY 4.0. The 17 grey levels 0..16 are spread over 0..255.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from src.lab.datasets import shards


def write(folder: Path) -> None:
    """Write `digits.parquet` into the folder."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = (int(label) for label in digits.target)
    shards.write(folder / "digits.parquet", zip(images, labels, strict=True), [str(name) for name in digits.target_names])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the handwritten digits that scikit-learn ships into a folder.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
