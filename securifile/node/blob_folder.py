"""The blobs' folder on the disk: every blocking step, one function each, run by a worker.

    blobs/ab/abcd...        exactly the bytes; named by the attempt
    blobs/ab/abcd....meta   its sidecar (`sidecars.py`)
    incoming/               both, while they are being written; same file system, so that a rename moves them
    uploads/                resumable uploads (`staged_folder.py`); their bytes are linked to their place
    quarantine/             what must not be served and is kept for the operator, each with a `.reason`

Order of `seal`, and what a crash leaves after each step:

    1. fsync the bytes                          incoming/ only: removed at recovery
    2. write and fsync the sidecar              incoming/ only
    3. rename the sidecar to its place          sidecar without bytes: removed at recovery
    4. rename the bytes to their place          whole; or, if the file system kept 4 and lost 3, bytes without sidecar
    5. fsync the directory                      whole; only now may anybody be told

Journalling file systems keep the order of 3 and 4, but POSIX does not promise it, and a second fsync between them would
cost every upload milliseconds. So recovery knows the case: bytes without a sidecar were never promised to
anybody, and because they may also be a good blob whose sidecar somebody lost, they are moved to quarantine, not deleted.

An fsync that failed is final: the kernel may have dropped the dirty pages and would call the next fsync a success.
The blob is given up.

`remove` is not fsynced. A blob that comes back after a crash is one more for the node to ask the catalogue about.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import attrs

from securifile.model.entries import BlobSummary, Sidecar, WholeBlob
from securifile.model.errors import BlobExists, CorruptBlock, DiskFull, NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, Position
from securifile.node.files import Files
from securifile.node.sidecars import (
    BLOCK_BYTES,
    BlockChecksums,
    DamagedSidecar,
    SidecarFile,
    checksum_of,
    decode_sidecar,
    encode_note,
    encode_sidecar,
)

_META = ".meta"
_REASON = ".reason"
RESERVE_STEP_BYTES = 1024 * 1024
"""After so many of a blob the file system is asked again what it has left: it is as many system calls as writing, otherwise."""
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@attrs.frozen(kw_only=True)
class Recovery:
    """What was found when the store was opened."""

    blobs: int = 0
    used_bytes: int = 0
    leftovers: int = 0
    """Files removed: uploads that were under way, sidecars without bytes."""
    quarantined: tuple[tuple[AttemptId, str], ...] = ()
    """Blobs set aside, each with the reason."""


class _Keeping:
    """A whole blob on its way to the disk."""

    def __init__(self, blob: WholeBlob) -> None:
        hasher, checksums = blob.algorithm.hasher(), BlockChecksums()
        hasher.update(blob.data)
        checksums.update(blob.data)
        self.blob = blob
        self.checksums = checksums.digest()
        self.sidecar = Sidecar(
            attempt=blob.attempt,
            file=blob.file.value,
            version=blob.version,
            size=len(blob.data),
            digest=hasher.digest(),
            algorithm=blob.algorithm,
            committed_at=None,
        )
        self.descriptors: list[int] = []
        self.begun = False
        """Whether there may be something of it: what is there under its name is not another's."""
        self.error: Exception | None = None

    def take(self, step: Callable[[_Keeping], None]) -> None:
        """Do the next step, unless one has failed."""
        if self.error is None:
            try:
                with no_room_is_disk_full():
                    step(self)
            except Exception as error:  # of this blob; the others are not concerned
                self.error = error


class BlobFolder:
    """The steps. Different attempts may be worked on at once; one attempt by one thread at a time."""

    def __init__(self, directory: str, files: Files, reserve_bytes: int) -> None:
        self.root = os.path.abspath(directory)
        self._blobs = os.path.join(self.root, "blobs")
        self._incoming = os.path.join(self.root, "incoming")
        self._quarantine = os.path.join(self.root, "quarantine")
        self._reserve_bytes = reserve_bytes
        self.files = files

    # --- opening the store ---

    def recover(self) -> Recovery:
        """Make the directories, clear up after a crash, and count."""
        self._make_directories()
        leftovers = self._clear_incoming()
        blobs = used = 0
        quarantined: list[tuple[AttemptId, str]] = []
        for attempt, names in self._found():
            size = self.files.length(self._data(attempt))
            if size is None:
                self.files.remove(self._meta(attempt))
                leftovers += 1
                continue
            if (reason := self._complaint(attempt, names, size)) is not None:
                self.set_aside(attempt, reason)
                quarantined.append((attempt, reason))
                continue
            blobs += 1
            used += size
        return Recovery(blobs=blobs, used_bytes=used, leftovers=leftovers, quarantined=tuple(quarantined))

    def _make_directories(self) -> None:
        for directory in (self.root, self._blobs, self._incoming, self._quarantine):
            self.files.make_directory(directory)
        there = set(self.files.names(self._blobs))
        for shard in _SHARDS:
            if shard not in there:
                self.files.make_directory(os.path.join(self._blobs, shard))
        # All of them, now, so that `seal` never has to think of a parent.
        for directory in (self._blobs, self.root, os.path.dirname(self.root)):
            self.files.sync_directory(directory)

    def _clear_incoming(self) -> int:
        names = self.files.names(self._incoming)
        for name in names:
            self.files.remove(os.path.join(self._incoming, name))
        return len(names)

    def _found(self) -> Iterator[tuple[AttemptId, set[str]]]:
        """Every attempt of which a file is there, with the names of its files. Files of other names are left alone."""
        for shard in _SHARDS:
            by_attempt: dict[AttemptId, set[str]] = {}
            for name in self.files.names(os.path.join(self._blobs, shard)):
                with suppress(ValueError):
                    attempt = AttemptId.parse(name.removesuffix(_META))
                    if name in (str(attempt), str(attempt) + _META) and name.startswith(shard):
                        by_attempt.setdefault(attempt, set()).add(name)
            yield from by_attempt.items()

    def _complaint(self, attempt: AttemptId, names: set[str], size: int) -> str | None:
        """Why the blob cannot be served, if it cannot."""
        if str(attempt) + _META not in names:
            return "it has no sidecar"
        try:
            sidecar = self.load(attempt).sidecar
        except DamagedSidecar as error:
            return f"its sidecar is damaged: {error}"
        if sidecar.size != size:
            return f"it has {size} bytes where its sidecar says {sidecar.size}"
        return None

    # --- one blob on its way in ---

    def create(self, attempt: AttemptId) -> int:
        """A temporary file for the attempt; its descriptor. Raises `BlobExists`, `DiskFull`."""
        if self.files.length(self._data(attempt)) is not None:
            raise BlobExists(f"blob {attempt} is already here")
        self.keep_reserve()
        with no_room_is_disk_full():
            try:
                return self.files.create(self._incoming_data(attempt))
            except FileExistsError:
                raise BlobExists(f"blob {attempt} is already being written") from None

    def append(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write at `offset`. Raises `DiskFull`."""
        if offset // RESERVE_STEP_BYTES != (offset + len(data)) // RESERVE_STEP_BYTES:
            self.keep_reserve()
        with no_room_is_disk_full():
            self.files.write(descriptor, data, offset)

    def seal(self, descriptor: int, sidecar: Sidecar, checksums: bytes) -> None:
        """Make it durable, in the order that this module's docstring explains. After any error nothing is left behind."""
        attempt = sidecar.attempt
        try:
            with no_room_is_disk_full():
                self.files.sync(descriptor)
                self.write_whole(self._incoming_meta(attempt), encode_sidecar(sidecar, checksums))
                self.files.rename(self._incoming_meta(attempt), self._meta(attempt))
                self.files.rename(self._incoming_data(attempt), self._data(attempt))
                self.files.sync_directory(self._shard(attempt))
        except Exception:
            self.remove_all(self._data(attempt), self._meta(attempt), self._incoming_data(attempt), self._incoming_meta(attempt))
            raise

    def keep_all(self, blobs: Sequence[WholeBlob]) -> list[BlobSummary | Exception]:
        """Store each of these as `create`, `append` and `seal` would, all of them at the same time: one fsync of a folder does for
        all that has come into it, and the system begins with all of the bytes before any are waited for.

        Returns:
            What became of each; after an error (`DiskFull`, `BlobExists`, `OSError`) nothing is left behind of it.
        """
        keeping = [_Keeping(blob) for blob in blobs]
        try:
            for step in (self._put_down, self._make_certain, self._put_in_place):
                for one in keeping:
                    one.take(step)
            for shard in dict.fromkeys(self._shard(one.blob.attempt) for one in keeping if one.error is None):
                try:
                    with no_room_is_disk_full():
                        self.files.sync_directory(shard)
                except (OSError, DiskFull) as error:
                    for one in keeping:
                        if self._shard(one.blob.attempt) == shard:
                            one.error = one.error or error
            for one in keeping:
                if one.error is not None and one.begun:
                    attempt = one.blob.attempt
                    self.remove_all(self._data(attempt), self._meta(attempt), self._incoming_data(attempt), self._incoming_meta(attempt))
        finally:
            for one in keeping:
                for descriptor in one.descriptors:
                    self.files.close(descriptor)
        return [
            one.error or BlobSummary(size=one.sidecar.size, digest=one.sidecar.digest, checksum=checksum_of(one.checksums))
            for one in keeping
        ]

    def _put_down(self, one: _Keeping) -> None:
        """Both files, in `incoming/`."""
        attempt = one.blob.attempt
        one.descriptors.append(self.create(attempt))
        one.begun = True
        self.files.write(one.descriptors[0], one.blob.data, 0)
        one.descriptors.append(self.files.create(self._incoming_meta(attempt)))
        sidecar = encode_sidecar(one.sidecar, one.checksums)
        self.files.write(one.descriptors[1], sidecar, 0)
        # A file system that journals gives all of them their places now, in one transaction: the first fsync waits for it, the others
        # find it done. Else each fsync makes a transaction of its own.
        for descriptor, length in zip(one.descriptors, (len(one.blob.data), len(sidecar)), strict=True):
            self.files.begin_sync(descriptor, length, 0)

    def _make_certain(self, one: _Keeping) -> None:
        for descriptor in one.descriptors:
            self.files.sync(descriptor)

    def _put_in_place(self, one: _Keeping) -> None:
        attempt = one.blob.attempt
        self.files.rename(self._incoming_meta(attempt), self._meta(attempt))
        self.files.rename(self._incoming_data(attempt), self._data(attempt))

    def adopt(self, descriptor: int, path: str, sidecar: Sidecar, checksums: bytes) -> None:
        """As `seal`, for bytes in the file `path` that were promised before: after an error or a crash they are in one place or both."""
        attempt = sidecar.attempt
        with no_room_is_disk_full():
            self.files.sync(descriptor)
            self.remove_all(self._incoming_meta(attempt))
            self.write_whole(self._incoming_meta(attempt), encode_sidecar(sidecar, checksums))
            self.files.rename(self._incoming_meta(attempt), self._meta(attempt))
            # Not renamed: across two folders a crash may keep the end of the old name and lose the new one.
            self.remove_all(self._data(attempt))
            self.files.link(path, self._data(attempt))
            self.files.sync_directory(self._shard(attempt))
            self.remove_all(path)

    def has(self, attempt: AttemptId) -> bool:
        """Whether the blob is here."""
        return self.files.length(self._data(attempt)) is not None and self.files.length(self._meta(attempt)) is not None

    def discard(self, attempt: AttemptId) -> None:
        """Remove the temporary file."""
        self.remove_all(self._incoming_data(attempt))

    def keep_reserve(self) -> None:
        """Raise `DiskFull` when the reserve is touched."""
        # The index and the audit spool live on the same disk and must go on when blobs have no more room.
        if (available := self.files.available_bytes(self.root)) < self._reserve_bytes:
            raise DiskFull(f"{available} bytes are available and {self._reserve_bytes} are kept in reserve")

    def write_whole(self, path: str, data: bytes) -> None:
        """A new file with this in it, fsynced."""
        descriptor = self.files.create(path)
        try:
            self.files.write(descriptor, data, 0)
            self.files.sync(descriptor)
        finally:
            self.files.close(descriptor)

    def remove_all(self, *paths: str) -> None:
        """Remove what is there of these files."""
        for path in paths:
            with suppress(OSError):  # a disk that cannot even do this: recovery will, or the catalogue disowns the blob
                self.files.remove(path)

    # --- finished blobs ---

    def load(self, attempt: AttemptId) -> SidecarFile:
        """Read the sidecar. Raises `NoSuchBlob`, `DamagedSidecar`."""
        with self._opened(self._meta(attempt), attempt) as descriptor:
            loaded = decode_sidecar(_readable(self.files, descriptor, self.files.size(descriptor), 0))
        if loaded.sidecar.attempt != attempt:
            raise DamagedSidecar(f"it is of another blob, {loaded.sidecar.attempt}")
        return loaded

    def sidecar(self, attempt: AttemptId) -> SidecarFile:
        """As `load`, for whoever is not going to mend it. Raises `NoSuchBlob`, `CorruptBlock`."""
        try:
            return self.load(attempt)
        except DamagedSidecar as error:
            raise CorruptBlock(f"the sidecar of blob {attempt} is damaged: {error}", attempt=attempt) from error

    def sidecars(self) -> list[Sidecar]:
        """Of every blob whose sidecar can be read."""
        found = []
        for attempt, names in self._found():
            if str(attempt) in names:
                with suppress(DamagedSidecar, NoSuchBlob):  # dropped meanwhile; or for the next reader to find
                    found.append(self.load(attempt).sidecar)
        return found

    def open(self, attempt: AttemptId) -> tuple[int, SidecarFile]:
        """A descriptor for reading, and the sidecar. Raises `NoSuchBlob`, `CorruptBlock`."""
        loaded = self.sidecar(attempt)
        try:
            return self.files.open(self._data(attempt)), loaded
        except FileNotFoundError:
            raise NoSuchBlob(f"blob {attempt} is not here") from None

    def open_small(self, attempt: AttemptId, bytes_max: int) -> tuple[int, SidecarFile, bytes]:
        """As `open`, with the blob's first `bytes_max` bytes. Raises `NoSuchBlob`, `CorruptBlock`."""
        descriptor, loaded = self.open(attempt)
        try:
            pieces, problem = self.blocks(descriptor, loaded, 0, min(loaded.sidecar.size, bytes_max))
            if problem is not None:
                raise problem
        except BaseException:
            self.files.close(descriptor)
            raise
        return descriptor, loaded, b"".join(pieces)

    def blocks(self, descriptor: int, loaded: SidecarFile, start: int, stop: int) -> tuple[list[bytes], CorruptBlock | None]:
        """The bytes [start, stop) in pieces of at most one block, up to the first block that is bad, and what is wrong with that."""
        pieces: list[bytes] = []
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            offset = block * BLOCK_BYTES
            data = _readable(self.files, descriptor, min(BLOCK_BYTES, loaded.sidecar.size - offset), offset)
            if not loaded.good(block, data):
                attempt = loaded.sidecar.attempt
                return pieces, CorruptBlock(f"block {block} of blob {attempt} is not what was written", attempt=attempt, block=block)
            piece = data[max(start - offset, 0) : stop - offset]
            pieces.append(piece)
        return pieces, None

    def fill(self, descriptor: int, loaded: SidecarFile, memory: memoryview, start: int) -> None:
        """Fill `memory` with the bytes from `start`, whatever they are.

        Raises:
            CorruptBlock: the blob ends before, or the medium cannot give them.
        """
        try:
            count = self.files.read_into(descriptor, memory, start)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            count = 0
        if count < len(memory):
            attempt, block = loaded.sidecar.attempt, (start + count) // BLOCK_BYTES
            raise CorruptBlock(f"block {block} of blob {attempt} is not there, or cannot be read", attempt=attempt, block=block)

    def pour(
        self,
        descriptor: int,
        loaded: SidecarFile,
        pieces: deque[bytes],
        start: int,
        stop: int,
        take: Callable[[bytes], bool],
        bytes_max: int,
    ) -> tuple[int, CorruptBlock | None]:
        """Give `pieces` and then the bytes [start, stop), block by block, to `take`, until that returns False or raises `StreamBroken`, or
        about `bytes_max` were given.

        Returns:
            Where to go on reading, and what was wrong there, if anything; what was read and not given is in `pieces`.
        """
        given = 0
        while given < bytes_max and (pieces or start < stop):
            if not pieces:
                end = min(stop, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
                blocks, problem = self.blocks(descriptor, loaded, start, end)
                if problem is not None:
                    return start, problem
                pieces.extend(blocks)
                start = end
            try:
                wants_more = take(pieces[0])
            except StreamBroken:
                break
            given += len(pieces.popleft())
            if not wants_more:
                break
        return start, None

    def note_commit(self, attempt: AttemptId, version: int, position: Position) -> None:
        """Write the note into the sidecar, in place. Raises `NoSuchBlob`, `CorruptBlock`.

        Without fsync: the catalogue is the authority on commits, and a node that finds a blob `staged` after a crash asks it.
        """
        offset = self.sidecar(attempt).note_offset
        with self._opened(self._meta(attempt), attempt, writing=True) as descriptor:
            self.files.write(descriptor, encode_note(version, position), offset)

    def note_commits(self, notes: Sequence[tuple[AttemptId, int, Position]]) -> list[Exception | None]:
        """`note_commit` for each of these; what went wrong with each, if anything."""
        return [_error_of(self.note_commit, *note) for note in notes]

    def remove(self, attempt: AttemptId) -> int:
        """Delete the blob; how many bytes that freed. The bytes go first: a sidecar alone is not a blob."""
        size = self.files.length(self._data(attempt)) or 0
        with suppress(FileNotFoundError):
            self.files.remove(self._data(attempt))
        with suppress(FileNotFoundError):
            self.files.remove(self._meta(attempt))
        return size

    def set_aside(self, attempt: AttemptId, reason: str) -> int:
        """Move the blob to the quarantine, with the reason; how many bytes left the store. An earlier one of that name is replaced."""
        size = self.files.length(self._data(attempt))
        if size is None:
            return 0
        aside = os.path.join(self._quarantine, str(attempt))
        with suppress(OSError):  # on a full disk a bad blob must go even unexplained
            with suppress(FileNotFoundError):
                self.files.remove(aside + _REASON)
            self.write_whole(aside + _REASON, reason.encode() + b"\n")
        self.files.rename(self._data(attempt), aside)
        with suppress(FileNotFoundError):
            self.files.rename(self._meta(attempt), aside + _META)
        self.files.sync_directory(self._quarantine)
        self.files.sync_directory(self._shard(attempt))
        return size

    def quarantined_count(self) -> int:
        """How many blobs are in the quarantine."""
        return sum(not name.endswith((_META, _REASON)) for name in self.files.names(self._quarantine))

    def available_bytes(self) -> int:
        """What blobs may still take: without the reserve."""
        return max(0, self.files.available_bytes(self.root) - self._reserve_bytes)

    # --- names ---

    @contextmanager
    def _opened(self, path: str, attempt: AttemptId, *, writing: bool = False) -> Iterator[int]:
        try:
            descriptor = self.files.open(path, writing=writing)
        except FileNotFoundError:
            raise NoSuchBlob(f"blob {attempt} is not here") from None
        try:
            yield descriptor
        finally:
            self.files.close(descriptor)

    def _shard(self, attempt: AttemptId) -> str:
        return os.path.join(self._blobs, str(attempt)[:2])

    def _data(self, attempt: AttemptId) -> str:
        return os.path.join(self._shard(attempt), str(attempt))

    def _meta(self, attempt: AttemptId) -> str:
        return self._data(attempt) + _META

    def _incoming_data(self, attempt: AttemptId) -> str:
        return os.path.join(self._incoming, str(attempt))

    def _incoming_meta(self, attempt: AttemptId) -> str:
        return self._incoming_data(attempt) + _META


def _error_of(work: Callable[..., None], *arguments: Any) -> Exception | None:
    try:
        work(*arguments)
    except Exception as error:  # for who asked for this one; the others are not concerned
        return error
    return None


def _readable(files: Files, descriptor: int, count: int, offset: int) -> bytes:
    """What the medium still gives: nothing where it cannot read, which is as bad as wrong bytes and is mended in the same way."""
    try:
        return files.read(descriptor, count, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


class _NoRoomIsDiskFull:
    """No generator, since each piece of an upload goes through it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise DiskFull(str(error)) from error


_no_room_is_disk_full = _NoRoomIsDiskFull()


def no_room_is_disk_full() -> AbstractContextManager[None]:
    """While inside, an error of the file system that means "no room" is `DiskFull`."""
    return _no_room_is_disk_full
