"""One piece of work on one server, measured: how long it took, and how much CPU time the server's processes took for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from benchmarks import clients
from benchmarks.figures import MIB, Sample
from benchmarks.processes import cpu_seconds, give_back_page_cache
from benchmarks.targets import Target

SMALL_BYTES = 4096
CONNECTIONS = 16
"""Kept alive, when many small requests are made."""


@attrs.frozen(kw_only=True)
class Sizes:
    """How much is done for one sample."""

    large: int
    part: int
    parts: int
    many_s: float
    """For how long small requests are made."""
    verified: int
    """Files of a mebibyte that a returning node has."""


FULL = Sizes(large=1024 * MIB, part=64 * MIB, parts=16, many_s=10.0, verified=10_000)
QUICK = Sizes(large=256 * MIB, part=16 * MIB, parts=16, many_s=3.0, verified=1000)


class Work(Protocol):
    """Something to do on each server in each round."""

    def prepare(self, target: Any) -> None:
        """What has to be there first; not measured."""

    def run(self, target: Any, number: int) -> Sample:
        """Do it for the `number`th time."""


class Files:
    """Files of random bytes to upload, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, size: int) -> Path:
        """One of that size."""
        path = self._folder / f"random-{size}"
        if not path.exists():
            with Path("/dev/urandom").open("rb") as source, path.open("wb") as file:
                for start in range(0, size, MIB):
                    file.write(source.read(min(MIB, size - start)))
        return path

    def warm(self, path: Path) -> None:
        """Have a file in memory, so that who sends it does not wait for the disk."""
        with path.open("rb") as file:
            while file.read(MIB):
                pass


@attrs.frozen(kw_only=True)
class Download:
    """Get `count` files at once."""

    files: Files
    size: int
    count: int = 1
    where: Callable[[Any, str], str] = lambda target, path: target.url(path)
    """The URL of a file at a target."""

    def prepare(self, target: Target) -> None:
        """See `Work`."""
        clients.upload([target.url(name) for name in self._names()], target.ca, target.headers, self.files.of(self.size))

    def run(self, target: Target, number: int) -> Sample:
        """See `Work`."""
        urls = [self.where(target, name) for name in self._names()]
        return _measured(target, self.size * self.count, lambda: clients.download(urls, target.ca, target.headers, self.size))

    def _names(self) -> Sequence[str]:
        return [f"{self.size}-{number}" for number in range(self.count)]


@attrs.frozen(kw_only=True)
class Upload:
    """Put `count` new files at once."""

    files: Files
    size: int
    count: int = 1

    def prepare(self, target: Target) -> None:
        """See `Work`."""

    def run(self, target: Target, number: int) -> Sample:
        """See `Work`."""
        file = self.files.of(self.size)
        urls = [target.url(f"up-{number}-{one}") for one in range(self.count)]
        give_back_page_cache()
        self.files.warm(file)
        try:
            return _measured(target, self.size * self.count, lambda: clients.upload(urls, target.ca, target.headers, file))
        finally:
            target.clear()


@attrs.frozen(kw_only=True)
class SmallDownloads:
    """Get one small file again and again."""

    files: Files
    seconds: float

    def prepare(self, target: Target) -> None:
        """See `Work`."""
        clients.upload([target.url("small")], target.ca, target.headers, self.files.of(SMALL_BYTES))

    def run(self, target: Target, number: int) -> Sample:
        """See `Work`."""
        return _many(target, target.url("small"), self.seconds, CONNECTIONS, uploads=False)


@attrs.frozen(kw_only=True)
class SmallUploads:
    """Put small files, each to a path of its own."""

    seconds: float
    connections: int = CONNECTIONS

    def prepare(self, target: Target) -> None:
        """See `Work`."""

    def run(self, target: Target, number: int) -> Sample:
        """See `Work`."""
        try:
            return _many(target, target.url("").rstrip("/"), self.seconds, self.connections, uploads=True)
        finally:
            target.clear()


def _many(target: Target, url: str, seconds: float, connections: int, *, uploads: bool) -> Sample:
    before = cpu_seconds(target.roots())
    done = clients.many(url, target.ca, target.headers, seconds=seconds, connections=connections, uploads=uploads)
    return Sample(seconds=done.seconds, amount=done.count, cpu_s=cpu_seconds(target.roots()) - before, p99_s=done.p99_s)


def _measured(target: Target, size: int, work: Callable[[], None]) -> Sample:
    before = cpu_seconds(target.roots())
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    return Sample(seconds=seconds, amount=size, cpu_s=cpu_seconds(target.roots()) - before)
