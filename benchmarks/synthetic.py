"""Very many files in a catalogue and in a node's index at once: rows made in bulk, in both the same; there are no blobs.

alice/bench/many/        half of them, in one folder
alice/bench/tree/NNNN/   the other half, a hundred in each folder
alice/bench/few/         ten that do not count
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import md5, sha256
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.cluster import PERSON, SecuriFile
from securifile.admin.postgres import DATABASE
from securifile.admin.postgres_places import ROLE
from securifile.sql.facts import ENTRY_COLUMNS

IN_A_FOLDER = 100
SIZE_BYTES = 4096
AT = 1_700_000_000.0
DIGEST = sha256(b"there is no such file").digest()
AT_ONCE = 2000
"""Rows in a transaction of the index: the node, which writes to it as well, waits a moment at most."""

Row = tuple[Any, ...]


def name_of(number: int) -> str:
    """Of a file, within its folder."""
    return f"file-{number:07}"


def path_of(number: int) -> str:
    """Where a file of the tree is, below `bench`; odd numbers are in the tree, even ones in `many`."""
    return f"tree/{_folder(number):04}/{name_of(number)}" if number % 2 else f"many/{name_of(number)}"


def _folder(number: int) -> int:
    return number // 2 // IN_A_FOLDER


def _id(kind: str, number: int) -> bytes:
    return md5(f"{kind} {number}".encode(), usedforsecurity=False).digest()


class Synthetic:
    """What was put into one cluster so far."""

    def __init__(self, us: SecuriFile) -> None:
        """Make the folders that are not synthetic."""
        self._us = us
        self.count = 0
        self._folders = 0
        for name in ("many", "tree", "few"):
            us.make_folder(name)
        bench = self._catalogue("SELECT id FROM entries WHERE name = 'bench' AND owner = %s", PERSON)[0][0]
        found = self._catalogue("SELECT name, id FROM entries WHERE parent = %s", bench)
        self._parents = {name: bytes(id_) for name, id_ in found}

    def grow(self, count: int) -> None:
        """Have so many files in all."""
        folders = _folder(count - 1) + 1
        made = range(self.count, count)
        tables: list[tuple[str, str, Iterator[Row]]] = [
            ("entries", ENTRY_COLUMNS, self._folder_rows(range(self._folders, folders))),
            ("entries", ENTRY_COLUMNS, map(self._file_row, made)),
            ("copies", "file, node, priority, durable", self._copy_rows(made)),
        ]
        only = [("versions", _VERSION_COLUMNS, map(self._version_row, made))]
        self._into_catalogue([(table, columns, list(rows)) for table, columns, rows in (*tables, *only)])
        tables[0] = ("entries", ENTRY_COLUMNS, self._folder_rows(range(self._folders, folders)))
        tables[1] = ("entries", ENTRY_COLUMNS, map(self._file_row, made))
        tables[2] = ("copies", "file, node, priority, durable", self._copy_rows(made))
        self._into_index(tables)
        self.count, self._folders = count, folders

    def _folder_rows(self, numbers: Iterable[int]) -> Iterator[Row]:
        for number in numbers:
            yield (_id("folder", number), PERSON, self._parents["tree"], f"{number:04}", AT, None, None, None, None, None, None, None)

    def _file_row(self, number: int) -> Row:
        parent = _id("folder", _folder(number)) if number % 2 else self._parents["many"]
        version = (1, _id("attempt", number), SIZE_BYTES, DIGEST, "sha256", AT, PERSON)
        return (_id("file", number), PERSON, parent, name_of(number), AT, *version)

    def _copy_rows(self, numbers: Iterable[int]) -> Iterator[Row]:
        for number in numbers:
            for priority, node in enumerate(self._us.nodes()):
                yield (_id("file", number), node, priority, True)

    def _version_row(self, number: int) -> Row:
        return (_id("file", number), 1, _id("attempt", number), SIZE_BYTES, DIGEST, "sha256", self._us.node, AT, PERSON, 1, 1)

    # --- the two databases ---

    def _connect(self) -> Any:
        return closing(psycopg2.connect(host=str(self._us.cluster.admin.data / "postgres" / "data"), user=ROLE, dbname=DATABASE))

    def _catalogue(self, statement: str, *parameters: object) -> list[Row]:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def _into_catalogue(self, tables: Sequence[tuple[str, str, Sequence[Row]]]) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            for table, columns, rows in tables:
                text = io.StringIO("".join("\t".join(map(_copied, row)) + "\n" for row in rows))
                cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN", text)
            connection.commit()
            connection.autocommit = True
            cursor.execute("ANALYZE")

    def _into_index(self, tables: Sequence[tuple[str, str, Iterator[Row]]]) -> None:
        path: Path = self._us.cluster.directory / self._us.node / "index.sqlite"
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            # Keys come in no order: with pages kept in memory, and without waiting for the disk, which nobody relies on here.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -500000")
            for table, columns, rows in tables:
                statement = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(', ')))})"
                while some := list(islice(rows, AT_ONCE)):
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(statement, some)
                    connection.execute("COMMIT")


_VERSION_COLUMNS = "file, number, attempt, size, digest, algorithm, origin, committed_at, committed_by, epoch, revision"


def _copied(value: object) -> str:
    """As COPY takes it."""
    if value is None:
        return "\\N"
    return f"\\\\x{value.hex()}" if isinstance(value, bytes) else str(value)
