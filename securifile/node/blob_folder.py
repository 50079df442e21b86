"""The blobs' folder on the disk: every blocking step, one function each, run by a worker.

    blobs/ab/abcd...        exactly the bytes; named by the attempt
    blobs/ab/abcd....meta   its sidecar (`sidecars.py`)
    blobs/ab/abcd....pack   in place of both, for small ones that came together: a name of the file that they share (`packs.py`)
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
from contextlib import contextmanager, suppress
from typing import Any

import attrs

from securifile.model.entries import BlobSummary, Sidecar, WholeBlob
from securifile.model.errors import BlobExists, CorruptBlock, DiskFull, NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, Position
from securifile.node.files import Files, readable
from securifile.node.packs import Packs
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
_PACK = ".pack"
_REASON = ".reason"
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


class BlobFolder:
    """The steps. Different attempts may be worked on at once; one attempt by one thread at a time."""

    def __init__(self, directory: str, files: Files, reserve_bytes: int) -> None:
        self.root = os.path.abspath(directory)
        self._blobs = os.path.join(self.root, "blobs")
        self._incoming = os.path.join(self.root, "incoming")
        self._quarantine = os.path.join(self.root, "quarantine")
        self._reserve_bytes = reserve_bytes
        self.files = files
        self.packs = Packs(files, os.path.join(self.root, "packs"), self._incoming, self._packed)

    # --- opening the store ---

    def recover(self) -> Recovery:
        """Make the directories, clear up after a crash, and count."""
        self._make_directories()
        leftovers = self._clear_incoming()
        blobs = used = 0
        quarantined: list[tuple[AttemptId, str]] = []
        for name, problem in self.packs.recover(self._is_sound).items():
            self._put_aside(os.path.join(self.packs.folder, name), name + _PACK, problem)
            quarantined.append((AttemptId.parse(name), problem))
        for attempt, names in self._found():
            leftovers += self._clear_doubles(attempt, names)
            packed = self.packs.look(attempt)
            size = self.files.length(self._data(attempt)) if packed is None else packed[0]
            if size is None:
                self.files.remove(self._meta(attempt))
                leftovers += 1
                continue
            reason = self._complaint(attempt, names, size) if packed is None else packed[1]
            if reason is not None:
                self.set_aside(attempt, reason)
                quarantined.append((attempt, reason))
                continue
            blobs += 1
            used += size
        return Recovery(blobs=blobs, used_bytes=used, leftovers=leftovers, quarantined=tuple(quarantined))

    def _clear_doubles(self, attempt: AttemptId, names: set[str]) -> int:
        """Remove what a crash has left of the files that a blob was being given in place of the pack, which is as good; how many."""
        doubles = names - {str(attempt) + _PACK}
        if len(doubles) == len(names):
            return 0
        for name in doubles:
            self.files.remove(os.path.join(self._shard(attempt), name))
        return len(doubles)

    def _make_directories(self) -> None:
        for directory in (self.root, self._blobs, self._incoming, self._quarantine, self.packs.folder):
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
                    attempt = AttemptId.parse(name.removesuffix(_META).removesuffix(_PACK))
                    if name in (str(attempt), str(attempt) + _META, str(attempt) + _PACK) and name.startswith(shard):
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
        if self._is_here(attempt):
            raise BlobExists(f"blob {attempt} is already here")
        self.keep_reserve()
        with no_room_is_disk_full():
            try:
                return self.files.create(self._incoming_data(attempt))
            except FileExistsError:
                raise BlobExists(f"blob {attempt} is already being written") from None

    def append(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write at `offset`. Raises `DiskFull`."""
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
        """Store each of these as `create`, `append` and `seal` would; several at the same time go into a pack.

        Returns:
            What became of each; after an error (`DiskFull`, `BlobExists`, `OSError`) nothing is left behind of it. What the disk says of
            a pack is said of each blob in it.
        """
        keep = self._keep_one if len(blobs) == 1 else self._keep_together
        return keep(blobs)

    def _keep_one(self, blobs: Sequence[WholeBlob]) -> list[BlobSummary | Exception]:
        """What comes alone has two files of its own, as a large blob."""
        (blob,) = blobs
        try:
            descriptor = self.create(blob.attempt)
            try:
                try:
                    self.append(descriptor, blob.data, 0)
                except Exception:
                    self.discard(blob.attempt)
                    raise
                sidecar, checksums = _described(blob)
                self.seal(descriptor, sidecar, checksums)
            finally:
                self.files.close(descriptor)
        except Exception as error:  # for who waits for this one
            return [error]
        return [_summary(sidecar, checksums)]

    def _keep_together(self, blobs: Sequence[WholeBlob]) -> list[BlobSummary | Exception]:
        ended: dict[AttemptId, BlobSummary | Exception] = {}
        contents: list[tuple[AttemptId, bytes, bytes]] = []
        for blob in blobs:
            if self._is_here(blob.attempt):
                ended[blob.attempt] = BlobExists(f"blob {blob.attempt} is already here")
                continue
            sidecar, checksums = _described(blob)
            ended[blob.attempt] = _summary(sidecar, checksums)
            contents.append((blob.attempt, encode_sidecar(sidecar, checksums), blob.data))
        try:
            if contents:
                self.keep_reserve()
                for (attempt, _, _), error in zip(contents, self.packs.put(contents), strict=True):
                    if error is not None:
                        ended[attempt] = _said(error)
        except (OSError, DiskFull) as error:
            for attempt, _, _ in contents:
                ended[attempt] = _said(error)
        return [ended[blob.attempt] for blob in blobs]

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
        """Whether the blob is here, whole."""
        # The pack first: who leaves it has files of its own before.
        if self.packs.is_here(attempt):
            return True
        return self.files.length(self._data(attempt)) is not None and self.files.length(self._meta(attempt)) is not None

    def _is_here(self, attempt: AttemptId) -> bool:
        """Whether there is something of it."""
        return self.packs.is_here(attempt) or self.files.length(self._data(attempt)) is not None

    def _is_sound(self, attempt: AttemptId) -> bool:
        """Whether it is in a pack already, or each of its blocks is good in files of its own: what a crash, or an fsync that
        failed, has brought back of those must not stand in the way of the pack's.
        """
        if self.packs.is_here(attempt):
            return True
        if not self.has(attempt):
            return False
        try:
            descriptor, loaded = self.open(attempt)
        except (NoSuchBlob, CorruptBlock):
            return False
        try:
            return self.blocks(descriptor, loaded, 0, loaded.sidecar.size)[1] is None
        finally:
            self.files.close(descriptor)

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
        try:
            loaded = self.packs.load(attempt)
        except FileNotFoundError:
            with self._opened(self._meta(attempt), attempt) as descriptor:
                loaded = decode_sidecar(readable(self.files, descriptor, self.files.size(descriptor), 0))
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
            if names & {str(attempt), str(attempt) + _PACK}:
                with suppress(DamagedSidecar, NoSuchBlob):  # dropped meanwhile; or for the next reader to find
                    found.append(self.load(attempt).sidecar)
        return found

    def open(self, attempt: AttemptId) -> tuple[int, SidecarFile]:
        """A descriptor for reading, and the sidecar. Raises `NoSuchBlob`, `CorruptBlock`."""
        loaded = self.sidecar(attempt)
        if loaded.start:
            with suppress(FileNotFoundError):
                return self.files.open(self._packed(attempt)), loaded
            # Since it was looked at it has left the pack.
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
            data = readable(self.files, descriptor, min(BLOCK_BYTES, loaded.sidecar.size - offset), loaded.start + offset)
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
            count = self.files.read_into(descriptor, memory, loaded.start + start)
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
        with self.packs.steady:
            loaded = self.sidecar(attempt)
            path = self._packed(attempt) if loaded.start else self._meta(attempt)
            with self._opened(path, attempt, writing=True) as descriptor:
                self.files.write(descriptor, encode_note(version, position), loaded.note_offset)

    def note_commits(self, notes: Sequence[tuple[AttemptId, int, Position]]) -> list[Exception | None]:
        """`note_commit` for each of these; what went wrong with each, if anything."""
        return [_error_of(self.note_commit, *note) for note in notes]

    def remove(self, attempt: AttemptId) -> int:
        """Delete the blob; how many bytes that freed. The bytes go first: a sidecar alone is not a blob."""
        with self.packs.steady, suppress(FileNotFoundError):
            size, others = self.packs.remove(attempt)
            for other in others:
                with suppress(OSError, DiskFull, DamagedSidecar):  # it stays where it is
                    self._take_out(other)
            return size
        size = self.files.length(self._data(attempt)) or 0
        with suppress(FileNotFoundError):
            self.files.remove(self._data(attempt))
        with suppress(FileNotFoundError):
            self.files.remove(self._meta(attempt))
        return size

    def _take_out(self, attempt: AttemptId) -> None:
        """Give a blob of a pack files of its own, as they are in the pack, and its name in the pack away."""
        sidecar, data = self.packs.contents(attempt)
        self.keep_reserve()
        try:
            self.write_whole(self._incoming_data(attempt), data)
            self.write_whole(self._incoming_meta(attempt), sidecar)
            self.files.rename(self._incoming_meta(attempt), self._meta(attempt))
            self.files.rename(self._incoming_data(attempt), self._data(attempt))
            self.files.sync_directory(self._shard(attempt))
        except OSError:
            self.remove_all(self._data(attempt), self._meta(attempt), self._incoming_data(attempt), self._incoming_meta(attempt))
            raise
        self.files.remove(self._packed(attempt))

    def set_aside(self, attempt: AttemptId, reason: str) -> int:
        """Move the blob to the quarantine, with the reason; how many bytes left the store. An earlier one of that name is replaced."""
        with self.packs.steady:
            packed = self.packs.look(attempt)
            if packed is not None:
                self._put_aside(self._packed(attempt), str(attempt) + _PACK, reason)
                self.files.sync_directory(self._shard(attempt))
                return packed[0]
        size = self.files.length(self._data(attempt))
        if size is None:
            return 0
        self._put_aside(self._data(attempt), str(attempt), reason)
        with suppress(FileNotFoundError):
            self.files.rename(self._meta(attempt), os.path.join(self._quarantine, str(attempt) + _META))
            self.files.sync_directory(self._quarantine)
        self.files.sync_directory(self._shard(attempt))
        return size

    def _put_aside(self, path: str, name: str, reason: str) -> None:
        """Move a file to the quarantine, under this name, with the reason."""
        aside = os.path.join(self._quarantine, name)
        why = aside.removesuffix(_PACK) + _REASON
        with suppress(OSError):  # on a full disk a bad blob must go even unexplained
            with suppress(FileNotFoundError):
                self.files.remove(why)
            self.write_whole(why, reason.encode() + b"\n")
        # rename(2) does nothing, and says that all is well, when both are names of one file: of a pack that came back at a start.
        with suppress(FileNotFoundError):
            self.files.remove(aside)
        self.files.rename(path, aside)
        self.files.sync_directory(self._quarantine)

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

    def _packed(self, attempt: AttemptId) -> str:
        return self._data(attempt) + _PACK

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


def _described(blob: WholeBlob) -> tuple[Sidecar, bytes]:
    """A blob's sidecar, and the checksums of its blocks."""
    hasher, checksums = blob.algorithm.hasher(), BlockChecksums()
    hasher.update(blob.data)
    checksums.update(blob.data)
    sidecar = Sidecar(
        attempt=blob.attempt,
        file=blob.file.value,
        version=blob.version,
        size=len(blob.data),
        digest=hasher.digest(),
        algorithm=blob.algorithm,
        committed_at=None,
    )
    return sidecar, checksums.digest()


def _summary(sidecar: Sidecar, checksums: bytes) -> BlobSummary:
    return BlobSummary(size=sidecar.size, digest=sidecar.digest, checksum=checksum_of(checksums))


def _said(error: Exception) -> Exception:
    """`DiskFull`, if that is what the file system means."""
    return DiskFull(str(error)) if isinstance(error, OSError) and error.errno in _NO_ROOM else error


@contextmanager
def no_room_is_disk_full() -> Iterator[None]:
    """While inside, an error of the file system that means "no room" is `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(str(error)) from error
        raise
