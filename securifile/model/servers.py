"""Servers: their names, addresses and status."""

from __future__ import annotations

import ipaddress
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


_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


def check_host(host: str) -> str:
    """`host`, if it can be reached by that: a DNS name or an IP address. Raises `ValueError`."""
    if not _DNS_NAME.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is neither a DNS name nor an IP address") from None
    return host


def is_loopback(host: str) -> bool:
    """Whether that is the machine itself, whoever says it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_address(text: str) -> HostPort:
    """What others will connect to, as it is spelled in the catalogue. Raises `ValueError`."""
    address = HostPort.parse(text)
    check_host(address.host)
    if str(address) != text:
        raise ValueError(f"{text!r} is to be written {address}")
    return address


def check_url(text: str) -> tuple[str, HostPort]:
    """The scheme and the address of a server's URL, which has nothing else. Raises `ValueError`."""
    scheme, mark, rest = text.partition("://")
    if not mark or scheme not in ("https", "http"):
        raise ValueError(f"{text!r} is not https://host:port")
    return scheme, check_address(rest)


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
