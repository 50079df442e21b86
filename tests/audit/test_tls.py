"""The whole way on real sockets: mutual TLS, threads for the disk, and an admin server that goes away in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_twisted
import trustme
from cryptography.x509 import NameOID
from twisted.internet import reactor as installed
from twisted.internet import ssl
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import ITransport

from securifile.audit.keeping import AuditFile, Keeper
from securifile.audit.receiver import AuditReceiver
from securifile.audit.records import parse_message, record_of
from securifile.audit.sender import AuditSender
from securifile.audit.spool import Spool
from securifile.node.worker import ThreadWorker
from tests.audit.doubles import record
from tests.audit.test_keeping import Table
from tests.audit.test_rsyslog import until

reactor: Any = installed
COUNT = 300


@asynccontextmanager
async def threads() -> AsyncIterator[ThreadWorker]:
    worker = ThreadWorker(reactor, 4, "test")
    try:
        yield worker
    finally:
        worker.stop()


def certificate(authority: trustme.CA, name: str) -> ssl.PrivateCertificate:
    leaf = authority.issue_cert(name, common_name=name)
    loaded: ssl.PrivateCertificate = ssl.PrivateCertificate.loadPEM(leaf.private_key_and_cert_chain_pem.bytes())
    return loaded


def common_name(transport: ITransport) -> str | None:
    certificate = transport.getPeerCertificate()  # type: ignore[attr-defined]
    (name,) = certificate.to_cryptography().subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


@pytest_twisted.ensureDeferred
async def test_over_tls(tmp_path: Path) -> None:
    """Records kept at once by many go over TLS under the certificate's name, through a break, once each, and leave the spool."""
    authority = trustme.CA()
    root = ssl.Certificate.loadPEM(authority.cert_pem.bytes())
    table = Table()
    async with threads() as worker:
        keeper = Keeper(
            AuditFile(tmp_path / "log"),
            store=table.store,
            last_kept=table.last_kept,
            worker=worker,
            clock=reactor,
            wall=reactor.seconds,
            random=bytes,
        )
        keeper.startService()
        receiver = AuditReceiver(keeper, clock=reactor, wall=reactor.seconds, random=bytes, peer_name=common_name)
        server = certificate(authority, "admin-1").options(root)
        port = reactor.listenSSL(0, receiver, server, interface="127.0.0.1")
        trail = Spool(tmp_path / "spool", boot="b1", version="1", worker=worker, clock=reactor, segment_bytes=20_000)
        await trail.open()
        options = ssl.optionsForClientTLS("admin-1", trustRoot=root, clientCertificate=certificate(authority, "node-1"))
        endpoint = wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port))
        sender = AuditSender(trail, lambda: [endpoint], clock=reactor, random=bytes)
        keeper.watch(lambda server, boot, number: sender.confirmed(boot, number))
        try:
            await gatherResults([trail.keep(record(n)) for n in range(1, COUNT + 1)])
            sender.startService()
            await until(lambda: len(table.rows) == COUNT)
            sender.stopService()
            await gatherResults([trail.keep(record(n)) for n in range(COUNT + 1, 2 * COUNT + 1)])
            sender.startService()
            await until(lambda: len(table.rows) == 2 * COUNT and trail.unconfirmed_bytes < 50_000)
            await until(lambda: receiver.connections == 1)
        finally:
            sender.stopService()
            await trail.close()
            await until(lambda: receiver.connections == 0)
            await port.stopListening()
            await keeper.stopService()
    assert [number for _, _, number in sorted(table.rows)] == list(range(1, 2 * COUNT + 1))
    lines = (tmp_path / "log" / "audit.log").read_bytes().splitlines()
    filed = [record_of(parse_message(line)) for line in lines]
    assert [one.number for one in filed if one is not None] == list(range(1, 2 * COUNT + 1))
