"""Both kinds of server, as processes, send a copy of their audit records to the site's own syslog server."""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from securifile.audit.framing import FrameDecoder
from securifile.audit.records import parse_message, record_of
from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from securifile.model.records import AuditRecord
from tests.processes.actions import put

SETTLED_S = 30.0


class Site:
    """A syslog server over TLS on the loopback, each connection in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.got: list[AuditRecord] = []
        authority = trustme.CA()
        self.ca = folder / "site-ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection: socket.socket) -> None:
        frames = FrameDecoder()
        with self._context.wrap_socket(connection, server_side=True) as secured:
            while data := secured.recv(65536):
                for frame in frames.receive(data):
                    numbered = record_of(parse_message(frame)) if isinstance(frame, bytes) else None
                    if numbered is not None:
                        self.got.append(numbered.record)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        made = Site(Path(folder))
        yield made
        made.close()


def test_the_site_has_a_copy(site: Site, cluster_of: Callable[..., LocalCluster]) -> None:
    """What people do on a node and what is done on the admin server; the admin server has everything itself, too."""
    options = ["--syslog-copy-to", f"127.0.0.1:{site.port}", "--syslog-copy-ca", str(site.ca)]
    cluster = cluster_of(nodes=1, replicas=0, options=options, admin_options=options)
    put(cluster.http("node1", "alice"), "alice/a", b"here").must(201)

    def events(server: str) -> set[str]:
        return {record.event for record in list(site.got) if record.server == server}

    eventually(lambda: "write" in events("node1") and "sign-in" in events("admin1"), SETTLED_S, "both servers' records are at the site")
    eventually(lambda: "write" in (cluster.admin.data / "audit" / "audit.log").read_text(), SETTLED_S, "and in the audit trail")
