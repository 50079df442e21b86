"""What the two engines agree on, so that a question is written once and asked of PostgreSQL and of SQLite.

A statement is SQL with parameters as `:name`. A parameter that is a tuple, list or set stands for a parenthesised list
(`IN :names`). Each engine wants its own spelling; the translations are here, because they are pure and because the two
must not drift apart. So is the rule that a transaction is not opened within another.

    "… name = :name AND kind IN :kinds"   →   PostgreSQL  … name = %(name)s AND kind IN %(kinds)s
                                          →   SQLite      … name = :name AND kind IN (:kinds__0, :kinds__1)
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

T = TypeVar("T")

POSTGRESQL = "postgresql"
SQLITE = "sqlite"

# A literal, a quoted name, a comment and a dollar-quoted body are pieces in which a colon means nothing; `::` is a cast.
_PIECES = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
      | :: | :(?P<name>[A-Za-z_]\w*) | %""",
    re.VERBOSE | re.DOTALL,
)
_ROW_LOCK = re.compile(r"\s+FOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|SHARE)(?:\s+(?:NOWAIT|SKIP\s+LOCKED))?\s*;?\s*$", re.IGNORECASE)

_COLLECTIONS = (tuple, list, frozenset, set)

# Different statements are written in the code, not made at run time: a few hundred. The bound only keeps a mistake small.
_REMEMBERED = 2048


@lru_cache(_REMEMBERED)
def for_psycopg(statement: str) -> str:
    """The statement with `%(name)s` for `:name`, and every other `%` doubled."""

    def spell(piece: re.Match[str]) -> str:
        name = piece["name"]
        return f"%({name})s" if name else piece[0].replace("%", "%%")

    return _PIECES.sub(spell, statement)


def parameters_for_psycopg(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as psycopg2 adapts them: collections as tuples, an empty one as a list that nothing is in."""
    return {name: _listed(value) if isinstance(value, _COLLECTIONS) else value for name, value in parameters.items()}


def for_sqlite(statement: str, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The statement without its row lock and with lists written out, and the parameters that go with it.

    A row lock (`FOR UPDATE` at the end) is left out because a writing transaction holds the whole database.
    """
    lists = {name: _listed(value) for name, value in parameters.items() if isinstance(value, _COLLECTIONS)}
    if not lists:
        return _without_row_lock(statement), parameters
    spelled = _with_lists(statement, tuple((name, len(values)) for name, values in lists.items()))
    flat = {name: value for name, value in parameters.items() if name not in lists}
    flat.update((f"{name}__{index}", value) for name, values in lists.items() for index, value in enumerate(values))
    return spelled, flat


def _listed(values: Any) -> tuple[Any, ...]:
    """The members of a list parameter. `IN (NULL)` holds for nothing, on both engines; `IN ()` is an error on one of them."""
    # Sets are sorted, so that the same call asks the same thing in the next run.
    return tuple(sorted(values) if isinstance(values, (set, frozenset)) else values) or (None,)


@lru_cache(_REMEMBERED)
def _without_row_lock(statement: str) -> str:
    return _ROW_LOCK.sub("", statement)


@lru_cache(_REMEMBERED)
def _with_lists(statement: str, lengths: tuple[tuple[str, int], ...]) -> str:
    length_of = dict(lengths)

    def spell(piece: re.Match[str]) -> str:
        name = piece["name"]
        if name not in length_of:
            return piece[0]
        return "(" + ", ".join(f":{name}__{index}" for index in range(length_of[name])) + ")"

    return _PIECES.sub(spell, _without_row_lock(statement))


def insert_rows(table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], rest: str = "") -> tuple[str, dict[str, Any]]:
    """One statement that inserts several rows, with its parameters.

    Args:
        rest: what follows, as `ON CONFLICT …`.
    """
    statement, names = _inserting(table, tuple(columns), len(rows), rest)
    return statement, dict(zip(names, chain.from_iterable(rows), strict=True))


@lru_cache(_REMEMBERED)
def _inserting(table: str, columns: tuple[str, ...], count: int, rest: str) -> tuple[str, tuple[str, ...]]:
    names = [[f"{column}_{number}" for column in columns] for number in range(count)]
    values = ", ".join(f"(:{', :'.join(row)})" for row in names)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {values}{rest}", tuple(chain.from_iterable(names))


class _Stay:
    """One stay inside the work of a transaction; over when the work has ended, whatever it left running behind."""

    def __init__(self, database: object) -> None:
        self.database = database
        self.over = False


_stays: ContextVar[tuple[_Stay, ...]] = ContextVar("securifile_transactions", default=())


def refuse_nesting(database: object) -> None:
    """Say at once that a transaction is being opened within another of the same database.

    It would wait for a connection or a lock that the outer one holds: for ever on SQLite, on PostgreSQL only when busy,
    which is worse.

    Raises:
        RuntimeError: the caller runs inside `work` of a transaction or snapshot of `database`.
    """
    if any(stay.database is database and not stay.over for stay in _stays.get()):
        raise RuntimeError("a transaction was opened within another of the same database")


async def within(database: object, work: Callable[[Any], Awaitable[T]], sql: Any) -> T:
    """Await `work(sql)`, while `refuse_nesting` refuses what it calls."""
    with _staying(database):
        return await work(sql)


@contextmanager
def _staying(database: object) -> Iterator[None]:
    stay = _Stay(database)
    token = _stays.set((*_stays.get(), stay))
    try:
        yield
    finally:
        stay.over = True
        # A coroutine that is thrown away unfinished is closed in another context, where there is nothing to put back.
        with suppress(ValueError):
            _stays.reset(token)
