"""nginx with TLS and its dav module, as a packager sets it up: what many people use to give files away."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.targets import HOST, CannotMeasure, certify, end, free_port, wait_until_it_listens

CONFIGURATION = """
daemon off;
user {user};
worker_processes {cores};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log {folder}/access.log;
    client_max_body_size 0;
    client_body_temp_path {folder}/incoming;
    proxy_temp_path {folder}/unused1;
    fastcgi_temp_path {folder}/unused2;
    uwsgi_temp_path {folder}/unused3;
    scgi_temp_path {folder}/unused4;
    keepalive_requests 10000000;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    server {{
        listen {host}:{port} ssl;
        root {folder}/files;
        location / {{
            dav_methods PUT DELETE MKCOL;
            create_full_put_path on;
        }}
    }}
}}
"""


class Nginx:
    """nginx, started."""

    name = "nginx"
    headers: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        """Start it. Raises `CannotMeasure`."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise CannotMeasure("nginx is not installed")
        folder.mkdir(parents=True)
        self._files = folder / "files"
        self._files.mkdir()
        self.ca, key = certify(folder)
        self._port = free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                user=pwd.getpwuid(os.geteuid()).pw_name,
                cores=os.cpu_count(),
                folder=folder,
                certificate=self.ca,
                key=key,
                host=HOST,
                port=self._port,
            ),
            encoding="utf-8",
        )
        with (folder / "output.log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(configuration), "-p", str(folder)], stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until_it_listens(self._port, 10, lambda: (folder / "output.log").read_text() + (folder / "error.log").read_text())
        except BaseException:
            self.stop()
            raise

    def url(self, path: str) -> str:
        """See `Target`."""
        return f"https://{HOST}:{self._port}/{path}"

    def roots(self) -> list[int]:
        """See `Target`."""
        return [self._process.pid]

    def clear(self) -> None:
        """See `Target`."""
        # Aside first: uploads whose client has left may still come to an end, and put a file into a folder that is being emptied.
        aside = self._files.with_name("aside")
        self._files.rename(aside)
        self._files.mkdir()
        shutil.rmtree(aside)

    def stop(self) -> None:
        """See `Target`."""
        end(self._process)
