"""Questions about people, files and rights, asked of the catalogue or of an index.

Every question takes an `ISql` (a transaction or a reading connection) and answers with facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from securifile.model.entries import Copy
from securifile.model.facts import Entry, File, Folder, Grant, Person, Server, Session, Settings
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import Role, strongest
from securifile.model.servers import ServerKind
from securifile.sql.facts import ENTRY_COLUMNS, entry_of, grant_of, person_of, server_of, settings_of

TOGETHER = 500
"""Ids in one question: few round trips, and a statement of moderate length."""


@attrs.frozen(kw_only=True)
class Place:
    """Where a path leads: the entries from the owner's root folder on, as far as they exist."""

    owner: str
    segments: tuple[str, ...]
    chain: tuple[Entry, ...]
    """The root first; empty when there is no such person."""

    @property
    def entry(self) -> Entry | None:
        """What is at the path, if anything."""
        return self.chain[-1] if self.chain and len(self.chain) == len(self.segments) + 1 else None

    @property
    def parent(self) -> Folder | None:
        """The folder that the path's last name is, or would be, in."""
        index = len(self.segments) - 1
        last = self.chain[index] if 0 <= index < len(self.chain) else None
        return last if isinstance(last, Folder) else None


@attrs.frozen(kw_only=True)
class Usage:
    """What a person owns."""

    files: int
    bytes: int


@attrs.frozen(kw_only=True)
class Located:
    """An entry and the path to it within its owner's namespace."""

    entry: Entry
    segments: tuple[str, ...]
    role: Role | None = None


async def _with_copies(sql: Any, rows: Sequence[Any]) -> list[Entry]:
    files = [bytes(row[0]) for row in rows if row[5] is not None]
    copies: dict[bytes, list[Copy]] = {file: [] for file in files}
    for start in range(0, len(files), TOGETHER):
        found = await sql.query(
            "SELECT file, node, priority, durable FROM copies WHERE file IN :files ORDER BY file, priority",
            {"files": tuple(files[start : start + TOGETHER])},
        )
        for file, node, priority, durable in found:
            copies[bytes(file)].append(Copy(node=node, priority=priority, durable=bool(durable)))
    return [entry_of(row, tuple(copies.get(bytes(row[0]), ()))) for row in rows]


async def files(sql: Any, ids: Sequence[bytes]) -> list[File]:
    """The files among the entries of these ids, by id."""
    found: list[Entry] = []
    for start in range(0, len(ids), TOGETHER):
        rows = await sql.query(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE id IN :ids ORDER BY id", {"ids": tuple(ids[start : start + TOGETHER])}
        )
        found += await _with_copies(sql, rows)
    return [entry for entry in found if isinstance(entry, File)]


async def _entries(sql: Any, ids: Sequence[bytes]) -> dict[EntryId, Entry | None]:
    """The entries of these ids, as far as they exist."""
    found: list[Entry] = []
    for start in range(0, len(ids), TOGETHER):
        rows = await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE id IN :ids", {"ids": tuple(ids[start : start + TOGETHER])})
        found += await _with_copies(sql, rows)
    return {entry.id: entry for entry in found}


async def holders(sql: Any) -> list[str]:
    """Nodes that some file lists a copy on, members or not, by name."""
    # From one name to the next in the index; SELECT DISTINCT would read every copy there is.
    rows = await sql.query(
        "WITH RECURSIVE names(node) AS (SELECT min(node) FROM copies UNION ALL"
        " SELECT (SELECT min(copies.node) FROM copies WHERE copies.node > names.node) FROM names WHERE names.node IS NOT NULL)"
        " SELECT node FROM names WHERE node IS NOT NULL ORDER BY node"
    )
    return [row[0] for row in rows]


async def entry_by_id(sql: Any, entry: EntryId) -> Entry | None:
    """The entry of that id, if it exists."""
    found = await _with_copies(sql, await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE id = :id", {"id": entry.value}))
    return found[0] if found else None


async def child(sql: Any, parent: EntryId, name: str) -> Entry | None:
    """The entry of that name in a folder."""
    found = await _with_copies(
        sql,
        await sql.query(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE parent = :parent AND name = :name", {"parent": parent.value, "name": name}
        ),
    )
    return found[0] if found else None


async def root(sql: Any, owner: str) -> Folder | None:
    """A person's root folder."""
    # It bears their name, and is found by that alone: asked for the owner too, SQLite looks through all that the owner has.
    rows = await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE parent IS NULL AND name = :owner", {"owner": owner})
    found = await _with_copies(sql, rows)
    return found[0] if found and isinstance(found[0], Folder) else None


async def place(sql: Any, owner: str, segments: tuple[str, ...]) -> Place:
    """Follow a path from the owner's root as far as it goes."""
    start = await root(sql, owner)
    chain: list[Entry] = [] if start is None else [start]
    for name in segments:
        if not chain or not isinstance(chain[-1], Folder):
            break
        below = await child(sql, chain[-1].id, name)
        if below is None:
            break
        chain.append(below)
    return Place(owner=owner, segments=segments, chain=tuple(chain))


async def ancestry(sql: Any, entry: EntryId) -> tuple[Entry, ...]:
    """The entries from the root down to this one; empty when it does not exist."""
    return await _ancestry(sql, entry, {})


async def _ancestry(sql: Any, entry: EntryId, known: dict[EntryId, Entry | None]) -> tuple[Entry, ...]:
    """See `ancestry`; entries in `known` are not asked for, and those that were are added: many files are in few folders."""
    chain: list[Entry] = []
    following: EntryId | None = entry
    while following is not None:
        if following not in known:
            known[following] = await entry_by_id(sql, following)
        found = known[following]
        if found is None:
            return ()
        chain.append(found)
        following = found.parent
    return tuple(reversed(chain))


async def role_along(sql: Any, username: str, chain: Sequence[Entry]) -> Role | None:
    """What a person is to the last entry of a chain: its owner, or the strongest role granted anywhere along it."""
    if not chain:
        return None
    if chain[0].owner == username:
        return Role.OWNER
    names = {f"e{number}": entry.id.value for number, entry in enumerate(chain)}
    rows = await sql.query(
        f"SELECT role FROM grants WHERE username = :username AND entry IN ({', '.join(':' + name for name in names)})",
        {"username": username, **names},
    )
    return strongest([Role(row[0]) for row in rows])


async def children(sql: Any, folder: EntryId, after: str, limit: int) -> list[Entry]:
    """Up to `limit` entries of a folder whose names come after `after`, by name."""
    rows = await sql.query(
        f"SELECT {ENTRY_COLUMNS} FROM entries WHERE parent = :parent AND name > :after ORDER BY name LIMIT :limit",
        {"parent": folder.value, "after": after, "limit": limit},
    )
    return await _with_copies(sql, rows)


async def grants_on(sql: Any, entry: EntryId) -> list[Grant]:
    """The rights given on this very entry, by person."""
    return [grant_of(row) for row in await sql.query("SELECT * FROM grants WHERE entry = :entry ORDER BY username", {"entry": entry.value})]


async def shared_with(sql: Any, username: str, after: bytes, limit: int) -> list[Located]:
    """Entries on which others gave the person a right; by id, those after `after`."""
    rows = await sql.query(
        "SELECT entry, role FROM grants WHERE username = :username AND entry > :after ORDER BY entry LIMIT :limit",
        {"username": username, "after": after, "limit": limit},
    )
    known = await _entries(sql, [bytes(id_) for id_, _ in rows])
    found = []
    for id_, role in rows:
        chain = await _ancestry(sql, EntryId(bytes(id_)), known)
        if chain:
            found.append(Located(entry=chain[-1], segments=tuple(entry.name for entry in chain[1:]), role=Role(role)))
    return found


async def files_of(sql: Any, owner: str, after: bytes, limit: int) -> list[Located]:
    """Files a person owns, with their paths; by id, those after `after`."""
    rows = await sql.query(
        f"SELECT {ENTRY_COLUMNS} FROM entries WHERE owner = :owner AND id > :after AND number IS NOT NULL ORDER BY id LIMIT :limit",
        {"owner": owner, "after": after, "limit": limit},
    )
    files_ = await _with_copies(sql, rows)
    known: dict[EntryId, Entry | None] = {file.id: file for file in files_}
    found = []
    for file in files_:
        chain = await _ancestry(sql, file.id, known)
        found.append(Located(entry=file, segments=tuple(entry.name for entry in chain[1:])))
    return found


async def usage(sql: Any, owner: str) -> Usage:
    """Number and total size of the files a person owns."""
    rows = await sql.query("SELECT files, bytes FROM usage WHERE owner = :owner", {"owner": owner})
    return Usage(files=int(rows[0][0]), bytes=int(rows[0][1])) if rows else Usage(files=0, bytes=0)


async def person(sql: Any, username: str) -> Person | None:
    """The person of that name."""
    rows = await sql.query("SELECT * FROM people WHERE username = :username", {"username": username})
    return person_of(rows[0]) if rows else None


async def person_by_login(sql: Any, login: str) -> Person | None:
    """The person whose user name or e-mail address this is."""
    rows = await sql.query("SELECT * FROM people WHERE username = :login OR email = :login", {"login": login})
    return person_of(rows[0]) if len(rows) == 1 else None


async def people(sql: Any, after: str, limit: int) -> list[Person]:
    """Up to `limit` people whose names come after `after`, by name."""
    rows = await sql.query("SELECT * FROM people WHERE username > :after ORDER BY username LIMIT :limit", {"after": after, "limit": limit})
    return [person_of(row) for row in rows]


async def session(sql: Any, token_hash: bytes) -> Session | None:
    """The session with that token."""
    rows = await sql.query("SELECT * FROM sessions WHERE token_hash = :hash", {"hash": token_hash})
    return Session(token_hash=bytes(rows[0][0]), username=rows[0][1], expires_at=rows[0][2]) if rows else None


async def servers(sql: Any, kind: ServerKind | None = None) -> list[Server]:
    """All servers, or those of a kind, by name."""
    found = [server_of(row) for row in await sql.query("SELECT * FROM servers ORDER BY name")]
    return [one for one in found if kind is None or one.kind is kind]


async def server(sql: Any, name: str) -> Server | None:
    """The server of that name."""
    rows = await sql.query("SELECT * FROM servers WHERE name = :name", {"name": name})
    return server_of(rows[0]) if rows else None


async def settings(sql: Any) -> Settings | None:
    """Cluster id and settings; None in an index that was never fed."""
    rows = await sql.query("SELECT cluster, body FROM settings")
    return settings_of(rows[0]) if rows else None


async def file_of_attempt(sql: Any, attempt: AttemptId) -> File | None:
    """The file whose current version this attempt is."""
    rows = await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE attempt = :attempt", {"attempt": attempt.value})
    found = await _with_copies(sql, rows)
    return found[0] if found and isinstance(found[0], File) else None


@attrs.frozen(kw_only=True)
class Held:
    """A file whose current version a node holds durably."""

    file: EntryId
    size: int
    elsewhere: bool
    """Whether one of the others that were asked about holds it durably, too."""


async def held_by(sql: Any, node: str, others: Sequence[str], after: bytes, limit: int) -> list[Held]:
    """What a node holds, a page at a time: by id, those after `after`. A page that is not full is the last."""
    rows = await sql.query(
        "SELECT mine.file, entries.size, EXISTS"
        " (SELECT 1 FROM copies AS other WHERE other.file = mine.file AND other.node IN :others AND other.durable)"
        " FROM (SELECT file FROM copies WHERE node = :node AND durable AND file > :after ORDER BY file LIMIT :limit) AS mine"
        " JOIN entries ON entries.id = mine.file ORDER BY mine.file",
        {"node": node, "others": tuple(others), "after": after, "limit": limit},
    )
    return [Held(file=EntryId(bytes(file)), size=size, elsewhere=bool(elsewhere)) for file, size, elsewhere in rows]


async def pending_on(sql: Any, node: str) -> list[File]:
    """Files whose current version the node should have and is not known to have, by id."""
    rows = await sql.query(
        f"SELECT {', '.join('entries.' + column for column in ENTRY_COLUMNS.split(', '))} FROM entries"
        " JOIN copies ON copies.file = entries.id AND copies.node = :node AND NOT copies.durable ORDER BY entries.id",
        {"node": node},
    )
    return [entry for entry in await _with_copies(sql, rows) if isinstance(entry, File)]


async def file_by_attempt(sql: Any, file: EntryId, attempt: AttemptId) -> File | None:
    """The file, if this attempt is its current version."""
    found = await entry_by_id(sql, file)
    return found if isinstance(found, File) and found.version.attempt == attempt else None
