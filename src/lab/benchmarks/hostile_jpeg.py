"""JPEG, GIF, WebP and BMP made to break whoever opens them, written by hand: no library writes them wrongly enough."""

import io
import struct

from PIL import Image

from src.lab.benchmarks.hostile_kinds import BAD, CANARY, EITHER, LARGE, ODD, Random, file, pick, picture

# ---------------------------------------------------------------------------------------------------------------------
# JPEG
# ---------------------------------------------------------------------------------------------------------------------


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _after_start(content: bytes, more: bytes) -> bytes:
    return content[:2] + more + content[2:]


def _scans(random: Random, side: int, times: int) -> bytes:
    """Return a progressive JPEG of one colour whose last pass comes again and again."""
    target = io.BytesIO()
    Image.new("RGB", (side, side), (int(random.integers(256)), 9, 9)).save(target, "JPEG", progressive=True)
    content = target.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * times + b"\xff\xd9"


@file(BAD)
def jpeg_of_thousands_of_passes(random: Random) -> bytes:
    return _scans(random, int(random.integers(64, 1500)), int(random.integers(1000, 20_000)))


@file(ODD)
def large_jpeg_of_many_passes(random: Random) -> bytes:
    return _scans(random, 3500, 80)


@file(EITHER)
def jpeg_that_is_said_to_be_huge(random: Random) -> bytes:
    content = bytearray(picture(random, "JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


@file(ODD)
def jpeg_with_huge_exif(random: Random) -> bytes:
    exif = _segment(0xE1, b"Exif\0\0" + CANARY + random.bytes(65_000))
    return _after_start(picture(random, "JPEG"), exif * int(random.integers(1, 100)))


def _exif(entries: bytes, count: int, following: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + struct.pack("<I", following)


@file(ODD)
def jpeg_whose_exif_runs_in_circles(random: Random) -> bytes:
    inner = struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x8825, 4, 1, 8)
    return _after_start(picture(random, "JPEG"), _segment(0xE1, _exif(inner, 2, 8)))


@file(ODD)
def jpeg_whose_exif_says_nonsense(random: Random) -> bytes:
    entries = random.bytes(12 * 200) + struct.pack("<HHII", 0x0112, 3, 2**32 - 1, 77)
    return _after_start(picture(random, "JPEG"), _segment(0xE1, _exif(entries, 201, int(random.integers(2**32)))))


@file(ODD)
def jpeg_with_many_profiles(random: Random) -> bytes:
    parts = [_segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + random.bytes(20_000)) for i in range(1, 255)]
    return _after_start(picture(random, "JPEG"), b"".join(parts))


@file(ODD)
def jpeg_full_of_comments(random: Random) -> bytes:
    return _after_start(picture(random, "JPEG"), _segment(0xFE, CANARY) * int(random.integers(1000, 50_000)))


@file(ODD)
def jpeg_full_of_filling(random: Random) -> bytes:
    return _after_start(picture(random, "JPEG"), b"\xff" * int(random.integers(100_000, 3_000_000)))


@file(ODD)
def jpeg_with_wrong_tables(random: Random) -> bytes:
    return _after_start(picture(random, "JPEG"), _segment(0xC4, random.bytes(400)) + _segment(0xDB, random.bytes(200)))


@file(ODD)
def jpeg_of_many_pictures(random: Random) -> bytes:
    index = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 2)
    index += struct.pack("<HHII", 0xB001, 4, 1, 60_000) + struct.pack(
        "<HHII", 0xB002, 7, 960_000, int(random.integers(2**31))
    )
    return _after_start(picture(random, "JPEG"), _segment(0xE2, index + bytes(4)))


@file(ODD)
def jpeg_of_another_process(random: Random) -> bytes:
    """Claim lossless, arithmetic or hierarchical coding."""
    marker = pick(random, (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB))
    return picture(random, "JPEG").replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


# ---------------------------------------------------------------------------------------------------------------------
# GIF, WebP, BMP
# ---------------------------------------------------------------------------------------------------------------------


def _gif(width: int, height: int, frames: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + frames + b";"


def _frame(left: int = 0, width: int = 1, data: bytes = b"\x02\x02\x44\x01\0") -> bytes:
    return b"," + struct.pack("<HHHHB", left, 0, width, 1, 0) + data


@file(ODD)
def gif_of_thousands_of_frames(random: Random) -> bytes:
    return _gif(8, 8, _frame() * int(random.integers(2000, 50_000)))


@file(LARGE)
def gif_of_a_huge_screen(_: Random) -> bytes:
    return _gif(65_535, 65_535, _frame())


@file(ODD)
def gif_whose_frame_leaves_the_screen(random: Random) -> bytes:
    return _gif(8, 8, _frame(int(random.integers(8, 65_535)), 65_535))


@file(ODD)
def gif_of_random_codes(random: Random) -> bytes:
    blocks = b"".join(b"\xff" + random.bytes(255) for _ in range(int(random.integers(1, 2000))))
    return _gif(64, 64, _frame(0, 64, bytes([int(random.integers(2, 13))]) + blocks + b"\0"))


@file(ODD)
def gif_full_of_comments(random: Random) -> bytes:
    return _gif(8, 8, (b"!\xfe\x15" + CANARY + b"\0") * int(random.integers(1000, 50_000)) + _frame())


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@file(ODD)
def webp_of_thousands_of_frames(random: Random) -> bytes:
    still = picture(random, "WEBP", 8)[12:]
    canvas = b"\x02\0\0\0" + b"\x07\0\0" * 2
    frame = (b"ANMF", bytes(6) + b"\x07\0\0" * 2 + b"\x0a\0\0\0" + still)
    return _riff((b"VP8X", canvas), (b"ANIM", bytes(6)), *[frame] * int(random.integers(1000, 3000)))


@file(EITHER)
def webp_of_a_huge_canvas(random: Random) -> bytes:
    canvas = b"\0\0\0\0" + b"\xff\x3f\0" * 2
    return _riff((b"VP8X", canvas), (b"VP8L", b"/\xff\xff\xff\x0f" + random.bytes(int(random.integers(1, 9000)))))


@file(EITHER)
def webp_whose_length_is_a_lie(random: Random) -> bytes:
    content = bytearray(picture(random, "WEBP"))
    content[16:20] = struct.pack("<I", int(random.integers(2**24, 2**32)))
    return bytes(content)


@file(ODD)
def webp_with_huge_metadata(random: Random) -> bytes:
    still = picture(random, "WEBP", 8)[12:]
    meta = [(name, CANARY + random.bytes(1_000_000)) for name in (b"EXIF", b"XMP ", b"ICCP")]
    kind, length = still[:4], struct.unpack("<I", still[4:8])[0]
    return _riff((b"VP8X", b"\x2c\0\0\0" + b"\x07\0\0" * 2), meta[2], (kind, still[8 : 8 + length]), *meta[:2])


def _bmp(random: Random, *fields: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, *fields)
    return b"BM" + struct.pack("<IHHI", 54 + 192, 0, 0, 54) + header + random.bytes(192)


@file(LARGE)
def bmp_that_is_said_to_be_huge(random: Random) -> bytes:
    return _bmp(random, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)


@file(ODD)
def bmp_of_a_negative_size(random: Random) -> bytes:
    return _bmp(random, -8, pick(random, (8, -8, -(2**31))), 1, 24, 0, 0, 0, 0, 0, 0)


@file(ODD)
def bmp_of_random_runs(random: Random) -> bytes:
    return _bmp(random, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)


@file(ODD)
def bmp_of_too_many_colours(random: Random) -> bytes:
    return _bmp(random, 8, 8, 1, pick(random, (1, 4, 8, 24, 32)), 0, 0, 0, 0, int(random.integers(300, 2**32)), 0)
