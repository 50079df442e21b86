"""The wires between the machines of a `network`, as a program through which every IP packet passes.

    python -m securifile.local.switch 10.77.0.1=7 10.77.0.2=8 …

Each machine has a TUN device, whose other end is one of the file descriptors named. What a packet meets on its way is decided for each
ordered pair of machines: it arrives, it vanishes, or it takes its time. So a cut is what it is on a real network: nobody is told,
TCP tries again with longer and longer pauses, and goes on by itself when the wire is whole again.

A line of JSON on standard input replaces the whole table, `[[source, destination, {"cut": true}], …]`; an empty line on standard output
says that it is in force. The program ends with its standard input.
"""

from __future__ import annotations

import heapq
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import attrs

PACKET_BYTES_MAX = 65_535
QUEUE_MAX_S = 0.25
"""What a slow wire would send later than this it drops, as a router with a full queue does."""
_PACKETS_AT_ONCE = 32
"""From one machine, before the others have their turn."""


@attrs.frozen(kw_only=True)
class Wire:
    """The way from one machine to another, in that direction.

    Attributes:
        cut: nothing arrives.
        delay_s: how long a packet is under way.
        bytes_s: how much fits through; None: as much as comes.
    """

    cut: bool = False
    delay_s: float = 0.0
    bytes_s: float | None = None


class Wires:
    """All of them, and how busy each is."""

    def __init__(self, table: Mapping[tuple[bytes, bytes], Wire]) -> None:
        """Args:
        table: by addresses of source and destination; a pair that is not in it has a wire without a fault.
        """
        self._table = dict(table)
        self._free_at: dict[tuple[bytes, bytes], float] = {}

    def arrival(self, now: float, source: bytes, destination: bytes, size: int) -> float | None:
        """When a packet that is sent now arrives; None when it never does."""
        wire = self._table.get((source, destination))
        if wire is None:
            return now
        if wire.cut:
            return None
        if wire.bytes_s is None:
            return now + wire.delay_s
        begins = max(now, self._free_at.get((source, destination), now))
        if begins - now > QUEUE_MAX_S:
            return None
        self._free_at[source, destination] = begins + size / wire.bytes_s
        return begins + size / wire.bytes_s + wire.delay_s


def run(devices: Mapping[bytes, int], table: int, done: int) -> None:
    """Pass packets on until `table` ends.

    Args:
        devices: a file descriptor by address, not blocking.
        table: where new tables are read from.
        done: where it is said that they are in force.
    """
    wires, waiting, rest, count = Wires({}), list[tuple[float, int, int, bytes]](), b"", 0
    with selectors.DefaultSelector() as selector:
        for device in [*devices.values(), table]:
            selector.register(device, selectors.EVENT_READ)
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready = [key.fd for key, _ in selector.select(pause)]
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, device, packet = heapq.heappop(waiting)
                _write(device, packet)
            for readable in ready:
                if readable == table:
                    new = os.read(table, PACKET_BYTES_MAX)
                    if not new:
                        return
                    *lines, rest = (rest + new).split(b"\n")
                    for line in lines:
                        wires = Wires(_parsed(json.loads(line)))
                        os.write(done, b"\n")
                    continue
                for packet in _packets(readable):
                    destination = devices.get(packet[16:20])
                    arrives = wires.arrival(now, packet[12:16], packet[16:20], len(packet))
                    if destination is None or arrives is None:
                        continue
                    if arrives <= now:
                        _write(destination, packet)
                    else:
                        count += 1
                        heapq.heappush(waiting, (arrives, count, destination, packet))


def _packets(device: int) -> list[bytes]:
    """The IPv4 packets that wait there."""
    found = []
    for _ in range(_PACKETS_AT_ONCE):
        try:
            packet = os.read(device, PACKET_BYTES_MAX)
        except BlockingIOError:
            break
        if packet[0] >> 4 == 4:
            found.append(packet)
    return found


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except BlockingIOError:
        return  # a full queue: a network may lose a packet


def _parsed(table: Any) -> dict[tuple[bytes, bytes], Wire]:
    return {(socket.inet_aton(source), socket.inet_aton(destination)): Wire(**wire) for source, destination, wire in table}


if __name__ == "__main__":
    _named = dict(argument.split("=") for argument in sys.argv[1:])
    run({socket.inet_aton(address): int(device) for address, device in _named.items()}, sys.stdin.fileno(), sys.stdout.fileno())
