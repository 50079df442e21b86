"""What a server cannot make by itself. A service hands in the real one, tests and the simulation one of their own."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime

from securifile.protocol.wire import Connector, Identify, Traffic


@attrs.frozen(kw_only=True)
class World:
    """Time, chance, and ways to others."""

    clock: IReactorTime
    """Monotonic."""
    wall: Callable[[], float]
    """Seconds since 1970."""
    random: Callable[[int], bytes]
    below: Callable[[int], int]
    """A random integer from 0 to its argument - 1."""
    connector: Connector
    identify: Identify
    traffic: Traffic = attrs.Factory(Traffic)
    """Counts what goes between this server and others."""
