"""Small blobs that were read lately, kept open: what the system has of them in memory is read without a trip to a worker.

Nothing of their content is kept. Each reading reads the file and checks its blocks, as any other; when the system would have to wait for
the disk (preadv2(2), RWF_NOWAIT) or a block is bad, the worker does it from the beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs

from securifile.model.ids import AttemptId
from securifile.node.files import Files
from securifile.node.sidecars import BLOCK_BYTES, SidecarFile

SMALL_BYTES_MAX = 64 * 1024
"""Of a blob that is read in one go: less than half of a block, some ten microseconds to check."""
KEPT_MAX = 512
"""Open files; an ordinary process may have 1024."""


@attrs.frozen
class _Kept:
    descriptor: int
    loaded: SidecarFile
    release: Callable[[], None]


class AtHand:
    """The open files, the one that was not used for longest first."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._kept: OrderedDict[AttemptId, _Kept] = OrderedDict()
        self.changes = 0
        """How often one was let go because its blob was leaving: what was opened before that must not be kept after it."""

    def read(self, attempt: AttemptId) -> bytes | None:
        """The blob's content, checked; None when it is not at hand."""
        kept = self._kept.get(attempt)
        if kept is None:
            return None
        size = kept.loaded.sidecar.size
        data = self._files.read_at_once(kept.descriptor, size, kept.loaded.start)
        if data is None or len(data) != size or (size and not kept.loaded.good(0, data)):
            self._let_go(attempt)
            return None
        self._kept.move_to_end(attempt)
        return data

    def keep(self, attempt: AttemptId, descriptor: int, loaded: SidecarFile, release: Callable[[], None]) -> None:
        """Keep an open file; `release` closes it. Of blobs of one block at most."""
        assert loaded.sidecar.size <= BLOCK_BYTES
        self._let_go(attempt)
        self._kept[attempt] = _Kept(descriptor, loaded, release)
        while len(self._kept) > KEPT_MAX:
            self._let_go(next(iter(self._kept)))

    def leaving(self, attempt: AttemptId) -> None:
        """The blob is dropped or set aside."""
        self.changes += 1
        self._let_go(attempt)

    def close_all(self) -> None:
        """Let go of every file."""
        for attempt in list(self._kept):
            self._let_go(attempt)

    def _let_go(self, attempt: AttemptId) -> None:
        kept = self._kept.pop(attempt, None)
        if kept is not None:
            kept.release()
