"""The command line of an admin server: `twistd -n securifile-admin …`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from securifile.audit import site
from securifile.audit.console import readable_console
from securifile.model.servers import check_server_name
from securifile.process import check_public


def _port(text: str) -> int:
    # A ValueError of `int` would be about bases; twistd shows a UsageError as it is.
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise usage.UsageError(f"{text!r} is no port: a number from 1 to 65535")
    return int(text)


class StatusOptions(usage.Options):
    """`status`: print the table of servers and exit."""

    longdesc = "Prints the servers of the cluster with their status, as the admin server that runs with this data folder knows them."
    optParameters = [["data", "d", None, "The data folder of the admin server."]]


class Options(usage.Options):
    """What an admin server is told."""

    longdesc = (
        "Runs an admin server: it keeps the catalogue of people, files and rights, watches the nodes, collects their audit records and"
        " serves people over HTTPS. The first start makes everything it needs in the data folder: the cluster's certificate authority,"
        " and a PostgreSQL of its own unless --dsn names another."
    )
    optParameters = [
        ["data", "d", "admin", "Folder for everything this server keeps; made at the first start, readable by its owner only."],
        ["name", None, "admin1", "Name of this server in the cluster: 1 to 40 of a-z, 0-9 and inner hyphens."],
        ["listen", None, "127.0.0.1", "Address to listen on; 0.0.0.0 for all."],
        ["public", None, None, "Host name or address under which nodes and people reach this server; --listen if it is not given."],
        ["https-port", None, 8443, "Port for people (HTTPS).", _port],
        ["protocol-port", None, 8444, "Port for nodes.", _port],
        ["syslog-port", None, 6514, "Port for audit records (syslog over TLS).", _port],
        ["dsn", None, None, "PostgreSQL to use, as libpq's keywords or URI; without it, an embedded one runs in the data folder."],
        *site.OPTIONS,
    ]
    optFlags = [["no-tls", None, "Turn all encryption off, for debugging: every server of the cluster must be started so."]]
    subCommands = [["status", None, StatusOptions, "Print the table of servers and exit."]]

    def postOptions(self) -> None:
        """Check what the options say together. Raises `usage.UsageError` saying what to do."""
        readable_console(self)
        if self.subCommand is not None:
            return
        try:
            check_server_name(self["name"])
        except ValueError as error:
            raise usage.UsageError(f"--name: {error}") from error
        if self["public"] is None:
            self["public"] = self["listen"]
        if self["public"] in ("0.0.0.0", "::", ""):
            raise usage.UsageError("--public: say under which name or address others reach this server; it listens on all addresses")
        check_public(self["public"])
        self["site"] = site.site_in(self)
        ports = [self["https-port"], self["protocol-port"], self["syslog-port"]]
        if len(set(ports)) < len(ports):
            raise usage.UsageError("--https-port, --protocol-port and --syslog-port must be three different ports")


def makeService(options: Options) -> IService:
    """What twistd calls; composes and starts nothing."""
    if options.subCommand == "status":
        # Not in this process: twistd takes whatever is printed here for its log.
        chosen: Any = options.subOptions
        data = chosen["data"] or options["data"]
        raise SystemExit(subprocess.call([sys.executable, "-m", "securifile.client", "--operator", data, "status"]))
    from securifile.admin.service import AdminOptions, make_service

    return make_service(
        AdminOptions(
            data=Path(options["data"]).absolute(),
            name=options["name"],
            listen=options["listen"],
            public=options["public"],
            https_port=options["https-port"],
            protocol_port=options["protocol-port"],
            syslog_port=options["syslog-port"],
            dsn=options["dsn"],
            tls=not options["no-tls"],
            site=options["site"],
        )
    )
