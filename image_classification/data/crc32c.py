"""CRC-32C (Castagnoli), which TFRecord files are sealed with; Python's own zlib has another.

Polynomial 0x82F63B78, reflected, first and last value all ones (RFC 3720, appendix B.4). A CRC is
linear, so long contents are cut into lanes that NumPy takes through the tables side by side.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_LANE_BYTES = 256
_SHORT_BYTES = 512
_MASK_DELTA = 0xA282EAD8

Words = npt.NDArray[np.uint32]


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of ``content``."""
    if len(content) < _SHORT_BYTES:
        table, crc = _table(), _ONES
        for byte in content:
            crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
        return crc ^ _ONES
    # Zeros in front change nothing as long as the register is zero; that it starts with ones is
    # the same as complementing the first four bytes.
    front = -len(content) % _LANE_BYTES
    padded = np.zeros(front + len(content), dtype=np.uint8)
    padded[front:] = np.frombuffer(content, dtype=np.uint8)
    padded[front : front + 4] ^= 255
    words = padded.view("<u4").reshape(-1, _LANE_BYTES // 4)
    crcs: Words = np.zeros(len(words), dtype=np.uint32)
    for column in range(words.shape[1]):
        crcs = _apply(_shift(0), crcs ^ words[:, column])
    level = _LANE_LEVEL
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.concatenate([np.zeros(1, dtype=np.uint32), crcs])
        crcs = _apply(_shift(level), crcs[0::2]) ^ crcs[1::2]
        level += 1
    return int(crcs[0]) ^ _ONES


def masked_crc32c(content: bytes) -> int:
    """Return the CRC as TFRecord stores it: rotated by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ONES


_LANE_LEVEL = (_LANE_BYTES // 4).bit_length() - 1


@cache
def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def _shift(level: int) -> Words:
    """Return what ``4 * 2**level`` zero bytes make of a register: ``[4, 256]``, one row a byte."""
    if level > 0:
        half = _shift(level - 1)
        return _apply(half, half)
    bytes_at = np.arange(256, dtype=np.uint32)
    registers = np.stack([bytes_at << np.uint32(8 * i) for i in range(4)])
    table = np.array(_table(), dtype=np.uint32)
    for _ in range(4):
        registers = table[registers & 255] ^ (registers >> np.uint32(8))
    return registers


def _apply(tables: Words, registers: Words) -> Words:
    moved = tables[0][registers & 255]
    for row in range(1, 4):
        moved = moved ^ tables[row][registers >> np.uint32(8 * row) & 255]
    return np.asarray(moved, dtype=np.uint32)
