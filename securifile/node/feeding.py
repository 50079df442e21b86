"""A whole blob, or parts of it, given to a function in the worker's thread: a few jobs a blob instead of one a block.

A trip to the worker and back costs as much as hashing some hundred KiB, and the reactor has to be free for it. So a job opens the blob, and
goes on until the blob is over and closed, or it has given enough for other jobs to get a turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from securifile.model.entries import Sidecar
from securifile.model.ids import AttemptId
from securifile.node.blob_folder import BlobFolder
from securifile.node.sidecars import BLOCK_BYTES, SidecarFile

STEP_BYTES = 16 * 1024 * 1024
"""Given by one job: some ten milliseconds of hashing."""

Parts = Callable[[int], Iterable[tuple[int, int]]]
"""From the size of a blob to the ranges [start, stop) that are wanted of it, in order."""


def whole(size: int) -> Iterable[tuple[int, int]]:
    """All of it."""
    return ((0, size),)


class Feeding:
    """One blob on its way. Its steps are run one after another, by any thread."""

    def __init__(self, folder: BlobFolder, attempt: AttemptId, take: Callable[[bytes], object], parts: Parts) -> None:
        self._folder = folder
        self._attempt = attempt
        self._take = take
        self._parts = parts
        self._left: deque[tuple[int, int]] = deque()
        self._open: tuple[int, SidecarFile] | None = None
        self._wanted = True

    def give_up(self) -> None:
        """Whoever wanted it has gone; the step under way, or the next one, is the last."""
        self._wanted = False

    def step(self) -> Sidecar | None:
        """Give some of it; the sidecar once all was given, and the file is closed. Raises `NoSuchBlob`, `CorruptBlock`, `OSError`."""
        try:
            if self._open is None:
                self._open = self._folder.open(self._attempt)
                self._left.extend(self._parts(self._open[1].sidecar.size))
            descriptor, loaded = self._open
            given = 0
            while self._wanted and self._left and given < STEP_BYTES:
                start, stop = self._left.popleft()
                end = min(stop, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
                pieces, problem = self._folder.blocks(descriptor, loaded, start, end)
                if problem is not None:
                    raise problem
                for piece in pieces:
                    self._take(piece)
                given += end - start
                if end < stop:
                    self._left.appendleft((end, stop))
        except BaseException:
            self._close()
            raise
        if self._wanted and self._left:
            return None
        self._close()
        return loaded.sidecar

    def _close(self) -> None:
        if self._open is not None:
            (descriptor, _), self._open = self._open, None
            self._folder.files.close(descriptor)
