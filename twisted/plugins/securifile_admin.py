"""What makes `twistd securifile-admin` known to Twisted."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

securifile_admin = ServiceMaker(
    "SecuriFile admin",
    "securifile.admin.plugin",
    "SecuriFile, an admin server: keeps the catalogue, people and logs, and serves the GUI",
    "securifile-admin",
)
