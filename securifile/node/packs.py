"""Small blobs that came together, in one file: one fsync of a file and one of a folder for all of them.

    packs/abcd...              a pack (`pack_format.py`), until the names of its blobs are certain
    blobs/ab/abcd....pack      the same file by another name (link(2)), one for each of its blobs

What a crash leaves after each step of `put`:

    1. write and fsync the pack in incoming/    incoming/ only: removed at recovery
    2. rename it into packs/                    whole, or incoming/ only, or nothing
    3. fsync packs/                             certain; only now may anybody be told
    4. link the name of each blob               recovery links those that the crash has lost

The folders of the blobs' names are fsynced later, for all that came meanwhile (`settle`); until then the name in packs/ stands for all
of them. A blob that left meanwhile comes back at the next start as one more for the node to ask the catalogue about, as after a crash.

The file lives as long as one of its names. When most of the blobs in it have left, the others are given files of their own, so that what
left does not take room for ever: each blob is rewritten once at most.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Lock

from securifile.model.ids import AttemptId
from securifile.node.files import Files, readable
from securifile.node.pack_format import FIRST_BYTES, Place, decode_places, encode_pack
from securifile.node.sidecars import DamagedSidecar, SidecarFile, checksum, decode_sidecar

SETTLE_BLOBS = 4096
"""So many new names before their folders are fsynced: sixteen in each of 256."""
SETTLE_BYTES = 64 * 1024 * 1024
"""Or so many bytes: what left of them takes room until then."""

SECTOR_BYTES = 512
"""What a medium reads, or cannot read, at least."""


class Packs:
    """The packs of one blob store."""

    def __init__(self, files: Files, folder: str, incoming: str, name_of: Callable[[AttemptId], str]) -> None:
        """Args:
        folder: `packs/`.
        incoming: where files are until they are whole.
        name_of: the path of a blob that is in a pack.
        """
        self.folder = folder
        self._files = files
        self._incoming = incoming
        self._name_of = name_of
        self.steady = Lock()
        """Held by whoever writes into a pack, takes a blob out of one, or removes one: it stays where it was found meanwhile."""
        self._unsettled: list[tuple[str, set[str]]] = []
        """The names of packs whose blobs all have theirs, and the folders that these are in."""
        self._counting = Lock()
        """Held for an instant: who stores must not wait for the disk with who has `steady`."""
        self._blobs = 0
        self._bytes = 0

    # --- on the way in ---

    def put(self, blobs: Sequence[tuple[AttemptId, bytes, bytes]]) -> list[OSError | None]:
        """Store these: of each its attempt, its sidecar, and its bytes.

        Returns:
            Why a blob did not get its name, if so.

        Raises:
            OSError: nothing is left behind of any.
        """
        data = encode_pack(blobs)
        name = self._free_name(blobs, data)
        incoming, path = os.path.join(self._incoming, f"{name}.pack"), os.path.join(self.folder, name)
        made = incoming
        try:
            descriptor = self._files.create(incoming)
            try:
                self._files.write(descriptor, data, 0)
                self._files.sync(descriptor)
            finally:
                self._files.close(descriptor)
            self._files.rename(incoming, path)
            made = path
            self._files.sync_directory(self.folder)
        except OSError:
            with suppress(OSError):
                self._files.remove(made)
            raise
        ended: list[OSError | None] = []
        for attempt, _, _ in blobs:
            try:
                self._files.link(path, self._name_of(attempt))
            except OSError as error:
                ended.append(error)
            else:
                ended.append(None)
        with self._counting:
            self._unsettled.append((name, {os.path.dirname(self._name_of(attempt)) for attempt, _, _ in blobs}))
            self._blobs += len(blobs)
            self._bytes += len(data)
        return ended

    def _free_name(self, blobs: Sequence[tuple[AttemptId, bytes, bytes]], data: bytes) -> str:
        """One that no other pack has: its name may be all that stands for its blobs."""
        for attempt, _, _ in blobs:
            if self._files.length(os.path.join(self.folder, str(attempt))) is None:
                return str(attempt)
        return checksum(data).hex()

    @property
    def wants_settling(self) -> bool:
        """Whether there is enough for `settle` to do."""
        return self._blobs >= SETTLE_BLOBS or self._bytes >= SETTLE_BYTES

    def settle(self) -> None:
        """Make the names of the blobs certain, so that those of their packs are not needed any more."""
        with self._counting:
            unsettled, self._unsettled = self._unsettled, []
            self._blobs = self._bytes = 0
        for folder in sorted(set[str]().union(*(folders for _, folders in unsettled))):
            self._files.sync_directory(folder)
        for name, _ in unsettled:
            with suppress(FileNotFoundError):
                self._files.remove(os.path.join(self.folder, name))

    # --- after a crash ---

    def recover(self, is_here: Callable[[AttemptId], bool]) -> dict[str, str]:
        """Give the blobs of packs that had not settled their names again.

        Args:
            is_here: whether a blob is there already, in a pack or sound in files of its own.

        Returns:
            Packs that cannot be read, by name, and why; they are where they were.
        """
        bad: dict[str, str] = {}
        good: list[str] = []
        folders: set[str] = set()
        for name in self._files.names(self.folder):
            path = os.path.join(self.folder, name)
            try:
                AttemptId.parse(name)
            except ValueError:
                continue  # somebody else's
            try:
                places = self._places(path)
            except DamagedSidecar as error:
                bad[name] = str(error)
                continue
            is_complete = True
            for attempt in places:
                if not is_here(attempt):
                    try:
                        self._files.link(path, self._name_of(attempt))
                    except OSError as error:
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                            raise
                        is_complete = False  # the pack stays for the next start; what can be read is given meanwhile
                folders.add(os.path.dirname(self._name_of(attempt)))
            if is_complete:
                good.append(name)
        for folder in sorted(folders):
            self._files.sync_directory(folder)
        for name in good:
            self._files.remove(os.path.join(self.folder, name))
        return bad

    # --- finished blobs ---

    def is_here(self, attempt: AttemptId) -> bool:
        """Whether the blob is in a pack."""
        return self._files.length(self._name_of(attempt)) is not None

    def load(self, attempt: AttemptId) -> SidecarFile:
        """Read its sidecar. Raises `FileNotFoundError`, `DamagedSidecar`."""
        descriptor = self._files.open(self._name_of(attempt))
        try:
            first = self._first(descriptor)
            place = _place(decode_places(first), attempt)
            beside = first[place.sidecar : place.sidecar + place.sidecar_bytes]
            if len(beside) < place.sidecar_bytes:
                beside = readable(self._files, descriptor, place.sidecar_bytes, place.sidecar)
            return decode_sidecar(beside, place.sidecar, place.start)
        finally:
            self._files.close(descriptor)

    def look(self, attempt: AttemptId) -> tuple[int, str | None] | None:
        """How many bytes it has, and why it cannot be served, if it cannot; None when it is in no pack."""
        path = self._name_of(attempt)
        try:
            loaded = self.load(attempt)
        except FileNotFoundError:
            return None
        except DamagedSidecar as error:
            return 0, f"its sidecar is damaged: {error}"
        size = loaded.sidecar.size
        if (self._files.length(path) or 0) < loaded.start + size:
            return size, f"its pack ends before the {size} bytes that its sidecar says"
        return size, None

    def remove(self, attempt: AttemptId) -> tuple[int, Sequence[AttemptId]]:
        """Take its name away.

        Returns:
            How many bytes it had, as far as can be said; and blobs that should leave the pack for a file of their own, since most of the
            others have left.

        Raises:
            FileNotFoundError: it is in no pack.
        """
        path = self._name_of(attempt)
        try:
            places = self._places(path)
        except DamagedSidecar:
            places = {}
        self._files.remove(path)
        others = [other for other in places if other != attempt]
        left = [other for other in others if self.is_here(other)]
        size = places[attempt].size if attempt in places else 0
        return size, left if len(left) * 2 <= len(others) else ()

    def contents(self, attempt: AttemptId) -> tuple[bytes, bytes]:
        """Its sidecar and its bytes as they are. Raises `FileNotFoundError`, `DamagedSidecar`."""
        path = self._name_of(attempt)
        place = _place(self._places(path), attempt)
        descriptor = self._files.open(path)
        try:
            beside = self._files.read(descriptor, place.sidecar_bytes, place.sidecar)
            return beside, self._files.read(descriptor, place.size, place.start)
        finally:
            self._files.close(descriptor)

    def _places(self, path: str) -> Mapping[AttemptId, Place]:
        descriptor = self._files.open(path)
        try:
            return decode_places(self._first(descriptor))
        finally:
            self._files.close(descriptor)

    def _first(self, descriptor: int) -> bytes:
        """The first bytes; those before a place that the medium cannot read, if there is one: that may be of one blob only."""
        if first := readable(self._files, descriptor, FIRST_BYTES, 0):
            return first
        pieces = []
        for offset in range(0, FIRST_BYTES, SECTOR_BYTES):
            pieces.append(readable(self._files, descriptor, SECTOR_BYTES, offset))
            if len(pieces[-1]) < SECTOR_BYTES:
                break
        return b"".join(pieces)


def _place(places: Mapping[AttemptId, Place], attempt: AttemptId) -> Place:
    try:
        return places[attempt]
    except KeyError:
        raise DamagedSidecar("the pack of its name is of other blobs") from None
