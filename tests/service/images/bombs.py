"""Pictures that cost a decoder much for their bytes.

    python -m tests.service.images.bombs NAME

decodes one of CASES and prints what that took: CPU seconds, MiB of memory at the most, and the outcome.
"""

import json
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable

from convoy.service.errors import BadImage
from convoy.service.images.decode import decode

LIMIT = 50_000_000  # pixels, as in the default configuration
SIDE = 7071  # of the largest square
DEEP_SIDE = 5000  # of the largest one with 16 bits
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
MIB = 1 << 20


def segment(code: int, body: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def _frame(code: int, height: int, width: int, components: int) -> bytes:
    body = struct.pack(">BHHB", 8, height, width, components)
    return segment(code, body + b"".join(bytes([number + 1, 0x11, 0]) for number in range(components)))


def _scan(components: Iterable[int], first: int, last: int, bits: int) -> bytes:
    of = list(components)
    return segment(0xDA, bytes([len(of), *(byte for each in of for byte in (each, 0)), first, last, bits]))


def _codes(table: int, symbols: bytes) -> bytes:
    """A table of Huffman codes of two bits."""
    return segment(0xC4, bytes([table, 0, len(symbols), *[0] * 14]) + symbols)


def _packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def progressive(height: int, width: int, components: int, scans: int) -> bytes:
    """A valid grey picture. Each scan refines what is nothing: a few bytes stand for thousands of blocks."""
    blocks = -(-height // 8) * -(-width // 8)
    pieces = [
        b"\xff\xd8" + segment(0xDB, bytes([0] + [16] * 64)) + _frame(0xC2, height, width, components),
        _codes(0x00, b"\0") + _scan(range(1, components + 1), 0, 0, 0) + _packed("00" * blocks * components),
        _codes(0x10, b"\xe0\0"),
    ]
    # The longest runs of empty blocks: 2^15 - 1 by a code and 14 bits.
    runs = ["00" + "1" * 14] * (blocks // 32_767) + ["01"] * (blocks % 32_767)
    empty = _packed("".join(runs))
    bands = [(first, min(first + 7, 63)) for first in range(1, 64, 8)]
    levels = [(0, 13), *((level + 1, level) for level in range(12, -1, -1))]
    steps = [
        (component, band, high << 4 | low)
        for band in bands
        for high, low in levels
        for component in range(1, components + 1)
    ]
    for number in range(scans - 1):
        component, band, bits = steps[number % len(steps)]
        pieces.append(_scan([component], *band, bits) + empty)
    return b"".join([*pieces, b"\xff\xd9"])


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(height: int, width: int, bits: int = 8, kind: int = 6, *, interlaced: bool = False, more: int = 0) -> bytes:
    """A picture of one value. `more` is the number of bytes of pixels beyond those that the header says."""

    def nbytes(high: int, wide: int) -> int:
        return high * (1 + -(-wide * SAMPLES[kind] * bits // 8)) if high and wide else 0

    size = nbytes(height, width)
    if interlaced:
        size = sum(nbytes(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in PASSES)
    deflate = zlib.compressobj(1)
    whole, rest = divmod(size + more, MIB)
    data = [deflate.compress(bytes(MIB)) for _ in range(whole)] + [deflate.compress(bytes(rest)), deflate.flush()]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(768)) if kind == 3 else b""
    ended = chunk(b"IDAT", b"".join(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + ended


def heaviest() -> bytes:
    """The picture that takes the most time of those that are accepted."""
    return png(DEEP_SIDE, DEEP_SIDE, 16, 6, interlaced=True)


def cut(data: bytes) -> list[bytes]:
    """A file that ends at each of its bytes."""
    return [data[:end] for end in range(len(data))]


CASES: dict[str, Callable[[], list[bytes]]] = {
    "nothing": lambda: [png(1, 1)],
    "JPEG of 65,535 by 65,535": lambda: [progressive(16, 16, 3, 2).replace(b"\x08\0\x10\0\x10", b"\x08" + b"\xff" * 4)],
    "PNG of 65,535 by 65,535": lambda: [png(1, 65_535).replace(struct.pack(">II", 65_535, 1), b"\0\0\xff\xff" * 2)],
    "10,000 scans": lambda: [progressive(800, 800, 3, 10_000)],
    "100 scans of the largest picture": lambda: [progressive(SIDE, SIDE, 3, 100)],
    "20 scans of the largest picture": lambda: [progressive(SIDE, SIDE, 3, 20)],
    "100 scans of a small picture": lambda: [progressive(3000, 3000, 3, 100)],
    "1 by 65,535": lambda: [png(65_535, 1), png(65_535, 1, interlaced=True), progressive(65_500, 1, 3, 9)],
    "65,535 by 1": lambda: [png(1, 65_535), png(1, 65_535, interlaced=True), progressive(1, 65_500, 3, 9)],
    "PNG that inflates to 1 GiB": lambda: [png(100, 100, more=1 << 30)],
    "interlaced PNG that inflates to 1 GiB": lambda: [png(100, 100, interlaced=True, more=1 << 30)],
    "largest interlaced PNG": lambda: [png(SIDE, SIDE, interlaced=True)],
    "largest PNG of 16 bits": lambda: [heaviest()],
    "larger PNG of 16 bits": lambda: [png(SIDE, SIDE, 16)],
    "JPEG cut at every byte": lambda: cut(progressive(64, 64, 3, 12)),
    "PNG cut at every byte": lambda: cut(png(64, 64, 16, interlaced=True)),
}


def _main(name: str) -> None:
    files = CASES[name]()
    decode(png(1, 1), "RGB", LIMIT)
    with open("/proc/self/clear_refs", "w") as peak:  # noqa: PTH123  the peak begins anew
        peak.write("5")
    before, began = _peak(), time.process_time()
    outcomes = []
    for data in files:
        try:
            picture = decode(data, "RGB", LIMIT)
            outcomes.append(f"{picture.height}x{picture.width}")
            del picture
        except BadImage as error:
            outcomes.append(error.message)
    seconds = time.process_time() - began
    print(json.dumps({"seconds": seconds, "mib": _peak() - before, "outcomes": outcomes}))


def _peak() -> float:
    with open("/proc/self/status") as status:  # noqa: PTH123
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    _main(sys.argv[1])
