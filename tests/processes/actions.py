"""What the tests in this folder do again and again with a cluster."""

from __future__ import annotations

import hashlib
import http.client
import random
from collections.abc import Iterator

import attrs

from securifile.local.asking import BodyCutShort, Exchange, Http, Response

MIB = 1024 * 1024

BROKEN = (OSError, http.client.HTTPException, BodyCutShort)
"""What a client sees of a server that dies or hangs."""


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that look random and are the same each time."""
    return random.Random(repr(seed)).randbytes(size)


def sha256(data: bytes) -> str:
    """As the API shows digests."""
    return hashlib.sha256(data).hexdigest()


def files(path: str) -> str:
    """The URL path of a file or folder."""
    return f"/api/v1/files/{path}"


def put(http: Http, path: str, data: bytes, **headers: str) -> Response:
    """Upload, following redirects; whatever the answer is."""
    return http.request("PUT", files(path), data, {name.replace("_", "-"): value for name, value in headers.items()}, follow=True)


def get(http: Http, path: str) -> Response:
    """Download, following redirects; whatever the answer is."""
    return http.request("GET", files(path), follow=True)


def slowly(download: Exchange, http: Http) -> Iterator[bytes]:
    """The rest of a download, with a question after each piece: a node gives all of it in less than the second that it has to end it."""
    for data in download.chunks():
        yield data
        http.request("HEAD", "/healthz").must(200)


def metric(http: Http, key: str) -> float:
    """One of the figures without labels that a server shows an administrator at `/metrics`."""
    text = http.request("GET", "/metrics").must(200).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key} "))


@attrs.define
class Attempt:
    """One try of something that may fail for a while."""

    begun: float
    ended: float
    response: Response | None
    """None when the connection failed."""

    @property
    def status(self) -> int:
        """The status of the answer; 0 when there was none."""
        return 0 if self.response is None else self.response.status


def gap(attempts: list[Attempt]) -> float:
    """The longest time between the ends of two successes with no other between them; what came before the first counts too."""
    times = [attempts[0].begun, *(attempt.ended for attempt in attempts if attempt.status in {200, 201, 204})]
    return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def blocks(size: int, seed: int = 0) -> Iterator[bytes]:
    """A body of any size, in blocks of 1 MiB of which no two are the same, that is never in memory."""
    block = bytearray(noise(MIB, seed))
    for number in range(-(-size // MIB)):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block[: min(MIB, size - number * MIB)])
