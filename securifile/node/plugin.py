"""`twistd securifile-node`: its options, and nothing started yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from securifile.audit import site
from securifile.audit.console import readable_console
from securifile.certificates.join import JoinToken
from securifile.memory import forget_start, keep_large_apart
from securifile.node.blobs import RESERVE_BYTES
from securifile.node.enrolment import MEMBERSHIP
from securifile.node.service import NodeOptions, NodeService
from securifile.process import check_public, run_on_monotonic_time

HTTPS_PROCESSES_MAX = 64
"""More than that has never been tried."""


def _port(text: str) -> int:
    # A ValueError of `int` would be about bases; twistd shows a UsageError as it is.
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise usage.UsageError(f"{text!r} is no port: a number from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > HTTPS_PROCESSES_MAX:
        raise usage.UsageError(f"{text!r} is no number of processes: from 0 to {HTTPS_PROCESSES_MAX}")
    return int(text)


class Options(usage.Options):
    """What a node is told on its command line; everything else it learns from the catalogue."""

    synopsis = "[--data DIR] [--join-file FILE] [options]"
    longdesc = (
        "A storage node of SecuriFile. The first start needs a join token, which an administrator makes with"
        " `securifile node invite NAME`; later starts find everything in the data folder."
    )
    optParameters = [
        ["data", "d", "securifile-node", "Folder for blobs, index, spool and identity; made when it is missing."],
        ["join", None, None, "Join token, for the first start."],
        ["join-file", None, None, "File with the join token (keeps it out of the list of processes)."],
        ["listen", None, "0.0.0.0", "Address to listen on."],
        ["public", None, None, "Host name or address under which people and peers reach this node; --listen if it is not given."],
        ["https-port", None, 9443, "Port for people.", _port],
        ["protocol-port", None, 9444, "Port for other servers.", _port],
        ["https-processes", None, 0, "Processes for people's connections beside the node's own.", _count],
        ["reserve-bytes", None, RESERVE_BYTES, "Bytes of the disk left free for index and audit spool.", int],
        *site.OPTIONS,
    ]
    optFlags = [["no-tls", None, "Turn all encryption off, for debugging. Every server must be started so."]]

    def postOptions(self) -> None:
        """Check what belongs together. Raises `usage.UsageError` saying what to do."""
        readable_console(self)
        if self["join"] is not None and self["join-file"] is not None:
            raise usage.UsageError("give --join or --join-file, not both")
        if self["public"] is None:
            if self["listen"] in ("0.0.0.0", "::"):
                raise usage.UsageError("--public: say under which name or address others reach this node; it listens on all addresses")
            self["public"] = self["listen"]
        check_public(self["public"])
        if self["https-port"] == self["protocol-port"]:
            raise usage.UsageError("--https-port and --protocol-port must be two different ports")
        self["site"] = site.site_in(self)
        self["token"] = self._token()

    def _token(self) -> JoinToken | None:
        if (Path(self["data"]) / MEMBERSHIP).exists():
            # It has joined. The option may stay on the command line; the file with the token should have gone.
            return None
        text = self["join"]
        if self["join-file"] is not None:
            try:
                text = Path(self["join-file"]).read_text("utf-8")
            except OSError as error:
                raise usage.UsageError(f"--join-file: {error.strerror}: {error.filename}") from error
        if text is None:
            return None
        try:
            return JoinToken.parse(text.strip())
        except ValueError as error:
            raise usage.UsageError(str(error)) from error


def makeService(options: Any) -> IService:
    """Compose the node; nothing is opened before it starts."""
    from twisted.internet import reactor

    keep_large_apart()
    forget_start()
    run_on_monotonic_time(reactor)
    service: IService = NodeService(
        reactor,
        NodeOptions(
            data=Path(options["data"]).absolute(),
            join=options["token"],
            listen=options["listen"],
            public=options["public"],
            https_port=options["https-port"],
            protocol_port=options["protocol-port"],
            tls=not options["no-tls"],
            reserve_bytes=options["reserve-bytes"],
            https_processes=options["https-processes"],
            site=options["site"],
        ),
    )
    return service
