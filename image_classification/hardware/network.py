"""Which network interface leads to the other machines."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_ROOM_BYTES = 128 * _IFREQ_BYTES


def interface_towards(host: str, port: int) -> str | None:
    """Return the name of the interface from which packets to ``host`` leave, or on which it is.

    None where that cannot be told: an unknown host, no route, IPv6 only, not Linux. Nothing is
    sent.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            source = probe.getsockname()[0]
        return _interfaces().get(source)
    except OSError:
        return None


def _interfaces() -> dict[str, str]:
    """Return the name of the interface of every IPv4 address of this machine."""
    room = array.array("B", bytes(_ROOM_BYTES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iL", _ROOM_BYTES, room.buffer_info()[0])
        filled = struct.unpack("iL", fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, request))[0]
    found: dict[str, str] = {}
    for start in range(0, filled, _IFREQ_BYTES):
        entry = room[start : start + _IFREQ_BYTES].tobytes()
        name = entry[:16].split(b"\0", 1)[0].decode()
        # Aliases such as eth0:1 belong to the interface before the colon.
        found.setdefault(socket.inet_ntoa(entry[20:24]), name.partition(":")[0])
    return found
