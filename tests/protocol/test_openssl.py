"""Records made and read in memory: by ways that keep the interpreter's lock and by ways that do not, it is the same stream."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from OpenSSL import SSL

from securifile.protocol.openssl import KEEP_LOCK_BYTES_MAX, READ_BYTES_MAX, SCRATCH_BYTES, Records, scratch
from securifile.protocol.tls import client_context, server_context
from tests.protocol.certs import credentials

SIZES = (1, KEEP_LOCK_BYTES_MAX - 1, KEEP_LOCK_BYTES_MAX, KEEP_LOCK_BYTES_MAX + 1, READ_BYTES_MAX)


def connected() -> tuple[Records, Records]:
    """A server and a client that have shaken hands."""
    server = SSL.Connection(server_context(credentials("securifile://c/node/server")), None)
    client = SSL.Connection(client_context(credentials("securifile://c/node/client")), None)
    server.set_accept_state()
    client.set_connect_state()
    ends: list[tuple[SSL.Connection, SSL.Connection]] = [(client, server), (server, client)]
    for turn in range(6):
        one, other = ends[turn % 2]
        with contextlib.suppress(SSL.WantReadError):
            one.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            other.bio_write(one.bio_read(SCRATCH_BYTES))
    assert client.get_peer_certificate() is not None
    return Records(server), Records(client)


def sealed(records: Records, *, few: bool) -> bytes:
    """All that was made."""
    made = b""
    while (count := records.seal(few=few)) > 0:
        made += bytes(scratch.view[:count])
    return made


def said(records: Records) -> bytes:
    """All that can be read now; there is no end to it."""
    memory, view = scratch.room_for_piece()
    found = b""
    while True:
        count, end = records.read_into(memory, READ_BYTES_MAX)
        assert end is None
        if not count:
            return found
        found += bytes(view[:count])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_pieces_of_all_sizes_arrive(size: int, few: bool, kind: Any) -> None:
    """Whether a piece keeps the lock or not on its way in, out, or through: what arrives is what was written, both ways."""
    server, client = connected()
    for one, other in ((server, client), (client, server), (server, client)):
        piece = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
        one.write(kind(piece))
        other.came(sealed(one, few=few))
        assert said(other) == piece


def test_an_end_is_told() -> None:
    """A goodbye, and a record that was changed on the way, are ends with their reason; that nothing has come yet is none."""
    server, client = connected()
    assert said(server) == b""
    client.write(b"changed")
    records = bytearray(sealed(client, few=True))
    records[-1] ^= 1
    server.came(bytes(records))
    memory, _ = scratch.room_for_piece()
    count, end = server.read_into(memory, READ_BYTES_MAX)
    assert count == 0
    assert end is not None
    assert end.check(SSL.Error)


def test_shrinking_loses_nothing() -> None:
    """Buffers that shrink while records wait in them, parts of records too, keep them in order; and the connection goes on."""
    server, client = connected()
    first, second = b"a" * READ_BYTES_MAX, b"b" * 1000
    client.write(first)
    records = sealed(client, few=False)
    server.came(records[:200_000])
    server.shrink()
    memory, view = scratch.room_for_piece()
    count, _ = server.read_into(memory, 20_000)
    found = bytes(view[:count])
    server.shrink()
    client.write(second)
    client.shrink()
    server.came(records[200_000:] + sealed(client, few=True))
    assert found + said(server) == first + second
    server.write(second)
    client.came(sealed(server, few=True))
    assert said(client) == second
