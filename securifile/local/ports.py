"""Which ports a local cluster listens on: those of the design where they are free, or any.

Free means that nobody listens there now. Ports are taken from below the range from which the kernel picks outgoing ones:
a server that is killed and started again would otherwise find, once in a while, that a connection sits on its port.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator
from itertools import count

HOST = "127.0.0.1"
ADMIN_PORTS = {"https": 8443, "protocol": 8444, "syslog": 6514}
NODE_PORTS = {"https": 9443, "protocol": 9444}
NODE_PORT_STEP = 10
"""node1 has 9443 and 9444, node2 9453 and 9454, ..."""
_ANY = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def usual(kind: str, number: int) -> Iterator[dict[str, int]]:
    """The ports of the design for the `number`th server (from 1) of a kind; then, while they are taken, 2000 higher each time.

    Not 1000: the admin server of one cluster would take the port of another's node that is down for a moment, and be called by its peers.
    """
    base = ADMIN_PORTS if kind == "admin" else NODE_PORTS
    for higher in count(step=2000):
        yield {use: port + NODE_PORT_STEP * (number - 1) + higher for use, port in base.items()}


def anywhere(kind: str, number: int) -> Iterator[dict[str, int]]:
    """Any ports, by chance, so that clusters that start at the same time rarely want the same."""
    uses = ADMIN_PORTS if kind == "admin" else NODE_PORTS
    while True:
        yield dict(zip(uses, random.sample(_ANY, len(uses)), strict=True))


def first_free(proposals: Iterable[dict[str, int]], taken: set[int]) -> dict[str, int]:
    """The first proposal of which every port is free and nobody's yet; its ports are added to `taken`.

    Raises:
        LookupError: no port above is left.
    """
    for ports in proposals:
        if max(ports.values()) > 65535:
            break
        if taken.isdisjoint(ports.values()) and all(map(is_free, ports.values())):
            taken.update(ports.values())
            return ports
    raise LookupError("no free ports for a server")
