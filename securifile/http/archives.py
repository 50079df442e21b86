"""A folder, or some of what is in it, as one zip archive: `GET /api/v1/archive/{owner}/{folder}/`, `?name=` for each thing chosen.

Nothing is written anywhere: the archive is planned (`zip_format.py`) from names and sizes, and made while it is sent.
So its length is known, any range of it can be asked for, and a download that broke goes on (`curl -C -`). It is bound
to the versions that were there when it was asked for; its entity tag names them, and whoever goes on after one of them
changed begins anew.

The checksum of a content is only known when it was read to its end. Who asks for a range behind it makes this server read
it again; checksums of versions that were read are remembered, since versions never change.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from securifile.http.answers import path_text
from securifile.http.backend import Backend
from securifile.http.content import download_headers
from securifile.http.delivery import Delivery, choose
from securifile.http.exchange import Access, Answer, Streamed
from securifile.http.lookup import NOT_HERE, Lookup
from securifile.http.ranges import Verdict, evaluate, parse_preconditions
from securifile.http.request import Request
from securifile.http.sources import Sources, VersionSource
from securifile.http.targets import Target
from securifile.http.zip_format import Archive, Member, Part, Stretch
from securifile.model.entries import Version
from securifile.model.errors import Code, Refusal, SpoolFull, StreamBroken
from securifile.model.facts import Entry, File, Folder
from securifile.model.ids import AttemptId
from securifile.model.records import AuditRecord
from securifile.model.roles import Action
from securifile.model.serving import serving_order
from securifile.sql import directory

MEMBERS_MAX = 50_000
"""Files and folders in one archive: each takes about 1.5 KiB of this server's memory while the archive is sent."""

CHECKSUMS_MAX = 50_000
"""Versions whose checksums are remembered: those of one archive of the largest kind, some 10 MiB."""

PAGE = 1_000
"""Entries looked up at a time, so that others get their turn."""

GATHERED_BYTES = 1 << 16
"""Headers and small files are sent together up to here: a write for each would cost more than the bytes."""


@attrs.frozen(kw_only=True)
class Planned:
    """One member of an archive, and what is in it."""

    member: Member
    entry: Entry
    path: str
    """Where it lies, as the audit trail names it."""


class Archives:
    """Gives archives on one server."""

    def __init__(self, *, backend: Backend, lookup: Lookup, sources: Sources, delivery: Delivery) -> None:
        self._backend = backend
        self._lookup = lookup
        self._sources = sources
        self._delivery = delivery
        self._checksums: OrderedDict[AttemptId, int] = OrderedDict()

    async def get(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """Answer `GET` or `HEAD` of an archive. Raises `Refusal`."""
        found = await self._lookup.find(access, target, Action.READ)
        if not isinstance(found.entry, Folder):
            raise Refusal(Code.NOT_A_FOLDER, "This is a file. Download it by itself, or put a slash at the end of a folder's path.")
        planned = await self._plan(found.entry, target, request.queries("name"))
        archive = Archive([one.member for one in planned])
        etag = etag_of(planned)
        headers = download_headers(f"{target.name}.zip", "application/zip", etag)
        preconditions = parse_preconditions(request.header)
        if evaluate(preconditions, "GET", etag) is Verdict.NOT_MODIFIED:
            return Answer(status=304, headers=tuple(headers))
        if request.method == b"HEAD":
            request.start(200, headers, archive.size).finish()
            return Streamed(status=200)
        chosen = choose(request, preconditions, etag, archive.size)
        source = ArchiveSource(self, request, access, archive, planned, archive.stretches(chosen.start, chosen.stop))
        try:
            await self._delivery.send(request, access, found.entry.id, source, chosen, headers)
        finally:
            source.close()
        return Streamed(status=chosen.status)

    # --- what is in it ---

    async def _plan(self, folder: Folder, target: Target, names: Sequence[str]) -> list[Planned]:
        """All members, a folder before what is in it. Raises `Refusal`."""
        planned: list[Planned] = []
        taken: set[str] = set()
        # Folders that wait for their turn, with the path to them in the archive; the last is the next.
        waiting: list[tuple[Folder, tuple[str, ...], str]] = []

        def add(entry: Entry, segments: tuple[str, ...], above: str) -> None:
            name = unused(f"{above}{portable(entry.name or target.owner)}", taken)
            path = path_text(target.owner, segments)
            if isinstance(entry, Folder):
                planned.append(Planned(member=Member(name=f"{name}/", size=0, modified_at=entry.created_at), entry=entry, path=path))
                waiting.append((entry, segments, f"{name}/"))
            else:
                version = entry.version
                member = Member(name=name, size=version.size, modified_at=version.committed_at)
                planned.append(Planned(member=member, entry=entry, path=path))
            if len(planned) > MEMBERS_MAX:
                raise Refusal(
                    Code.TOO_LARGE,
                    f"An archive may hold {MEMBERS_MAX} files and folders, and there are more here. Choose some, or a folder further down.",
                    members_max=MEMBERS_MAX,
                )

        if names:
            for name in dict.fromkeys(names):
                entry = await self._backend.read(partial(directory.child, parent=folder.id, name=name))
                entry = await self._shown(entry)
                if entry is None:
                    raise Refusal(Code.NOT_FOUND, NOT_HERE, name=name)
                add(entry, (*target.segments, entry.name), "")
        else:
            add(folder, target.segments, "")
        while waiting:
            parent, segments, above = waiting.pop()
            after = ""
            while True:
                page = await self._backend.read(partial(directory.children, folder=parent.id, after=after, limit=PAGE))
                for found in page:
                    if (shown := await self._shown(found)) is not None:
                        add(shown, (*segments, shown.name), above)
                if len(page) < PAGE:
                    break
                after = page[-1].name
        self._all_can_be_had(planned)
        return planned

    async def _shown(self, entry: Entry | None) -> Entry | None:
        """See `Backend.shown`."""
        return await self._backend.shown(entry) if isinstance(entry, File) else entry

    def _all_can_be_had(self, planned: Sequence[Planned]) -> None:
        """An archive with holes would be taken for whole: if a file cannot be had now, there is none."""
        lost = [one.path for one in planned if isinstance(one.entry, File) and not self._order(one.entry.version)]
        if lost:
            raise Refusal(
                Code.NO_HOLDER,
                f"None of the servers that have {lost[0]} is running, so the archive would not be whole. Try again later.",
                retry_after_s=5.0,
                files=lost[:10],
                files_count=len(lost),
            )

    def _order(self, version: Version) -> list[str]:
        """Whom to ask for a version: this server first, if it has it."""
        return sorted(serving_order(version, self._backend.is_available), key=lambda holder: holder != self._backend.name)

    # --- what the sources of one archive need ---

    def open(self, version: Version, start: int, stop: int) -> VersionSource:
        """The bytes [start, stop) of a version, from whoever has it."""
        return self._sources.open(version, self._order(version), start, stop)

    async def checksum(self, version: Version) -> int:
        """The CRC-32 of a version, remembered or read. Raises `Refusal`."""
        known = self._checksums.get(version.attempt)
        if known is None:
            known = await self.checksum_of(version, 0, version.size)
            self.remember(version, known)
        return known

    async def checksum_of(self, version: Version, start: int, stop: int) -> int:
        """The CRC-32 of the bytes [start, stop). Raises `Refusal`."""
        checksum = 0
        source = self.open(version, start, stop)
        try:
            while data := await source.read():
                checksum = zlib.crc32(data, checksum)
        finally:
            source.close()
        return checksum

    def remember(self, version: Version, checksum: int) -> None:
        """Keep the CRC-32 of a version that was read whole."""
        self._checksums[version.attempt] = checksum
        self._checksums.move_to_end(version.attempt)
        if len(self._checksums) > CHECKSUMS_MAX:
            self._checksums.popitem(last=False)

    def note(self, request: Request, access: Access, one: Planned) -> None:
        """Write down that a file is being read. Raises `StreamBroken` when there is no room to."""
        record = AuditRecord(
            at=self._backend.wall(),
            server=self._backend.name,
            event="read",
            person=access.signed_in.username,
            path=one.path,
            entry=str(one.entry.id),
            bytes=one.member.size,
            peer=request.peer,
            detail=f"in the archive of {access.path}",
        )
        try:
            self._backend.audit.note(record)
        except SpoolFull as full:
            raise StreamBroken(f"who reads what cannot be written down: {full}") from full


class ArchiveSource:
    """The bytes of a range of an archive."""

    def __init__(
        self,
        archives: Archives,
        request: Request,
        access: Access,
        archive: Archive,
        planned: Sequence[Planned],
        stretches: Iterator[Stretch],
    ) -> None:
        self._archives = archives
        self._request = request
        self._access = access
        self._archive = archive
        self._planned = planned
        self._stretches = stretches
        self._content: VersionSource | None = None
        self._reading: Stretch | None = None
        self._checksum = 0

    def read(self) -> Deferred[bytes]:
        """See `Source`."""
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        gathered = bytearray()
        while len(gathered) < GATHERED_BYTES:
            if self._content is not None:
                gathered += await self._next_of_content()
                continue
            stretch = next(self._stretches, None)
            if stretch is None:
                break
            if stretch.part is Part.CONTENT:
                await self._begin(stretch)
            else:
                gathered += (await self._rendered(stretch))[stretch.start : stretch.stop]
        return bytes(gathered)

    async def _begin(self, stretch: Stretch) -> None:
        version = self._version(stretch.member)
        self._archives.note(self._request, self._access, self._planned[stretch.member])
        # What is not sent counts for the checksum too.
        self._checksum = await self._archives.checksum_of(version, 0, stretch.start) if stretch.start else 0
        self._content, self._reading = self._archives.open(version, stretch.start, stretch.stop), stretch

    async def _next_of_content(self) -> bytes:
        assert self._content is not None and self._reading is not None
        data: bytes = await self._content.read()
        if data:
            self._checksum = zlib.crc32(data, self._checksum)
            return data
        version = self._version(self._reading.member)
        if self._reading.stop == version.size:
            self._archives.remember(version, self._checksum)
        self.close()
        return b""

    async def _rendered(self, stretch: Stretch) -> bytes:
        number = stretch.member
        match stretch.part:
            case Part.LOCAL:
                return self._archive.local(number)
            case Part.DESCRIPTOR:
                return self._archive.descriptor(number, await self._archives.checksum(self._version(number)))
            case Part.CENTRAL:
                is_file = isinstance(self._planned[number].entry, File)
                return self._archive.central(number, await self._archives.checksum(self._version(number)) if is_file else 0)
            case _:
                return self._archive.end()

    def _version(self, number: int) -> Version:
        entry: Any = self._planned[number].entry
        version: Version = entry.version
        return version

    def close(self) -> None:
        """Ask for nothing any more."""
        content, self._content, self._reading = self._content, None, None
        if content is not None:
            content.close()


def etag_of(planned: Sequence[Planned]) -> str:
    """The strong entity tag of an archive: the same members, versions and dates make the same bytes."""
    digest = hashlib.sha256(b"1")
    for one in planned:
        version = one.entry.version.attempt.value if isinstance(one.entry, File) else b""
        digest.update(f"{one.member.name}\0{one.member.size} {one.member.modified_at!r} ".encode() + version)
    return f'"zip-{digest.hexdigest()[:32]}"'


def portable(name: str) -> str:
    """A name that leads nowhere else on any system: a backslash is an ordinary character here, and separates names on Windows."""
    return name.replace("\\", "_")


def unused(name: str, taken: set[str]) -> str:
    """`name`, with a number behind it if it is taken; takes it."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    taken.add(candidate)
    return candidate
