"""Putting facts into the tables, and taking them all out again.

The same code keeps the catalogue and every index, so that they cannot come to differ: a commit at the catalogue
decides on facts and then applies them just as each node will.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import attrs

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.sql.dialects import insert_rows

ENTRY_COLUMNS = "id, owner, parent, name, created_at, number, attempt, size, digest, algorithm, committed_at, committed_by"

_BENEATH = """WITH RECURSIVE beneath(id) AS (
    SELECT id FROM entries WHERE id = :id
    UNION ALL
    SELECT entries.id FROM entries JOIN beneath ON entries.parent = beneath.id)"""


@attrs.frozen(kw_only=True)
class Superseded:
    """A blob that the catalogue no longer names as a current version, or no longer wants on one node."""

    file: EntryId
    attempt: AttemptId
    node: str | None = None
    """Only there; None: on every node."""


@attrs.frozen(kw_only=True)
class Renewed:
    """A file that has another version than before, or had none."""

    file: f.File
    row: Sequence[Any] | None
    """As it was before: `ENTRY_COLUMNS`."""
    copies: Sequence[Sequence[Any]] = ()
    """Those of the version before: file, node, priority, durable."""

    @property
    def is_next(self) -> bool:
        """Whether the version before is the one that its number says."""
        return self.file.version.number == 1 + (0 if self.row is None else self.row[5])

    def before(self) -> Version | None:
        """The version before; None if there was no such file."""
        if self.row is None:
            return None
        copies = (Copy(node=node, priority=priority, durable=bool(durable)) for _, node, priority, durable in self.copies)
        was = entry_of(self.row, tuple(copies))
        assert isinstance(was, f.File), "what is a file was no folder"
        return was.version


async def apply_fact(sql: Any, fact: f.Fact, renewed: list[Renewed] | None = None) -> list[Superseded]:
    """Make the tables say what `fact` says; the blobs that are not current any more because of it.

    Args:
        renewed: takes the files that have another version now.
    """
    if isinstance(fact, f.File):
        return await apply_files(sql, [fact], renewed)
    return await _APPLIERS[type(fact)](sql, fact)


async def apply_facts(sql: Any, facts: Iterable[f.Fact], renewed: list[Renewed] | None = None) -> list[Superseded]:
    """The same for each of these, in order; files that follow each other together."""
    superseded: list[Superseded] = []
    files: dict[EntryId, f.File] = {}
    for fact in facts:
        if isinstance(fact, f.File) and fact.id not in files:
            files[fact.id] = fact
            continue
        if files:
            superseded += await apply_files(sql, list(files.values()), renewed)
            files.clear()
        if isinstance(fact, f.File):
            files[fact.id] = fact
        else:
            superseded += await _APPLIERS[type(fact)](sql, fact)
    if files:
        superseded += await apply_files(sql, list(files.values()), renewed)
    return superseded


def _upsert(table: str, columns: Sequence[str], key: Sequence[str]) -> str:
    values = ", ".join(":" + column for column in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}){_again(columns, key)}"


def _again(columns: Sequence[str], key: Sequence[str]) -> str:
    rest = [column for column in columns if column not in key]
    return f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in rest)}"


_PERSON = _upsert("people", [one.name for one in attrs.fields(f.Person)], ["username"])
_SESSION = _upsert("sessions", ["token_hash", "username", "expires_at"], ["token_hash"])
_ENTRY_NAMES = tuple(ENTRY_COLUMNS.split(", "))
_ENTRY_AGAIN = _again(_ENTRY_NAMES, ["id"])
_ENTRY = _upsert("entries", _ENTRY_NAMES, ["id"])
_COPY_NAMES = ("file", "node", "priority", "durable")
_COPY_AGAIN = _again(_COPY_NAMES, ["file", "node"])
_GRANT = _upsert("grants", ["entry", "username", "role", "granted_by"], ["entry", "username"])
_USAGE = (
    "INSERT INTO usage (owner, files, bytes) VALUES (:owner, :files, :bytes)"
    " ON CONFLICT (owner) DO UPDATE SET files = usage.files + excluded.files, bytes = usage.bytes + excluded.bytes"
)
_SERVER = _upsert("servers", [one.name for one in attrs.fields(f.Server)], ["name"])


async def _person(sql: Any, fact: f.Person) -> list[Superseded]:
    before = await sql.query("SELECT credentials, disabled FROM people WHERE username = :username", {"username": fact.username})
    await sql.execute(_PERSON, attrs.asdict(fact))
    if before and (before[0][0] != fact.credentials or fact.disabled):
        await sql.execute("DELETE FROM sessions WHERE username = :username", {"username": fact.username})
    return []


async def _person_gone(sql: Any, fact: f.PersonGone) -> list[Superseded]:
    for table in ("people", "sessions", "grants"):
        await sql.execute(f"DELETE FROM {table} WHERE username = :username", {"username": fact.username})
    return []


async def _session(sql: Any, fact: f.Session) -> list[Superseded]:
    await sql.execute(_SESSION, attrs.asdict(fact))
    return []


async def _session_gone(sql: Any, fact: f.SessionGone) -> list[Superseded]:
    await sql.execute("DELETE FROM sessions WHERE token_hash = :token_hash", attrs.asdict(fact))
    return []


async def _folder(sql: Any, fact: f.Folder) -> list[Superseded]:
    nothing = dict.fromkeys(("number", "attempt", "size", "digest", "algorithm", "committed_at", "committed_by"))
    await sql.execute(
        _ENTRY,
        {
            "id": fact.id.value,
            "owner": fact.owner,
            "parent": None if fact.parent is None else fact.parent.value,
            "name": fact.name,
            "created_at": fact.created_at,
            **nothing,
        },
    )
    return []


def _entry_row(file: f.File) -> tuple[Any, ...]:
    """The values of `ENTRY_COLUMNS`."""
    version = file.version
    return (
        file.id.value,
        file.owner,
        file.parent.value,
        file.name,
        file.created_at,
        version.number,
        version.attempt.value,
        version.size,
        version.digest,
        version.algorithm.value,
        version.committed_at,
        version.committed_by,
    )


async def apply_files(sql: Any, files: Sequence[f.File], renewed: list[Renewed] | None = None) -> list[Superseded]:
    """Like `apply_fact` for each of these, which are different files, with a few statements for all of them."""
    ids = {"files": tuple(file.id.value for file in files)}
    before = {bytes(row[0]): row for row in await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE id IN :files", ids)}
    held: dict[bytes, list[Sequence[Any]]] = {id_: [] for id_ in before}
    if before:
        for row in await sql.query("SELECT file, node, priority, durable FROM copies WHERE file IN :files ORDER BY priority", ids):
            held[bytes(row[0])].append(row)
    put_files(sql, [(file, before[file.id.value][7] if file.id.value in before else None) for file in files])
    superseded = []
    for file in files:
        row = before.get(file.id.value)
        if row is None:
            if renewed is not None:
                renewed.append(Renewed(file=file, row=None))
            continue
        if bytes(row[6]) != file.version.attempt.value:
            superseded.append(Superseded(file=file.id, attempt=AttemptId(bytes(row[6]))))
            if renewed is not None:
                renewed.append(Renewed(file=file, row=row, copies=held[file.id.value]))
            continue
        dropped = {node for _, node, _, _ in held[file.id.value]} - {copy.node for copy in file.version.copies}
        superseded += [Superseded(file=file.id, attempt=file.version.attempt, node=node) for node in sorted(dropped)]
    return superseded


def put_files(sql: Any, files: Sequence[tuple[f.File, int | None]]) -> None:
    """Make the tables say what these facts say, with a few statements for all of them, run later.

    Args:
        files: each with the size of its version just before (None: there was none), in order. One may come more than once.
    """
    last = {file.id: file for file, _ in files}
    sql.later(*insert_rows("entries", _ENTRY_NAMES, [_entry_row(file) for file in last.values()], _ENTRY_AGAIN))
    replaced = tuple({file.id.value: None for file, before in files if before is not None})
    if replaced:
        sql.later("DELETE FROM copies WHERE file IN :files", {"files": replaced})
    copies = {
        (file.id.value, copy.node): (file.id.value, copy.node, copy.priority, copy.durable)
        for file in last.values()
        for copy in file.version.copies
    }
    if copies:
        sql.later(*insert_rows("copies", _COPY_NAMES, list(copies.values()), _COPY_AGAIN))
    counts: dict[str, tuple[int, int]] = {}
    for file, before in files:
        number, size = counts.get(file.owner, (0, 0))
        counts[file.owner] = (number + (before is None), size + file.version.size - (before or 0))
    for owner, (number, size) in counts.items():
        sql.later(_USAGE, {"owner": owner, "files": number, "bytes": size})


async def _count(sql: Any, owner: str, files: int, size: int) -> None:
    await sql.execute(_USAGE, {"owner": owner, "files": files, "bytes": size})


async def _entry_gone(sql: Any, fact: f.EntryGone) -> list[Superseded]:
    this = {"id": fact.id.value}
    rows = await sql.query(f"{_BENEATH} SELECT entries.id, owner, attempt, size FROM entries JOIN beneath ON entries.id = beneath.id", this)
    for row in rows:
        entry = {"id": row[0]}
        await sql.execute("DELETE FROM copies WHERE file = :id", entry)
        await sql.execute("DELETE FROM grants WHERE entry = :id", entry)
        await sql.execute("DELETE FROM entries WHERE id = :id", entry)
    files = [row for row in rows if row[2] is not None]
    if files:
        await _count(sql, files[0][1], -len(files), -sum(row[3] for row in files))
    return [Superseded(file=EntryId(bytes(row[0])), attempt=AttemptId(bytes(row[2]))) for row in files]


async def _grant(sql: Any, fact: f.Grant) -> list[Superseded]:
    await sql.execute(
        _GRANT, {"entry": fact.entry.value, "username": fact.username, "role": fact.role.value, "granted_by": fact.granted_by}
    )
    return []


async def _grant_gone(sql: Any, fact: f.GrantGone) -> list[Superseded]:
    await sql.execute(
        "DELETE FROM grants WHERE entry = :entry AND username = :username", {"entry": fact.entry.value, "username": fact.username}
    )
    return []


async def _server(sql: Any, fact: f.Server) -> list[Superseded]:
    await sql.execute(_SERVER, {**attrs.asdict(fact), "kind": fact.kind.value, "status": fact.status.value})
    return []


async def _server_gone(sql: Any, fact: f.ServerGone) -> list[Superseded]:
    await sql.execute("DELETE FROM servers WHERE name = :name", {"name": fact.name})
    return []


async def _settings(sql: Any, fact: f.Settings) -> list[Superseded]:
    await sql.execute("DELETE FROM settings")
    await sql.execute(
        "INSERT INTO settings (cluster, body) VALUES (:cluster, :body)",
        {"cluster": fact.cluster, "body": json.dumps(attrs.asdict(fact.settings), sort_keys=True)},
    )
    return []


_APPLIERS: dict[type, Callable[[Any, Any], Awaitable[list[Superseded]]]] = {
    f.Person: _person,
    f.PersonGone: _person_gone,
    f.Session: _session,
    f.SessionGone: _session_gone,
    f.Folder: _folder,
    f.EntryGone: _entry_gone,
    f.Grant: _grant,
    f.GrantGone: _grant_gone,
    f.Server: _server,
    f.ServerGone: _server_gone,
    f.Settings: _settings,
}


# --- rows to facts ---


def person_of(row: Sequence[Any]) -> f.Person:
    """A row of `people`, all columns in order."""
    username, email, administrator, valid_from, valid_until, disabled, quota_bytes, credentials = row
    return f.Person(
        username=username,
        email=email,
        administrator=bool(administrator),
        valid_from=valid_from,
        valid_until=valid_until,
        disabled=bool(disabled),
        quota_bytes=quota_bytes,
        credentials=credentials,
    )


def server_of(row: Sequence[Any]) -> f.Server:
    """A row of `servers`, all columns in order."""
    name, kind, url, protocol_address, public_key, status, syslog_address, boot, offline, draining, since = row
    return f.Server(
        name=name,
        kind=ServerKind(kind),
        url=url,
        protocol_address=protocol_address,
        public_key=bytes(public_key),
        status=Status(status),
        syslog_address=syslog_address,
        boot=boot,
        offline=bool(offline),
        draining=bool(draining),
        since=since,
    )


def settings_of(row: Sequence[Any]) -> f.Settings:
    """A row of `settings`; a setting this release does not know is passed over."""
    cluster, body = row
    known = {one.name for one in attrs.fields(ClusterSettings)}
    values = {name: value for name, value in json.loads(body).items() if name in known}
    if "digest" in values:
        values["digest"] = DigestAlgorithm(values["digest"])
    return f.Settings(cluster=cluster, settings=ClusterSettings(**values))


def grant_of(row: Sequence[Any]) -> f.Grant:
    """A row of `grants`, all columns in order."""
    entry, username, role, granted_by = row
    return f.Grant(entry=EntryId(bytes(entry)), username=username, role=Role(role), granted_by=granted_by)


def entry_of(row: Sequence[Any], copies: tuple[Copy, ...]) -> f.Entry:
    """A row of `entries` (`ENTRY_COLUMNS`), with the file's copies in order of priority."""
    id_, owner, parent, name, created_at, number, attempt, size, digest, algorithm, committed_at, committed_by = row
    parent_id = None if parent is None else EntryId(bytes(parent))
    if number is None:
        return f.Folder(id=EntryId(bytes(id_)), owner=owner, parent=parent_id, name=name, created_at=created_at)
    assert parent_id is not None, "a file is in a folder"
    return f.File(
        id=EntryId(bytes(id_)),
        owner=owner,
        parent=parent_id,
        name=name,
        created_at=created_at,
        version=Version(
            number=number,
            attempt=AttemptId(bytes(attempt)),
            size=size,
            digest=bytes(digest),
            algorithm=DigestAlgorithm(algorithm),
            committed_at=committed_at,
            committed_by=committed_by,
            copies=copies,
        ),
    )


async def every_fact(sql: Any) -> list[f.Fact]:
    """Everything in the tables, in an order in which it can be applied: what a snapshot is made of."""
    everything: list[f.Fact] = [settings_of(row) for row in await sql.query("SELECT cluster, body FROM settings")]
    everything += [server_of(row) for row in await sql.query("SELECT * FROM servers ORDER BY name")]
    everything += [person_of(row) for row in await sql.query("SELECT * FROM people ORDER BY username")]
    everything += [
        f.Session(token_hash=bytes(row[0]), username=row[1], expires_at=row[2])
        for row in await sql.query("SELECT * FROM sessions ORDER BY token_hash")
    ]
    copies: dict[bytes, list[Copy]] = {}
    for file, node, priority, durable in await sql.query("SELECT file, node, priority, durable FROM copies ORDER BY priority"):
        copies.setdefault(bytes(file), []).append(Copy(node=node, priority=priority, durable=bool(durable)))
    everything += [
        entry_of(row, tuple(copies.get(bytes(row[0]), ()))) for row in await sql.query(f"SELECT {ENTRY_COLUMNS} FROM entries ORDER BY id")
    ]
    everything += [grant_of(row) for row in await sql.query("SELECT * FROM grants ORDER BY entry, username")]
    return everything
