"""How to connect to PostgreSQL: one connection string for each of its hosts, with all that a session of ours is to have."""

from __future__ import annotations

from typing import Any

import attrs
import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from securifile.model.errors import DatabaseUnavailable


@attrs.frozen(kw_only=True)
class Limits:
    """How long anything may take, in seconds. Every wait has an end, and the server's ends come before ours."""

    connect_s: float = 3.0
    """Opening one connection to one host, with TLS and authentication."""
    wait_s: float = 8.0
    """Waiting for a connection of the pool: long enough for the embedded server to be started again."""
    lock_s: float = 4.0
    """Waiting for a row that another transaction holds."""
    statement_s: float = 8.0
    """One statement, with its waits for locks, by the server's clock."""
    answer_s: float = 12.0
    """One answer, by our clock: a server that hangs does not look at its own."""
    idle_in_transaction_s: float = 5.0
    """A client that was stopped in the middle of a transaction holds what others wait for; the server cuts it off."""
    unacknowledged_s: float = 8.0
    """Bytes on the way to a host that has gone (TCP_USER_TIMEOUT)."""
    probe_s: float = 10.0
    """Silence after which TCP asks whether the other host is there."""


DEFAULT_LIMITS = Limits()


def single_hosts(dsn: str, limits: Limits) -> list[str]:
    """One connection string for each host that `dsn` names, with everything that a session of ours is to have.

    Raises:
        ValueError: it is not a connection string.
    """
    try:
        given = parse_dsn(dsn)
    except psycopg2.Error as error:
        raise ValueError(f"not a connection string of PostgreSQL: {error}") from error
    lists = {name: given.pop(name).split(",") for name in ("host", "hostaddr", "port") if name in given}
    session = {
        "statement_timeout": limits.statement_s,
        "lock_timeout": limits.lock_s,
        "idle_in_transaction_session_timeout": limits.idle_in_transaction_s,
    }
    options = " ".join(
        [
            given.pop("options", ""),
            *(f"-c {name}={int(seconds * 1000)}" for name, seconds in session.items()),
            "-c bytea_output=hex",
            "-c standard_conforming_strings=on",
        ]
    )
    common = {
        "application_name": "securifile",
        "gssencmode": "disable",  # Kerberos would be asked synchronously
        "target_session_attrs": "read-write",
        "keepalives_idle": max(1, int(limits.probe_s)),
        "keepalives_interval": max(1, int(limits.probe_s / 4)),
        "keepalives_count": 3,
        "tcp_user_timeout": int(limits.unacknowledged_s * 1000),
        **given,
        "client_encoding": "UTF8",
        "options": options.strip(),
    }
    found = []
    for index in range(max(len(lists.get("host", [""])), len(lists.get("hostaddr", [""])))):
        one = {name: values[index if len(values) > 1 else 0] for name, values in lists.items()}
        found.append(make_dsn(**common, **{name: value for name, value in one.items() if value}))
    return found


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a name is resolved to."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        pass

    def addressResolved(self, address: Any) -> None:
        self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.complete.called:
            self.complete.callback(self._found)


def addressed(reactor: Any, dsn: str) -> Deferred[list[str]]:
    """The connection string with the addresses of its host, one string for each.

    Libpq looks names up synchronously. The name stays in the string, for certificates and passwords.

    Args:
        reactor: Resolves the name (`IReactorPluggableNameResolver`).
        dsn: A connection string with at most one host.

    Raises:
        DatabaseUnavailable: the name has no address.
    """
    given = parse_dsn(dsn)
    host = given.get("host", "")
    if not host or host.startswith(("/", "@")) or "hostaddr" in given or isIPAddress(host) or isIPv6Address(host):
        return succeed([dsn])

    def spell(addresses: list[str]) -> list[str]:
        if not addresses:
            raise DatabaseUnavailable(f"the name {host} has no address")
        return [make_dsn(dsn, hostaddr=address) for address in dict.fromkeys(addresses)]

    receiver = _Addresses()
    reactor.nameResolver.resolveHostName(receiver, host)
    return receiver.complete.addCallback(spell)
