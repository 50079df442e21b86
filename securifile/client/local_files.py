"""Files on this machine: read as an upload's content, written whole or not at all.

A download goes into a file of another name beside its destination and gets the destination's name when every byte was
checked. So nobody sees half a file, and what is interrupted leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import BinaryIO, Protocol

from twisted.internet.defer import Deferred
from zope.interface import implementer

from securifile.client.errors import FileChanged
from securifile.model.digests import DigestAlgorithm
from securifile.model.interfaces import IByteSource, IWorker

CHUNK_BYTES = 256 * 1024
"""One read of the disk: large enough that the switch to a thread does not count."""

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have gone."""


class Output(Protocol):
    """Where a download goes."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""

    async def restart(self) -> bool:
        """Forget what was written, because another version comes now; False if that cannot be."""


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be read, or is no regular file (a pipe would hang, a device has no end).
    """
    file = open(path, "rb", buffering=0)  # noqa: SIM115  (who asked closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: not a regular file")
    return file


@implementer(IByteSource)
class FileSource:
    """The first `length` bytes of an open file, from its beginning or from `start`, and their digest."""

    def __init__(
        self, file: BinaryIO, length: int, worker: IWorker, algorithm: DigestAlgorithm, progress: Progress, *, start: int = 0
    ) -> None:
        self.algorithm = algorithm
        self._file = file
        self._length = length
        self._worker = worker
        self._hasher = algorithm.hasher()
        self._progress = progress
        self._start = start
        self._offset = start

    def again(self, algorithm: DigestAlgorithm) -> FileSource:
        """The same bytes from the beginning, with another digest."""
        return FileSource(self._file, self._length, self._worker, algorithm, lambda done, total: None)

    @property
    def complete(self) -> bool:
        """Whether every byte was read, from the beginning on."""
        return self._start == 0 and self._offset == self._length

    def digest(self) -> bytes:
        """The digest of what was read."""
        return self._hasher.digest()

    def read(self) -> Deferred[bytes]:
        """The next chunk. Raises `FileChanged` when the file ends early."""
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        wanted = min(CHUNK_BYTES, self._length - self._offset)
        if not wanted:
            return b""
        data = await self._worker.do(self._read_and_hash, wanted)
        self._offset += len(data)
        self._progress(self._offset, self._length)
        return data

    def _read_and_hash(self, wanted: int) -> bytes:
        self._file.seek(self._offset)
        data = self._file.read(wanted)
        if not data:
            raise FileChanged("The file became shorter while it was being sent, so nothing was stored. Send it again when it is at rest.")
        self._hasher.update(data)
        return data

    def close(self) -> None:
        """Nothing to do: the file is its opener's."""


class WholeFile:
    """A file that appears under its name when it is finished. Use it `async with`: leaving it unfinished removes it."""

    def __init__(self, destination: str, worker: IWorker, random: Callable[[int], bytes]) -> None:
        self.destination = destination
        folder = os.path.dirname(destination)
        # The name may have 255 bytes already; of the part's, what matters is that it is hidden and nobody else's.
        self._part = os.path.join(folder, f".{random(8).hex()}.part")
        self._worker = worker
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> WholeFile:
        """Make the part. Raises `OSError`."""
        # At once, not in a thread: between making the file and knowing it there is no place to be interrupted at.
        self._file = open(self._part, "xb", buffering=0)  # noqa: SIM115, ASYNC230
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Remove the part, unless it has become the file."""
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part)

    async def write(self, data: bytes) -> None:
        """Append. Raises `OSError`."""
        await self._worker.do(self._write, data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    async def restart(self) -> bool:
        """Empty the part."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        return True

    async def finish(self) -> None:
        """Give it its name, replacing what had it. Raises `OSError`."""
        assert self._file is not None
        await self._worker.do(os.fsync, self._file.fileno())
        os.replace(self._part, self.destination)
        self._file.close()
        self._file = None


class StreamOutput:
    """A stream that cannot be taken back: standard output, a pipe."""

    def __init__(self, stream: BinaryIO, worker: IWorker) -> None:
        self._stream = stream
        self._worker = worker
        self._begun = False

    async def write(self, data: bytes) -> None:
        """Write and flush, so that the reader gets it now. Raises `BrokenPipeError` when the reader went away."""
        self._begun = True
        await self._worker.do(self._write, data)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()

    async def restart(self) -> bool:
        """Only before the first byte."""
        return not self._begun
