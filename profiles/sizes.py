"""Sizes as people write them: "2 GiB", "512 MiB", "17 GB", or a plain number of bytes."""

import math
import re

UNIT_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MIB = 2**20
GIB = 2**30

_SIZE = re.compile(r"\s*(?P<number>-?\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]+)\s*")


def parse_size(text: str) -> int:
    """Bytes of "2 GiB" or "17 GB". A unit is required, because "2" could be anything.

    Raises ValueError, without a message of use to a user: the caller knows the file and the key.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match["unit"] not in UNIT_BYTES:
        raise ValueError(text)
    size_bytes = float(match["number"]) * UNIT_BYTES[match["unit"]]
    if math.isinf(size_bytes):  # hundreds of digits
        raise ValueError(text)
    return round(size_bytes)


def format_bytes(size_bytes: int) -> str:
    """ "1.50 GiB", "324 MiB", "12 KiB": for people; files and code keep bytes."""
    magnitude = abs(size_bytes)
    if magnitude >= GIB:
        return f"{size_bytes / GIB:.2f} GiB"
    if magnitude >= MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    if magnitude >= 2**10:
        return f"{size_bytes / 2**10:.0f} KiB"
    return f"{size_bytes} B"
