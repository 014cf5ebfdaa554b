"""TIFF made to break whoever opens it."""

import struct

from src.lab.benchmarks.hostile_kinds import BAD, EITHER, ODD, Random, file, pick, zeros


def _tiff(side: int, data: bytes, *more: tuple[int, int, int, int], following: int = 0, packing: int = 1) -> bytes:
    """Return a grey TIFF; `more` are further entries (tag, type, count, value), which replace those of the same tag."""
    base = ((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, packing), (262, 3, 1, 1), (273, 4, 1, 0),
            (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, len(data)))  # fmt: skip
    entries = {entry[0]: entry for entry in (*base, *more)}
    start = 8 + 2 + 12 * len(entries) + 4
    if 273 not in {entry[0] for entry in more}:
        entries[273] = (273, 4, 1, start)
    listed = b"".join(struct.pack("<HHII", *entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + struct.pack("<I", following) + data


@file(ODD)
def tiff_that_runs_in_circles(random: Random) -> bytes:
    return _tiff(8, random.bytes(64), (330, 4, 1, 8), (34665, 4, 1, 8), following=8)


@file(EITHER)
def tiff_that_is_said_to_be_huge(random: Random) -> bytes:
    return _tiff(int(random.integers(50_000, 2**31)), random.bytes(64))


@file(ODD)
def tiff_of_a_huge_tag(random: Random) -> bytes:
    return _tiff(8, random.bytes(64), (pick(random, (270, 258, 273, 320, 700)), 2, 2**32 - 1, 8))


@file(ODD)
def tiff_of_countless_strips(random: Random) -> bytes:
    count = int(random.integers(10_000, 100_000))
    return _tiff(8, bytes(4 * count), (273, 4, count, 200), (279, 4, count, 200), (278, 4, 1, 1))


@file(BAD)
def tiff_whose_strip_is_elsewhere(random: Random) -> bytes:
    return _tiff(8, random.bytes(64), (273, 4, 1, int(random.integers(10**6, 2**32))), (279, 4, 1, 2**32 - 1))


@file(ODD)
def tiff_that_unpacks_to_more_than_it_shows(random: Random) -> bytes:
    return _tiff(8, zeros(random), packing=8)


@file(ODD)
def tiff_of_a_strange_packing(random: Random) -> bytes:
    return _tiff(64, random.bytes(4096), packing=pick(random, (2, 3, 4, 5, 6, 7, 32773, 32946, 34925, 50001, 9)))


@file(ODD)
def tiff_of_thousands_of_pages(random: Random) -> bytes:
    page = struct.pack("<H", 0)
    pages = int(random.integers(1000, 5000))
    first = _tiff(8, random.bytes(64), following=8 + 2 + 12 * 9 + 4 + 64)
    return first + b"".join(page + struct.pack("<I", len(first) + 6 * (i + 1)) for i in range(pages)) + page + bytes(4)


@file(ODD)
def tiff_of_strange_samples(random: Random) -> bytes:
    odd = [(258, 3, 1, int(random.integers(0, 129))), (277, 3, 1, int(random.integers(0, 70))), (339, 3, 1, 3)]
    return _tiff(8, random.bytes(4096), *odd, (262, 3, 1, int(random.integers(0, 9))))
