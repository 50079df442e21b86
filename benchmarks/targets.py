"""A server that is measured, as the work sees it, and the certificate that peers of ours show."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


class CannotMeasure(Exception):
    """This server cannot be measured here; the text says what is missing."""


class Target(Protocol):
    """A server under measurement, running."""

    name: str
    ca: Path
    headers: Mapping[str, str]
    """Sent with each request."""

    def url(self, path: str) -> str:
        """Where to put a file of that name, and to get it from."""

    def roots(self) -> list[int]:
        """The processes at the top of its trees."""

    def clear(self) -> None:
        """Remove everything that was put there."""

    def stop(self) -> None:
        """End it."""


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        number: int = probe.getsockname()[1]
        return number


def wait_until_it_listens(port: int, seconds: float, complaint: Callable[[], str]) -> None:
    """Return once something takes connections there. Raises `CannotMeasure` with the complaint when nothing does in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise CannotMeasure(f"nothing listens on port {port}: {complaint()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, politely at first, with all of its session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key: P-256, as our own servers have."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    # A name beside the address: hitch aborts at every client that names the server it wants, as wrk does, while it knows no name itself.
    names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate_file, key_file
