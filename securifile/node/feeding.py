"""Whole blobs, or parts of them, given to functions in the worker's thread: a few jobs for many blobs instead of one a block.

A trip to the worker and back costs as much as hashing some hundred KiB, and the reactor has to be free for it. So a job takes one blob
after another, and goes on until all are over and closed, or it has given enough for other jobs to get a turn.

Who compares a digest of the whole afterwards need not have each block checked on the way. Such bytes are read into memory that is used
again for the next ones: taking new memory from the system costs more than copying the bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from securifile.model.entries import Sidecar
from securifile.model.errors import CorruptBlock, NoSuchBlob
from securifile.model.ids import AttemptId
from securifile.node.blob_folder import BlobFolder
from securifile.node.sidecars import BLOCK_BYTES, SidecarFile

STEP_BYTES = 16 * 1024 * 1024
"""Given by one job: some ten milliseconds of hashing."""

PIECE_BYTES = 1024 * 1024
"""Read at once of what is not checked: few enough calls, and as much as a core has near at hand."""

Parts = Callable[[int], Iterable[tuple[int, int]]]
"""From the size of a blob to the ranges [start, stop) that are wanted of it, in order."""

UNREADABLE = (NoSuchBlob, CorruptBlock, OSError)
"""What may be wrong with one blob and says nothing of the next."""

Fed = Sidecar | NoSuchBlob | CorruptBlock | OSError
"""What came of one blob: its sidecar once all was given, or why what was given ended too soon."""


def whole(size: int) -> Iterable[tuple[int, int]]:
    """All of it."""
    return ((0, size),)


@attrs.frozen(kw_only=True)
class Wanted:
    """What is wanted of one blob."""

    attempt: AttemptId
    take: Callable[[bytes | memoryview], object]
    """Given the bytes in order; a piece is good until it returns."""
    parts: Parts = whole
    checked: bool = True
    """Whether each block is compared with its checksum before it is given: in pieces of at most a block then."""


class Feeding:
    """Blobs on their way. Its steps are run one after another, by any thread."""

    def __init__(self, folder: BlobFolder, wanted: Sequence[Wanted]) -> None:
        self.fed: list[Fed] = []
        """Of those that are over, in order."""
        self._folder = folder
        self._wanted = wanted
        self._left: deque[tuple[int, int]] = deque()
        self._open: tuple[int, SidecarFile] | None = None
        self._memory: memoryview | None = None
        self._given_up = False

    def give_up(self) -> None:
        """Whoever wanted it has gone; the step under way, or the next one, is the last."""
        self._given_up = True

    def step(self) -> bool:
        """Give some; whether that was all, and no file is open any more. Raises only what a function raises that is given bytes."""
        given = 0
        try:
            while given < STEP_BYTES and not self._is_over():
                given += self._some()
        except BaseException:
            self._close()
            raise
        self._memory = None
        if self._is_over():
            self._close()
        return self._is_over()

    def _is_over(self) -> bool:
        return self._given_up or len(self.fed) == len(self._wanted)

    def _some(self) -> int:
        wanted = self._wanted[len(self.fed)]
        try:
            if self._open is None:
                self._open = self._folder.open(wanted.attempt)
                self._left = deque(wanted.parts(self._open[1].sidecar.size))
            descriptor, loaded = self._open
            pieces = self._next(descriptor, loaded, wanted.checked)
        except UNREADABLE as error:
            self._close()
            self.fed.append(error)
            return 0
        for piece in pieces:
            wanted.take(piece)
        if not self._left:
            self._close()
            self.fed.append(loaded.sidecar)
        return sum(map(len, pieces))

    def _next(self, descriptor: int, loaded: SidecarFile, checked: bool) -> Sequence[bytes | memoryview]:
        if not self._left:
            return ()
        start, stop = self._left.popleft()
        end = min(stop, (start // BLOCK_BYTES + 1) * BLOCK_BYTES if checked else start + PIECE_BYTES)
        if end < stop:
            self._left.appendleft((end, stop))
        if checked:
            pieces, problem = self._folder.blocks(descriptor, loaded, start, end)
            if problem is not None:
                raise problem
            return pieces
        if self._memory is None:
            self._memory = memoryview(bytearray(PIECE_BYTES))
        piece = self._memory[: end - start]
        self._folder.fill(descriptor, loaded, piece, start)
        return (piece,)

    def _close(self) -> None:
        if self._open is not None:
            (descriptor, _), self._open = self._open, None
            self._folder.files.close(descriptor)
