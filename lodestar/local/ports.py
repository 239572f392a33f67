"""Free loopback ports."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, HIGHEST = 10_240, 65_535
"""Ports that programs of this machine may take; well-known services are below."""
_TRIES = 1_000
_FOUND: set[int] = set()
"""What was found, whether or not somebody listens on it by now."""


def free_ports(count: int) -> list[int]:
    """Distinct ports that nobody listens on now; all are held until the last is found.

    They are none that the system gives to outgoing connections: a server binds its port seconds after it was found
    here, and until then any connection of any program could have got it. For the same reason this process finds no
    port twice.
    """
    outgoing = _outgoing()
    others = [port for port in range(LOWEST, HIGHEST + 1) if port not in outgoing and port not in _FOUND]
    found: list[int] = []
    with contextlib.ExitStack() as held:
        # 0 is whatever the system gives, where it leaves no other port or few of them are free
        for port in (*random.sample(others, min(_TRIES, len(others))), *[0] * count):
            if len(found) == count:
                break
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                found.append(listener.getsockname()[1])
    _FOUND.update(found)
    return found


def _outgoing() -> range:
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):  # no Linux: IANA's dynamic ports, which macOS has too
        low, high = 49_152, 65_535
    return range(low, high + 1)
