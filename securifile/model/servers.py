"""Servers: their names, addresses and status."""

from __future__ import annotations

import re
from enum import StrEnum

import attrs

SERVER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
"""A server's name: 1 to 40 of a-z, 0-9 and inner hyphens, so that it can be a DNS label, a file name and part of a URI."""


class ServerKind(StrEnum):
    """The two kinds of server."""

    NODE = "node"
    ADMIN = "admin"


class Status(StrEnum):
    """What a server is held for (section 3 of the design)."""

    RUNNING = "running"
    DOWN = "down"
    FAILED = "failed"


def check_server_name(name: str) -> str:
    """`name`, if it can be a server's. Raises `ValueError` that says what a name looks like."""
    if not SERVER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no server name: 1 to 40 of a-z, 0-9 and inner hyphens")
    return name


@attrs.frozen
class HostPort:
    """Where a server listens."""

    host: str
    port: int = attrs.field(validator=[attrs.validators.ge(1), attrs.validators.le(65535)])

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Read `host:port` or `[v6]:port`. Raises `ValueError`."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal():
            raise ValueError(f"{text!r} is not host:port")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))
