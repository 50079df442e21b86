"""Files with keys in them: written whole or not at all, and readable by nobody else."""

from __future__ import annotations

import os
from contextlib import suppress


def write_private(path: str, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` in the place of what was there; after a crash there is the old or the new, never a part. Blocks."""
    beside = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_directory(os.path.dirname(path))


def sync_directory(directory: str) -> None:
    """Wait until the names in `directory` are on the medium."""
    descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(path: str) -> bytes:
    """The bytes of a file. Blocks."""
    with open(path, "rb") as file:
        return file.read()
