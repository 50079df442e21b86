"""Whether one blob is what it should be, by reading all of it.

Each block is checked against its checksum, the checksums are covered by the sidecar's own, and the sidecar's digest
is compared with the catalogue's: so the bytes are those that were committed, without computing a slow digest again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from securifile.model.entries import Version
from securifile.model.errors import CorruptBlock, NoSuchBlob
from securifile.model.ids import AttemptId

GONE = "it is not there"
OTHER = "its sidecar is not that of the version in the catalogue"


async def _at_once(count: int) -> None:
    """No budget."""


async def examine(blobs: Any, attempt: AttemptId, version: Version | None, rest: Callable[[int], Awaitable[None]] = _at_once) -> str | None:
    """Read a blob whole; None when it is sound, else what is wrong with it.

    Args:
        blobs: an `IBlobStore`.
        version: what the catalogue says of it; None: the blob is compared only with what is noted beside it.
        rest: awaited after so many bytes were read.

    Raises:
        OSError: it cannot be told: no descriptors left, no permission. What the medium cannot give is corrupt instead.
    """
    try:
        sidecar = await blobs.sidecar(attempt)
        if version is not None and (sidecar.size, sidecar.digest) != (version.size, version.digest):
            return OTHER
        reader = await blobs.open(attempt)
        try:
            source = reader.source(0, reader.size)
            while data := await source.read():
                await rest(len(data))
        finally:
            reader.close()
    except NoSuchBlob:
        return GONE
    except CorruptBlock as error:
        return str(error)
    return None
