"""The few things a node does to files, each one blocking call that may fail.

They stand behind a protocol so that a test can put a disk there that fills up, fails at the k-th call, or forgets at a
crash whatever was not fsynced.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Protocol


class Files(Protocol):
    """A file system. Every method may raise `OSError`; all are called from a worker's threads."""

    def create(self, path: str) -> int:
        """A new file for writing and reading, mode 0600; the descriptor. `FileExistsError` when there is one."""

    def open(self, path: str, *, writing: bool = False) -> int:
        """An existing file for reading (and writing); the descriptor."""

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Put all of `data` at `offset`."""

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        """`count` bytes from `offset`; fewer only at the end of the file."""

    def read_into(self, descriptor: int, memory: memoryview, offset: int) -> int:
        """As `read`, into `memory` from its beginning; how many bytes, fewer than it has room for only at the end of the file."""

    def read_at_once(self, descriptor: int, count: int, offset: int) -> bytes | None:
        """As `read`, if that need not wait for the medium; None if it would, or nobody knows. May be called from any thread."""

    def size(self, descriptor: int) -> int:
        """Length of an open file."""

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut an open file off after `length` bytes."""

    def begin_sync(self, descriptor: int, count: int, offset: int) -> None:
        """Have the system begin to bring these bytes to the medium, without waiting: so that there is little left for `sync`."""

    def sync(self, descriptor: int) -> None:
        """Wait until the file's bytes are on the medium."""

    def close(self, descriptor: int) -> None:
        """Let go."""

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, replacing what had it; all or nothing."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name. `FileExistsError` when something has it."""

    def remove(self, path: str) -> None:
        """Take the name away; who has the file open keeps it. `FileNotFoundError`."""

    def length(self, path: str) -> int | None:
        """Bytes in the file of that name; None when there is none."""

    def names(self, directory: str) -> list[str]:
        """What is in a directory, sorted."""

    def make_directory(self, path: str) -> None:
        """Make it, mode 0700, unless it is there."""

    def sync_directory(self, path: str) -> None:
        """Wait until the names in a directory are on the medium."""

    def available_bytes(self, directory: str) -> int:
        """What an ordinary process may still write on the file system of `directory`."""


_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_SYNC_FILE_RANGE_WRITE = 2


def _sync_file_range() -> Any:
    """Linux's sync_file_range(2), which Python does not have; None elsewhere.

    Not `posix_fadvise(POSIX_FADV_DONTNEED)`, which begins to write, too, but throws out of memory what has been written by then.
    """
    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


_begin_to_write = _sync_file_range()


class OsFiles:
    """The operating system's files."""

    def create(self, path: str) -> int:
        """See `Files`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def open(self, path: str, *, writing: bool = False) -> int:
        """See `Files`."""
        return os.open(path, (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """See `Files`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        """See `Files`."""
        data = os.pread(descriptor, count, offset)
        while len(data) < count and (more := os.pread(descriptor, count - len(data), offset + len(data))):
            data += more
        return data

    def read_into(self, descriptor: int, memory: memoryview, offset: int) -> int:
        """See `Files`."""
        filled = 0
        while filled < len(memory) and (count := os.preadv(descriptor, [memory[filled:]], offset + filled)):
            filled += count
        return filled

    def read_at_once(self, descriptor: int, count: int, offset: int) -> bytes | None:
        """See `Files`. Where the system cannot say (another than Linux, or its file system), it is None."""
        if _NO_WAIT is None:
            return None
        data = bytearray(count)
        try:
            came = os.preadv(descriptor, [data], offset, _NO_WAIT) if count else 0
        except OSError:
            return None
        return bytes(data) if came == count else None

    def size(self, descriptor: int) -> int:
        """See `Files`."""
        return os.fstat(descriptor).st_size

    def truncate(self, descriptor: int, length: int) -> None:
        """See `Files`."""
        os.ftruncate(descriptor, length)

    def begin_sync(self, descriptor: int, count: int, offset: int) -> None:
        """See `Files`. What the medium cannot take is for `sync` to tell."""
        if _begin_to_write is not None:
            _begin_to_write(descriptor, offset, count, _SYNC_FILE_RANGE_WRITE)

    def sync(self, descriptor: int) -> None:
        """See `Files`."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """See `Files`."""
        os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """See `Files`."""
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        """See `Files`."""
        os.link(source, target)

    def remove(self, path: str) -> None:
        """See `Files`."""
        os.unlink(path)

    def length(self, path: str) -> int | None:
        """See `Files`."""
        try:
            return os.lstat(path).st_size
        except FileNotFoundError:
            return None

    def names(self, directory: str) -> list[str]:
        """See `Files`."""
        return sorted(os.listdir(directory))

    def make_directory(self, path: str) -> None:
        """See `Files`."""
        os.makedirs(path, 0o700, exist_ok=True)

    def sync_directory(self, path: str) -> None:
        """See `Files`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def available_bytes(self, directory: str) -> int:
        """See `Files`."""
        numbers = os.statvfs(directory)
        return numbers.f_bavail * numbers.f_frsize


OS_FILES = OsFiles()
"""They have no state: one is enough."""


def readable(files: Files, descriptor: int, count: int, offset: int) -> bytes:
    """What the medium still gives: nothing where it cannot read, which is as bad as wrong bytes and is mended in the same way."""
    try:
        return files.read(descriptor, count, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
