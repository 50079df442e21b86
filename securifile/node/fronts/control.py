"""What a node process and a front say to each other, beside what is on the scoreboard: AMP over a pair of sockets that only they have.

front ──> node process   Ready; Records; Suspect; KnownPassword
node process ──> front   Ping; Drain; Available; Renewed
"""

from __future__ import annotations

import msgpack
from twisted.protocols import amp

from securifile.model.records import AuditRecord

RECORDS_BYTES_MAX = 48 * 1024
"""Of records in one message: AMP takes values up to 64 KiB."""

_FIELDS = ("at", "server", "event", "person", "path", "entry", "status", "bytes", "duration_s", "peer", "detail")


class Ready(amp.Command):
    """The front takes connections from now on."""

    requiresAnswer = False


class Records(amp.Command):
    """Audit records of requests that were answered; answered when the spool has taken them."""

    arguments = [(b"records", amp.String())]


class Suspect(amp.Command):
    """A blob of this node's could not be read, or was not what was written."""

    arguments = [(b"attempt", amp.String()), (b"reason", amp.Unicode())]
    requiresAnswer = False


class KnownPassword(amp.Command):
    """Whether the node process remembers that a password is right; the username that it is right for, or none."""

    arguments = [(b"username", amp.Unicode()), (b"password", amp.Unicode())]
    response = [(b"known", amp.Boolean()), (b"username", amp.Unicode()), (b"credentials", amp.Integer())]


class Ping(amp.Command):
    """Whether the front is there."""


class Drain(amp.Command):
    """Let answers come to their end within so many seconds; answered when all connections are closed and all records were taken."""

    arguments = [(b"grace_s", amp.Float())]


class Available(amp.Command):
    """The nodes that people can be given files from now."""

    arguments = [(b"names", amp.ListOf(amp.Unicode()))]
    requiresAnswer = False


class Renewed(amp.Command):
    """The certificate in the data folder is a new one."""

    requiresAnswer = False


def pack_records(records: list[AuditRecord]) -> list[bytes]:
    """Records as values of `Records`, as many as are needed."""
    values: list[bytes] = []
    packed: list[bytes] = []
    size = 0
    for record in records:
        one = msgpack.packb([getattr(record, field) for field in _FIELDS])
        if packed and size + len(one) > RECORDS_BYTES_MAX:
            values.append(b"".join(packed))
            packed, size = [], 0
        packed.append(one)
        size += len(one)
    return [*values, b"".join(packed)] if packed else values


def unpack_records(value: bytes) -> list[AuditRecord]:
    """What `pack_records` put into one value."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(value)
    return [AuditRecord(**dict(zip(_FIELDS, fields, strict=True))) for fields in unpacker]
