"""What a device could compute at best: the peak that utilisation is a share of, from a data sheet or measured here."""

import functools
import re
import time
from typing import NamedTuple

import torch

_SIDE = 1024  # of the matrices that are multiplied to measure a peak
_SECONDS = 0.2  # for which they are
# Dense TFLOP/s in bf16 (None: emulated) and in fp32, whose convolutions run in TF32 where the card has it. Sources:
# NVIDIA's data sheets and architecture white papers of each card; figures given with sparsity are halved.
_CARDS: tuple[tuple[str, float | None, float], ...] = (
    ("B200", 2250, 1125),
    ("GH200", 989, 495),
    ("H200 NVL", 836, 418),
    ("H200", 989, 495),
    ("H100 NVL", 836, 418),
    ("H100 PCIe", 756, 378),
    ("H100", 989, 495),
    ("A100", 312, 156),
    ("A40", 149.7, 74.8),
    ("A30", 165, 82),
    ("A10", 125, 62.5),
    ("A10G", 70, 35),
    ("L40S", 362, 183),
    ("L40", 181, 90.5),
    ("L4", 121, 60),
    ("T4", None, 8.1),
    ("V100 SXM2", None, 15.7),
    ("V100 PCIE", None, 14),
    ("RTX 6000 Ada", 364, 182),
    ("RTX A6000", 154.8, 77.4),
    ("RTX 5090", 209.5, 104.8),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
)
_OTHERS = {"MIG", "Laptop", "D", "Ti"}  # a slice of a card, or a card of another speed under the same name


class Peak(NamedTuple):
    """FLOP/s of one device in one precision, and where the figure is from."""

    flops: float
    source: str


def of(device: torch.device, bf16: bool) -> Peak:
    """Return the peak of a device: its data sheet's where the card is known, else what multiplying matrices reaches.

    Args:
        device: where a run computes.
        bf16: the precision of the run; else fp32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = from_data_sheet(name, bf16)
        if known:
            return Peak(known, f"data sheet of {name}")
    return Peak(_measured(device, bf16, torch.get_num_threads()), "measured matmul peak")


def from_data_sheet(name: str, bf16: bool) -> float | None:
    """Return the dense FLOP/s of a card by the name its driver gives it, or None where that is not known."""
    words = set(re.split(r"[\s-]+", name))
    for card, in_bf16, in_fp32 in _CARDS:
        if set(card.split()) <= words and not words & _OTHERS:
            found = in_bf16 if bf16 else in_fp32
            return found and found * 1e12
    return None


@functools.cache
def _measured(device: torch.device, bf16: bool, _threads: int) -> float:
    """Multiply square matrices for a fifth of a second; the fastest product counts. One measurement a setting."""
    left, right = (torch.randn(_SIDE, _SIDE, device=device, dtype=_type(bf16)) for _ in range(2))
    best, ends, products = float("inf"), time.perf_counter() + _SECONDS, 0
    with torch.inference_mode():
        while products < 3 or time.perf_counter() < ends:
            started = time.perf_counter()
            torch.mm(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best, products = min(best, time.perf_counter() - started), products + 1
    return 2 * _SIDE**3 / best


def _type(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32
