"""Files that are no picture, and PNG made to break whoever opens it."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from src.lab.benchmarks.hostile_kinds import (
    BAD,
    CANARY,
    EITHER,
    FILES,
    LARGE,
    ODD,
    File,
    Random,
    file,
    pick,
    picture,
    zeros,
)

_PNG = b"\x89PNG\r\n\x1a\n"


def _chunk(name: bytes, content: bytes, *, right: bool = True) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ (not right))


def _png(width: int, height: int, *chunks: bytes, how: tuple[int, ...] = (8, 2, 0, 0, 0)) -> bytes:
    return b"".join([_PNG, _chunk(b"IHDR", struct.pack(">II5B", width, height, *how)), *chunks, _chunk(b"IEND", b"")])


def _pixels(side: int = 8, times: int = 1) -> bytes:
    return zlib.compress((b"\0" + bytes(3 * side)) * side * times, 9)


# ---------------------------------------------------------------------------------------------------------------------
# Cut, flipped, empty, something else
# ---------------------------------------------------------------------------------------------------------------------


def _cut(kind: str) -> Callable[[Random], bytes]:
    def make(random: Random) -> bytes:
        content = picture(random, kind)
        return content[: int(random.integers(12, len(content) * 3 // 4))]

    return make


for _kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
    FILES[f"{_kind.lower()} cut short"] = File(_cut(_kind), EITHER)


@file(ODD)
def flipped_bits(random: Random) -> bytes:
    content = bytearray(picture(random, pick(random, ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"))))
    for place in random.integers(0, len(content), 8):
        content[place] ^= 1 << int(random.integers(8))
    return bytes(content)


@file(BAD)
def no_byte(_: Random) -> bytes:
    return b""


@file(BAD)
def magic_number_alone(random: Random) -> bytes:
    return pick(random, (_PNG, b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\x04\0\0\0WEBP"))


@file(BAD)
def random_bytes(random: Random) -> bytes:
    return bytes([0]) + random.bytes(int(random.integers(1, 50_000)))


@file(BAD)
def pickle(random: Random) -> bytes:
    return b"\x80\x04cos\nsystem\n(S'echo " + CANARY + b" > /tmp/pickled'\ntR." + random.bytes(9)


@file(BAD)
def archive(random: Random) -> bytes:
    target = io.BytesIO()
    member = zipfile.ZipInfo("../../x.png")  # of a fixed date: the same seed makes the same bytes
    with zipfile.ZipFile(target, "w") as bundle:
        bundle.writestr(member, CANARY + bytes(int(random.integers(1, 5_000_000))), zipfile.ZIP_DEFLATED)
    return target.getvalue()


@file(BAD)
def packed_picture(random: Random) -> bytes:
    return gzip.compress(picture(random) + bytes(5_000_000), mtime=0)


@file(BAD)
def entities_that_multiply(random: Random) -> bytes:
    lines = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(int(random.integers(9, 30))))
    return f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a0 "ha">{lines}]><svg>&a9;</svg>'.encode()


@file(BAD)
def format_outside_the_list(random: Random) -> bytes:
    if random.random() < 0.3:
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n%%EOF\n"
    return picture(random, pick(random, ("ICO", "PPM", "TGA", "PDF", "PCX", "JPEG2000", "SGI", "DDS", "ICNS")))


# ---------------------------------------------------------------------------------------------------------------------
# PNG
# ---------------------------------------------------------------------------------------------------------------------


@file(LARGE)
def png_of_3600_megapixels(random: Random) -> bytes:
    return _png(60_000, 60_000 + int(random.integers(99)), _chunk(b"IDAT", zeros(random)), how=(1, 0, 0, 0, 0))


@file(EITHER)
def png_of_the_largest_size(_: Random) -> bytes:
    return _png(2**31 - 1, 2**31 - 1, _chunk(b"IDAT", _pixels()))


@file(BAD)
def png_of_no_size(random: Random) -> bytes:
    return _png(*pick(random, ((0, 5), (5, 0), (0, 0))), _chunk(b"IDAT", _pixels()))


@file(EITHER)
def png_of_a_negative_size(_: Random) -> bytes:
    return _png(2**32 - 1, 2**32 - 8, _chunk(b"IDAT", _pixels()))


@file(ODD)
def png_of_many_pieces(random: Random) -> bytes:
    content = _pixels()
    pieces = [_chunk(b"IDAT", content[i : i + 1]) for i in range(len(content))]
    empty = [_chunk(b"IDAT", b"")] * int(random.integers(1000, 20_000))
    return _png(8, 8, *pieces[:9], *empty, *pieces[9:])


@file(ODD)
def png_that_unpacks_to_more_than_it_shows(random: Random) -> bytes:
    return _png(8, 8, _chunk(b"IDAT", zeros(random)))


@file(BAD)
def png_that_unpacks_to_less_than_it_shows(random: Random) -> bytes:
    return _png(int(random.integers(500, 1500)), 900, _chunk(b"IDAT", _pixels()))


def _text_bomb(name: bytes, before: bytes) -> Callable[[Random], bytes]:
    return lambda random: _png(8, 8, *[_chunk(name, before + zeros(random))] * 3, _chunk(b"IDAT", _pixels()))


for _name, _before in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
    FILES[f"png with a bomb in {_name.decode()}"] = File(_text_bomb(_name, _before), ODD)


@file(ODD)
def png_of_thousands_of_texts(random: Random) -> bytes:
    return _png(8, 8, *[_chunk(b"tEXt", b"k\0" + CANARY)] * int(random.integers(1000, 9000)), _chunk(b"IDAT", _pixels()))


@file(BAD)
def png_with_a_wrong_checksum(_: Random) -> bytes:
    return _PNG + _chunk(b"IHDR", struct.pack(">II5B", 8, 8, 8, 2, 0, 0, 0), right=False) + _chunk(b"IDAT", _pixels())


@file(ODD)
def png_whose_chunk_is_said_to_be_huge(random: Random) -> bytes:
    length = struct.pack(">I", int(random.integers(2**24, 2**32)))
    return _png(8, 8)[:33] + length + pick(random, (b"IDAT", b"tEXt", b"zzZz")) + _pixels()


@file(BAD)
def png_without_pixels(_: Random) -> bytes:
    return _png(8, 8)


@file(ODD)
def png_whose_palette_is_not_there(random: Random) -> bytes:
    return _png(8, 8, _chunk(b"IDAT", zlib.compress((b"\0" + random.bytes(8)) * 8)), how=(8, 3, 0, 0, 0))


@file(ODD)
def png_of_an_impossible_kind(random: Random) -> bytes:
    return _png(8, 8, _chunk(b"IDAT", _pixels()), how=tuple(int(n) for n in random.integers(0, 20, 5)))


@file(ODD)
def png_of_two_headers(random: Random) -> bytes:
    again = _chunk(b"IHDR", struct.pack(">II5B", int(random.integers(9, 60_000)), 60_000, 8, 2, 0, 0, 0))
    return _png(8, 8, again, _chunk(b"IDAT", _pixels()))


@file(ODD)
def png_of_thousands_of_frames(random: Random) -> bytes:
    frames = int(random.integers(1000, 5000))
    first, body = _chunk(b"acTL", struct.pack(">II", frames, 0)), []
    for i in range(frames):
        body.append(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * i, 8, 8, 0, 0, 1, 1, 0, 0)))
        body.append(_chunk(b"fdAT", struct.pack(">I", 2 * i + 1) + _pixels()) if i else _chunk(b"IDAT", _pixels()))
    return _png(8, 8, first, *body)


@file(ODD)
def archive_in_a_png(random: Random) -> bytes:
    return picture(random) + archive(random)


@file(ODD)
def pickle_in_a_png(random: Random) -> bytes:
    return _png(8, 8, _chunk(b"tEXt", b"model\0" + pickle(random)), _chunk(b"IDAT", _pixels()))
