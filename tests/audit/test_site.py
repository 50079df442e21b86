"""A site's own syslog server gets a copy, over TLS, from whoever is told of it on the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.python import usage
from twisted.python.failure import Failure

from securifile.admin.plugin import Options as AdminOptions
from securifile.audit.framing import FrameDecoder
from securifile.audit.records import parse_message, record_of
from securifile.audit.site import Site, copying
from securifile.model.records import AuditRecord
from securifile.model.servers import HostPort
from securifile.node.plugin import Options as NodeOptions
from securifile.process import CannotStart
from tests.audit.doubles import spool

reactor: Any = installed
COUNT = 20
GONE = b"the connection is gone"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the loopback; the test's own timeout ends it."""
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.02)
    raise AssertionError("it did not happen within 10 s")


class Sink(Protocol):
    """A syslog server that keeps what it gets and says nothing."""

    def __init__(self, got: list[bytes]) -> None:
        self._frames = FrameDecoder()
        self._got = got

    def dataReceived(self, data: bytes) -> None:
        """Take it in."""
        self._got += [frame for frame in self._frames.receive(data) if isinstance(frame, bytes)]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note that, too."""
        self._got.append(GONE)


@asynccontextmanager
async def listening(authority: trustme.CA | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """The site's server, on the loopback: its port, and what it got; without TLS when there is no authority."""
    got: list[bytes] = []
    factory = Factory.forProtocol(lambda: Sink(got))
    if authority is None:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    else:
        leaf = authority.issue_cert("127.0.0.1")
        pem = leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes()
        private = PrivateCertificate.loadPEM(pem)
        port = reactor.listenSSL(0, factory, private.options(), interface="127.0.0.1")
    try:
        yield port.getHost().port, got
    finally:
        await port.stopListening()


@pytest.mark.parametrize("tls", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_site_gets_a_copy(tmp_path: Path, tls: bool) -> None:
    """Every record, in order; and nothing is confirmed by it, so that the admin server gets everything all the same."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trail = spool(tmp_path / "spool", clock=reactor)
    records = [AuditRecord(at=float(number), server="node1", event="read", detail=str(number)) for number in range(COUNT)]
    async with listening(authority if tls else None) as (port, got):
        site = Site(address=HostPort("127.0.0.1", port), ca=tmp_path / "ca.pem")
        copy = copying(site, trail, reactor=reactor, random=bytes, tls=tls)
        for record in records:
            trail.note(record)
        copy.startService()
        try:
            await until(lambda: len(got) == COUNT)
            assert trail.unconfirmed_bytes > 0
        finally:
            copy.stopService()
            await trail.close()
    found = [record_of(parse_message(line)) for line in got if line != GONE]
    assert [one.record for one in found if one is not None] == records


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_trusted_gets_nothing(tmp_path: Path) -> None:
    """Its certificate is another authority's than the one that was named."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    trail = spool(tmp_path / "spool", clock=reactor)
    trail.note(AuditRecord(at=1.0, server="node1", event="read"))
    async with listening(trustme.CA()) as (port, got):
        copy = copying(Site(address=HostPort("127.0.0.1", port), ca=tmp_path / "ca.pem"), trail, reactor=reactor, random=bytes, tls=True)
        copy.startService()
        await until(lambda: got != [])
        copy.stopService()
        await trail.close()
        assert set(got) == {GONE}


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    """The server does not start, and says which file is the matter."""
    trail: Any = None
    (tmp_path / "empty.pem").write_bytes(b"")
    (tmp_path / "odd.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    for name in ("missing.pem", "empty.pem", "odd.pem"):
        with pytest.raises(CannotStart, match=name):
            copying(Site(address=HostPort("a", 1), ca=tmp_path / name), trail, reactor=reactor, random=bytes, tls=True)


@pytest.mark.parametrize("options", [AdminOptions, NodeOptions])
def test_the_options(options: type[usage.Options]) -> None:
    """Both kinds of server take the same ones, and say what is wrong with them."""

    def parsed(*arguments: str) -> Site | None:
        made = options()
        made.parseOptions(["--public", "a", *arguments])
        site: Site | None = made["site"]
        return site

    assert parsed() is None
    assert parsed("--syslog-copy-to", "log.example.org:6514") == Site(address=HostPort("log.example.org", 6514))
    assert parsed("--syslog-copy-to", "[::1]:6514", "--syslog-copy-ca", "/ca.pem") == Site(
        address=HostPort("::1", 6514), ca=Path("/ca.pem")
    )
    for wrong in (("--syslog-copy-to", "log.example.org"), ("--syslog-copy-to", "a:99999"), ("--syslog-copy-ca", "/ca.pem")):
        with pytest.raises(usage.UsageError, match="--syslog-copy"):
            parsed(*wrong)
