"""What makes `twistd securifile-node` known to Twisted."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

securifile_node = ServiceMaker(
    "SecuriFile node",
    "securifile.node.plugin",
    "SecuriFile, a storage node: keeps files, serves people over HTTPS and peers over mutual TLS",
    "securifile-node",
)
